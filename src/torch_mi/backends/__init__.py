# SPDX-License-Identifier: MIT OR Apache-2.0
"""Architectures behind one protocol."""
