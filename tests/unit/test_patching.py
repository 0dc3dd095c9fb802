# SPDX-License-Identifier: MIT OR Apache-2.0
"""Activation patching against the naive loop: one whole forward pass for each cell."""

import pytest
import torch

import torch_mi as mi
from tests.kinds import KINDS
from torch_mi.analysis.patching import POINTS
from torch_mi.sweeps.run import score_cells
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
    + [(family, ("resid_pre", "k")[i % 2]) for i, family in enumerate(KINDS)],
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


def put_in(
    model: mi.MIModel, source: str, places: list[tuple[mi.Hook, mi.At | None]]
) -> mi.HookSpec:
    """A spec that puts in another run's activations, place by place."""
    spec = mi.HookSpec()
    for hook, at in places:

        def put(x: torch.Tensor, hook: mi.Hook, at: mi.At | None = at) -> torch.Tensor:
            value = model.forward(source, mi.HookSpec().capture(hook))[hook]
            chosen = [slice(None)] * x.ndim
            names = {"pos": 1, "head": 2, "neuron": 2}
            for name, i in ({} if at is None else at.named()).items():
                chosen[names[name]] = slice(i, i + 1)  # pyright: ignore[reportOperatorIssue] - numbers here
            x[tuple(chosen)] = value[tuple(chosen)]
            return x

        spec.intervene(hook, mi.Apply(put))
    return spec


def last_score(model: mi.MIModel, runs: str, spec: mi.HookSpec, metric: mi.Metric) -> float:
    return float(metric.score(model, model.forward(runs, spec).output[0, -1]))


def test_any_axes_equal_runs_with_those_places_put_in() -> None:
    model, metric = tiny("llama"), mi.logit_diff("q", "z")
    z, post, pre = mi.HookPoint.AttnZ, mi.HookPoint.MlpPost, mi.HookPoint.ResidPre

    def check(
        grid: mi.Grid, places: dict[tuple[int, ...], list[tuple[mi.Hook, mi.At | None]]]
    ) -> None:
        for index, what in places.items():
            spec = put_in(model, CLEAN, what)
            wanted = last_score(model, CORRUPTED, spec, metric)
            assert float(grid.values[index]) == pytest.approx(wanted, abs=1e-5)

    grid = mi.patch(model, CLEAN, CORRUPTED, at="z", metric=metric, by=("layer", "head", "pos"))
    assert {name: len(places) for name, places in grid.axes.items()} == {
        "layer": 3,
        "head": 6,
        "pos": 8,
    }
    check(
        grid, {(1, 4, 5): [(z(1), mi.At(head=4, pos=5))], (0, 0, 3): [(z(0), mi.At(head=0, pos=3))]}
    )
    grid = mi.patch(model, CLEAN, CORRUPTED, at="z", metric=metric, by=("head", "pos"), layers=1)
    assert list(grid.axes) == ["head", "pos"]
    check(grid, {(4, 5): [(z(1), mi.At(head=4, pos=5))]})
    grid = mi.patch(model, CLEAN, CORRUPTED, at="z", metric=metric, by=["head"])
    check(grid, {(2,): [(z(i), mi.At(head=2)) for i in range(3)]})
    grid = mi.patch(model, CLEAN, CORRUPTED, at="mlp_post", metric=metric)
    assert list(grid.axes) == ["layer", "neuron"]
    check(grid, {(1, 7): [(post(1), mi.At(neuron=7))], (0, 39): [(post(0), mi.At(neuron=39))]})
    grid = mi.patch(model, CLEAN, CORRUPTED, at="resid_pre", metric=metric, by=["layer"])
    check(grid, {(2,): [(pre(2), None)]})


def test_every_block_is_three_panels() -> None:
    model, metric = tiny("gemma2"), mi.logit("q")
    grid = mi.patch(model, CLEAN, CORRUPTED, at="every_block", metric=metric)
    assert list(grid.axes) == ["at", "layer", "pos"]
    for name in ("resid_pre", "attn_out", "mlp_out"):
        alone = mi.patch(model, CLEAN, CORRUPTED, at=name, metric=metric)
        assert torch.allclose(grid.at("at", name).values, alone.values, atol=1e-5)
        assert grid.at("at", name).labels == alone.labels


def test_noising_is_the_reverse() -> None:
    model, metric = tiny("llama"), mi.logit_diff("q", "z")
    noising = mi.patch(model, CLEAN, CORRUPTED, at="resid_pre", metric=metric, direction="noising")
    swapped = mi.patch(model, CORRUPTED, CLEAN, at="resid_pre", metric=metric)
    assert torch.equal(noising.values, swapped.values)
    scale = noising.normalized()
    assert scale.baseline == 1
    assert scale.reference == 0
    assert scale.values[0, 3] == pytest.approx(0, abs=1e-5), "all that differs is put in"
    assert scale.values[:, 0] == pytest.approx(torch.ones(3), abs=1e-5)
    assert mi.Grid.from_dict(noising.to_dict()).normalized().to_dict() == scale.to_dict()


def test_pairs_of_a_dataset_are_averaged_over() -> None:
    model = tiny("phi3")
    clean, corrupted = ["abcdefg", "hijklmn"], ["abXdefg", "hiXklmn"]
    words, others = ["q", "r"], ["z", "y"]
    metric = mi.logit_diff(words, others)
    grid = mi.patch(model, clean, corrupted, at="resid_pre", metric=metric)
    each = [
        mi.patch(model, a, b, at="resid_pre", metric=mi.logit_diff(w, o))
        for a, b, w, o in zip(clean, corrupted, words, others, strict=True)
    ]
    values = torch.stack([one.values for one in each])
    assert torch.allclose(grid.values, values.mean(0), atol=1e-5)
    assert grid.errors is not None
    assert torch.allclose(grid.errors, values.std(0) / 2**0.5, atol=1e-5)
    assert grid.baseline == pytest.approx(sum(one.baseline for one in each) / 2, abs=1e-5)
    assert grid.reference == pytest.approx(sum(one.reference or 0 for one in each) / 2, abs=1e-5)
    assert grid.labels["pos"][:4] == ("<s>", "…", "…", "X")
    assert grid.options["clean"] == ["<s>abcdefg", "<s>hijklmn"]
    by_head = mi.patch(model, ["abc", "defg"], ["aXc", "deXg"], at="z", metric=mi.logit("q"))
    assert by_head.prompts == 2
    with pytest.raises(mi.InterventionError, match="by pos needs prompts of one length"):
        mi.patch(model, ["abc", "defg"], ["aXc", "deXg"], at="resid_pre", metric=mi.logit("q"))
    with pytest.raises(mi.InterventionError, match="in pairs, not 2 with 1"):
        mi.patch(model, ["abc", "defg"], ["aXc"], at="z", metric=mi.logit("q"))


def test_axes_and_layers_that_are_not_there() -> None:
    model, metric = tiny("llama"), mi.logit("q")
    with pytest.raises(mi.InterventionError, match="z can be patched by each of layer, pos, head"):
        mi.patch(model, CLEAN, CORRUPTED, at="z", metric=metric, by=("layer", "neuron"))
    with pytest.raises(mi.InterventionError, match=r"layers=9: AttnZ is in layers \[0, 1, 2\]"):
        mi.patch(model, CLEAN, CORRUPTED, at="z", metric=metric, layers=9)
