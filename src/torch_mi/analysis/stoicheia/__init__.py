# SPDX-License-Identifier: MIT OR Apache-2.0
"""AlgZoo: networks of 8 to 1,408 parameters, understood completely."""
