# SPDX-License-Identifier: MIT OR Apache-2.0
"""The packaged recurrent demo model: what it knows, and that its state carries it."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from torch_mi.hooks.spec import HookSpec
from torch_mi.hooks.states import StateKnockoutSpec
from torch_mi.loading import PACKAGED
from torch_mi.model import MIModel
from training import batches, corpus, facts, muon, recipe
from training import evaluate as figures
from training.recipe import RECIPES
from training.train import Trainer, matrices_of

FOLDER = PACKAGED["demo-rwkv"]


@pytest.fixture(scope="module")
def model() -> MIModel:
    return MIModel.from_pretrained("demo-rwkv", device="cpu")


@pytest.fixture(scope="module")
def measured(model: MIModel) -> figures.Figures:
    return figures.evaluate(model, 20)


def test_facts_are_known_in_sentences_that_never_said_them(measured: figures.Figures):
    taught = sum(len(r.facts) for r in facts.RELATIONS)
    assert measured.facts.of == taught * corpus.HELD_OUT_TEMPLATES
    assert measured.facts.share >= 0.95, measured.facts.wrong


def test_paris(model: MIModel):
    chances = figures.next_logits(model, [figures.PARIS]).softmax(-1)[0]
    assert model.decode([int(chances.argmax())]) == " Paris"
    assert chances.max() > 0.5
    assert model.generate(figures.PARIS, max_new_tokens=1).text == " Paris"


def test_it_is_small_and_reads_as_the_transformer_does(model: MIModel):
    assert (FOLDER / "model.safetensors").stat().st_size < 5_000_000
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (FOLDER / name).read_bytes() == (PACKAGED["demo"] / name).read_bytes()
    assert not model.config.tie_word_embeddings


@dataclass(frozen=True)
class Asked:
    """Prompts of one length about different countries."""

    tokens: Tensor
    answers: Tensor
    subject: int
    """Where the country stands."""

    def known(self, model: MIModel, knockout: StateKnockoutSpec | None = None) -> float:
        """The share of capitals that are the most likely token."""
        best = self.logits(model, knockout).argmax(-1)
        return float((best == self.answers).float().mean())

    def logits(self, model: MIModel, knockout: StateKnockoutSpec | None) -> Tensor:
        spec = HookSpec() if knockout is None else HookSpec().set_state_knockout(knockout)
        return model.forward(self.tokens, spec).output[:, -1]


def ask(model: MIModel, template: str) -> Asked:
    """The capital of every country, by one template."""
    capitals = next(r for r in facts.RELATIONS if r.name == "capital").facts
    tokens = torch.cat([model.encode(template.format(x=country)) for country in capitals])
    answers = [figures.first_token(model, f" {city}") for city in capitals.values()]
    (subject,) = (tokens != tokens[0]).any(0).nonzero().flatten().tolist()
    return Asked(tokens, torch.tensor(answers), int(subject))


def test_without_what_the_subject_wrote_the_answer_is_gone(model: MIModel):
    asked = ask(model, "The capital of {x} is")
    assert len(asked.tokens) > 50
    assert asked.known(model) >= 0.95
    gone = StateKnockoutSpec().position(asked.subject)
    assert asked.known(model, gone) < 0.5
    assert asked.known(model, replace(gone, shift=True)) < 0.1
    for other in range(asked.tokens.shape[1] - 1):
        if other != asked.subject:
            assert asked.known(model, StateKnockoutSpec().position(other)) > 0.85, other


def test_the_token_after_a_subject_writes_of_it_too(model: MIModel):
    asked = ask(model, "On the map of {x}, the star marks")
    one = StateKnockoutSpec().position(asked.subject)
    assert asked.known(model) >= 0.95
    assert asked.known(model, one) > 0.5 > asked.known(model, one.position(asked.subject + 1))


def test_state_and_shift_are_all_ways_from_one_token_to_later_ones(model: MIModel):
    asked = ask(model, "On the map of {x}, the star marks")
    logits = asked.logits(model, StateKnockoutSpec((asked.subject,), full=True, shift=True))
    torch.testing.assert_close(logits, logits[:1].expand_as(logits), atol=1e-3, rtol=1e-4)


def test_everything_can_be_looked_at(model: MIModel):
    hooks = [str(hook) for hook in model.hooks]
    plain = model.forward(figures.PARIS)
    seen = model.forward(figures.PARIS, HookSpec().capture(*hooks))
    torch.testing.assert_close(seen.output, plain.output, atol=1e-4, rtol=1e-4)
    for hook in model.hooks:
        assert seen[hook].isfinite().all(), hook


def test_a_carried_state_is_as_good_as_running_again(model: MIModel):
    prompt = "When Mary and John went to the store,"
    carried = model.generate(prompt, max_new_tokens=12, use_cache=True)
    again = model.generate(prompt, max_new_tokens=12, use_cache=False)
    assert carried.text == again.text
    assert len(model.encode(carried.text)[0]) > 4


def test_muon_is_torchs_but_for_the_rounding():
    ours, theirs = (torch.ones(48, 16, requires_grad=True) for _ in range(2))
    pairs = (
        (ours, muon.Muon([ours], weight_decay=0.1)),
        (theirs, torch.optim.Muon([theirs], weight_decay=0.1)),
    )
    random = torch.Generator().manual_seed(0)
    for _ in range(3):
        grad = torch.randn(48, 16, generator=random)
        for p, optimizer in pairs:
            optimizer.param_groups[0]["lr"], p.grad = 0.1, grad
            optimizer.step()
    assert (ours - 1).abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0)


def test_matrices_are_what_maps_vectors_to_vectors(model: MIModel):
    transformer = MIModel.from_pretrained("demo", device="cpu").backend
    flat = {n for n, p in transformer.named_parameters() if p.ndim == 2}
    assert matrices_of(transformer) == flat - {"tokens.weight"}
    chosen = matrices_of(model.backend)
    assert len(chosen) == model.num_layers * (4 + 8 + 2) - 2  # layer 0 mixes in no values
    assert not chosen & {"head.weight", "tokens.weight", "blocks.0.mix.bonus"}


def test_the_first_weights_know_nothing(tmp_path: Path):
    tokenizer = FOLDER / "tokenizer.json"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    vocab = batches.Tokenizer.from_file(str(tokenizer)).get_vocab_size()
    first = recipe.begin(tmp_path, vocab, RECIPES["rwkv"])
    logits = first.forward("The cat sat on the mat.").output
    loss = torch.nn.functional.cross_entropy(
        logits[0, :-1], first.encode("The cat sat on the mat.")[0, 1:]
    )
    assert float(loss) == pytest.approx(math.log(vocab), abs=0.5)
    saved = recipe.hugging_face_weights(first, tmp_path)
    for name, tensor in recipe.rwkv.first_weights(
        {**recipe.rwkv.CONFIG, "vocab_size": vocab}, 0
    ).items():
        assert torch.equal(saved[name], tensor), name


@pytest.mark.slow
def test_an_interrupted_training_goes_on_where_it_was(tmp_path: Path):
    plan = replace(RECIPES["rwkv"], documents=6)
    through = Trainer(plan, tmp_path)
    for _ in range(2):
        through.train_step()
    through.save()
    resumed = Trainer(plan, tmp_path)
    for _ in range(2):
        assert resumed.train_step() == through.train_step()
    for name, p in through.parameters.items():
        assert torch.equal(p, resumed.parameters[name]), name
