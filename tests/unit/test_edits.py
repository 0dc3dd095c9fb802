# SPDX-License-Identifier: MIT OR Apache-2.0
"""Edits in a run: where they act, what they refuse, what is left of them."""

from typing import Any

import pytest
import torch
from inline_snapshot import snapshot
from torch import Tensor

from torch_mi.backends.transformer import Transformer
from torch_mi.cache import HookCache, Prefix, Residual
from torch_mi.errors import HookError, InterventionError
from torch_mi.hooks.coordinates import At, Span, Token
from torch_mi.hooks.interventions import (
    Add,
    Apply,
    Intervention,
    Knockout,
    Replace,
    Scale,
    Zero,
)
from torch_mi.hooks.point import Hook, HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel
from torch_mi.testing import random_tokens, tiny

MODEL = tiny("mistral")
TOKENS = random_tokens(MODEL, 2, 7)
RESID = HookPoint.ResidPost(1)
SCORES, PATTERN = HookPoint.AttnScores(1), HookPoint.AttnPattern(1)
NAN, INF = float("nan"), float("inf")


def run(where: str, edit: Intervention, tokens: Any = TOKENS, **more: Any) -> HookCache:
    return MODEL.forward(tokens, HookSpec().intervene(where, edit).capture(where), **more)


def refusal(where: str, edit: Intervention, tokens: Any = TOKENS, **more: Any) -> str:
    """What is said of an edit that does not fit; nothing may run before that is said."""
    with pytest.raises(InterventionError) as caught:
        run(where, edit, tokens, **more)
    return str(caught.value)


def plain(where: str, tokens: Any = TOKENS, **more: Any) -> Tensor:
    return MODEL.forward(tokens, HookSpec().capture(where), **more)[where]


class TestValues:
    def test_what_each_kind_does(self) -> None:
        old, delta = plain(RESID), torch.randn(24)
        wanted: list[tuple[Intervention, Tensor]] = [
            (Replace(delta.expand(2, 7, 24)), delta.expand(2, 7, 24)),
            (Add(delta), old + delta),
            (Add(torch.ones(7, 1)), old + 1),
            (Scale(-2.0), old * -2),
            (Zero(), torch.zeros_like(old)),
            (Apply(lambda x, _: x.clamp(-1, 1)), old.clamp(-1, 1)),
        ]
        for edit, value in wanted:
            assert torch.equal(run(RESID, edit)[RESID], value), edit

    def test_dtype_follows_the_activation(self) -> None:
        small = tiny("mistral", dtype=torch.bfloat16)
        spec = HookSpec().intervene(RESID, Add(torch.ones(24, dtype=torch.float64)))
        assert small.forward(TOKENS, spec.capture(RESID))[RESID].dtype == torch.bfloat16

    def test_when_before(self) -> None:
        spec = HookSpec().capture(RESID, when="before").capture(RESID)
        cache = MODEL.forward(TOKENS, spec.intervene(RESID, Scale(3.0)))
        assert torch.equal(cache.before[RESID], plain(RESID))
        assert torch.equal(cache[RESID], plain(RESID) * 3)

    def test_functions_may_write_in_place_and_see_the_hook(self) -> None:
        seen = list[Hook]()

        def halve(x: Tensor, hook: Hook) -> Tensor:
            seen.append(hook)
            x.mul_(0.5)
            return x

        ran = run(HookPoint.ResidPost, Apply(halve))
        assert seen == [HookPoint.ResidPost(i) for i in range(3)]
        assert torch.equal(ran[HookPoint.ResidPost(0)], plain(HookPoint.ResidPost(0)) * 0.5)
        untouched = MODEL.forward(TOKENS).output
        assert torch.equal(MODEL.forward(TOKENS).output, untouched)

    @pytest.mark.parametrize(
        ("result", "wrong"),
        [
            (
                torch.zeros(7, 24),
                r"returned shape \[7, 24\] for an activation of shape \[2, 7, 24\]",
            ),
            (None, "returned NoneType, not a tensor"),
        ],
    )
    def test_functions_that_return_something_else(self, result: Any, wrong: str) -> None:
        with pytest.raises(InterventionError, match=wrong):
            run(RESID, Apply(lambda x, _: result if x.ndim else x))

    def test_shapes_that_do_not_fit(self) -> None:
        assert refusal(RESID, Replace(torch.zeros(7, 24))) == snapshot(
            "Replace at ResidPost needs a value of shape [2, 7, 24], got [7, 24]"
        )
        assert refusal(RESID, Replace(torch.zeros(2, 24), at=At(pos=[0, 1]))) == snapshot(
            "Replace at ResidPost needs a value of shape [2, 2, 24], got [2, 24]"
        )
        assert refusal(RESID, Add(torch.zeros(23))) == snapshot(
            "Add at ResidPost needs a value that broadcasts to [2, 7, 24], got [23]"
        )
        assert refusal(RESID, Add(torch.zeros(1, 2, 7, 24))) == snapshot(
            "Add at ResidPost needs a value that broadcasts to [2, 7, 24], got [1, 2, 7, 24]"
        )
        assert refusal(SCORES, Knockout(torch.zeros(3, 7))) == snapshot(
            "Knockout at AttnScores needs a value that broadcasts to [2, 6, 7, 7], got [3, 7]"
        )

    def test_values_that_are_no_numbers(self) -> None:
        assert refusal(RESID, Add(torch.tensor([0.0, NAN]))).startswith("Add at ResidPost needs")
        assert refusal(RESID, Add(torch.tensor(NAN))) == snapshot(
            "Add at ResidPost: the value holds nan"
        )
        assert refusal(RESID, Replace(torch.full((2, 7, 24), INF))) == snapshot(
            "Replace at ResidPost: the value holds inf"
        )
        assert refusal(RESID, Replace(torch.full((2, 7, 24), -INF))) == snapshot(
            "Replace at ResidPost: the value holds -inf"
        )
        assert refusal(SCORES, Replace(torch.full((2, 6, 7, 7), INF))) == snapshot(
            "Replace at AttnScores: the value holds inf"
        )
        assert refusal(RESID, Scale(NAN)) == snapshot(
            "Scale at ResidPost needs a finite factor, got nan"
        )
        assert refusal(SCORES, Knockout(torch.tensor(1.0))) == snapshot(
            "a Knockout mask holds 0 (keep) and -inf (remove) only"
        )
        assert refusal(RESID, Knockout()) == snapshot(
            "Knockout removes attention edges and acts at AttnScores, not at ResidPost; "
            "Zero() sets an activation to zero"
        )


class TestScores:
    def test_the_vectors_of_a_knockout(self) -> None:
        """Head 0 loses the edge 2 → 1; no other head does."""
        ran = run(SCORES, Knockout(at=At(head=0, query=2, key=1)), TOKENS[:1, :4])
        flat = ran[SCORES].flatten()
        old = plain(SCORES, TOKENS[:1, :4]).flatten()
        assert flat[9] == -INF
        assert torch.equal(flat[25], old[25])
        assert int((flat != old).sum()) == 1

    @pytest.mark.parametrize("edit", [Scale(-1.0), Scale(0.0), Zero(), Add(torch.tensor(5.0))])
    def test_edits_do_not_open_what_is_barred(self, edit: Intervention) -> None:
        spec = HookSpec().intervene(SCORES, edit).capture(PATTERN)
        pattern = MODEL.forward(TOKENS, spec)[PATTERN]
        assert torch.equal(pattern > 0, plain(PATTERN) > 0)
        torch.testing.assert_close(pattern.sum(-1), torch.ones(2, 6, 7))

    def test_knocking_everything_out_leaves_attention_silent(self) -> None:
        spec = HookSpec().intervene(SCORES, Knockout()).capture(HookPoint.AttnZ(1))
        ran = MODEL.forward(TOKENS, spec)
        assert not ran[HookPoint.AttnZ(1)].any()
        assert ran.output.isfinite().all()

    def test_a_replaced_pattern_cannot_look_ahead(self) -> None:
        ones = torch.full((2, 6, 7, 7), 1 / 7)
        spec = HookSpec().intervene(PATTERN, Replace(ones)).capture(HookPoint.AttnZ(1))
        values = plain(HookPoint.AttnV(1)).repeat_interleave(3, 2)
        seen = plain(PATTERN)[0, 0] > 0
        wanted = torch.einsum("qk,bkhd->bqhd", seen.float() / 7, values)
        torch.testing.assert_close(MODEL.forward(TOKENS, spec)[HookPoint.AttnZ(1)], wanted)


class TestCoordinates:
    def test_key_heads_are_counted_at_keys(self) -> None:
        where = HookPoint.AttnK(1)
        changed = run(where, Scale(2.0, at=At(head=1)))[where]
        old = plain(where)
        assert torch.equal(changed[:, :, 1], old[:, :, 1] * 2)
        assert torch.equal(changed[:, :, 0], old[:, :, 0])
        assert refusal(where, Scale(2.0, at=At(head=2))) == snapshot(
            "head=2 is out of range: AttnK has 2 (0 … 1, or negative from the end)"
        )

    @pytest.mark.parametrize(
        ("where", "at", "index"),
        [
            (RESID, At(pos=-1), (slice(None), 6)),
            (RESID, At(batch=1, pos=[0, -2]), (1, [0, 5])),
            (RESID, At(pos=slice(2, 4)), (slice(None), slice(2, 4))),
            (RESID, At(pos=slice(None, None, 2)), (slice(None), slice(None, None, 2))),
            (HookPoint.MlpPost(0), At(neuron=[3, 39]), (..., [3, 39])),
            (PATTERN, At(query=3, key=slice(0, 2)), (..., 3, slice(0, 2))),
            (HookPoint.AttnZ(2), At(head=5, pos=1), (slice(None), 1, 5)),
            (HookPoint.Logits, At(pos=-1), (slice(None), -1)),
        ],
    )
    def test_they_index(self, where: Hook, at: At, index: Any) -> None:
        old = plain(where)
        wanted = old.clone()
        wanted[index] = 0
        ran = run(where, Zero(at=at))
        assert torch.equal(ran[where], wanted)
        assert ran.receipts[0].shape == tuple(old[index].shape)

    def test_they_select_an_outer_product(self) -> None:
        value = torch.randn(2, 3, 2, 10)
        at = At(pos=[0, 2, 5], head=[1, 4])
        changed = run(HookPoint.AttnZ(0), Replace(value, at=at))[HookPoint.AttnZ(0)]
        assert torch.equal(changed[:, [0, 2, 5]][:, :, [1, 4]], value)

    def test_axes_that_are_not_there(self) -> None:
        assert refusal(RESID, Zero(at=At(head=0))) == snapshot(
            "ResidPost has no head axis; At() can limit batch, pos there"
        )
        assert refusal(PATTERN, Zero(at=At(pos=0))) == snapshot(
            "AttnPattern has no pos axis; At() can limit batch, head, key, query there"
        )

    def test_places_that_are_not_there(self) -> None:
        assert refusal(RESID, Zero(at=At(pos=7))) == snapshot(
            "pos=7 is out of range: row 0 has 7 (0 … 6, or negative from the end)"
        )
        assert refusal(RESID, Zero(at=At(batch=-3))) == snapshot(
            "batch=-3 is out of range: the batch has 2 (0 … 1, or negative from the end)"
        )
        assert refusal(RESID, Zero(at=At(pos=[]))) == snapshot("pos=[] selects nothing")
        assert refusal(RESID, Zero(at=At(pos=slice(7, 9)))) == snapshot(
            "pos=slice(7, 9, None) selects nothing"
        )

    def test_positions_of_padded_rows_are_their_own(self) -> None:
        rows = [[5, 6, 7, 8], [9, 10]]
        for mask in (None, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])):
            tokens = rows if mask is None else torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
            first, last = (2, 3) if mask is None else (0, 1)
            for pos, column in ((0, first), (-1, last), (1, last)):
                ran = run(RESID, Zero(at=At(batch=1, pos=pos)), tokens, attention_mask=mask)
                zeros = (ran[RESID] == 0).all(-1)
                assert zeros[0].tolist() == [False] * 4
                assert zeros[1].nonzero().flatten().tolist() == [column]
        ran = run(RESID, Zero(at=At(pos=-1)), rows)
        assert (ran[RESID] == 0).all(-1).tolist() == [[False, False, False, True]] * 2
        ran = run(PATTERN, Zero(at=At(query=0, key=0)), rows)
        assert ran[PATTERN][0, :, 0, 0].any().item() is False
        assert ran[PATTERN][1, :, 2, 2].any().item() is False
        message = refusal(RESID, Zero(at=At(pos=slice(0, 3))), rows)
        assert message == snapshot(
            "pos=slice(0, 3, None) selects different numbers of positions in different rows; "
            "limit the edit to one row with At(batch=…)"
        )
        assert "row 1 has 2 (0 … 1" in refusal(RESID, Zero(at=At(pos=3)), rows)

    def test_positions_count_on_from_a_prefix(self) -> None:
        start = MODEL.forward(TOKENS[:, :3], after=Prefix()).prefix
        rest = TOKENS[:, 3:]
        ran = run(RESID, Zero(at=At(pos=4)), rest, after=start)
        assert (ran[RESID] == 0).all(-1).tolist() == [[False, True, False, False]] * 2
        ran = run(SCORES, Knockout(at=At(query=4, key=1)), rest, after=start)
        assert (ran[SCORES][:, :, 1, 1] == -INF).all()
        message = refusal(RESID, Zero(at=At(pos=2)), rest, after=start)
        assert "would never apply in this run" in message
        assert "positions 3 … 6" in message
        message = refusal(RESID, Zero(at=At(pos=[2, 3])), rest, after=start)
        assert "partly in the prefix" in message


class TestText:
    TEXT = "a cat, a dog, a cat"

    def zeroed(self, at: At, prompt: Any = TEXT) -> list[list[int]]:
        ran = run(RESID, Zero(at=at), prompt)
        return [row.nonzero().flatten().tolist() for row in (ran[RESID] == 0).all(-1)]

    def test_tokens_and_spans(self) -> None:
        """The tokenizer is one of characters, after a token that begins the text."""
        assert self.zeroed(At(pos=Token("g"))) == [[12]]
        assert self.zeroed(At(pos=Token("c", nth=1))) == [[17]]
        assert self.zeroed(At(pos=Span("dog"))) == [[10, 11, 12]]
        assert self.zeroed(At(pos=Span("dog").first)) == [[10]]
        assert self.zeroed(At(pos=Span("cat", nth=1).last)) == [[19]]
        assert self.zeroed(At(pos=Span("dog").last), ["a dog", "the dog"]) == [[7], [7]]

    def test_text_in_ids_is_found_too(self) -> None:
        ids = MODEL.encode(self.TEXT)
        assert self.zeroed(At(pos=Span("dog").last), ids) == [[12]]

    @pytest.mark.parametrize(
        ("place", "wrong"),
        [
            (Token("z"), "no token of '<s>a cat, a dog, a cat' is 'z'"),
            (Token("dog"), r"spread over several tokens: Span\('dog'\).last is its last"),
            (Token("c"), r"'c' occurs 2 times in .*; say which with nth=0 … 1"),
            (Token("c", nth=2), "nth=2, but token 'c' occurs 2 times"),
            (Span("bird"), "'bird' does not occur in"),
            (Span("cat"), r"'cat' occurs 2 times in .*; say which with nth=0 … 1"),
            (Span("cat", nth=-1), "nth=-1, but 'cat' occurs 2 times"),
            (Span(""), "'' does not occur"),
        ],
    )
    def test_text_that_is_absent_or_ambiguous(self, place: Token | Span, wrong: str) -> None:
        with pytest.raises(InterventionError, match=wrong):
            self.zeroed(At(pos=place))

    def test_where_there_is_no_text(self) -> None:
        mute = MIModel(MODEL.backend)
        spec = HookSpec().intervene(RESID, Zero(at=At(pos=Token("a"))))
        with pytest.raises(InterventionError, match="needs text, and this run has none"):
            mute.forward(TOKENS, spec)
        start = Residual(1, torch.zeros(1, 3, 24))
        with pytest.raises(InterventionError, match="needs text, and this run has none"):
            MODEL.forward(start, spec)


class TestReceipts:
    def test_each_edit_leaves_one(self) -> None:
        spec = (
            HookSpec()
            .intervene(HookPoint.ResidPost, Scale(1.5, at=At(pos=-1)))
            .intervene(RESID, Add(torch.full((24,), 0.25)))
        )
        receipts = MODEL.forward(TOKENS, spec).receipts
        hooks = [HookPoint.ResidPost(i) for i in range(3)]
        assert [r.hook for r in receipts] == [*hooks, RESID]
        assert [r.times for r in receipts] == [1] * 4
        assert [r.shape for r in receipts] == [(2, 24)] * 3 + [(2, 7, 24)]
        assert receipts[-1].largest_change == pytest.approx(0.25)
        assert "applied 1× to [2, 7, 24], largest change 0.25>" in repr(receipts[-1])

    def test_scores_that_stay_barred_do_not_change(self) -> None:
        assert run(SCORES, Scale(1.0)).receipts[0].largest_change == 0
        assert run(SCORES, Knockout(at=At(query=3, key=2))).receipts[0].largest_change == INF

    def test_edits_that_a_run_does_not_reach(self) -> None:
        def unfired(start: Any, where: Hook | HookPoint, **more: Any) -> str:
            with pytest.raises(InterventionError) as caught:
                MODEL.forward(start, HookSpec().intervene(where, Zero()), **more)
            return str(caught.value)

        assert unfired(TOKENS, RESID, stop=1) == snapshot(
            "Zero() at blocks.1.hook_resid_post would never apply in this run, which goes through "
            "layers 0 … 0, stops before the logits, positions 0 … 6; "
            "HookSpec(allow_unfired=True) permits that"
        )
        start = Residual(2, torch.zeros(2, 7, 24))
        for where in (RESID, HookPoint.Embed):
            assert "would never apply" in unfired(start, where)
            spec = HookSpec(allow_unfired=True).intervene(where, Zero())
            assert MODEL.forward(start, spec).receipts == ()
        spec = HookSpec().intervene(HookPoint.ResidPost, Zero())
        assert [r.hook.layer for r in MODEL.forward(start, spec).receipts] == [2]

    def test_captures_that_a_run_does_not_reach(self) -> None:
        with pytest.raises(HookError, match=r"ResidPost\(1\) is outside this run"):
            MODEL.forward(TOKENS, HookSpec().capture(RESID), stop=1)
        with pytest.raises(HookError, match="Logits is outside this run"):
            MODEL.forward(TOKENS, HookSpec().capture(HookPoint.Logits), stop=3)


class Shy(Transformer):
    """A backend that shows more than it lets anyone change."""

    def __init__(self) -> None:
        super().__init__(MODEL.config)
        self.read_only = frozenset(HookPoint) - {HookPoint.Embed}


def test_points_that_can_only_be_read() -> None:
    shy = MIModel(Shy())
    assert RESID in shy.forward(TOKENS, HookSpec().capture(RESID))
    shy.forward(TOKENS, HookSpec().intervene(HookPoint.Embed, Zero()))
    with pytest.raises(InterventionError) as caught:
        shy.forward(TOKENS, HookSpec().intervene(RESID, Zero()))
    assert str(caught.value) == snapshot(
        "ResidPost can be captured but not edited in this model; Embed can be edited"
    )


def test_nothing_is_left_after_an_error() -> None:
    before = MODEL.forward(TOKENS).output
    with pytest.raises(ZeroDivisionError):
        run(RESID, Apply(lambda x, _: x * (1 / 0)))
    assert torch.equal(MODEL.forward(TOKENS).output, before)
    assert torch.is_grad_enabled()
