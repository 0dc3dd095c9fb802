# SPDX-License-Identifier: MIT OR Apache-2.0
"""Later dense families, with norms of queries and keys, multipliers and layers without rotary embedding."""

from torch_mi.families.family import Family

MODERN: tuple[Family, ...] = ()
