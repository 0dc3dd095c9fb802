# SPDX-License-Identifier: MIT OR Apache-2.0
"""Later dense families, with norms of queries and keys, multipliers and layers without rotary embedding."""

from tests.parity.cases.case import Case

CASES: tuple[Case, ...] = ()
