# SPDX-License-Identifier: MIT OR Apache-2.0
"""Activation patching against the naive loop: one whole forward pass for each cell."""

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.patching import POINTS
from torch_mi.sweeps.run import score_cells
from torch_mi.families import FAMILIES
from torch_mi.testing import tiny

CLEAN, CORRUPTED = "abcdefg", "abXdefg"


def naive(model: mi.MIModel, at: str, metric: mi.Metric) -> torch.Tensor:
    point = POINTS[at]
    clean, corrupted = model.encode(CLEAN), model.encode(CORRUPTED)
    source = model.forward(clean, mi.HookSpec().capture(point))
    axis = next((i for i, a in enumerate(point.axes) if a in ("head", "kv_head", "d_mlp")), 1)
    rows: list[list[float]] = []
    for layer in range(model.num_layers):
        row: list[float] = []
        for i in range(source[point(layer)].shape[axis]):

            def put(x: torch.Tensor, hook: mi.Hook, i: int = i) -> torch.Tensor:
                x.select(axis, i).copy_(source[hook].select(axis, i))
                return x

            spec = mi.HookSpec().intervene(point(layer), mi.Apply(put))
            row.append(float(metric.score(model, model.forward(corrupted, spec).output[0, -1])))
        rows.append(row)
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("family", "at"),
    [(family, at) for family in ("gemma2", "phi3") for at in POINTS]
    + [(family, at) for family in FAMILIES for at in ("resid_pre", "k")],
)
def test_patching_equals_the_naive_loop(family: str, at: str) -> None:
    model = tiny(family)
    metric = mi.logit_diff("q", "z")
    grid = mi.patch(model, CLEAN, CORRUPTED, at=at, metric=metric)
    assert (grid.values - naive(model, at, metric)).abs().max() < 1e-5
    streams = "resid" in at or "out" in at
    across = "pos" if streams else "neuron" if at == "mlp_post" else "head"
    assert list(grid.axes) == ["layer", across]


def test_ends_of_the_scale() -> None:
    model = tiny("llama")
    grid = mi.patch(model, CLEAN, CORRUPTED, at="resid_pre", metric=mi.logit("q")).normalized()
    differing = 3  # BOS comes first
    assert grid.values[0, differing] == pytest.approx(1, abs=1e-5)
    for pos in range(differing):
        assert grid.values[:, pos].abs().max() < 1e-6, "nothing differs before that position"
    assert grid.best(1)[0][1] == pytest.approx(
        float(grid.values.flatten()[grid.values.abs().argmax()])
    )


def test_grids_are_saved_whole(tmp_path) -> None:  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
    grid = mi.patch(tiny("qwen2"), CLEAN, CORRUPTED, at="z", metric=mi.prob("q"))
    loaded = mi.Grid.load(grid.save(tmp_path / "grid.json"))
    assert loaded.to_dict() == grid.to_dict()
    assert torch.equal(loaded.values, grid.values)
    assert loaded.options == {
        "clean": "<s>abcdefg",
        "corrupted": "<s>abXdefg",
        "at": "z",
        "direction": "denoising",
    }
    assert len(grid.to_pandas()) == grid.values.numel()


def test_wrong_requests_say_what_is_right() -> None:
    model = tiny("llama")
    metric = mi.logit("q")
    with pytest.raises(mi.InterventionError, match="did you mean 'resid_pre'"):
        mi.patch(model, CLEAN, CORRUPTED, at="resid_pr", metric=metric)
    with pytest.raises(mi.InterventionError, match=r"the clean one has 8 tokens .* one 5"):
        mi.patch(model, CLEAN, "abcd", at="z", metric=metric)
    with pytest.raises(mi.InterventionError, match="may edit and nothing else"):
        score_cells(model, model.encode(CLEAN), [mi.HookSpec().capture(mi.HookPoint.Embed)], metric)
    whole_row = mi.HookSpec().intervene(mi.HookPoint.Embed, mi.Zero(at=mi.At(batch=0)))
    with pytest.raises(mi.InterventionError, match="leave batch out"):
        score_cells(model, model.encode(CLEAN), [whole_row], metric)
    with pytest.raises(mi.ModelError, match="no reference score that differs"):
        mi.patch(model, CLEAN, CLEAN, at="z", metric=metric).normalized()


def test_cells_that_start_anywhere_equal_whole_runs() -> None:
    model = tiny("gemma2")
    tokens = model.encode(CLEAN)
    points = mi.HookPoint
    specs = [
        mi.HookSpec().intervene(points.Embed, mi.Scale(0.5)),
        mi.HookSpec().intervene(
            points.AttnScores(2), mi.Knockout(at=mi.At(head=1, query=-1, key=0))
        ),
        mi.HookSpec().intervene("blocks.*.hook_mlp_out", mi.Zero(at=mi.At(pos=-1))),
        mi.HookSpec().intervene(points.FinalNorm, mi.Scale(2.0)),
        mi.HookSpec(),
        mi.HookSpec().intervene(
            points.MlpPost(1), mi.Zero(at=mi.At(neuron=[0, 3], pos=slice(2, 5)))
        ),
    ]
    metrics = [mi.logit("q"), mi.log_prob("q"), mi.kl(model.forward(tokens).output[0, -1])]
    for metric in metrics:
        scored = score_cells(model, tokens, specs, metric)
        whole = [float(metric.score(model, model.forward(tokens, s).output[0, -1])) for s in specs]
        assert (scored.scores - torch.tensor(whole)).abs().max() < 1e-5
        assert scored.baseline == pytest.approx(whole[4], abs=1e-6)


def test_metrics_against_their_definitions() -> None:
    model = tiny("llama")
    logits = torch.randn(3, model.vocab_size, generator=torch.Generator().manual_seed(1))
    q, z = model.token_id("q"), model.token_id("z")
    p = (logits.double().exp() / logits.double().exp().sum(-1, keepdim=True)).float()
    assert torch.allclose(mi.prob("q").score(model, logits), p[:, q])
    assert torch.allclose(mi.log_prob("q").score(model, logits), p[:, q].log(), atol=1e-6)
    assert torch.equal(mi.logit_diff("q", "z").score(model, logits), logits[:, q] - logits[:, z])
    by_hand = (p[0] * (p[0].log() - p[1].log())).sum()
    assert torch.allclose(mi.kl(logits[0]).score(model, logits)[1], by_hand, atol=1e-5)
    assert mi.kl(logits[0]).score(model, logits)[0] == 0
    with pytest.raises(mi.ModelError, match="kl needs baseline logits"):
        mi.kl(logits).score(model, logits)
