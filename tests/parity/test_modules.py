# SPDX-License-Identifier: MIT OR Apache-2.0
"""Hook points against the modules of `transformers` that they stand for, by its forward hooks.

Which module is which is read off a family's table of names: where one of ours is one of theirs as
it is, what theirs takes in and gives out is what the points around ours show.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers.models.falcon.modeling_falcon import build_alibi_tensor

from tests.parity import hf
from torch_mi.cache import HookCache
from torch_mi.config.parts import Alibi
from torch_mi.families import FAMILIES, read_config
from torch_mi.families.sources import Transposed, Whole, source_of
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel
from torch_mi.nn.shared import Sight, linear_biases, slopes

Modules = Mapping[str, tuple[Tensor, Tensor]]
"""By name: what a module took in, and what it gave out."""

FIRST = [next(c for c in hf.CASES if c.family == family) for family in hf.FAMILIES]


def run(theirs: Any, tokens: Tensor) -> Modules:
    found: dict[str, tuple[Tensor, Tensor]] = {}
    handles: list[Any] = []
    for name, module in theirs.named_modules():

        def keep(_module: object, args: Any, out: Any, name: str = name) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                found[name] = args[0].clone(), out.clone()  # some write in them later

        handles.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            theirs(tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def names_of(case: hf.Case, theirs: Any) -> dict[str, str]:
    """Our modules that are one of theirs as it is -> what theirs is called."""
    family = FAMILIES[case.family]
    cfg = read_config(theirs.config.to_dict())[1]
    modules = dict(theirs.named_modules())
    tables = family.tables()
    table = max(
        tables, key=lambda t: sum(at(source_of(s).theirs, 0) in modules for s in t.values())
    )
    found: dict[str, str] = {}
    for ours, source in table.items():
        if type(source_of(source)) in (Whole, Transposed):
            for layer in range(cfg.num_layers if "*" in ours else 1):
                found[at(ours, layer)] = at(source_of(source).theirs, layer)
    return {ours: name for ours, name in found.items() if name in modules}


def at(name: str, layer: int) -> str:
    return name.replace("*", str(layer))


Sides = Iterator[tuple[str, int, Tensor]]
"""Our module, 0 for what goes in or 1 for what comes out, and what our points show of that."""


def attention(model: MIModel, seen: HookCache, layer: int) -> Sides:
    points, b = model.backend.layer_points(layer), f"blocks.{layer}"
    yield f"{b}.norm1", 0, seen[HookPoint.ResidPre(layer)]
    yield f"{b}.norm1", 1, seen[HookPoint.AttnIn(layer)]
    for name, reads, makes in (
        ("q", HookPoint.AttnQIn, HookPoint.AttnQ),
        ("k", HookPoint.AttnKIn, HookPoint.AttnK),
        ("v", HookPoint.AttnVIn, HookPoint.AttnV),
    ):
        if reads in points:
            yield f"{b}.attn.{name}", 0, seen[reads(layer)][:, :, 0]
            if name != "v" or model.config.clip_qkv is None:
                yield f"{b}.attn.{name}", 1, seen[makes(layer)].flatten(2)
    yield f"{b}.attn.o", 0, seen[HookPoint.AttnZ(layer)].flatten(2)
    shares = seen[HookPoint.AttnResult(layer)].sum(2)
    bias = model.backend.attention_written(layer).bias
    yield f"{b}.attn.o", 1, shares if bias is None else shares + bias
    if model.config.residual_scale is None:
        yield f"{b}.post1", 1, seen[HookPoint.AttnOut(layer)]


def mlp(model: MIModel, seen: HookCache, layer: int) -> Sides:
    points, b = model.backend.layer_points(layer), f"blocks.{layer}"
    if HookPoint.MlpIn not in points:
        return
    yield f"{b}.norm2", 1, seen[HookPoint.MlpIn(layer)]
    yield f"{b}.post2", 0, seen[HookPoint.MlpRawOut(layer)]
    if model.config.residual_scale is None:
        yield f"{b}.post2", 1, seen[HookPoint.MlpOut(layer)]
    if HookPoint.MlpPre not in points:
        return
    first = "gate" if model.config.gated_mlp else "up"
    yield f"{b}.mlp.{first}", 0, seen[HookPoint.MlpIn(layer)]
    yield f"{b}.mlp.{first}", 1, seen[HookPoint.MlpPre(layer)]
    if model.config.gated_mlp:
        yield f"{b}.mlp.up", 1, seen[HookPoint.MlpPreLinear(layer)]
    yield f"{b}.mlp.down", 0, seen[HookPoint.MlpPost(layer)]
    yield f"{b}.mlp.down", 1, seen[HookPoint.MlpRawOut(layer)]


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_points_show_what_modules_of_transformers_take_and_give(case: hf.Case) -> None:
    theirs = hf.build(case)
    tokens = torch.randint(83, (2, 9), generator=torch.Generator().manual_seed(3))
    modules, names = run(theirs, tokens), names_of(case, theirs)
    model = MIModel.from_hf(theirs)
    every = [p for p in HookPoint if p in model.backend.hook_points]
    seen = model.forward(tokens, HookSpec().capture(*every))
    owned = dict(cast("Any", model.backend).named_modules())
    compared = set[str]()
    depth = range(model.num_layers)
    checks = [side for i in depth for part in (attention, mlp) for side in part(model, seen, i)]
    last = HookPoint.ResidPost(model.num_layers - 1)
    checks += [("norm", 0, seen[last]), ("norm", 1, seen[HookPoint.FinalNorm])]
    for ours, side, shown in checks:
        if ours not in owned or names.get(ours) not in modules:
            continue
        wanted = modules[names[ours]][side]
        wanted = wanted.reshape(shown.shape)
        worst = (shown - wanted).abs().max().item()
        assert worst <= 1e-5 * max(1, wanted.abs().max().item()), (
            f"{ours} ({'input' if not side else 'output'}) differs by {worst:.2g}"
        )
        compared.add(ours)
    assert {"norm", "blocks.1.attn.o"} <= compared, f"only {sorted(compared)} were compared"
    assert len(compared) >= 1 + 3 * model.num_layers


@pytest.mark.parametrize("heads", [8, 12, 16, 71])
def test_rounded_biases_are_those_of_transformers(heads: int) -> None:
    """At sizes where rounding shows: slopes and positions that bfloat16 cannot hold."""
    wanted = build_alibi_tensor(torch.ones(1, 300, dtype=torch.long), heads, torch.float32)
    found = linear_biases(Alibi(rounded=True), heads, Sight(300, 0, None, torch.device("cpu")))
    assert torch.equal(found.expand(1, heads, 1, 300), wanted.reshape(1, heads, 1, 300))
    exact = slopes(Alibi(), heads)[:, None] * torch.arange(300)
    assert not torch.equal(found[0, :, 0], exact)
