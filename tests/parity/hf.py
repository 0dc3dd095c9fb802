# SPDX-License-Identifier: MIT OR Apache-2.0
"""Tiny random `transformers` models of every family, and what they compute.

Every parameter is perturbed: gains are not one, biases not zero, so that a parameter in the wrong
place, or in none, changes the numbers.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.parity.cases import CASES
from tests.parity.cases.case import Case
from torch_mi import families

FAMILIES = tuple(dict.fromkeys(case.family for case in CASES))

UNTURNED = ("bloom", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "mpt", "opt")
"""Families whose configs say nothing of rotary embedding."""

OLDER = {"gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}}
"""Keys that only one family called so."""

ELSEWHERE = {"deepseek", "internlm", "internlm2", "phi-msft"}
"""Families without a class in transformers, which are compared in tests of their own."""


def build(case: Case, seed: int = 0) -> Any:
    """The model of a case, every parameter random, attention written out."""
    config = AutoConfig.for_model(case.family, **{**case.common, **case.config})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    with torch.no_grad():
        for value in dict(model.named_parameters()).values():
            noise = torch.randn(value.shape)
            if value.ndim == 1:
                value.add_(0.3 * noise)
            else:
                value.copy_(noise / value.shape[1] ** 0.5)
        for name, value in model.named_buffers():
            if name in model.state_dict():
                value.add_(0.3 * torch.randn(value.shape))
    if case.family == "falcon" and config.alibi:
        count_biases_once(model)
    if case.family == "mpt":
        use_slopes(model)
    return model


def count_biases_once(model: Any) -> None:
    """Take one of two copies of the biases from Falcon's attention.

    Written out, transformers adds them to the scores and has them in the mask too; its fused
    attention, and the model as it was trained, count them once.
    """

    def silence(_module: object, args: Any, given: dict[str, Any]) -> Any:
        return args, {**given, "alibi": torch.zeros_like(given["alibi"])}

    for layer in layers_of(model):
        layer.self_attention.register_forward_pre_hook(silence, with_kwargs=True)


def use_slopes(model: Any) -> None:
    """Tell MPT how steep its slopes are: transformers reads it and then takes them for 8."""
    steepest = model.config.attn_config.alibi_bias_max
    plain = model.transformer.build_mpt_alibi_tensor
    model.transformer.build_mpt_alibi_tensor = partial(plain, alibi_bias_max=steepest)


def older_spelling(folder: Path) -> None:
    """Rewrite a folder's `config.json` as transformers 4 wrote it, sizes by their common names."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    assert ("rope_parameters" in config.get("text_config", config)) != (
        config["model_type"] in UNTURNED
    )
    older_turning(config.get("text_config", config))
    config["torch_dtype"] = config.pop("dtype")
    kind = config["model_type"]
    common = CONFIG_MAPPING[kind].attribute_map.items()
    names = {own: name for name, own in common if own in families.FAMILIES[kind].aliases}
    names |= OLDER.get(kind, {})
    config = {names.get(key, key): value for key, value in config.items()}
    path.write_text(json.dumps(config))


def older_turning(config: dict[str, Any]) -> None:
    """The same for its rotary embedding, if it has one, or two by kind of layer."""
    given = config.pop("rope_parameters", None)
    if given is None:
        return
    turning = given.get("full_attention", given)
    config["rope_theta"] = turning.pop("rope_theta")
    theta = given.get("sliding_attention", config)["rope_theta"]
    if theta != config["rope_theta"]:
        config["rope_local_base_freq"] = theta
    if "partial_rotary_factor" in turning:
        config["partial_rotary_factor"] = turning.pop("partial_rotary_factor")
    kind = turning.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {**turning, "type": kind}


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
