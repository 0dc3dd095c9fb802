# SPDX-License-Identifier: MIT OR Apache-2.0
"""GPT-2 and its kin, with learned positions or linear biases."""

from tests.parity.cases.case import Case

CASES: tuple[Case, ...] = ()
