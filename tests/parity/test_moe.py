# SPDX-License-Identifier: MIT OR Apache-2.0
"""What experts do beside `transformers`: routing, experts knocked out, the first DeepSeek."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parity import hf
from tests.parity.cases.case import COMMON
from tests.parity.cases.moe import CASES
from tests.parity.test_parity import compare, prompt, same, seen
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Scale, Zero
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel

ROUTING = (
    HookPoint.RouterLogits,
    HookPoint.ExpertWeights,
    HookPoint.ExpertIndices,
    HookPoint.ExpertGates,
    HookPoint.MlpRawOut,
)


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> hf.Case:
    return request.param


def routers(model: Any) -> list[Any]:
    """The routers of a reference model, each in its layer's place; `None` in dense layers."""
    return [dict(layer.mlp.named_children()).get("gate") for layer in model.model.layers]


def watch(modules: list[Any], model: Any, tokens: Tensor) -> list[Any]:
    """What modules return during a run."""
    out = dict[object, object]()

    def keep(module: object, _args: object, made: object) -> None:
        out[module] = made

    handles = [module.register_forward_hook(keep) for module in modules if module is not None]
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return [out.get(module) for module in modules]


def test_tokens_go_to_the_experts_that_transformers_sends_them_to(case: hf.Case) -> None:
    theirs = hf.build(case)
    ours = MIModel.from_hf(theirs)
    tokens = prompt(2, 12)
    found = ours.forward(tokens, HookSpec().capture(*ROUTING))
    wanted = watch(routers(theirs), theirs, tokens)
    mlps = watch([layer.mlp for layer in theirs.model.layers], theirs, tokens)
    for layer, mlp in enumerate(mlps):
        same(found[HookPoint.MlpRawOut(layer)], mlp.view(2, 12, -1), f"output of {layer}")
        has = ours.config.has_experts(layer)
        assert has == (wanted[layer] is not None)
        assert has == (HookPoint.RouterLogits in ours.backend.layer_points(layer))
        assert has != (HookPoint.MlpPost in ours.backend.layer_points(layer))
        if not has:
            continue
        logits, gates, chosen = (part.view(2, 12, -1) for part in wanted[layer])
        same(found[HookPoint.RouterLogits(layer)], logits, f"router logits of {layer}")
        order = gates.new_zeros(2, 12, ours.config.experts.count).scatter(-1, chosen, gates)
        same(found[HookPoint.ExpertGates(layer)], order, f"gates of {layer}")
        indices = found[HookPoint.ExpertIndices(layer)]
        assert torch.equal(indices.sort().values, chosen.sort().values)
        assert not indices.is_floating_point()


def banks(model: Any) -> list[Any]:
    """The experts of every layer that has them."""
    found = [dict(layer.mlp.named_children()).get("experts") for layer in model.model.layers]
    return [bank for bank in found if bank is not None]


def test_an_expert_whose_gates_are_zero_is_an_expert_without_weights(case: hf.Case) -> None:
    theirs = hf.build(case)
    ours = MIModel.from_hf(theirs)
    tokens = prompt(2, 12)
    gone = 2
    edit = HookSpec().intervene(HookPoint.ExpertGates, Zero(at=At(expert=gone)))
    found = ours.forward(tokens, edit)
    share = HookSpec().intervene(HookPoint.ExpertOut, Zero(at=At(expert=gone)))
    same(ours.forward(tokens, share).output, found.output, "logits without an expert's share")
    whole = hf.run(theirs, tokens).logits
    with torch.no_grad():
        for bank in banks(theirs):
            bank.down_proj[gone] = 0
    wanted = hf.run(theirs, tokens).logits
    same(found.output, wanted, "logits without an expert")
    assert (wanted - whole).abs().max() > 0.01


def test_an_expert_whose_gates_are_doubled_is_an_expert_twice_as_loud(case: hf.Case) -> None:
    theirs = hf.build(case)
    ours = MIModel.from_hf(theirs)
    tokens = prompt(2, 12)
    edit = HookSpec().intervene(HookPoint.ExpertGates, Scale(2.0, at=At(expert=[0, 3])))
    found = ours.forward(tokens, edit).output
    with torch.no_grad():
        for bank in banks(theirs):
            bank.down_proj[[0, 3]] *= 2
    same(found, hf.run(theirs, tokens).logits, "logits with two louder experts")


def test_the_correction_of_choices_is_not_rounded(tmp_path: Path) -> None:
    """It is larger than the scores that it decides between."""
    theirs = hf.build(next(case for case in CASES if case.family == "deepseek_v3"))
    theirs.save_pretrained(tmp_path)
    ours = MIModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    parameters = dict(ours.backend.named_parameters())
    for layer, router in enumerate(routers(theirs)):
        if router is not None:
            assert parameters[f"blocks.{layer}.mlp.router.weight"].dtype == torch.bfloat16
            found = parameters[f"blocks.{layer}.mlp.correction.bias"]
            assert torch.equal(found, router.e_score_correction_bias)
    assert ours.forward(prompt(1, 5)).output.dtype == torch.bfloat16


Raw = dict[str, Any]

ROPE = {"rope_type": "default", "rope_theta": 500.0}

DEEPSEEK: Raw = {
    "model_type": "deepseek",
    **COMMON,
    "num_key_value_heads": 3,
    "moe_intermediate_size": 14,
    "n_routed_experts": 5,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "scoring_func": "softmax",
    "rope_theta": 500.0,
    "aux_loss_alpha": 0.001,
    "seq_aux": True,
}
"""The first DeepSeek, whose code is not in transformers."""


def counterpart(raw: Raw) -> Any:
    """The same arithmetic out of `transformers`: a qwen2_moe whose shared expert's gate is a half.

    Its down-projection is twice as large for that.
    """
    width = raw["moe_intermediate_size"]
    config = {
        "mlp_only_layers": [0],
        "num_experts": raw["n_routed_experts"],
        "num_experts_per_tok": raw["num_experts_per_tok"],
        "norm_topk_prob": raw["norm_topk_prob"],
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": raw["n_shared_experts"] * width,
        "num_key_value_heads": raw["num_key_value_heads"],
        "qkv_bias": False,
        "rope_parameters": ROPE,
        "tie_word_embeddings": raw["tie_word_embeddings"],
    }
    model = hf.build(hf.Case("counterpart", "qwen2_moe", config))
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.mlp.shared_expert_gate.weight.zero_()
            layer.mlp.shared_expert.down_proj.weight.mul_(2)
    return model


def convert(model: Any, raw: Raw, folder: Path) -> None:
    """Write the counterpart's weights as a checkpoint of the first DeepSeek."""
    model.save_pretrained(folder)
    tensors = dict[str, Tensor]()
    for name, value in load_file(folder / "model.safetensors").items():
        half = 0.5 if "shared_expert.down_proj" in name else 1.0
        if "shared_expert_gate" not in name:
            tensors[name.replace("shared_expert.", "shared_experts.")] = value * half
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(raw))


@pytest.mark.parametrize("normalised", [False, True])
def test_the_first_deepseek(normalised: bool, tmp_path: Path) -> None:
    raw = {**DEEPSEEK, "norm_topk_prob": normalised, "tie_word_embeddings": normalised}
    theirs = counterpart(raw)
    convert(theirs, raw, tmp_path)
    ours = MIModel.from_pretrained(tmp_path)
    assert ours.origin.family == "deepseek"
    tokens = prompt(2, 14)
    compare(seen(ours, tokens), hf.run(theirs, tokens))


@pytest.mark.parametrize("tied", [False, True])
def test_the_first_deepseek_without_experts_is_a_llama(tied: bool, tmp_path: Path) -> None:
    case = hf.Case("llama", "llama", {"rope_parameters": ROPE, "tie_word_embeddings": tied})
    theirs = hf.build(case)
    theirs.save_pretrained(tmp_path)
    nulls = dict.fromkeys(["n_routed_experts", "n_shared_experts", "num_experts_per_tok"])
    raw = {**DEEPSEEK, "num_key_value_heads": 2, "tie_word_embeddings": tied, **nulls}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    ours = MIModel.from_pretrained(tmp_path)
    assert ours.config.experts is None
    tokens = prompt(2, 14)
    compare(seen(ours, tokens), hf.run(theirs, tokens))
