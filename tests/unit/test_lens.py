# SPDX-License-Identifier: MIT OR Apache-2.0
"""The logit lens says what the model's own last step says of each layer's residual stream."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis import lens as lens_module
from torch_mi.analysis.lens import LogitLensResult, logit_lens
from torch_mi.errors import FileError, ModelError, TokenizerError
from torch_mi.model import MIModel
from torch_mi.results import format_probability, format_token
from torch_mi.testing import tiny

TEXT = "a cat sat"


@pytest.fixture(scope="module", params=["llama", "gemma2", "starcoder2"])
def model(request: pytest.FixtureRequest) -> MIModel:
    return tiny(request.param)


@pytest.fixture(scope="module")
def llama() -> MIModel:
    return tiny("llama")


def by_hand(model: MIModel, text: str, layer: int, position: int) -> torch.Tensor:
    """The lens written out: one residual vector, one norm, one matrix, one soft-cap."""
    cache = model.forward(text, mi.HookSpec().capture(mi.HookPoint.ResidPost(layer)))
    x = cache[mi.HookPoint.ResidPost(layer)][0, position]
    norm, cfg = model.backend.final_norm, model.config
    assert norm is not None
    x = x - x.mean() if norm.centred else x
    normal = x / (x.pow(2).mean() + cfg.norm_eps).sqrt() * norm.gain
    normal = normal if norm.bias is None else normal + norm.bias
    logits = normal @ model.backend.unembedding.detach().T
    cap = cfg.final_logit_softcapping
    return logits if cap is None else cap * torch.tanh(logits / cap)


def test_the_last_layer_says_what_the_model_says(model: MIModel):
    result = logit_lens(model, TEXT, position="all", top_k=model.vocab_size)
    probs = model.forward(TEXT).output[0].softmax(-1)
    for reading in result.readings:
        if reading.layer == model.num_layers - 1:
            ids = [p.token_id for p in reading.predictions]
            found = torch.tensor([p.probability for p in reading.predictions])
            assert sorted(ids) == list(range(model.vocab_size))
            torch.testing.assert_close(found, probs[reading.position, ids], atol=1e-6, rtol=1e-5)


def test_every_layer_agrees_with_the_lens_written_out(model: MIModel):
    result = logit_lens(model, TEXT, position="all", top_k=4, target=7)
    for reading in result.readings:
        logits = by_hand(model, TEXT, reading.layer, reading.position)
        chances = logits.softmax(-1)
        best = logits.topk(4).values.tolist()
        assert [p.logit for p in reading.predictions] == pytest.approx(best, abs=1e-5)
        for p in reading.predictions:
            assert p.logit == pytest.approx(float(logits[p.token_id]), abs=1e-5)
            assert p.probability == pytest.approx(float(chances[p.token_id]), rel=1e-4)
        assert reading.target is not None
        nearly = int(((logits - logits[7]).abs() < 1e-5).sum())  # soft-caps make near ties
        ahead = int((logits > logits[7] + 1e-5).sum())
        assert ahead < reading.target.rank <= ahead + nearly
        assert reading.target.probability == pytest.approx(float(chances[7]), rel=1e-4)


def test_the_embedding_is_layer_minus_one(llama: MIModel):
    result = logit_lens(llama, TEXT, embedding=True)
    x = llama.forward(TEXT, mi.HookSpec().capture("hook_embed"))["hook_embed"][0, -1]
    assert result.layers == [-1, 0, 1, 2]
    assert result.readings[0].predictions[0].token_id == int(llama.project_to_vocab(x).argmax())


def test_prompts_in_a_batch_are_read_as_if_alone(llama: MIModel):
    texts = ["a", "a longer text", "the third"]
    together = logit_lens(llama, texts, position="all", target="t")
    for text, found in zip(texts, together, strict=True):
        alone = logit_lens(llama, text, position="all", target="t")
        assert found.tokens == alone.tokens
        assert found.manifest.tokens == [list(found.token_ids)]
        assert found.target_ranks() == alone.target_ranks()
        assert [r.position for r in found.readings] == [r.position for r in alone.readings]
        torch.testing.assert_close(
            torch.tensor(found.target_probabilities()), torch.tensor(alone.target_probabilities())
        )


def test_prompts_of_every_kind_are_the_same_prompt(llama: MIModel):
    ids = llama.encode(TEXT)
    expected = logit_lens(llama, TEXT)
    for prompt in (ids, ids[0], ids[0].tolist()):
        found = logit_lens(llama, prompt)
        assert found.readings == expected.readings
    [one] = logit_lens(llama, [TEXT])
    assert one.readings == expected.readings


def test_many_rows_are_projected_in_parts_that_fit(llama: MIModel, monkeypatch: pytest.MonkeyPatch):
    whole = logit_lens(llama, TEXT, position="all", target="t")
    monkeypatch.setattr(lens_module, "ENTRIES", 4 * llama.vocab_size)
    parts = logit_lens(llama, TEXT, position="all", target="t")
    assert [(r.layer, r.position) for r in parts.readings] == [
        (r.layer, r.position) for r in whole.readings
    ]
    torch.testing.assert_close(
        torch.tensor(parts.target_probabilities()), torch.tensor(whole.target_probabilities())
    )


def test_positions_count_from_either_end(llama: MIModel):
    every = logit_lens(llama, TEXT, position="all")
    length = len(every.tokens)
    third = logit_lens(llama, TEXT, position=3)
    assert third.positions == [3]
    assert logit_lens(llama, TEXT, position=3 - length).readings == third.readings
    assert [p.token_id for p in every.at(3)[0].predictions] == [
        p.token_id for p in third.at()[0].predictions
    ]
    with pytest.raises(ModelError, match="position 0 was not read, only \\[3\\]"):
        third.at(0)


def test_first_appearance_is_by_text_within_or_by_id(llama: MIModel):
    result = logit_lens(llama, TEXT, top_k=3)
    final = result.at()[-1].predictions
    for k in (1, 2, 3):
        for token in (final[k - 1].token_id, final[k - 1].token):
            layer = result.first_appearance(token, k)
            earlier = [
                r.layer
                for r in result.at()
                if any(token in (p.token_id, p.token) for p in r.predictions[:k])
            ]
            assert layer == earlier[0]
    assert result.first_appearance("no such token", 3) is None
    reading = replace(
        result.readings[1],
        predictions=(replace(result.readings[1].predictions[0], token=" Paris"),),
    )
    edited = replace(result, readings=(reading,))
    assert edited.first_appearance("Par", 1) == reading.layer
    with pytest.raises(ModelError, match="k=4, but each layer's 3 likeliest"):
        result.first_appearance("a", 4)


def test_equally_likely_tokens_stand_in_the_order_of_their_ids(llama: MIModel):
    looking = lens_module._Lens(llama, 3, -1, 5, embedding=False)
    logits = torch.zeros(1, llama.vocab_size)
    [(found, target)] = list(looking._ranked(logits))
    assert [p.token_id for p in found] == sorted(p.token_id for p in found)
    assert target is not None
    assert target.rank == 6


def test_it_survives_json(llama: MIModel, tmp_path: Path):
    for result in (
        logit_lens(llama, TEXT, target="t", embedding=True),
        logit_lens(llama, TEXT, position="all"),
    ):
        path = result.save(tmp_path / "deep" / "lens.json")
        assert LogitLensResult.load(path) == result
        data = json.loads(path.read_text())
        assert data["prompt"] == TEXT
        assert data["n_layers"] == 3
        assert data["manifest"]["weights"] == llama.fingerprint
        assert data["manifest"]["versions"]["torch_mi"] == mi.__version__
        assert [p["rank"] for p in data["layers"][0]["predictions"]] == [1, 2, 3, 4, 5]
        assert set(data["layers"][0]["predictions"][0]) == {
            "rank", "token_id", "token", "probability", "logit",
        }  # fmt: skip


def test_what_is_no_lens_is_not_loaded(llama: MIModel, tmp_path: Path):
    data = logit_lens(llama, TEXT).to_dict()
    with pytest.raises(FileError, match="its format is None"):
        LogitLensResult.from_dict({})
    with pytest.raises(FileError, match="is broken: KeyError\\('tokens'\\)"):
        LogitLensResult.from_dict({k: v for k, v in data.items() if k != "tokens"})
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(FileError, match=r"cannot load .*x\.json"):
        LogitLensResult.load(tmp_path / "x.json")


def test_a_data_frame_has_a_row_for_each_prediction(llama: MIModel):
    frame = logit_lens(llama, TEXT, position="all", top_k=2).to_pandas()
    assert len(frame) == 3 * 10 * 2
    assert list(frame.columns) == [
        "layer", "position", "after", "rank", "token_id", "token", "probability", "logit",
    ]  # fmt: skip
    sums = frame.groupby(["layer", "position"])["probability"].sum()
    assert ((sums > 0) & (sums <= 1)).all()


def test_a_model_without_a_tokenizer_speaks_in_numbers(llama: MIModel):
    bare = MIModel(llama.backend)
    result = logit_lens(bare, [4, 5, 6], target=8)
    assert result.tokens == ("4", "5", "6")
    assert result.prompt == "4 5 6"
    assert result.target == (8, "8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k=0 is out of range: 1 … 97"),
        ({"top_k": 1000}, "top_k=1000 is out of range"),
        ({"position": 10}, r"position=10 is out of range: the prompt has 10 tokens \(0 … 9"),
        ({"target": 97}, "token id 97 is out of range"),
    ],
)
def test_wrong_options_are_named(llama: MIModel, options: dict[str, int], message: str):
    with pytest.raises((ModelError, TokenizerError), match=message):
        logit_lens(llama, TEXT, **options)  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_several_rows_of_ids_want_a_list(llama: MIModel):
    with pytest.raises(ModelError, match=r"a tensor of 2 prompts; give list\(tokens\)"):
        logit_lens(llama, torch.tensor([[1, 2], [3, 4]]))
    assert len(logit_lens(llama, list(torch.tensor([[1, 2], [3, 4]])))) == 2


def test_without_a_target_there_is_no_rank(llama: MIModel):
    with pytest.raises(ModelError, match="no target was followed"):
        logit_lens(llama, TEXT).target_ranks()


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.123, "12.3%"),
        (0.00123, "0.123%"),
        (1.2e-6, "1.2e-4%"),
        (0.0, "0.0e0%"),
        (1.0, "100.0%"),
        (0.01, "1.0%"),
        (1e-4, "0.010%"),
        (3e-15, "3.0e-13%"),
    ],
)
def test_probabilities_keep_small_ones_apart(p: float, text: str):
    assert format_probability(p) == text


def test_tokens_stay_on_one_line():
    assert format_token(" a\n\t\rb\\") == " a\\n\\t\\rb\\"
