# SPDX-License-Identifier: MIT OR Apache-2.0
"""GPT-2 and its kin, with learned positions or linear biases."""

from torch_mi.families.family import Family

GPTS: tuple[Family, ...] = ()
