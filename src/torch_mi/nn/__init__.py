# SPDX-License-Identifier: MIT OR Apache-2.0
"""The arithmetic that architectures are made of."""
