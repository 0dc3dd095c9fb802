# SPDX-License-Identifier: MIT OR Apache-2.0
"""Head scores against their definitions written out, and the heads of the demo model."""

from pathlib import Path

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.heads import TOP, find_heads, repeated
from torch_mi.testing import tiny

P = mi.HookPoint
FAMILIES = ["llama", "gpt2", "gemma2", "olmo2", "deepseek_v3"]


@pytest.fixture(scope="module")
def demo() -> mi.MIModel:
    return mi.MIModel.from_pretrained("demo")


@pytest.mark.parametrize("family", FAMILIES)
def test_copying_is_what_a_head_raises_most(family: str) -> None:
    """Token by token: the head's own result in the model itself, when attention is forced there."""
    model = tiny(family, changes={"num_hidden_layers": 2})
    found = find_heads(model, kind="copying", length=4, repeats=1, seed=1)
    tokens, start = repeated(model, 4, 1, 1)
    once = tokens[:, start : start + 4].unique()
    copied = torch.zeros(model.num_layers, model.num_heads)
    for layer in range(model.num_layers):
        for token in once.tolist():
            copied[layer] += torch.tensor(
                [own_rank(model, layer, head, token) < TOP for head in range(model.num_heads)]
            )
    assert torch.allclose(found.scores, copied / len(once))
    assert found.chance == pytest.approx(TOP / model.vocab_size)


def own_rank(model: mi.MIModel, layer: int, head: int, token: int) -> int:
    """How many tokens a head raises more than the token that it attends to, with norms held."""
    cache = model.forward(torch.tensor([[token]]), mi.HookSpec().capture(P.Embed, P.ResidPre(0)))
    start = cache[P.ResidPre(0)]
    if P.PosEmbed in model.backend.hook_points:
        start = cache[P.Embed]
    spec = mi.HookSpec().capture(P.AttnResult(layer))
    value = model.forward(mi.Residual(layer, start), spec)[P.AttnResult(layer)][0, 0, head]
    written = model.backend.attention_written(layer)
    for norm in (written.norm, model.backend.final_norm):
        if norm is not None:
            value = (value - value.mean() if norm.centred else value) * norm.gain
    logits = model.backend.unembedding.detach() @ value * written.scale
    logits = logits * model.backend.logit_scale
    return int((logits > logits[token]).sum())


def test_a_head_made_to_copy_copies() -> None:
    """With the OV circuit of a head the identity, its score is one; with its negative, nought."""
    model = tiny("llama", changes={"tie_word_embeddings": True, "num_key_value_heads": 6})
    weights = dict(model.backend.named_parameters())
    width, head = model.hidden_size, model.head_dim
    basis = torch.linalg.qr(torch.randn(width, head, generator=torch.Generator().manual_seed(0)))[0]
    with torch.no_grad():
        for name, weight in weights.items():
            if "norm" in name and name.endswith("weight"):
                weight.fill_(1)
            if ".v.bias" in name:
                weight.fill_(0)
        for at, sign in ((0, 1.0), (1, -1.0)):
            here = slice(at * head, (at + 1) * head)
            weights["blocks.1.attn.v.weight"][here] = basis.T
            weights["blocks.1.attn.o.weight"][:, here] = sign * basis
    scores = find_heads(model, kind="copying").scores[1]
    assert scores[0] > 0.9
    assert scores[1] < 0.05


def test_induction_heads_are_found_and_carry_the_copying(demo: mi.MIModel) -> None:
    """Without the best heads the model no longer repeats; without others it does."""
    from torch_mi.analysis.evaluation import losses  # noqa: PLC0415

    found = find_heads(demo, kind="induction")
    best = found.best(4)
    assert best[0][2] > 10 * found.chance
    tokens, start = repeated(demo, 20, 8, 0)

    def loss(heads: list[tuple[int, int]]) -> float:
        spec = mi.HookSpec()
        for layer, head in heads:
            spec.intervene(P.AttnZ(layer), mi.Zero(at=mi.At(head=head)))
        return float(losses(demo.forward(tokens, spec).output, tokens)[:, start + 20 :].mean())

    plain = loss([])
    without = loss([(layer, head) for layer, head, _ in best])
    worst = [(i // 8, i % 8) for i in found.scores.flatten().argsort()[:4].tolist()]
    assert without > plain + 1
    assert loss(worst) < plain + 0.5


def test_scores_are_saved_shown_and_refused(demo: mi.MIModel, tmp_path: Path) -> None:
    found = find_heads(demo, kind="copying", length=10, repeats=2)
    assert mi.HeadScores.load(found.save(tmp_path / "h.json")).to_dict() == found.to_dict()
    assert "raised most" in repr(found)
    assert found.plot().data
    assert found.scores.max() > 4 * found.chance
    with pytest.raises(mi.ModelError, match="did you mean 'copying'"):
        find_heads(demo, kind="copyin")
