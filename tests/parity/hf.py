# SPDX-License-Identifier: MIT OR Apache-2.0
"""Tiny random `transformers` models of every family, and what they compute.

Every parameter is perturbed: gains are not one, biases not zero, so that a parameter in the wrong
place, or in none, changes the numbers.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tests.parity.cases import CASES
from tests.parity.cases.case import Case

FAMILIES = tuple(dict.fromkeys(case.family for case in CASES))


def build(case: Case, seed: int = 0) -> Any:
    """The model of a case, every parameter random, attention written out."""
    config = AutoConfig.for_model(case.family, **{**case.common, **case.config})
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


def layers_of(model: Any) -> Any:
    """The list of a model's layers, wherever it keeps it."""
    depth = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    return next(found for found in lists if len(found) == depth)


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

    handles = [layer.register_forward_hook(keep) for layer in layers_of(model)]
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
