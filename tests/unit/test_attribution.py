# SPDX-License-Identifier: MIT OR Apache-2.0
"""Direct logit attribution: the shares are what they say and sum to the logit."""

from pathlib import Path

import pytest
import torch

import torch_mi as mi
from tests.kinds import KINDS
from torch_mi.families import FAMILIES
from torch_mi.testing import tiny

PROMPT = "the quick fox"


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize(("versus", "position"), [(None, -1), ("z", 4)])
def test_shares_sum_to_the_logit(family: str, versus: str | None, position: int) -> None:
    model = tiny(family)
    found = mi.attribute(model, PROMPT, target="q", versus=versus, position=position)
    assert found.error < 1e-4
    cache = model.forward(PROMPT, mi.HookSpec().capture(mi.HookPoint.FinalNorm))
    logits = cache[mi.HookPoint.FinalNorm][0, position] @ model.backend.unembedding.detach().T
    bias = model.backend.unembedding_bias
    logits = (logits if bias is None else logits + bias.detach()) * model.backend.logit_scale
    expected = logits[model.token_id("q")] - (0 if versus is None else logits[model.token_id("z")])
    assert found.logit == pytest.approx(float(expected), abs=1e-4)
    if model.config.final_logit_softcapping is None and versus is None:
        assert found.logit == pytest.approx(
            float(cache.output[0, position, model.token_id("q")]), abs=1e-4
        )


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_share_is_what_vanishes_with_its_term(family: str) -> None:
    """With the final denominator held, removing a term moves the logit by its share."""
    model = tiny(family)
    points = mi.HookPoint
    plain = model.forward(
        PROMPT, mi.HookSpec().capture(points.FinalScale, points.ResidPost, points.MlpOut)
    )
    found = mi.attribute(model, PROMPT, target="q")
    last = model.num_layers - 1
    share = next(s for s in found.shares if s.kind == "mlp" and s.layer == last)
    held = mi.Replace(plain[points.FinalScale])
    without = (
        mi.HookSpec().intervene(points.MlpOut(last), mi.Zero()).intervene(points.FinalScale, held)
    )
    capture = mi.HookSpec().capture(points.FinalNorm)
    direction = model.unembedding_vector("q") * model.backend.logit_scale
    before = model.forward(PROMPT, capture)[points.FinalNorm][0, -1] @ direction
    after = model.forward(PROMPT, capture | without)[points.FinalNorm][0, -1] @ direction
    assert float(before - after) == pytest.approx(share.value, abs=1e-4)


def test_biases_have_rows_where_there_are_biases() -> None:
    kinds = {s.kind for s in mi.attribute(tiny("starcoder2"), PROMPT, target="q").shares}
    assert kinds == {"embedding", "head", "attention bias", "mlp", "final bias"}
    kinds = {s.kind for s in mi.attribute(tiny("mistral"), PROMPT, target="q").shares}
    assert kinds == {"embedding", "head", "mlp"}


def test_results_are_saved_whole(tmp_path: Path) -> None:
    model = tiny("llama")
    found = mi.attribute(model, PROMPT, target="q", versus="z")
    assert mi.Attribution.load(found.save(tmp_path / "a.json")).to_dict() == found.to_dict()
    assert found.heads().shape == (model.num_layers, model.num_heads)
    assert [abs(s.value) for s in found.best(3)] == sorted(
        (abs(s.value) for s in found.shares), reverse=True
    )[:3]
    assert len(found.to_pandas()) == len(found.shares)


def test_wrong_requests_say_what_is_right() -> None:
    model = tiny("llama")
    with pytest.raises(mi.ModelError, match="one prompt, got 2"):
        mi.attribute(model, ["ab", "cd"], target="q")
    with pytest.raises(mi.ModelError, match="position=99 is out of range"):
        mi.attribute(model, PROMPT, target="q", position=99)
    with pytest.raises(mi.TokenizerError):
        mi.attribute(model, PROMPT, target="two words")


def naive_scores(
    model: mi.MIModel, back: int, length: int, repeats: int, seed: int
) -> torch.Tensor:
    from torch_mi.analysis.heads import repeated  # noqa: PLC0415

    tokens, start = repeated(model, length, repeats, seed)
    out = torch.zeros(model.num_layers, model.num_heads)
    for row in tokens:
        cache = model.forward(row, mi.HookSpec().capture(mi.HookPoint.AttnPattern))
        for layer in range(model.num_layers):
            pattern = cache[mi.HookPoint.AttnPattern(layer)][0]
            for head in range(model.num_heads):
                at = [
                    float(pattern[head, q, q - back])
                    for q in range(start + length, start + 2 * length - 1)
                ]
                out[layer, head] += sum(at) / len(at) / len(tokens)
    return out


@pytest.mark.parametrize(
    ("kind", "back"), [("induction", 5), ("previous_token", 1), ("duplicate_token", 6)]
)
def test_head_scores_equal_their_definition(kind: str, back: int, tmp_path: Path) -> None:
    model = tiny("qwen2")
    found = mi.find_heads(model, kind=kind, length=6, repeats=3, seed=2)
    assert (found.scores - naive_scores(model, back, 6, 3, 2)).abs().max() < 1e-5
    layer, head, score = found.best(1)[0]
    assert score == pytest.approx(float(found.scores.max()))
    assert float(found.scores[layer, head]) == pytest.approx(score)
    assert mi.HeadScores.load(found.save(tmp_path / "h.json")).to_dict() == found.to_dict()


def test_repeated_sequences_repeat() -> None:
    from torch_mi.analysis.heads import repeated  # noqa: PLC0415

    model = tiny("llama")
    tokens, start = repeated(model, 7, 3, 0)
    assert torch.equal(tokens[:, start : start + 7], tokens[:, start + 7 :])
    assert start == 1
    assert set(tokens[:, 0].tolist()) == {0}
    assert all(len(set(row[1:8].tolist())) == 7 for row in tokens)
    with pytest.raises(mi.ModelError, match="not one of induction"):
        mi.find_heads(model, kind="inductoin")
    with pytest.raises(mi.ModelError, match="at least 2"):
        mi.find_heads(model, length=1)
