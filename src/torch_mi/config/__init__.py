# SPDX-License-Identifier: MIT OR Apache-2.0
"""What models are, as data: dataclasses whose fields are choices of arithmetic."""
