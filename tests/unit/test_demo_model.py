# SPDX-License-Identifier: MIT OR Apache-2.0
"""The packaged demo model does what its card says, on what its training held out."""

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

import torch_mi
from torch_mi.errors import ModelError
from torch_mi.model import MIModel
from training import batches, corpus, facts, words
from training import evaluate as figures
from training.recipe import Recipe
from training.tokenizer import build
from training.train import Trainer

PACKAGE = Path(torch_mi.__file__).parent
DEMO = PACKAGE / "demo"
MAX_BYTES = 12_000_000


@pytest.fixture(scope="module")
def model() -> MIModel:
    return MIModel.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="module")
def measured(model: MIModel) -> figures.Figures:
    return figures.evaluate(model, 100)


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return [d.text for d in islice(corpus.documents(0), 30_000)]


def test_facts_are_known_in_sentences_that_never_said_them(measured: figures.Figures):
    taught = sum(len(r.facts) for r in facts.RELATIONS)
    assert measured.facts.of == taught * corpus.HELD_OUT_TEMPLATES
    assert measured.facts.share >= 0.98, measured.facts.wrong


def test_the_indirect_object_is_found_for_pairs_that_never_met(measured: figures.Figures):
    assert measured.ioi.of == 500
    assert measured.ioi.share >= 0.95, measured.ioi.wrong


def test_repeated_random_words_are_foretold(measured: figures.Figures):
    assert measured.repeats.share >= 0.90


def test_second_lines_rhyme(measured: figures.Figures):
    assert measured.couplets.of == 100
    assert measured.couplets.share >= 0.80, measured.couplets.wrong


def test_paris(model: MIModel):
    for prompt, answer in {figures.PARIS: " Paris", "The capital of Italy is": " Rome"}.items():
        chances = figures.next_logits(model, [prompt]).softmax(-1)[0]
        assert model.decode([int(chances.argmax())]) == answer
        assert chances.max() > 0.8


def test_both_canonical_prompts_are_held_out():
    hidden = {q.prompt for q in corpus.fact_questions()}
    assert {figures.PARIS, "The capital of Italy is"} <= hidden


def test_every_answer_is_one_token_but_south_america(model: MIModel):
    answers = {a for r in facts.RELATIONS for a in r.facts.values()}
    long = {a for a in answers if len(ids(model, f" {a}")) != 1}
    assert long == {"South America"}


def ids(model: MIModel, text: str) -> list[int]:
    return model.tokenizer.encode_raw(text)


def test_every_word_of_every_sentence_is_one_token(model: MIModel, sample: list[str]):
    named = [*words.POOL, *words.NAMES]
    assert [w for w in named if len(ids(model, f" {w}")) != 1] == []
    for text in sample[:500]:
        assert model.decode(ids(model, text)) == text


def test_bos_comes_first(model: MIModel):
    tokens = model.encode(figures.PARIS)[0].tolist()
    assert model.tokenizer.to_str_tokens(tokens)[:3] == ["<|bos|>", "The", " capital"]


def digest(texts: Iterator[corpus.Document]) -> str:
    lines = "\0".join(f"{d.kind} {d.chance} {d.text}" for d in islice(texts, 5000))
    return hashlib.sha256(lines.encode()).hexdigest()


def test_the_same_seed_writes_the_same_corpus():
    assert digest(corpus.documents(7)) == digest(corpus.documents(7))
    assert digest(corpus.documents(7)) != digest(corpus.documents(8))


def test_training_rows_depend_on_seed_and_step_alone():
    tokenizer = batches.Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    plan = Recipe(documents=64)
    rows = batches.rows(tokenizer, plan, 5)
    assert rows == batches.rows(tokenizer, plan, 5)
    assert rows != batches.rows(tokenizer, plan, 6)
    grouped = batches.rectangles(rows)
    assert sum(len(r.ids) for r in grouped) == len(rows)
    assert all((r.ids[:, 0] == 0).all() for r in grouped)
    assert sum(float(r.weights.sum()) for r in grouped) == pytest.approx(
        sum(sum(row.weights) for row in rows)
    )


def test_nothing_held_out_is_shown(sample: list[str]):
    assert corpus.leaks(sample) == []


def test_everything_else_is_shown(sample: list[str]):
    spoken = {s for text in sample for s in corpus.sentences(text)}
    asked = corpus.fact_questions(held_out=False)
    said = sum(f"{q.prompt}{q.answer}." in spoken for q in asked)
    assert said > 0.95 * len(asked)


@pytest.mark.parametrize(
    "leak",
    [
        "The capital of France is Paris.",
        "A lime is green. The capital of Italy is Rome. You say hot and I say cold.",
        *(f"{q.prompt}{q.answer}." for q in corpus.fact_questions()[::97]),
    ],
)
def test_a_leaked_fact_is_noticed(leak: str):
    assert corpus.leaks([leak]) == [leak]


def test_a_leaked_pair_or_line_is_noticed():
    pair = next(p for p in corpus.combinations(words.NAMES, 2) if corpus.held_out_pair(*p))
    met = f"{pair[1]} went home, and then {pair[0]} came."
    line = corpus.couplet_questions(3, 1)[0][0]
    assert corpus.leaks([met, f"{line}and so on."]) == [met, f"{line}and so on."]


def test_held_out_shares_are_as_stated():
    pairs = list(corpus.combinations(words.NAMES, 2))
    assert 0.10 < sum(corpus.held_out_pair(*p) for p in pairs) / len(pairs) < 0.15
    assert all(len(set(g)) == len(g) >= 3 for g in words.RHYMES)
    assert len({w for g in words.RHYMES for w in g}) == sum(map(len, words.RHYMES))


def test_no_prompt_begins_another_unless_said_so():
    known = {t for r in facts.RELATIONS for t in r.always}
    every = [t for r in facts.RELATIONS for t in r.templates]
    for short in every:
        longer = [t for t in every if t != short and t.startswith(short.removesuffix("{y}."))]
        assert not longer or short in known, (short, longer)


def test_induction_heads_are_there(model: MIModel):
    scores = figures.induction_heads(model)
    assert scores.shape == (model.num_layers, model.num_heads)
    assert scores.max() > 0.5


def test_the_package_is_small():
    files = [f for f in PACKAGE.rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    assert sum(f.stat().st_size for f in files) <= MAX_BYTES


def test_transformers_agrees(model: MIModel):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO)
    for text in (figures.PARIS, " red green blue red green", "Zoë isn't\nhere, 12!"):
        tokens = tokenizer(text, return_tensors="pt").input_ids
        assert tokens.tolist() == model.encode(text).tolist()
        with torch.no_grad():
            logits = theirs(tokens).logits
        torch.testing.assert_close(model.forward(tokens).output, logits, atol=1e-4, rtol=1e-4)


def test_the_rate_rises_then_falls_to_nothing():
    plan = Recipe(steps=900, horizon=1000, warm_up=100, cool_down=200)
    paces = [plan.pace(step) for step in range(901)]
    assert max(paces) == 1.0 == paces[100]
    assert paces[:100] == sorted(paces[:100])
    assert paces[100:] == sorted(paces[100:], reverse=True)
    assert paces[-1] == 0.0
    assert paces[701] < plan.pace(700) * 199.5 / 200


@pytest.mark.slow
def test_an_interrupted_training_goes_on_where_it_was(tmp_path: Path):
    plan = Recipe(documents=8)
    through = Trainer(plan, tmp_path)
    before = [through.train_step()]
    through.save()
    resumed = Trainer(plan, tmp_path)
    assert resumed.step == 1
    assert before[0] == pytest.approx(7.5, abs=0.2)  # no better than chance: log 1852
    assert resumed.train_step() == through.train_step()
    for name, p in through.parameters.items():
        assert torch.equal(p, resumed.parameters[name])
    with pytest.raises(ModelError, match="another recipe"):
        Trainer(Recipe(documents=9), tmp_path)


@pytest.mark.slow
def test_the_packaged_tokenizer_is_the_one_that_the_corpus_gives():
    packaged = (DEMO / "tokenizer.json").read_text(encoding="utf-8")
    assert build(0).to_str(pretty=True) + "\n" == packaged
