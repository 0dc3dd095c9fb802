# SPDX-License-Identifier: MIT OR Apache-2.0
"""What only recurrent models have: a state that is carried, captured, edited and knocked out."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import torch_mi as mi
from tests.parity.rwkv import Plain, Sizes, checkpoint
from torch_mi.cache import Prefix, Residual
from torch_mi.errors import HookError, InterventionError, MIError, ModelError
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.point import HookPoint as P
from torch_mi.hooks.states import StateKnockoutSpec, StateSteeringSpec
from torch_mi.partial import stream
from torch_mi.sweeps.run import sweep
from torch_mi.testing import random_tokens, tiny

FAMILIES = ("rwkv", "rwkv5", "rwkv6", "rwkv7")
KNOCKOUT, STEERING = StateKnockoutSpec(), StateSteeringSpec()


@cache
def model_of(family: str) -> mi.MIModel:
    return tiny(family, changes={"num_hidden_layers": 2})


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)


def without(spec: StateKnockoutSpec) -> mi.HookSpec:
    return mi.HookSpec().set_state_knockout(spec)


def steered(spec: StateSteeringSpec) -> mi.HookSpec:
    return mi.HookSpec().set_state_steering(spec)


def logits(model: mi.MIModel, tokens: Tensor, spec: mi.HookSpec | None = None) -> Tensor:
    return model.forward(tokens, spec).output


@pytest.mark.parametrize("version", ["4", "5.0", "5.2", "6", "7"])
def test_a_knocked_out_write_is_never_made(version: str, tmp_path: Path) -> None:
    """By the published equations without that token's key and value."""
    width = 12 if version in ("4", "7") else 10
    sizes = Sizes(version, width, width if version == "4" else 3, 1 if version == "4" else 4)
    tensors, tokens = checkpoint(sizes), [3, 1, 4, 1, 5, 9, 2]
    save_file(tensors, tmp_path / "model.safetensors")
    model = mi.MIModel.from_pretrained(tmp_path / "model.safetensors")
    eps = 4e-5 if version == "7" else 64e-5
    for spec, gone in (
        (KNOCKOUT.position(2), {(0, 2), (1, 2)}),
        (KNOCKOUT.position(1, 4).layer(1), {(1, 1), (1, 4)}),
    ):
        wanted = Plain(tensors, sizes, eps, frozenset(gone)).run(tokens)
        for kind in ("auto", "explicit"):
            ran = model.forward(torch.tensor([tokens]), without(spec), attention=kind)
            near(ran.output[0], wanted.logits.float())
            assert [receipt.times for receipt in ran.receipts] == [1] * len(gone)


@pytest.mark.parametrize("family", FAMILIES)
class TestKnockoutAndSteering:
    def test_scales(self, family: str) -> None:
        """One changes nothing, whatever else is touched; zero is the knockout."""
        model = model_of(family)
        tokens = random_tokens(model, 2, 6)
        plain = logits(model, tokens)
        one, zero = STEERING.position(1, 3), StateSteeringSpec(scale=0.0).position(1, 3)
        near(logits(model, tokens, steered(one)), plain)
        wide = StateSteeringSpec(full=True, shift=True).position(1, 3)
        near(logits(model, tokens, steered(wide)), plain)
        gone = logits(model, tokens, without(KNOCKOUT.position(1, 3)))
        near(logits(model, tokens, steered(zero)), gone)
        assert not torch.allclose(gone, plain, atol=1e-3)
        assert torch.equal(gone[:, :1], plain[:, :1])

    def test_knockout_wins_where_it_is(self, family: str) -> None:
        model = model_of(family)
        tokens = random_tokens(model, 1, 6)
        double = StateSteeringSpec(scale=2.0)
        both = without(KNOCKOUT.position(2).layer(0)) | steered(double.position(2, 3).layer(0))
        apart = without(KNOCKOUT.position(2).layer(0)) | steered(double.position(3).layer(0))
        near(logits(model, tokens, both), logits(model, tokens, apart))
        both = without(KNOCKOUT.position(2).head(0)) | steered(double.position(2))
        rest = tuple(range(1, model.num_heads))
        apart = without(KNOCKOUT.position(2).head(0)) | steered(double.position(2).head(*rest))
        near(logits(model, tokens, both), logits(model, tokens, apart))

    def test_heads_are_knocked_out_alone(self, family: str) -> None:
        model = model_of(family)
        tokens, at = random_tokens(model, 1, 6), At(pos=-1)
        spec = mi.HookSpec().capture(P.RwkvState(0), at=at)
        plain = model.forward(tokens, spec)[P.RwkvState(0)]
        seen = model.forward(tokens, spec | without(KNOCKOUT.position(2).head(1)))
        moved = (seen[P.RwkvState(0)] - plain).abs().flatten(2).amax(-1)[0]
        assert moved[1] > 1e-4
        assert moved[torch.arange(len(moved)) != 1].max() == 0

    def test_with_full_and_shift_a_token_is_as_if_it_were_not_there(self, family: str) -> None:
        """Its decay stays: of a state that fades, everything is what it was, faded."""
        model = model_of(family)
        tokens, layer = random_tokens(model, 1, 6), 0
        other = tokens.clone()
        other[0, 2] = (tokens[0, 2] + 1) % model.vocab_size
        spec = StateKnockoutSpec(full=True, shift=True).position(2)
        held = mi.HookSpec()
        if P.RwkvW in model.backend.hook_points:
            decay = model.forward(tokens, mi.HookSpec().capture(P.RwkvW))
            for i in range(model.num_layers):
                value = decay[P.RwkvW(i)][:, 2]
                held.intervene(P.RwkvW(i), mi.Replace(value, at=At(pos=2)))
        ones, others = (logits(model, t, held | without(spec))[:, 3:] for t in (tokens, other))
        near(ones, others)
        partly = logits(model, other, held | without(KNOCKOUT.position(2)))[:, 3:]
        assert not torch.allclose(partly, others, atol=1e-3)
        assert layer == 0

    def test_generation(self, family: str) -> None:
        """Carrying the state over, or running all again: the same text."""
        model = model_of(family)
        for spec in (
            without(StateKnockoutSpec(full=True, shift=True).position(3)),
            mi.HookSpec().intervene(P.RwkvState(1), mi.Scale(0.5, at=At(pos=2))),
        ):
            found = [
                model.generate("abc", max_new_tokens=4, spec=spec, use_cache=use).tokens
                for use in (True, False, None)
            ]
            assert found[0] == found[1] == found[2]

    def test_out_of_range(self, family: str) -> None:
        model, tokens = model_of(family), torch.tensor([[1, 2, 3]])
        for spec, said in (
            (without(KNOCKOUT.position(3)), r"position 3 is out of range.*0 … 2"),
            (without(KNOCKOUT), "StateKnockoutSpec names no positions"),
            (steered(STEERING), "StateSteeringSpec names no positions"),
            (without(KNOCKOUT.position(0).layer(2)), "layer 2 is out of range: the model has 2"),
        ):
            with pytest.raises(InterventionError, match=said):
                model.forward(tokens, spec)
        with pytest.raises(MIError, match="head"):
            model.forward(tokens, without(KNOCKOUT.position(0).head(99)))


@pytest.mark.parametrize("family", FAMILIES)
class TestStates:
    def test_one_call_or_two(self, family: str) -> None:
        """The last state of the first call is where the second begins."""
        model = model_of(family)
        tokens = random_tokens(model, 2, 7)
        spec = mi.HookSpec().capture(P.RwkvState, P.RwkvShift)
        whole = model.forward(tokens, spec)
        begun = model.forward(tokens[:, :4], spec, after=Prefix())
        rest = model.forward(tokens[:, 4:], spec, after=begun.prefix)
        near(torch.cat([begun.output, rest.output], 1), whole.output)
        for name in whole:
            near(torch.cat([begun[name], rest[name]], 1), whole[name])
        assert begun.prefix.recurrent
        with pytest.raises(ModelError, match="run the first 2 alone"):
            begun.prefix.cut(2)
        assert begun.prefix.cut(4).seen == 4

    def test_captures_of_some_positions(self, family: str) -> None:
        model = model_of(family)
        tokens = model.encode("abcab")
        whole = model.forward(tokens, mi.HookSpec().capture(P.RwkvState(1)))[P.RwkvState(1)]

        def some(at: At) -> Tensor:
            spec = mi.HookSpec().capture(P.RwkvState(1), at=at)
            return model.forward(tokens, spec)[P.RwkvState(1)]

        near(some(At(pos=2)), whole[:, 2])
        near(some(At(pos=-1)), whole[:, -1])
        near(some(At(pos=[0, 3])), whole[:, [0, 3]])
        near(some(At(pos=slice(1, 4))), whole[:, 1:4])
        near(some(At(pos=mi.Token("c"))), whole[:, 3])
        near(some(At(pos=[1, 2], head=[1, 0])), whole[:, [1, 2]][:, :, [1, 0]])
        near(some(At(batch=0, pos=2, head=1)), whole[0, 2, 1])
        near(some(At(batch=[0], pos=[4])), whole[[0]][:, [4]])
        with pytest.raises(MIError, match="pos"):
            some(At(pos=9))

    def test_padded_rows_have_their_own_positions(self, family: str) -> None:
        model = model_of(family)
        tokens = random_tokens(model, 2, 6)
        for mask in (
            torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]]).bool(),
            torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]]).bool(),
        ):
            spec = mi.HookSpec().capture(P.RwkvState(1), at=At(pos=[1, -1]))
            edit = mi.Add(torch.ones(model.num_heads, 1, 1), at=At(pos=2))
            spec.intervene(P.RwkvState(0), edit)
            spec.set_state_knockout(KNOCKOUT.position(1))
            ran = model.forward(tokens, spec, attention_mask=mask)
            for row, real in enumerate(mask):
                alone = model.forward(tokens[row, real], spec)
                near(ran.output[row, real], alone.output[0])
                near(ran[P.RwkvState(1)][row], alone[P.RwkvState(1)][0])

    def test_edits_at_one_position(self, family: str) -> None:
        """A state that is replaced is what the rest of the run goes on from."""
        model = model_of(family)
        tokens, other = random_tokens(model, 2, 6), random_tokens(model, 2, 6, seed=1)
        where, at = P.RwkvState(0), At(pos=2)
        spec = mi.HookSpec().capture(where)
        theirs = model.forward(other, spec)[where]
        seen = model.forward(
            tokens, spec | mi.HookSpec().intervene(where, mi.Replace(theirs[:, 2], at=at))
        )
        assert torch.equal(seen[where][:, 2], theirs[:, 2])
        assert [(r.times, r.shape) for r in seen.receipts] == [(1, tuple(theirs[:, 2].shape))]
        assert seen.receipts[0].largest_change > 0
        plain = model.forward(tokens, spec)
        assert torch.equal(seen.output[:, :2], plain.output[:, :2])
        assert not torch.allclose(seen.output[:, 3:], plain.output[:, 3:], atol=1e-4)
        row = mi.HookSpec().intervene(where, mi.Scale(0.5, at=At(batch=1, pos=[1, 2], head=0)))
        half = model.forward(tokens, spec | row)
        assert torch.equal(half[where][0], plain[where][0])
        assert torch.equal(half[where][1, 1, 0], plain[where][1, 1, 0] * 0.5)
        assert torch.equal(half[where][1, 1, 1:], plain[where][1, 1, 1:])

    def test_the_state_before_and_after_edits(self, family: str) -> None:
        model, where = model_of(family), P.RwkvState(1)
        spec = mi.HookSpec().capture(where).capture(where, when="before", at=At(pos=3))
        spec.intervene(where, mi.Zero(at=At(pos=3)))
        seen = model.forward(random_tokens(model, 1, 5), spec)
        assert not seen[where][:, 3].any()
        assert seen.before[where].any()


@pytest.mark.parametrize("family", FAMILIES)
class TestEffectiveAttention:
    def test_it_makes_what_is_read(self, family: str) -> None:
        model = model_of(family)
        tokens = random_tokens(model, 2, 7)
        spec = mi.HookSpec().capture(P.RwkvEffectiveAttn, P.RwkvV, P.RwkvWkv)
        seen = model.forward(tokens, spec)
        prefix = model.forward(tokens[:, :3], after=Prefix()).prefix
        rest = model.forward(tokens[:, 3:], spec, after=prefix)
        for layer in range(model.num_layers):
            a, v, y = (seen[p(layer)] for p in (P.RwkvEffectiveAttn, P.RwkvV, P.RwkvWkv))
            near(torch.einsum("bhqs,bshd->bqhd", a, v), y)
            later = rest[P.RwkvEffectiveAttn(layer)]
            near(later, a[:, :, 3:, 3:])
            of_prefix = torch.einsum("bhqs,bshd->bqhd", a[:, :, 3:, :3], v[:, :3])
            of_rest = torch.einsum("bhqs,bshd->bqhd", later, v[:, 3:])
            near(of_prefix + of_rest, rest[P.RwkvWkv(layer)])

    def test_edits_change_what_is_read(self, family: str) -> None:
        model = model_of(family)
        tokens, where = random_tokens(model, 2, 6), P.RwkvEffectiveAttn(0)
        spec = mi.HookSpec().capture(where, P.RwkvV(0), P.RwkvWkv(0))
        for edit in (
            mi.Zero(at=At(query=3)),
            mi.Scale(2.0, at=At(head=0)),
            mi.Add(torch.ones(6, 6)),
        ):
            seen = model.forward(tokens, spec | mi.HookSpec().intervene(where, edit))
            a = seen[where].tril()
            near(torch.einsum("bhqs,bshd->bqhd", a, seen[P.RwkvV(0)]), seen[P.RwkvWkv(0)])
            assert seen.receipts[0].largest_change > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_sweeps_are_whole_runs(family: str) -> None:
    """Cells that start at a position, from a state that was kept, or run again up to there."""
    model, length = model_of(family), 18
    points = [p for p in P if p in model.backend.hook_points]
    specs = list[mi.HookSpec]()
    for i, point in enumerate(points[::2]):
        pos = (7 * i) % length
        at = At(query=pos) if "query" in point.axes else At(pos=pos)
        hooks = [hook for hook in model.hooks if hook.point is point]
        specs.append(mi.HookSpec().intervene(hooks[i % len(hooks)], mi.Scale(0.5, at=at)))
    specs.append(without(StateKnockoutSpec(full=True, shift=True).position(3)))
    specs.append(steered(StateSteeringSpec(scale=2.0).position(5, 17).layer(1)))
    specs.append(without(KNOCKOUT.position(16)) | steered(StateSteeringSpec(scale=3.0).position(4)))
    dataset = ["abcdefghij klmnop", "stuvwxyz abcdefghij"]
    found = sweep(model, dataset, specs, lambda x: x[:, 5] - x[:, 7], progress=False)
    for prompt, scores in zip(dataset, found.per_prompt, strict=True):
        tokens = model.encode(prompt)
        for spec, score in zip(specs, scores.tolist(), strict=True):
            last = logits(model, tokens, spec)[0, -1]
            assert float(last[5] - last[7]) == pytest.approx(score, abs=3e-5)


class TestSavedSpecs:
    def test_limits_and_states(self, tmp_path: Path) -> None:
        spec = mi.HookSpec().capture(P.RwkvState, at=At(pos=[1, -1], head=0))
        spec.capture(P.RwkvWkv(0), when="before", at=At(pos=mi.Token("c")))
        spec.set_state_knockout(StateKnockoutSpec((1, 2), (0,), (1,), full=True, shift=True))
        spec.set_state_steering(StateSteeringSpec(scale=0.5).position(0))
        loaded = mi.HookSpec.load(spec.save(tmp_path / "spec.json"))
        assert loaded == spec
        assert repr(loaded) == repr(spec)
        assert "full=True" in repr(spec)
        assert "At(pos=[1, -1], head=0)" in repr(spec)

    def test_files_from_before(self, tmp_path: Path) -> None:
        """Without limits, heads, full and shift."""
        path = without(KNOCKOUT.position(1).layer(0)).capture(P.Embed).save(tmp_path / "spec.json")
        data = json.loads(path.read_text(encoding="utf-8"))
        del data["limits"]
        for key in ("heads", "full", "shift"):
            del data["state_knockout"][key]
        path.write_text(json.dumps(data), encoding="utf-8")
        loaded = mi.HookSpec.load(path)
        assert loaded == without(KNOCKOUT.position(1).layer(0)).capture(P.Embed)


def test_a_transformer_has_no_state() -> None:
    for spec in (without(KNOCKOUT.position(0)), steered(STEERING.position(0))):
        with pytest.raises(InterventionError, match=r"no recurrent state.*AttnScores"):
            tiny("llama").forward(torch.tensor([[1, 2]]), spec)
    with pytest.raises(HookError, match="no RwkvState"):
        tiny("llama").forward(torch.tensor([[1, 2]]), mi.HookSpec().capture(P.RwkvState))


def test_what_flows_beside_the_stream() -> None:
    """A run of RWKV-7 that starts in the middle needs the first layer's values, too."""
    model = model_of("rwkv7")
    tokens = random_tokens(model, 1, 5)
    seen = model.forward(tokens, mi.HookSpec().capture(P.ResidPre, P.RwkvVFirst))
    resumed = model.forward(Residual(1, stream(model, seen, 1)))
    near(resumed.output, seen.output)
    with pytest.raises(ModelError, match=r"partial\.stream"):
        model.forward(Residual(1, seen[P.ResidPre(1)]))
    with pytest.raises(HookError, match="layer 0 has no RwkvVFirst"):
        model.forward(tokens, mi.HookSpec().capture(P.RwkvVFirst(0)))
