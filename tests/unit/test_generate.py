# SPDX-License-Identifier: MIT OR Apache-2.0
"""Continuing a text: the same with and without a cache, edited at every step, sampled."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kinds import KINDS
from torch_mi.errors import HookError, InterventionError, ModelError, TokenizerError
from torch_mi.generate import stream
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
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.hooks.trace import depends_on_length
from torch_mi.model import MIModel, Origin
from torch_mi.sampling import Sampling, extract_token_prob, sample_token
from torch_mi.testing import random_tokens, tiny

MODEL = tiny("gemma2", 2)
TOKENS = random_tokens(MODEL, 1, 6)
RESID = HookPoint.ResidPost(1)
VECTOR = 3 * torch.randn(24, generator=torch.Generator().manual_seed(0))


def spec(where: str, edit: Intervention) -> HookSpec:
    return HookSpec().intervene(where, edit)


def varied(family: str) -> MIModel:
    """A model whose greedy text does not settle on one token at once."""
    return tiny(family, 2, {"final_logit_softcapping": None} if family == "gemma2" else None)


STEADY: dict[str, HookSpec] = {
    "nothing": HookSpec(),
    "steering everywhere": spec(HookPoint.ResidPost, Add(VECTOR)),
    "one fixed position": spec(RESID, Replace(VECTOR, at=At(batch=0, pos=2))),
    "a head": spec(HookPoint.AttnZ(0), Scale(3.0, at=At(head=1))),
    "a key": spec(HookPoint.AttnScores, Knockout(at=At(key=0))),
    "an edge": spec(HookPoint.AttnScores(1), Knockout(at=At(query=3, key=1))),
    "a neuron": spec(HookPoint.MlpPost(2), Zero(at=At(neuron=7))),
    "keys": spec(HookPoint.AttnK(1), Scale(-1.0)),
}
"""Edits that act alike however long the run is."""
SHIFTING: dict[str, HookSpec] = {
    "the last position": spec(RESID, Add(VECTOR, at=At(pos=-1))),
    "a stretch": spec(RESID, Add(VECTOR, at=At(pos=slice(1, 3)))),
    "a function": spec(RESID, Apply(lambda x, _: x + x.mean(1, keepdim=True))),
    "the last query": spec(HookPoint.AttnScores, Knockout(at=At(query=-1, key=0))),
}
"""Edits that may not."""


def kinds_of_edits() -> list[tuple[str, str]]:
    """Every family with two kinds of edit that it has, in turns, so that each meets many."""
    pairs: list[tuple[str, str]] = []
    for i, family in enumerate(KINDS):
        dense = HookPoint.MlpPost in tiny(family).backend.hook_points
        names = [name for name in STEADY if dense or name != "a neuron"]
        pairs += [(family, names[(2 * i + k) % len(names)]) for k in range(2)]
    return pairs


@pytest.mark.parametrize(("family", "name"), kinds_of_edits())
def test_carrying_keys_over_changes_nothing(family: str, name: str) -> None:
    model = varied(family)
    ran = [
        model.generate(TOKENS, max_new_tokens=8, spec=STEADY[name], use_cache=use)
        for use in (None, True, False)
    ]
    assert ran[0].tokens == ran[1].tokens == ran[2].tokens
    assert [r.used_cache for r in ran] == [True, True, False]
    assert len(ran[0].tokens) == 8


@pytest.mark.parametrize("name", SHIFTING)
def test_edits_that_move_are_applied_to_the_whole_text_again(name: str) -> None:
    ran = MODEL.generate(TOKENS, max_new_tokens=6, spec=SHIFTING[name])
    assert not ran.used_cache
    text = TOKENS
    for token in ran.tokens:
        logits = MODEL.forward(text, SHIFTING[name]).output[0, -1]
        assert token == int(logits.argmax())
        text = torch.cat([text, torch.tensor([[token]])], 1)


def test_a_value_for_one_position_is_not_stretched_over_others() -> None:
    one = TOKENS[:, :1]
    edit = spec(RESID, Replace(VECTOR.view(1, 1, 24)))
    with pytest.raises(InterventionError, match=r"needs a value of shape \[1, 2, 24\]"):
        MODEL.generate(one, max_new_tokens=3, spec=edit)


def test_edits_bend_the_text() -> None:
    model = varied("llama")
    plain = model.generate(TOKENS, max_new_tokens=8).tokens
    bent = [model.generate(TOKENS, max_new_tokens=8, spec=s).tokens for s in STEADY.values()]
    assert bent[0] == plain
    assert sum(tokens != plain for tokens in bent) > 3


def test_places_named_by_text_stay_where_the_prompt_has_them() -> None:
    prompt = "a cat and a dog"
    at = At(pos=Span("cat").last)
    named = MODEL.generate(prompt, max_new_tokens=5, spec=spec(RESID, Add(VECTOR, at=at)))
    fixed = spec(RESID, Add(VECTOR, at=At(pos=5)))
    assert named.tokens == MODEL.generate(prompt, max_new_tokens=5, spec=fixed).tokens
    assert named.used_cache
    with pytest.raises(InterventionError, match="different positions in these prompts"):
        MODEL.generate(["a cat", "the cat"], spec=spec(RESID, Zero(at=At(pos=Token("c")))))


@pytest.mark.parametrize("use_cache", [None, False])
@pytest.mark.parametrize("family", KINDS)
def test_a_padded_batch_is_its_prompts(family: str, use_cache: bool | None) -> None:
    model = varied(family)
    prompts = [random_tokens(model, 1, n, n)[0].tolist() for n in (5, 2, 7)]
    edit = spec(HookPoint.ResidPost(1), Add(VECTOR))
    together = model.generate(prompts, max_new_tokens=6, spec=edit, use_cache=use_cache)
    for prompt, row in zip(prompts, together.rows, strict=True):
        alone = model.generate(prompt, max_new_tokens=6, spec=edit, use_cache=use_cache)
        assert row.tokens == alone.tokens
        assert row.prompt_tokens == prompt
    with pytest.raises(ModelError, match=r"3 prompts were continued; see \.texts and \.rows"):
        _ = together.text


def test_stopping() -> None:
    model = varied("llama")
    free = model.generate(TOKENS, max_new_tokens=8, stop_tokens=[])
    stop = free.tokens[3]
    first = free.tokens.index(stop)
    ended = model.generate(TOKENS, max_new_tokens=8, stop_tokens=[stop])
    assert ended.tokens == free.tokens[:first]
    assert ended.rows[0].stopped_by == stop
    assert free.rows[0].stopped_by is None
    own = MIModel(model.backend, origin=Origin("x", "llama", eos_ids=(stop,)))
    assert own.generate(TOKENS, max_new_tokens=8).tokens == ended.tokens
    assert own.generate(TOKENS, max_new_tokens=8, stop_tokens=[]).tokens == free.tokens
    letter = model.decode([stop])
    assert model.generate(TOKENS, max_new_tokens=8, stop_tokens=[letter]).tokens == ended.tokens


def test_a_row_that_has_ended_does_not_hold_up_the_others() -> None:
    model = varied("llama")
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    free = [model.generate(p, max_new_tokens=7, stop_tokens=[]).tokens for p in prompts]
    stop = free[0][1]
    for use in (None, False):
        ran = model.generate(prompts, max_new_tokens=7, stop_tokens=[stop], use_cache=use)
        for row, tokens in zip(ran.rows, free, strict=True):
            cut = tokens.index(stop) if stop in tokens else 7
            assert row.tokens == tokens[:cut]
            assert row.stopped_by == (stop if stop in tokens else None)


def test_seeds_repeat_and_are_written_down() -> None:
    def draw(seed: int | None) -> Any:
        return MODEL.generate(TOKENS, max_new_tokens=12, temperature=1.5, seed=seed)

    assert draw(3).tokens == draw(3).tokens
    assert draw(3).tokens != draw(4).tokens
    unseeded = draw(None)
    again = draw(unseeded.sampling.seed)
    assert again.tokens == unseeded.tokens
    assert unseeded.manifest["seed"] == unseeded.sampling.seed
    assert MODEL.generate(TOKENS, max_new_tokens=2).sampling.seed is None
    cached, whole = (
        MODEL.generate(TOKENS, max_new_tokens=8, temperature=1.0, seed=1, use_cache=use)
        for use in (True, False)
    )
    assert cached.tokens == whole.tokens


def test_pieces_join_to_the_text() -> None:
    choices: list[dict[str, Any]] = [
        {},
        {"temperature": 2.0, "seed": 5, "top_k": 40, "top_p": 0.99},
    ]
    for settings in choices:
        whole = MODEL.generate("one two", max_new_tokens=15, **settings)
        pieces = list(stream(MODEL, "one two", max_new_tokens=15, **settings))
        assert "".join(pieces) == whole.text
        assert len(pieces) > 5
    with pytest.raises(ModelError, match="stream continues one prompt, got 2"):
        next(stream(MODEL, ["a", "b"]))


def test_results_are_json() -> None:
    ran = MODEL.generate("one two", max_new_tokens=4, spec=STEADY["one fixed position"])
    data = json.loads(json.dumps(ran.to_dict(), allow_nan=False))
    assert data["rows"][0]["tokens"] == ran.tokens
    assert data["rows"][0]["full_text"] == ran.full_text == ran.rows[0].prompt + ran.text
    assert data["manifest"]["tokens"] == [MODEL.encode("one two")[0].tolist()]
    assert repr(ran) == f"'<s>one two' → {ran.text!r}"
    assert MODEL.generate("one", max_new_tokens=0).text == ""


def test_what_it_refuses() -> None:
    watching = HookSpec().capture(RESID)
    with pytest.raises(HookError, match="returns no captures; run forward"):
        MODEL.generate(TOKENS, spec=watching)
    with pytest.raises(ModelError, match="max_new_tokens is a count from 0 upwards, got -1"):
        MODEL.generate(TOKENS, max_new_tokens=-1)
    with pytest.raises(TokenizerError, match=r"token id 97 is out of range: 0 … 96"):
        MODEL.generate(TOKENS, stop_tokens=[97])
    with pytest.raises(TokenizerError, match="text needs a tokenizer"):
        MIModel(MODEL.backend).generate("text")
    with pytest.raises(ModelError, match="temperature is a number from 0 upwards, got -1"):
        MODEL.generate(TOKENS, temperature=-1.0)
    with pytest.raises(ModelError, match="top_k is a count from 1 upwards, got 0"):
        MODEL.generate(TOKENS, top_k=0)
    for top_p in (0.0, 1.5):
        with pytest.raises(ModelError, match=r"top_p is a probability above 0 and up to 1"):
            MODEL.generate(TOKENS, top_p=top_p)


ROPES: dict[str, dict[str, object]] = {
    "dynamic": {
        "max_position_embeddings": 9,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0},
    },
    "longrope": {
        "original_max_position_embeddings": 9,
        "partial_rotary_factor": 1.0,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 100.0,
            "short_factor": [1.0] * 5,
            "long_factor": [1.0, 2.0, 3.0, 5.0, 9.0],
        },
    },
}


@pytest.mark.parametrize(("family", "kind"), [("llama", "dynamic"), ("phi3", "longrope")])
def test_turns_that_change_with_length_are_made_anew(family: str, kind: str) -> None:
    model = tiny(family, 2, ROPES[kind])
    short = model.generate(TOKENS, max_new_tokens=3)
    assert short.used_cache
    long = model.generate(TOKENS, max_new_tokens=10)
    assert not long.used_cache
    assert long.tokens == model.generate(TOKENS, max_new_tokens=10, use_cache=False).tokens
    text = TOKENS
    for token in long.tokens:
        assert token == int(model.forward(text).output[0, -1].argmax())
        text = torch.cat([text, torch.tensor([[token]])], 1)


class TestSampling:
    LOGITS = torch.tensor([0.5, 3.0, -1.0, 3.0, 2.0])

    def test_greedy_takes_the_lowest_of_equals(self) -> None:
        assert sample_token(self.LOGITS) == 1
        assert Sampling().choose(self.LOGITS) == 1
        assert sample_token(torch.tensor([[[0.0, 9.0], [9.0, 0.0]]])) == 0
        assert sample_token(torch.tensor([[0.0, 1.0]])) == 1

    @pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-300])
    def test_cold_is_greedy(self, temperature: float) -> None:
        logits = torch.tensor([0.5, 2.9, -1.0, 3.0, 2.0])
        assert {sample_token(logits, temperature, seed=s) for s in range(9)} == {3}

    def drawn(
        self, logits: Tensor, *, top_k: int | None = None, top_p: float | None = None
    ) -> set[int]:
        dice = torch.Generator().manual_seed(0)
        sampling = Sampling(1.0, top_k, top_p)
        return {sampling.choose(logits, dice) for _ in range(400)}

    def test_top_k_and_top_p(self) -> None:
        logits = torch.tensor([0.4, 0.1, 0.3, 0.15, 0.05]).log()
        assert self.drawn(logits) == {0, 1, 2, 3, 4}
        assert self.drawn(logits, top_k=1) == {0}
        assert self.drawn(logits, top_k=2) == {0, 2}
        assert self.drawn(logits, top_k=99) == {0, 1, 2, 3, 4}
        assert self.drawn(logits, top_p=0.39) == {0}
        assert self.drawn(logits, top_p=0.6) == {0, 2}
        assert self.drawn(logits, top_p=0.8) == {0, 2, 3}
        assert self.drawn(logits, top_p=1.0) == {0, 1, 2, 3, 4}
        assert self.drawn(logits, top_p=1e-9) == {0}
        assert self.drawn(logits, top_k=2, top_p=0.99) == {0, 2}

    def test_frequencies_are_the_probabilities(self) -> None:
        wanted = torch.tensor([0.5, 0.2, 0.3])
        sampling, dice = Sampling(2.0), torch.Generator().manual_seed(1)
        drawn = torch.tensor([sampling.choose(2 * wanted.log(), dice) for _ in range(4000)])
        found = torch.bincount(drawn, minlength=3) / 4000
        assert (found - wanted).abs().max() < 0.03

    def test_probabilities_of_tokens(self) -> None:
        assert extract_token_prob(torch.tensor([0.0, 0.0]), 1) == pytest.approx(0.5)
        assert extract_token_prob(torch.tensor([[9.0, 0.0], [0.0, 0.0]]), 1) == pytest.approx(0.5)
        with pytest.raises(ModelError, match=r"token id 2 is out of range: the logits have 0 … 1"):
            extract_token_prob(torch.tensor([0.0, 0.0]), 2)

    @pytest.mark.parametrize(
        ("logits", "wrong"),
        [
            (torch.empty(0), "empty logits"),
            (torch.empty(1, 0, 5), "empty logits"),
            (torch.zeros(2, 3, 5), "logits of 2 prompts; choose a row first"),
            (torch.zeros(()), "logits are"),
            (torch.tensor([0.0, float("nan")]), "the largest logit is nan"),
            (torch.tensor([0.0, float("inf")]), "the largest logit is inf"),
            (torch.full((3,), -float("inf")), "the largest logit is -inf"),
        ],
    )
    def test_logits_without_a_choice(self, logits: Tensor, wrong: str) -> None:
        with pytest.raises(ModelError, match=wrong):
            sample_token(logits)
        with pytest.raises(ModelError, match=wrong):
            sample_token(logits, 0.7)

    def test_barred_tokens_are_never_drawn(self) -> None:
        logits = torch.tensor([0.0, -float("inf"), 0.0])
        assert self.drawn(logits) == {0, 2}


def test_the_manifest_tells_the_spec_that_was_given() -> None:
    model = tiny("llama")
    spec = HookSpec().intervene("blocks.1.hook_resid_post", Scale(0.5))
    for use_cache in (True, False):
        found = model.generate("abc", spec=spec, max_new_tokens=3, use_cache=use_cache)
        assert found.manifest["spec"] == model.forward("abc", spec).manifest.spec


def test_a_value_that_spans_positions_is_seen_beside_a_single_neuron() -> None:
    at = At(neuron=3)
    assert depends_on_length(Add(torch.ones(5), at=at), HookPoint.MlpPost(0))
    assert not depends_on_length(Add(torch.ones(1), at=at), HookPoint.MlpPost(0))
