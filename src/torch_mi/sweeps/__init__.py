# SPDX-License-Identifier: MIT OR Apache-2.0
"""Many runs that differ in their edits: metrics, the one loop, and grids of scores."""
