# SPDX-License-Identifier: MIT OR Apache-2.0
"""Attribution patching against its definition, and against patching itself."""

import sys
from pathlib import Path

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.attribution_patching import (
    Comparison,
    attribution_patch,
    attribution_patches,
    check_method,
    compare,
    correlation,
    ranks,
)
from torch_mi.analysis.patching import POINTS, patch
from torch_mi.cli import main as door
from torch_mi.testing import tiny

P = mi.HookPoint
CLEAN, CORRUPTED = "abcdefg", "abXdefg"
METRIC = mi.logit_diff("q", "z")


@pytest.fixture(scope="module")
def demo() -> mi.MIModel:
    return mi.MIModel.from_pretrained("demo")


def naive(model: mi.MIModel, at: str, clean: str, corrupted: str) -> torch.Tensor:
    """(clean - corrupted) · gradient, with torch's own backward over the whole model."""
    point = POINTS[at]
    source = model.forward(clean, mi.HookSpec().capture(point))
    run = model.forward(corrupted, mi.HookSpec().capture(point), grad=True)
    values = [run[point(layer)] for layer in range(model.num_layers)]
    score = METRIC.score(model, run.output[0, -1])
    slopes = torch.autograd.grad(score, values)
    axis = next((i for i, a in enumerate(point.axes) if a in ("head", "kv_head", "d_mlp")), 1)
    rows = [
        ((source[point(i)] - value.detach()) * slope).movedim(axis, 0).flatten(1).sum(1)
        for i, (value, slope) in enumerate(zip(values, slopes, strict=True))
    ]
    return float(score.detach()) + torch.stack(rows)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "falcon", "mixtral", "phi3"])
def test_estimates_equal_their_definition(family: str) -> None:
    model = tiny(family)
    grids = attribution_patches(model, CLEAN, CORRUPTED, metric=METRIC)
    assert set(grids) == {at for at, p in POINTS.items() if p in model.backend.hook_points}
    for at, grid in grids.items():
        assert torch.allclose(grid.values, naive(model, at, CLEAN, CORRUPTED), atol=1e-5), at
        if at not in ("resid_pre", "k"):
            continue
        true = patch(model, CLEAN, CORRUPTED, at=at, metric=METRIC)
        assert list(grid.axes) == list(true.axes)
        assert grid.baseline == pytest.approx(true.baseline, abs=1e-5)
        assert grid.reference == pytest.approx(true.reference, abs=1e-5)
        assert grid.labels == true.labels


@pytest.mark.parametrize("at", ["resid_pre", "z", "mlp_out"])
def test_small_changes_are_estimated_exactly(at: str) -> None:
    """In the limit of equal prompts, attribution patching is patching."""
    model = tiny("llama", dtype=torch.float64)
    clean, corrupted = model.token_id("c"), model.token_id("X")
    with torch.no_grad():
        table = model.backend.embedding
        table[clean] = table[corrupted] + 1e-3 * table[clean]
    true = patch(model, CLEAN, CORRUPTED, at=at, metric=METRIC)
    guess = attribution_patch(model, CLEAN, CORRUPTED, at=at, metric=METRIC)
    moved = float((true.values - true.baseline).abs().max())
    assert moved > 5e-5
    assert float((guess.values - true.values).abs().max()) < 0.05 * moved


def test_what_is_linear_is_estimated_exactly() -> None:
    """The last layer's stream reaches a logit through nothing but a norm; held, it is linear."""
    model = tiny("llama")
    by = ("layer", "pos")
    spec = mi.HookSpec().capture(P.ResidPost(2))
    far, near = (model.forward(text, spec)[P.ResidPost(2)] for text in (CLEAN, CORRUPTED))
    last = near[0, -1].requires_grad_()
    score = METRIC.score(model, model.project_to_vocab(last))
    (direction,) = torch.autograd.grad(score, last)
    grid = attribution_patch(
        model, CLEAN, CORRUPTED, at="resid_post", metric=METRIC, by=by, layers=2
    )
    wanted = float((far - near)[0, -1].detach() @ direction)
    assert float(grid.values[0, -1]) - grid.baseline == pytest.approx(wanted, abs=1e-5)
    assert grid.values[0, :-1].sub(grid.baseline).abs().max() < 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_integrated_gradients_are_complete(family: str) -> None:
    """Over all positions of the first layer's input they add up to the whole change."""
    model = tiny(family)
    grid = attribution_patch(
        model, CLEAN, CORRUPTED, at="resid_pre", metric=METRIC, layers=0,
        method="integrated", steps=64,
    )  # fmt: skip
    assert grid.reference is not None
    whole = grid.reference - grid.baseline
    assert float((grid.values - grid.baseline).sum()) == pytest.approx(whole, abs=0.02)


def test_prompts_of_different_lengths_are_averaged() -> None:
    model = tiny("qwen2")
    clean, corrupted = ["abcdefg", "hij", "klmno"], ["abXdefg", "hXj", "kXmno"]
    together = attribution_patch(model, clean, corrupted, at="z", metric=METRIC)
    alone = [
        attribution_patch(model, one, other, at="z", metric=METRIC)
        for one, other in zip(clean, corrupted, strict=True)
    ]
    each = torch.stack([grid.values for grid in alone])
    assert torch.allclose(together.values, each.mean(0), atol=1e-5)
    assert together.errors is not None
    assert torch.allclose(together.errors, each.std(0) / 3**0.5, atol=1e-5)
    assert together.prompts == 3


def test_axes_layers_and_directions() -> None:
    model = tiny("llama")
    wide = attribution_patch(
        model, CLEAN, CORRUPTED, at="z", metric=METRIC, by=("pos", "layer", "head")
    )
    narrow = attribution_patch(model, CLEAN, CORRUPTED, at="z", metric=METRIC, layers=[2, 0])
    effects = (wide.values - wide.baseline).sum(0)
    assert torch.allclose(effects[[2, 0]], narrow.values - narrow.baseline, atol=1e-5)
    one = attribution_patch(
        model, CLEAN, CORRUPTED, at="pattern", metric=METRIC, by=("query", "key"), layers=1
    )
    assert one.values.shape == (8, 8)
    assert one.values.triu(1).sub(one.baseline).triu(1).abs().max() == 0
    noising = attribution_patch(model, CLEAN, CORRUPTED, at="z", metric=METRIC, direction="noising")
    assert noising.baseline == pytest.approx(narrow.reference, abs=1e-5)
    assert noising.noising


def test_estimates_rank_places_as_patching_does(demo: mi.MIModel) -> None:
    clean, corrupted = "The capital of France is", "The capital of Italy is"
    metric = mi.logit_diff(" Paris", " Rome")
    places = ("resid_pre", "attn_out", "mlp_out", "z", "v")
    quick = attribution_patches(demo, clean, corrupted, at=places, metric=metric)
    slow = attribution_patches(
        demo, clean, corrupted, at=places, metric=metric, method="integrated"
    )
    for at in places:
        true = patch(demo, clean, corrupted, at=at, metric=metric)
        first, second = compare(quick[at], true), compare(slow[at], true)
        assert first.spearman is not None
        assert first.pearson is not None
        assert second.pearson is not None
        assert first.spearman > 0.95, at
        assert first.overlap(5) >= 0.8, at
        assert second.pearson > max(first.pearson, 0.99), at


def test_ranks_share_ties() -> None:
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0, 2.5, 1]
    scipy = pytest.importorskip("scipy.stats", reason="scipy is not installed")
    x, y = (torch.randn(50, generator=torch.Generator().manual_seed(i)).round() for i in (0, 1))
    assert correlation(ranks(x), ranks(y)) == pytest.approx(scipy.spearmanr(x, y).statistic)


def test_comparisons_are_saved_whole_and_shown(tmp_path) -> None:  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
    model = tiny("llama")
    true = patch(model, CLEAN, CORRUPTED, at="attn_out", metric=METRIC)
    found = compare(attribution_patch(model, CLEAN, CORRUPTED, at="attn_out", metric=METRIC), true)
    loaded = Comparison.load(found.save(tmp_path / "comparison.json"))
    assert loaded.to_dict() == found.to_dict()
    assert loaded.spearman == found.spearman
    assert "rank correlation" in repr(found)
    assert len(found.to_pandas()) == true.values.numel()
    assert len(found.plot().to_dict()["data"][1]["x"]) == true.values.numel()
    same = compare(true, true)
    assert (same.spearman, same.overlap()) == (pytest.approx(1), 1.0)
    flat = compare(true.normalized(), true)
    assert flat.pearson == pytest.approx(-1, abs=1e-4), "the clean prompt scores lower here"


def test_the_verb_estimates_when_asked_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, page = tmp_path / "grid.json", tmp_path / "page.html"
    words = ["patch", CLEAN, CORRUPTED, "-m", "tiny:llama", "--at", "z", "--method", "gradient"]
    words += ["--target", "q", "--other", "z", "--json", str(file), "--html", str(page)]
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", ["torch-mi", *words])
    with pytest.raises(SystemExit) as ended:
        door.main()
    assert not ended.value.code
    assert "estimated" in capsys.readouterr().out
    expected = attribution_patch(tiny("llama"), CLEAN, CORRUPTED, at="z", metric=METRIC)
    assert torch.allclose(mi.Grid.load(file).values, expected.values, atol=1e-6)
    assert "Estimated for all activations at once" in page.read_text()


def test_wrong_requests_say_what_is_right() -> None:
    model = tiny("llama")
    with pytest.raises(mi.InterventionError, match="did you mean 'integrated'"):
        check_method("integrate", 8)
    with pytest.raises(mi.InterventionError, match="needs one step"):
        attribution_patch(model, CLEAN, CORRUPTED, at="z", metric=METRIC, steps=0)
    with pytest.raises(mi.InterventionError, match="do not add up"):
        attribution_patch(model, CLEAN, CORRUPTED, at="z", metric=METRIC, by=("head",))
    with pytest.raises(mi.InterventionError, match="did you mean 'resid_pre'"):
        attribution_patch(model, CLEAN, CORRUPTED, at="resid_pr", metric=METRIC)
    z, mlp = (
        attribution_patch(model, CLEAN, CORRUPTED, at=at, metric=METRIC) for at in ("z", "mlp_out")
    )
    with pytest.raises(mi.ModelError, match="different places"):
        compare(z, mlp)
    with pytest.raises(mi.ModelError, match="different activations"):
        compare(z, attribution_patch(model, CLEAN, CORRUPTED, at="q", metric=METRIC))
