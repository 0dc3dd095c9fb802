# SPDX-License-Identifier: MIT OR Apache-2.0
"""Paired measurements against torch, transformers and TransformerLens."""
