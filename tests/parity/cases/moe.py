# SPDX-License-Identifier: MIT OR Apache-2.0
"""Mixtures of experts."""

from tests.parity.cases.case import Case

CASES: tuple[Case, ...] = ()
