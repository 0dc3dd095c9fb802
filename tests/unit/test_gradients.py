# SPDX-License-Identifier: MIT OR Apache-2.0
"""Gradients against finite differences, on every family, padded or not."""

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.gradients import Gradients, gradients
from torch_mi.families import FAMILIES
from torch_mi.sweeps.metrics import rank
from torch_mi.testing import tiny

P = mi.HookPoint
TEXT = "abcdefg"
METRIC = mi.logit_diff("q", "z")


def slope(
    model: mi.MIModel, text: str, metric: mi.Metric, hook: mi.Hook, step: torch.Tensor
) -> float:
    """How the score moves when the activation moves by `step`, from two whole runs."""
    ends: list[torch.Tensor] = []
    for sign in (1.0, -1.0):
        spec = mi.HookSpec().intervene(hook, mi.Add(sign * step))
        logits = model.forward(text, spec).output[0, -1].double()
        ends.append(metric.score(model, logits).double())
    return float(ends[0] - ends[1]) / 2


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_what_a_small_change_does(family: str) -> None:
    model = tiny(family, dtype=torch.float64)
    found = gradients(model, TEXT, METRIC, at=(P.ResidPre, P.AttnZ, P.AttnV, P.AttnOut))
    assert len(found.values) == 4 * model.num_layers
    dice = torch.Generator().manual_seed(1)
    for hook in (P.ResidPre(0), P.AttnZ(1), P.AttnV(1), P.AttnOut(2)):
        if hook not in found.gradients:
            continue
        step = torch.randn(found.value(hook).shape, generator=dice, dtype=torch.float64) * 1e-3
        moved = slope(model, TEXT, METRIC, hook, step)
        assert float((found.gradient(hook) * step).sum()) == pytest.approx(
            moved, rel=1e-2, abs=1e-4
        )
    assert float(found.scores[0]) == pytest.approx(
        float(METRIC.score(model, model.forward(TEXT).output[0, -1])), abs=1e-5
    )


def test_parameters_are_left_alone() -> None:
    model = tiny("llama")
    gradients(model, TEXT, METRIC, at=P.ResidPost)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    wanted = gradients(model, TEXT, METRIC, at=[P.Embed, P.AttnPattern])
    for p in model.parameters():
        p.requires_grad_(False)
    found = gradients(model, TEXT, METRIC, at=[P.Embed, P.AttnPattern])
    for hook, gradient in wanted.gradients.items():
        assert torch.equal(found.gradients[hook], gradient)


def test_only_the_rows_that_are_read_are_unembedded() -> None:
    model = tiny("llama")
    seen: list[torch.Size] = []
    unembed = model.backend.unembed

    def watched(x: torch.Tensor, tap: object) -> torch.Tensor:
        seen.append(x.shape)
        return unembed(x, tap)  # pyright: ignore[reportArgumentType]

    model.backend.unembed = watched
    gradients(model, ["abc", "defgh"], METRIC, at=P.ResidPost)
    assert [shape.numel() // model.hidden_size for shape in seen] == [2]
    seen.clear()
    found = gradients(model, "abc", METRIC, at=P.FinalNorm)
    assert [shape.numel() // model.hidden_size for shape in seen] == [4]
    direction = model.unembedding_vector("q") - model.unembedding_vector("z")
    assert torch.allclose(found.gradient(P.FinalNorm)[0, -1], direction, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral", "falcon"])
def test_padded_prompts_are_as_if_alone(family: str) -> None:
    model = tiny(family)
    prompts, points = ["abc", "hijklmn"], [P.ResidPre, P.AttnQ, P.AttnK, P.AttnPattern, P.MlpOut]
    together = gradients(model, prompts, METRIC, at=points)
    for i, prompt in enumerate(prompts):
        alone = gradients(model, prompt, METRIC, at=points)
        length = alone.value(P.ResidPre(0)).shape[1]
        assert float(together.scores[i]) == pytest.approx(float(alone.scores[0]), abs=1e-5)
        for hook, gradient in alone.gradients.items():
            ours = together.gradients[hook][i]
            assert ours.isfinite().all()
            ours = (
                ours[..., -length:, -length:]
                if "query" in mi.Hook.parse(hook).point.axes
                else ours[-length:]
            )
            assert torch.allclose(ours, gradient[0], atol=1e-5), hook
    assert together.sizes(0)[P.ResidPre(0)].shape == (4,)


def test_whole_numbers_are_left_out_and_experts_are_not() -> None:
    model = tiny("mixtral")
    found = gradients(model, TEXT, METRIC, at=[P.ExpertIndices, P.ExpertGates])
    assert {mi.Hook.parse(hook).point for hook in found.values} == {P.ExpertGates}
    assert float(found.gradient(P.ExpertGates(0)).abs().max()) > 0


def test_edits_positions_and_words_for_each_prompt() -> None:
    model = tiny("llama", dtype=torch.float64)
    spec = mi.HookSpec().intervene(P.AttnOut(1), mi.Zero())
    metric = mi.logit(["q", "r"])
    found = gradients(model, ["abcd", "efgh"], metric, at=P.ResidMid(1), spec=spec, position=[2, 3])
    for i, (text, word) in enumerate((("abcd", "q"), ("efgh", "r"))):
        logits = model.forward(text, spec).output[0, [2, 3], model.token_id(word)]
        assert float(found.scores[i]) == pytest.approx(float(logits.mean()), abs=1e-6)
    assert float(found.gradient(P.ResidMid(1))[:, 4].abs().max()) == 0, "nothing after the reads"
    scaled = mi.HookSpec().intervene(P.Logits, mi.Scale(2.0))
    plain, doubled = (
        gradients(model, TEXT, METRIC, at=P.ResidPre(1), spec=s).gradient(P.ResidPre(1))
        for s in (None, scaled)
    )
    assert torch.allclose(2 * plain, doubled)


def test_gradients_are_saved_whole(tmp_path) -> None:  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
    found = gradients(tiny("qwen2"), ["abc", "de"], METRIC, at=[P.ResidPre, P.AttnScores(1)])
    loaded = Gradients.load(found.save(tmp_path / "gradients.json"))
    assert loaded.to_dict() == found.to_dict()
    assert torch.equal(loaded.gradient(P.ResidPre(1)), found.gradient(P.ResidPre(1)))
    assert len(found.to_pandas()) == (4 + 3) * len(found.values)
    assert "blocks.0.hook_resid_pre" in repr(found)
    assert len(found.plot().to_dict()["data"][0]["z"]) == 4


def test_wrong_requests_say_what_is_right() -> None:
    model = tiny("llama")
    with pytest.raises(mi.ModelError, match="has no gradient"):
        gradients(model, TEXT, rank("q"), at=P.ResidPre)
    with pytest.raises(mi.HookError, match="no hook point is named"):
        gradients(model, TEXT, METRIC, at="resid_pr")
    with pytest.raises(mi.HookError, match="need a place"):
        gradients(model, TEXT, METRIC, at=[])
    found = gradients(model, TEXT, METRIC, at=P.ResidPre(1))
    with pytest.raises(mi.HookError, match=r"no gradient at HookPoint\.ResidPre"):
        found.gradient(P.ResidPre(0))
    fixed = mi.HookSpec().intervene(P.ResidPre(1), mi.Replace(found.value(P.ResidPre(1))))
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(mi.InterventionError, match="fixed values in place"):
        gradients(model, TEXT, METRIC, at=P.ResidPre(1), spec=fixed)
