# SPDX-License-Identifier: MIT OR Apache-2.0
"""Tiny random `transformers` models of every family, and what they compute.

Every parameter is perturbed: gains are not one, biases not zero, so that a parameter in the wrong
place, or in none, changes the numbers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

Config = Mapping[str, object]

COMMON: Config = {
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 83,
    "max_position_embeddings": 64,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
WIDE = {"head_dim": 10}
"""Heads wider than an even share."""


@dataclass(frozen=True)
class Case:
    """One kind of model: a family, and where its config differs from `COMMON`."""

    name: str
    family: str
    config: Config = field(default_factory=dict[str, object])

    def __str__(self) -> str:
        return self.name


def rope(kind: str, **more: object) -> Config:
    """A rotary embedding, in the spelling of transformers 5."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **more}}


YARN = rope("yarn", factor=4.0, original_max_position_embeddings=8)
SHORT = [1.0, 1.3, 2.5]
LONG = [1.0, 2.0, 6.0]

CASES = (
    Case("llama-gqa-biased", "llama", {**WIDE, "attention_bias": True, "mlp_bias": True}),
    Case("llama-mqa-tied", "llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    Case("llama-mha-linear", "llama", {"num_key_value_heads": 6, **rope("linear", factor=3.0)}),
    Case("llama-dynamic", "llama", {"max_position_embeddings": 9, **rope("dynamic", factor=4.0)}),
    Case("llama-yarn", "llama", YARN),
    Case(
        "llama-llama3",
        "llama",
        {
            **WIDE,
            **rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=16,
            ),
        },
    ),
    Case("mistral-window", "mistral", {**WIDE, "sliding_window": 5}),
    Case("mistral-no-window-yarn", "mistral", {"sliding_window": None, **YARN}),
    Case(
        "qwen2-upper-windows-tied",
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    Case("qwen2-windows-not-used", "qwen2", {"use_sliding_window": False, "sliding_window": 4}),
    Case("qwen2-yarn", "qwen2", {"num_key_value_heads": 6, **YARN}),
    Case("gemma-mqa", "gemma", {**WIDE, "num_key_value_heads": 1}),
    Case("gemma-untied", "gemma", {**WIDE, "tie_word_embeddings": False}),
    Case(
        "gemma2-caps",
        "gemma2",
        {
            **WIDE,
            "sliding_window": 4,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.5,
            "query_pre_attn_scalar": 7,
        },
    ),
    Case(
        "gemma2-no-caps",
        "gemma2",
        {
            **WIDE,
            "sliding_window": 6,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
    Case(
        "phi3-partial",
        "phi3",
        {"hidden_size": 60, "sliding_window": 6, **rope("default", partial_rotary_factor=0.4)},
    ),
    Case("phi3-window", "phi3", {"sliding_window": 5, "num_key_value_heads": 3}),
    Case(
        "phi3-longrope-short",
        "phi3",
        {
            "original_max_position_embeddings": 32,
            **rope("longrope", short_factor=SHORT, long_factor=LONG),
        },
    ),
    Case(
        "phi3-longrope-long",
        "phi3",
        {
            "original_max_position_embeddings": 10,
            **rope("longrope", short_factor=SHORT, long_factor=LONG),
        },
    ),
    Case("starcoder2-window", "starcoder2", {**WIDE, "sliding_window": 5}),
    Case(
        "starcoder2-unbiased-untied",
        "starcoder2",
        {"use_bias": False, "tie_word_embeddings": False, **rope("linear", factor=2.0)},
    ),
)
FAMILIES = tuple(dict.fromkeys(case.family for case in CASES))


def build(case: Case, seed: int = 0) -> Any:
    """The model of a case, every parameter random, attention written out."""
    config = AutoConfig.for_model(case.family, **{**COMMON, **case.config})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for value in dict(model.named_parameters()).values():
            noise = torch.randn(value.shape)
            if value.ndim == 1:
                value.add_(0.3 * noise)
            else:
                value.copy_(noise / value.shape[1] ** 0.5)
    return model


def older_spelling(folder: Path) -> None:
    """Rewrite a folder's `config.json` as transformers 4 wrote it."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    turning = config.pop("rope_parameters")
    config["rope_theta"] = turning.pop("rope_theta")
    if "partial_rotary_factor" in turning:
        config["partial_rotary_factor"] = turning.pop("partial_rotary_factor")
    kind = turning.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {**turning, "type": kind}
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config))


@dataclass(frozen=True)
class Seen:
    """What a `transformers` model computed."""

    logits: Tensor
    entering: tuple[Tensor, ...]
    """The residual stream entering each layer."""
    leaving: tuple[Tensor, ...]
    """The residual stream leaving each layer."""
    final: Tensor
    """What the unembedding reads."""
    patterns: tuple[Tensor, ...]


def run(model: Any, tokens: Tensor, **more: Tensor) -> Seen:
    """Everything that the reference shows of one run."""
    leaving = list[Tensor]()

    def keep(_module: object, _args: object, out: Tensor | tuple[Tensor, ...]) -> None:
        leaving.append(out if isinstance(out, Tensor) else out[0])

    handles = [layer.register_forward_hook(keep) for layer in model.model.layers]
    try:
        with torch.no_grad():
            out = model(
                tokens,
                output_hidden_states=True,
                output_attentions=True,
                use_cache=False,
                **more,
            )
    finally:
        for handle in handles:
            handle.remove()
    *entering, final = out.hidden_states
    return Seen(out.logits, tuple(entering), tuple(leaving), final, tuple(out.attentions))
