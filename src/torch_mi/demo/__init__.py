# SPDX-License-Identifier: MIT OR Apache-2.0
"""The packaged demo model: weights, tokenizer, card."""
