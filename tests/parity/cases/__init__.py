# SPDX-License-Identifier: MIT OR Apache-2.0
"""Every kind of model that is compared with `transformers`."""

from tests.parity.cases import gpt, llama, modern, moe

CASES = (*llama.CASES, *gpt.CASES, *modern.CASES, *moe.CASES)
