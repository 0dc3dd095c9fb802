# SPDX-License-Identifier: MIT OR Apache-2.0
"""A planned sweep is one whole run for each cell, whatever the edits, model, prompts and metric."""

import math
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.laws import examples
from torch_mi.backends.transformer import Transformer
from torch_mi.cache import Prefix
from torch_mi.families import FAMILIES
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Add, Apply, Intervention, Knockout, Replace, Scale, Zero
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel
from torch_mi.partial import record, rerun
from torch_mi.sweeps.metrics import Metric, kl, log_prob, logit, logit_diff, prob, rank
from torch_mi.sweeps.run import sweep
from torch_mi.testing import random_tokens, tiny

# beartype looks at a random item of a list, in strategies too; that decides no example
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

families = st.sampled_from(sorted(FAMILIES))
TOLERANCE = 1e-5


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def doubled(x: Tensor, hook: Hook) -> Tensor:
    """What the library cannot know: it looks at its neighbours and writes in place."""
    return x.mul_(1.5) + x.mean() + len(hook)


def chosen(at: At, hook: Hook, old: Tensor) -> tuple[int, ...]:
    """The shape of what `at` selects of one prompt's activation."""
    columns = [list(range(old.shape[1] if "pos" in hook.point.axes else old.shape[2]))]
    mask = examples.selected(at, hook.point, old.shape, columns)
    kept = [
        i
        for i, axis in enumerate(hook.point.axes)
        if not isinstance(at.named().get(examples.NAME.get(axis, "")), int)
    ]
    return tuple(
        int(mask.any(dim=tuple(d for d in range(mask.ndim) if d != i)).sum()) for i in kept
    )


@st.composite
def edits(draw: st.DrawFn, hook: Hook, old: Tensor, other: Tensor) -> Intervention:
    """An edit of one prompt's activation: `other` is that of another prompt, equally long."""
    length = old.shape[1] if "pos" in hook.point.axes else old.shape[2]
    at = draw(examples.coordinates(hook.point, old.shape, [list(range(length))]))
    at = At(**cast("dict[str, Any]", {k: v for k, v in at.named().items() if k != "batch"}))
    scores = hook.point is HookPoint.AttnScores
    kinds = ["replace", "twin", "same", "add", "scale", "zero", "apply"] + ["cut"] * scores
    kind = draw(st.sampled_from(kinds))
    shape = chosen(at, hook, old)
    if kind == "add":
        shape = tuple(n if draw(st.booleans()) else 1 for n in shape)
        return Add(random(shape, draw(st.integers(0, 99))), at=at)
    if kind == "replace":
        return Replace(random(shape, draw(st.integers(0, 99))), at=at)
    if kind in ("twin", "same"):
        columns = [list(range(length))]
        mask = examples.selected(at, hook.point, old.shape, columns)
        return Replace((other if kind == "twin" else old)[mask].reshape(shape), at=at)
    return {
        "scale": Scale(draw(st.sampled_from([-1.5, 0.5, 1.0])), at=at),
        "zero": Zero(at=at),
        "cut": Knockout(at=at),
        "apply": Apply(doubled, at=at),
    }[kind]


@st.composite
def specs(draw: st.DrawFn, model: MIModel, tokens: Tensor) -> HookSpec:
    """Some edits at random places of one prompt."""
    editable = [h for h in model.hooks if h.point not in model.backend.read_only]
    hooks = draw(st.lists(st.sampled_from(editable), min_size=0, max_size=3))
    last = tokens.clone()
    last[0, draw(st.integers(0, tokens.shape[1] - 1))] = 1
    plain = model.forward(tokens, HookSpec().capture(*hooks))
    twin = model.forward(last, HookSpec().capture(*hooks))
    spec = HookSpec()
    for hook in hooks:
        spec.intervene(hook, draw(edits(hook, plain[hook], twin[hook])))
    return spec


metrics: st.SearchStrategy[Metric] = st.sampled_from(
    [logit(5), logit_diff(5, 6), prob(5), log_prob(5), kl()]
)


@dataclass(frozen=True)
class Whole:
    """The score of one whole run, and how large its logits are."""

    score: float
    size: float

    def is_found(self, found: float) -> bool:
        """Equality up to the rounding of logits of this size."""
        # a norm whose denominator is set to zero gives NaN, in both
        if math.isnan(self.score) or math.isinf(self.size):
            return math.isnan(found) == math.isnan(self.score)
        return abs(found - self.score) <= TOLERANCE * max(1.0, self.size)


def whole(
    model: MIModel, tokens: Tensor, spec: HookSpec, metric: Metric, position: int | list[int] = -1
) -> Whole:
    """One whole run, scored."""
    plain = model.forward(tokens).output[0]
    edited = model.forward(tokens, spec).output[0]
    places = [position] if isinstance(position, int) else position
    scores = [metric.of(0, 1, plain[p]).score(model, edited[p][None]) for p in places]
    return Whole(float(torch.stack(scores).mean()), float(edited[places].abs().max()))


@pytest.mark.slow
@settings(max_examples=50)
@given(st.data(), families)
def test_a_sweep_is_a_run_for_each_cell(data: st.DataObject, family: str) -> None:
    model = data.draw(examples.models(family))
    tokens = random_tokens(model, 1, data.draw(st.integers(3, 9)), data.draw(st.integers(0, 9)))
    cells = data.draw(st.lists(specs(model, tokens), min_size=1, max_size=6))
    metric = data.draw(metrics)
    places = st.integers(0, tokens.shape[1] - 1)
    position = data.draw(
        st.one_of(st.just(-1), places, st.lists(places, min_size=1, max_size=3, unique=True))
    )
    found = sweep(model, tokens, iter(cells), metric, position=position)
    for score, spec in zip(found.scores.tolist(), cells, strict=True):
        wanted = whole(model, tokens, spec, metric, position)
        assert wanted.is_found(score), (repr(spec), score, wanted)


@pytest.mark.slow
@settings(max_examples=12)
@given(st.data(), families)
def test_a_dataset_is_every_prompt_as_if_alone(data: st.DataObject, family: str) -> None:
    model = data.draw(examples.models(family))
    lengths = data.draw(st.lists(st.integers(3, 7), min_size=2, max_size=4))
    rows = [random_tokens(model, 1, n, seed)[0].tolist() for seed, n in enumerate(lengths)]
    own = [
        data.draw(st.lists(specs(model, torch.tensor([row])), min_size=2, max_size=2))
        for row in rows
    ]
    metric = data.draw(metrics)
    found = sweep(model, rows, lambda i: own[i], metric)
    for i, row in enumerate(rows):
        for score, spec in zip(found.per_prompt[i].tolist(), own[i], strict=True):
            assert whole(model, torch.tensor([row]), spec, metric).is_found(score)
    if not model.backend.grows_differently(3, 7):
        for i, end in enumerate(model.forward(rows).output[:, -1]):
            own_metric = metric.of(i, len(rows), end)
            base = Whole(float(own_metric.score(model, end)), float(end.abs().max()))
            assert base.is_found(float(found.baselines[i])), "padding changes nothing"


@settings(max_examples=20)
@given(st.data(), families)
def test_edits_by_coordinates_equal_the_padded_batch(data: st.DataObject, family: str) -> None:
    """What a spec does to a padded batch is what it does to each prompt alone."""
    model = data.draw(examples.models(family))
    # some turn by how far the longest row of a batch reaches
    assume(not model.backend.grows_differently(4, 6))
    rows = [random_tokens(model, 1, n, n)[0].tolist() for n in (4, 6, 5)]
    hooks = [h for h in model.hooks if "pos" in h.point.axes or "query" in h.point.axes]
    cells: list[HookSpec] = []
    for hook in data.draw(st.lists(st.sampled_from(hooks), min_size=1, max_size=4)):
        axis = "pos" if "pos" in hook.point.axes else "query"
        place = data.draw(st.one_of(st.integers(-4, 3), st.none()))
        at = None if place is None else At(**cast("dict[str, Any]", {axis: place}))
        cells.append(HookSpec().intervene(hook, Scale(-0.5, at=at)))
    found = sweep(model, rows, cells, logit(3))
    for k, spec in enumerate(cells):
        together = model.forward(rows, spec).output[:, -1]
        for i, end in enumerate(together):
            wanted = Whole(float(end[3]), float(end.abs().max()))
            assert wanted.is_found(float(found.per_prompt[i, k]))


@settings(max_examples=20)
@given(st.data(), families)
def test_part_of_a_run_is_that_part_of_the_whole(data: st.DataObject, family: str) -> None:
    model = data.draw(examples.models(family))
    tokens = random_tokens(model, 1, data.draw(st.integers(3, 9)), data.draw(st.integers(0, 9)))
    layers, length = model.num_layers, tokens.shape[1]
    first = data.draw(st.integers(0, layers))
    last = data.draw(st.integers(first, layers))
    start = data.draw(st.integers(0, length - 1))
    places = [h for h in model.hooks if h.layer is not None and first <= h.layer < last]
    spec = HookSpec()
    for hook in data.draw(st.lists(st.sampled_from(places), max_size=2)) if places else []:
        if "pos" in hook.point.axes and hook.point not in model.backend.read_only:
            place = data.draw(st.integers(start, length - 1))
            spec.intervene(hook, Scale(-2.0, at=At(pos=place)))
    plain = record(model, tokens)
    part = rerun(model, plain, spec, layer=first, start=start, stop=last).residual
    end = model.forward(tokens, spec, stop=last).residual
    assert part.layer == end.layer == last
    torch.testing.assert_close(part.x, end.x[:, start:], atol=2e-5, rtol=1e-5)
    logits = model.project_to_vocab(
        rerun(model, plain, spec, layer=first, start=start, stop=layers).residual.x[0, -1]
    )
    torch.testing.assert_close(
        logits, model.forward(tokens, spec).output[0, -1], atol=2e-5, rtol=1e-5
    )


@settings(max_examples=20)
@given(st.data(), families)
def test_a_cut_prefix_is_that_of_the_first_tokens(data: st.DataObject, family: str) -> None:
    model = data.draw(examples.models(family))
    tokens = random_tokens(model, 2, data.draw(st.integers(2, 8)))
    seen = data.draw(st.integers(0, tokens.shape[1]))
    mask = torch.ones_like(tokens)
    mask[0, 0] = data.draw(st.integers(0, 1))
    whole_prefix = model.forward(tokens, attention_mask=mask, after=Prefix()).prefix
    cut = whole_prefix.cut(seen)
    assert cut.seen == seen
    if 0 < seen < tokens.shape[1]:
        rest = model.forward(tokens[:, seen:], attention_mask=mask[:, seen:], after=cut).output
        wanted = model.forward(tokens, attention_mask=mask).output[:, seen:]
        torch.testing.assert_close(rest, wanted, atol=2e-5, rtol=0)


@settings(max_examples=20)
@given(st.data())
def test_models_that_look_both_ways_skip_layers_alone(data: st.DataObject) -> None:
    model = tiny("llama", data.draw(st.integers(0, 3)))
    backend = cast("Transformer", model.backend)
    backend.cfg = replace(backend.cfg, causal=False)
    tokens = random_tokens(model, 1, data.draw(st.integers(3, 7)))
    cells = data.draw(st.lists(specs(model, tokens), min_size=1, max_size=4))
    position = data.draw(st.sampled_from([0, -1]))
    found = sweep(model, tokens, cells, logit(5), position=position)
    for score, spec in zip(found.scores.tolist(), cells, strict=True):
        assert whole(model, tokens, spec, logit(5), position).is_found(score), repr(spec)
    busy = found.plan.cells - found.plan.idle
    assert not busy or "later positions change earlier ones" in found.explain()


def test_ranks_are_those_of_whole_runs() -> None:
    model = examples.model_of("llama")
    tokens = random_tokens(model, 1, 6)
    cells = [HookSpec().intervene(h, Scale(-1.0)) for h in model.hooks if "pos" in h.point.axes]
    found = sweep(model, tokens, cells, rank(5))
    for score, spec in zip(found.scores.tolist(), cells, strict=True):
        logits = model.forward(tokens, spec).output[0, -1]
        assert score == 1 + int((logits > logits[5]).sum())
