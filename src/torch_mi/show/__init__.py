# SPDX-License-Identifier: MIT OR Apache-2.0
"""Results as tables, plots and pages."""
