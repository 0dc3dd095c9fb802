# SPDX-License-Identifier: MIT OR Apache-2.0
"""Mutations: each breaks the engine in one place, and some law or the reference must notice."""

import __future__

import inspect
import re
import textwrap
from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any, cast

import pytest
import torch

from tests.laws.mutants import MUTATIONS, Mutation, Owner
from tests.parity import hf
from torch_mi import families, testing
from torch_mi.backends import transformer
from torch_mi.errors import MIError
from torch_mi.hooks.point import HookPoint
from torch_mi.model import MIModel
from torch_mi.nn import attention, mlp


def rewrite(monkeypatch: pytest.MonkeyPatch, owner: Owner, name: str, old: str, new: str) -> None:
    """Put a function in its place that differs in one piece of its source."""
    function = cast("FunctionType", inspect.unwrap(vars(owner)[name]))
    source = textwrap.dedent(inspect.getsource(function))
    assert old in source, f"{old!r} is not in {name} any more"
    # annotations stay text: a mutant is not to be caught by its types
    flags = __future__.annotations.compiler_flag
    code = compile(
        source.replace(old, new), f"<mutant of {name}>", "exec", flags, dont_inherit=True
    )
    names: dict[str, Any] = dict(function.__globals__)
    exec(code, names)  # the mutant
    monkeypatch.setattr(owner, name, names[name])


@cache
def reference(family: str, name: str = "") -> tuple[Any, hf.Seen, torch.Tensor]:
    """A case of a family; the first has windows, caps and biases where the family has them."""
    case = next(c for c in hf.CASES if c.family == family and name in ("", c.name))
    theirs = hf.build(case)
    tokens = torch.randint(83, (2, 14), generator=torch.Generator().manual_seed(0))
    return theirs, hf.run(theirs, tokens), tokens


def agrees_with_transformers(family: str, name: str = "") -> None:
    theirs, wanted, tokens = reference(family, name)
    ours = MIModel.from_hf(theirs)
    for kind in ("auto", "explicit"):
        found = ours.forward(tokens, attention=kind).output
        torch.testing.assert_close(found, wanted.logits, atol=1e-5, rtol=0)


SLOW = {
    testing.captures_can_be_differentiated,
    testing.edits_reach_no_earlier_position,
    testing.identity_edits_change_nothing,
    testing.watching_changes_nothing,
}


def examine(family: str, changes: dict[str, object] | None = None, case: str = "") -> None:
    """Everything that is asked of a model, the quickest first."""
    subject = testing.tiny(family, changes={"num_hidden_layers": 2, **(changes or {})})
    tokens = testing.random_tokens(subject, 2, 7)
    testing.every_hook_fires(subject, tokens)
    if family in families.FAMILIES:
        agrees_with_transformers(family, case)
    for law in sorted(testing.LAWS[1:], key=lambda law: law in SLOW):
        law(subject, tokens)


def notices(family: str, changes: dict[str, object] | None = None, case: str = "") -> None:
    with pytest.raises((AssertionError, MIError)):
        examine(family, changes, case)


REFERENCES = sorted({(m.family, m.changes, m.case) for m in MUTATIONS}, key=str)


@pytest.mark.parametrize(("family", "changes", "case"), REFERENCES)
def test_nothing_is_wrong_without_a_mutation(
    family: str, changes: tuple[tuple[str, object], ...], case: str
) -> None:
    """Of what mutants are compared with: the quick half, since the laws are held elsewhere."""
    testing.tiny(family, changes=dict(changes))
    agrees_with_transformers(family, case)


ROOMS: tuple[tuple[Owner, str], ...] = (
    (transformer.Block, "forward"),
    (transformer.Transformer, "embed"),
    (transformer.Transformer, "unembed"),
    (attention.Attention, "ask"),
    (attention.Attention, "remember"),
    (attention.Attention, "mix"),
    (attention.Attention, "explicit"),
    (mlp.Mlp, "forward"),
)


def offering(point: HookPoint) -> str:
    """A family that has this point."""
    some = ("llama", "gemma2", "gpt2", "deepseek_v3", "rwkv6", "rwkv7", "mamba")
    return next(f for f in some if point in testing.tiny(f).backend.hook_points)


TOYS = ("Rnn", "MlpMid")
"""Points that no family has; models made by hand do."""
UNUSED = {point for point in HookPoint if point.name.startswith(TOYS)}


ELSEWHERE = re.compile(
    r"Ln\w+|Final(Scale|Normalized)|Attn([QKV]In|Result|Latent)|\w*Expert\w+|Router\w+"
    r"|Rwkv\w+|Rnn\w+|Mlp(Shift|Gate)"
)
"""Points of norms and of what is made on demand; those of experts, latents, recurrent models and
toys are tried apart."""


def taps() -> list[tuple[Owner, str, str]]:
    """Every place in the forward pass that is handed over by name."""
    return [
        (owner, name, tap)
        for owner, name in ROOMS
        for tap in sorted(
            set(re.findall(r"tap\(HookPoint\.\w+,", inspect.getsource(vars(owner)[name])))
        )
    ]


@pytest.mark.parametrize(("owner", "name", "tap"), taps(), ids=lambda x: x if "." in str(x) else "")
def test_a_forgotten_tap_is_noticed(
    owner: Owner, name: str, tap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(monkeypatch, owner, name, tap, tap.replace("tap(", "(lambda point, x: x)("))
    point = HookPoint[tap.removeprefix("tap(HookPoint.").rstrip(",")]
    if point not in UNUSED:
        notices(offering(point))


def test_all_taps_are_tried() -> None:
    named = {tap.split(".")[1].rstrip(",") for _, _, tap in taps()}
    rest = {point.name for point in HookPoint} - named
    assert all(ELSEWHERE.fullmatch(name) for name in rest), rest


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mutation_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(monkeypatch, mutation.owner, mutation.name, mutation.old, mutation.new)
    notices(mutation.family, dict(mutation.changes), mutation.case)


SWAPS = [
    ("llama", "blocks.*.mlp.gate", "blocks.*.mlp.up"),
    ("llama", "blocks.*.attn.k", "blocks.*.attn.v"),
    ("llama", "blocks.*.norm1", "blocks.*.norm2"),
    ("gemma2", "blocks.*.post1", "blocks.*.post2"),
    ("phi3", "blocks.*.attn.k", "blocks.*.attn.v"),
    ("phi3", "blocks.*.mlp.gate", "blocks.*.mlp.up"),
    ("starcoder2", "blocks.*.norm1", "blocks.*.norm2"),
]


@pytest.mark.parametrize(("family", "one", "other"), SWAPS)
def test_names_that_are_swapped_are_noticed(
    family: str, one: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = families.FAMILIES[family]
    wrong = right.but(family, sources={one: right.sources[other], other: right.sources[one]})
    monkeypatch.setitem(cast("dict[str, families.Family]", families.FAMILIES), family, wrong)
    with pytest.raises(AssertionError):
        agrees_with_transformers(family)


@pytest.mark.parametrize("point", [point for point in HookPoint if point not in UNUSED])
def test_an_axis_that_is_dropped_is_noticed(
    point: HookPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point, "axes", point.axes[:-1])
    notices(offering(point))


SHUFFLED: list[tuple[HookPoint, Callable[[tuple[str, ...]], tuple[str, ...]]]] = [
    (HookPoint.AttnZ, lambda axes: (axes[0], axes[2], axes[1], axes[3])),
    (HookPoint.AttnPattern, lambda axes: (axes[0], axes[2], axes[1], axes[3])),
    (HookPoint.AttnK, lambda axes: (*axes[:2], "head", axes[3])),
]


@pytest.mark.parametrize(("point", "shuffle"), SHUFFLED)
def test_axes_that_are_confused_are_noticed(
    point: HookPoint,
    shuffle: Callable[[tuple[str, ...]], tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(point, "axes", shuffle(point.axes))
    notices("llama")
