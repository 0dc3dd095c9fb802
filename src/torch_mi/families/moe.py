# SPDX-License-Identifier: MIT OR Apache-2.0
"""Mixtures of experts."""

from torch_mi.families.family import Family

MIXTURES: tuple[Family, ...] = ()
