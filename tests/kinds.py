# SPDX-License-Identifier: MIT OR Apache-2.0
"""Families that between them have every kind of arithmetic, for tests of what does not name any."""

KINDS = (
    "llama",  # grouped heads, biases
    "gpt2",  # learned positions, tied
    "gptj",  # one norm for both halves, interleaved rotary embedding
    "gpt_neox",  # two norms side by side
    "bloom",  # linear biases, a normed embedding
    "falcon",
    "mistral",  # windows
    "gemma2",  # norms on both sides, soft-caps
    "gemma3_text",  # two rotary embeddings
    "olmo2",  # norms on the outputs, of queries and keys
    "cohere2",  # layers without rotary embedding
    "granite",  # multipliers
    "mixtral",  # experts
    "deepseek_v3",  # latent attention, groups of experts
)
