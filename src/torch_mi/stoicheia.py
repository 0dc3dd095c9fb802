# SPDX-License-Identifier: MIT OR Apache-2.0
"""The networks of AlgZoo as models: the same door, the same hooks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from torch_mi.backends.stoicheia import ReluRnn
from torch_mi.backends.transformer import Transformer
from torch_mi.config.stoicheia import ReluRnnConfig
from torch_mi.config.transformer import TransformerConfig
from torch_mi.manifest import Origin
from torch_mi.model import MIModel


def relu_model(weights: Mapping[str, Tensor], seq_len: int, name: str) -> MIModel:
    """A model that reads up to `seq_len` numbers; `weights` go by the names of `ReluRnn`.

    The logits of the last position are the answer.
    """
    out, hidden = weights["w_oh"].shape
    cfg = ReluRnnConfig(hidden_size=hidden, seq_len=seq_len, output_size=out)
    with torch.device("meta"):
        backend = ReluRnn(cfg)
    own = {key: value.detach().clone() for key, value in weights.items()}
    backend.load_state_dict(own, strict=True, assign=True)
    return MIModel(backend.eval(), None, Origin(name, "stoicheia"))


def attention_model(weights: Mapping[str, Tensor], depth: int, name: str) -> MIModel:
    """A model of attention alone, one head a layer, that looks everywhere.

    `weights` go by the names of `Transformer`. The logits of the last position are the answer.
    """
    n, width = weights["positions.weight"].shape
    cfg = TransformerConfig.toy(
        vocab_size=len(weights["tokens.weight"]),
        num_layers=depth,
        hidden_size=width,
        num_attention_heads=1,
        intermediate_size=0,
        max_position_embeddings=n,
        norm_type="absent",
        biases=False,
        causal=False,
        output_vocab_size=len(weights["head.weight"]),
    )
    with torch.device("meta"):
        backend = Transformer(cfg)
    own = {key: value.detach().clone() for key, value in weights.items()}
    backend.load_state_dict(own, strict=True, assign=True)
    return MIModel(backend.eval(), None, Origin(name, "stoicheia"))
