# SPDX-License-Identifier: MIT OR Apache-2.0
"""What runs the annotations of every function of the package as checks, in the tests only."""

from typing import Self

from beartype import BeartypeConf, FrozenDict, beartype

# Functions are checked one by one, where `Self` has no class to stand for.
check = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({Self: object})))
