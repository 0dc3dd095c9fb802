# SPDX-License-Identifier: MIT OR Apache-2.0
"""Edits at random places do what they say there, and nothing elsewhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.laws import examples
from torch_mi.cache import Prefix
from torch_mi.families import FAMILIES
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Add, Intervention, Replace, Scale, Zero
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel

# beartype looks at a random item of a list, in strategies too; that decides no example
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

families = st.sampled_from(sorted(FAMILIES))


def hooks_of(model: MIModel) -> st.SearchStrategy[Hook]:
    """Every place that can be edited."""
    return st.sampled_from([h for h in model.hooks if h.point not in model.backend.read_only])


def both(model: MIModel, batch: examples.Padded, spec: HookSpec, hook: Hook) -> tuple[Tensor, ...]:
    """The activation before and after the edits at it."""
    spec = spec.copy().capture(hook).capture(hook, when="before")
    ran = model.forward(batch.tokens, spec, attention_mask=batch.mask, attention="explicit")
    return ran.before[hook], ran[hook]


def random(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60)
@given(st.data(), families)
def test_coordinates_select_what_they_say(data: st.DataObject, family: str) -> None:
    model = examples.model_of(family)
    batch = data.draw(examples.padded(model))
    hook = data.draw(hooks_of(model))
    old, _ = both(model, batch, HookSpec(), hook)
    at = data.draw(examples.coordinates(hook.point, old.shape, batch.columns))
    mask = examples.selected(at, hook.point, old.shape, batch.columns)
    kept = [
        i
        for i, axis in enumerate(hook.point.axes)
        if not isinstance(at.named().get(examples.NAME.get(axis, "")), int)
    ]
    counts = [int(mask.any(dim=tuple(d for d in range(mask.ndim) if d != i)).sum()) for i in kept]
    if batch.mask.all():
        value = random(tuple(counts), data.draw(st.integers(0, 9)))
        edit, wanted = Replace(value, at=at), old.clone()
        wanted[mask] = value.flatten()
    else:
        edit, wanted = Scale(-1.5, at=at), torch.where(mask, old * -1.5, old)
        wanted = torch.where(old == -torch.inf, old, wanted)
    before, after = both(model, batch, HookSpec().intervene(hook, edit), hook)
    assert torch.equal(before, old)
    assert torch.equal(after, wanted)


@settings(max_examples=25)
@given(st.data(), families)
def test_edits_apply_in_order_and_receipts_say_what_they_did(
    data: st.DataObject, family: str
) -> None:
    model = examples.model_of(family)
    batch = data.draw(examples.padded(model))
    hook = data.draw(hooks_of(model).filter(lambda h: h.point is not HookPoint.AttnScores))
    old, _ = both(model, batch, HookSpec(), hook)
    seed = data.draw(st.integers(0, 9))
    edits: list[Intervention] = [Scale(2.0), Add(random(old.shape, seed)), Scale(0.5), Zero()]
    order = data.draw(st.permutations(edits[:3]))
    wanted, changes = old, list[float]()
    spec = HookSpec()
    for edit in order:
        spec.intervene(hook, edit)
        new = wanted * edit.factor if isinstance(edit, Scale) else wanted + random(old.shape, seed)
        changes.append((new - wanted).abs().max().item())
        wanted = new
    ran = model.forward(
        batch.tokens, spec.capture(hook), attention_mask=batch.mask, attention="explicit"
    )
    assert torch.equal(ran[hook], wanted)
    assert [receipt.edit for receipt in ran.receipts] == order
    assert [receipt.times for receipt in ran.receipts] == [1, 1, 1]
    assert [receipt.shape for receipt in ran.receipts] == [tuple(old.shape)] * 3
    assert [receipt.largest_change for receipt in ran.receipts] == pytest.approx(changes)


@settings(max_examples=25)
@given(st.data(), families)
def test_looking_at_an_edited_run_does_not_change_it(data: st.DataObject, family: str) -> None:
    model = examples.model_of(family)
    tokens = data.draw(examples.prompts(model))
    spec = HookSpec()
    for hook in data.draw(st.lists(hooks_of(model), min_size=1, max_size=4)):
        spec.intervene(hook, Scale(data.draw(st.sampled_from([-1.0, 0.5, 2.0]))))
    bare = model.forward(tokens, spec, attention="explicit").output
    everything = HookSpec().capture(*model.backend.hook_points)
    for both_ways in (everything | spec, spec | everything):
        assert torch.equal(model.forward(tokens, both_ways, attention="explicit").output, bare)


@settings(max_examples=25)
@given(st.data(), families)
def test_an_edited_prefix_and_the_rest_are_the_edited_whole(
    data: st.DataObject, family: str
) -> None:
    model = examples.model_of(family)
    tokens = data.draw(examples.prompts(model))
    pos = tokens.shape[1]
    left_out = {HookPoint.Logits, *model.backend.read_only}
    points = [h for h in model.hooks if "pos" in h.point.axes and h.point not in left_out]
    spec = HookSpec(allow_unfired=True)
    for hook in data.draw(st.lists(st.sampled_from(points), min_size=1, max_size=3)):
        where = data.draw(st.integers(0, pos - 1))
        spec.intervene(hook, Scale(-2.0, at=At(pos=where)))
    whole = model.forward(tokens, spec)
    cut = data.draw(st.integers(1, pos - 1))
    # a run knows only its own tokens: later positions are out of range in the first part
    first = HookSpec(allow_unfired=True)
    for place, edit in spec.edits:
        if isinstance(edit.at, At) and isinstance(edit.at.pos, int) and edit.at.pos < cut:
            first.intervene(place, edit)
    start = model.forward(tokens[:, :cut], first, after=Prefix())
    rest = model.forward(tokens[:, cut:], spec, after=start.prefix)
    joined = torch.cat([start.output, rest.output], 1)
    torch.testing.assert_close(joined, whole.output, atol=2e-5, rtol=0)


@settings(max_examples=25)
@given(st.data(), families)
def test_an_edited_run_can_be_cut_at_any_layer(data: st.DataObject, family: str) -> None:
    model = examples.model_of(family, layers=3)
    tokens = data.draw(examples.prompts(model))
    spec = HookSpec(allow_unfired=True)
    for hook in data.draw(st.lists(hooks_of(model), min_size=1, max_size=3, unique=True)):
        spec.intervene(hook, Scale(-2.0))
    layer = data.draw(st.integers(0, 3))
    whole = model.forward(tokens, spec, attention="explicit")
    door = model.forward(tokens, spec, stop=layer, attention="explicit")
    ended = model.forward(door.residual, spec, attention="explicit")
    assert torch.equal(ended.output, whole.output)
    fired = [receipt.hook for receipt in (*door.receipts, *ended.receipts)]
    assert sorted(fired) == sorted(receipt.hook for receipt in whole.receipts)
