# SPDX-License-Identifier: MIT OR Apache-2.0
"""What the tour says of a model with attention is what the model does."""

import json
import os
from itertools import product
from pathlib import Path

import pytest
import torch

import torch_mi as mi
from examples import tour as example
from torch_mi.analysis.tour import tour
from torch_mi.analysis.tour_attention import AttentionTour, cut_edges, knockout, words_twice
from torch_mi.analysis.tour_steps import PAIRS, read_pairs
from torch_mi.errors import ModelError
from torch_mi.loading import DEMO
from torch_mi.show.tour import patch_words, tour_page

SHARED = Path(os.environ.get("TORCH_MI_SHARED", Path(__file__).parents[2] / "../shared"))
STORIES = SHARED / "data" / "models" / "stories260K"


@pytest.fixture(scope="module", params=[DEMO, STORIES], ids=["demo", "stories"])
def model(request: pytest.FixtureRequest) -> mi.MIModel:
    folder: Path = request.param
    if not (folder / "config.json").is_file():
        pytest.skip(f"there is no model in {folder}")
    return mi.MIModel.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def seen(model: mi.MIModel) -> AttentionTour:
    found = tour(model)
    assert isinstance(found, AttentionTour)
    return found


def chance(model: mi.MIModel, prompt: str, token: int, spec: mi.HookSpec | None = None) -> float:
    return mi.extract_token_prob(model.forward(prompt, spec).output, token)


def test_answers_are_the_models_own(model: mi.MIModel, seen: AttentionTour):
    pair = seen.pair
    for prompt, answer in ((pair.clean, pair.answer), (pair.corrupted, pair.other)):
        assert int(model.forward(prompt).output[0, -1].argmax()) == answer.token_id
        assert chance(model, prompt, answer.token_id) == pytest.approx(answer.probability, abs=1e-5)
    assert all(lens.prompt in dict(PAIRS) for lens in seen.lenses)


def test_no_other_edge_matters_more(model: mi.MIModel, seen: AttentionTour):
    cut, pair = seen.cut, seen.pair
    assert cut.head is not None
    keys = len(cut.grid.axes["key"])
    tried = {
        (layer, key): chance(model, pair.clean, pair.answer.token_id, knockout(layer, key))
        for layer, key in product(range(model.num_layers), range(keys))
    }
    assert min(tried.values()) == pytest.approx(cut.after, abs=1e-5)
    assert tried[cut.layer, cut.pos] == pytest.approx(cut.after, abs=1e-5)
    alone = [
        chance(model, pair.clean, pair.answer.token_id, knockout(cut.layer, cut.pos, head))
        for head in range(model.num_heads)
    ]
    assert alone[cut.head] == pytest.approx(min(alone), abs=1e-5)
    assert cut.after_head == pytest.approx(min(alone), abs=1e-5)


def test_a_knockout_leaves_no_attention(model: mi.MIModel, seen: AttentionTour):
    cut = seen.cut
    point = mi.HookPoint.AttnPattern(cut.layer)
    spec = knockout(cut.layer, cut.pos, cut.head).capture(point)
    pattern = model.forward(seen.pair.clean, spec)[point][0]
    assert float(pattern[cut.head, -1, cut.pos]) == 0
    others = [head for head in range(model.num_heads) if head != cut.head]
    assert float(pattern[others, -1, cut.pos].sum()) > 0
    torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:2]))


def test_what_is_patched_comes_back(model: mi.MIModel, seen: AttentionTour):
    pair = seen.pair
    clean = model.forward(pair.clean, mi.HookSpec().capture(mi.HookPoint.ResidPre))
    for place, value in seen.patched.best(3):
        point, pos = mi.HookPoint.ResidPre(int(place["layer"])), int(place["pos"])
        edit = mi.Replace(clean[point][:, pos], at=mi.At(pos=pos))
        spec = mi.HookSpec().intervene(point, edit)
        assert chance(model, pair.corrupted, pair.answer.token_id, spec) == pytest.approx(
            value, abs=1e-5
        )


def test_the_head_does_what_its_kind_does(seen: AttentionTour):
    head = seen.head
    length = (len(head.tokens) - sum(head.special)) // 2
    back = {"induction": length - 1, "previous_token": 1}[head.kind]
    queries = range(len(head.tokens) - length, len(head.tokens) - 1)
    looked = [float(head.pattern[q, q - back]) for q in queries]
    assert head.here == pytest.approx(sum(looked) / len(looked), abs=1e-6)
    assert min(head.here, head.score) > 0.4
    assert head.score == pytest.approx(float(seen.heads.scores[head.layer, head.head]))


def test_words_are_shown_twice(model: mi.MIModel):
    ids = words_twice(model)
    start = len(ids) % 2
    half = (len(ids) - start) // 2
    assert ids[start : start + half] == ids[start + half :]
    assert len(set(ids[start:])) == half
    pieces = model.tokenizer.to_str_tokens(ids[start:])
    assert all(piece.startswith(" ") and piece.strip().isalpha() for piece in pieces)


def test_json_and_page_say_the_same(seen: AttentionTour):
    data = json.loads(json.dumps(seen.to_dict(), allow_nan=False))
    assert data["pair"]["probability"] == seen.pair.answer.probability
    title, _, sections = tour_page(seen)
    assert seen.model_id in title
    assert len(sections) == 3 + len(seen.lenses)
    assert "half" not in patch_words(seen, "attention has")


def test_the_example_runs(model: mi.MIModel, capsys: pytest.CaptureFixture[str]):
    example.main(model)
    out = capsys.readouterr().out
    assert "1. The layers settle on an answer" in out
    assert "4. With one activation of another run" in out


def test_prompts_of_different_lengths_are_no_pair(model: mi.MIModel):
    assert read_pairs(model, [("The cat", "The cat sat on the mat")]) == []
    with pytest.raises(ModelError, match="answers none of the tour's pairs"):
        tour(model, [("The cat", "The cat sat on the mat")])


def test_the_edge_is_cut_in_the_prompt_given(model: mi.MIModel):
    [pair] = read_pairs(model, [("The little girl saw a cat", "The little boy saw a cat")])
    cut = cut_edges(model, pair)
    assert cut.grid.options["prompt"] == "The little girl saw a cat"
    assert cut.after <= cut.before + 1e-6
