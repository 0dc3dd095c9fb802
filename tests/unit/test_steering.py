# SPDX-License-Identifier: MIT OR Apache-2.0
"""Attention and activation steering against their formulas and against whole runs."""

import math
from typing import Any

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.activation_steering import (
    Convergence,
    Directions,
    convergence,
    directions,
    steering_grid,
)
from torch_mi.analysis.dose import (
    DoseResponseCurve,
    SteeringCalibration,
    dose_response,
    exact_scale_factor,
    mean_scale_factor,
)
from torch_mi.analysis.edges import EdgeSpec, KnockoutSpec
from torch_mi.analysis.steering import (
    SteeringResult,
    SteeringSpec,
    apply_steering,
    attention_to_targets,
    measure_attention_to_targets,
    steer,
)
from torch_mi.testing import tiny

FAMILIES = ["llama", "gemma2", "phi3", "gpt2", "bloom", "mistral"]
ROW = [0.3, 0.3, 0.4, 0.0]


def row_of(values: list[float]) -> torch.Tensor:
    """A causal pattern of 4 tokens and one head whose row 2 is this."""
    pattern = torch.ones(4, 4).tril()
    pattern = pattern / pattern.sum(-1, keepdim=True)
    pattern[2] = torch.tensor(values)
    return pattern[None, None]


def steered(spec: SteeringSpec, pattern: torch.Tensor, *, legacy: bool = False) -> list[float]:
    return apply_steering(pattern, spec, legacy=legacy)[0, 0, 2].tolist()


def test_rows_without_a_mask():
    uniform = torch.full((1, 2, 4, 4), 0.25)
    spec = SteeringSpec.scale(2.0).edge(2, 1)
    assert steered(spec, uniform) == pytest.approx([0.2, 0.4, 0.2, 0.2])
    assert steered(spec.edge(2, 1), uniform) == pytest.approx([0.2, 0.4, 0.2, 0.2]), "once"
    spec = SteeringSpec.set_value(0.5).edge(2, 1).head(1)
    found = apply_steering(uniform, spec)
    assert torch.equal(found[0, 0], uniform[0, 0])
    assert found[0, 1, 2].tolist() == pytest.approx([1 / 6, 0.5, 1 / 6, 1 / 6])


@pytest.mark.parametrize(
    ("value", "legacy", "row"),
    [
        (0.5, True, [0.21875, 0.46875, 0.3125, 0]),
        (0.5, False, [0.3 / 1.4, 0.5, 0.4 / 1.4, 0]),
        (0.1, True, [0.36667, 0.1, 0.46667, 0.06667]),
        (0.1, False, [0.27 / 0.7, 0.1, 0.36 / 0.7, 0]),
    ],
)
def test_setting_a_value_in_a_causal_row(value: float, legacy: bool, row: list[float]):
    spec = SteeringSpec.set_value(value).edge(2, 1)
    assert steered(spec, row_of(ROW), legacy=legacy) == pytest.approx(row, abs=1e-4)


def test_rows_with_nothing_to_share():
    assert steered(SteeringSpec.set_value(0.4).edge(2, 1), row_of([0, 1, 0, 0])) == pytest.approx(
        [0.3, 0.4, 0.3, 0]
    )
    third = SteeringSpec.set_value(0.2).from_position(2)
    assert steered(third, row_of(ROW)) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    with pytest.raises(mi.InterventionError, match=r"2 keys of query 2 cannot have 0\.6 each"):
        steered(SteeringSpec.set_value(0.6).from_to_positions(2, [0, 1]), row_of(ROW))
    with pytest.raises(mi.InterventionError, match=r"from 2 to the later 3 cannot be set"):
        steered(SteeringSpec.set_value(0.6).edge(2, 3), row_of(ROW))
    with pytest.raises(mi.InterventionError, match=r"use create_knockout_mask"):
        steered(SteeringSpec().edge(2, 1), row_of(ROW))


@pytest.mark.parametrize(
    "spec",
    [
        SteeringSpec.scale(-1.0),
        SteeringSpec.scale(math.nan),
        SteeringSpec.scale(math.inf),
        SteeringSpec.set_value(1.5),
        SteeringSpec.set_value(math.nan),
    ],
)
def test_amounts_are_checked(spec: SteeringSpec):
    with pytest.raises(mi.InterventionError, match=r"a scale factor is 0|set to something in 0"):
        spec.validate(30, 16, 20)
    SteeringSpec.set_value(0.09).edge(1, 0).validate(30, 16, 20)


def test_kinds():
    spec = KnockoutSpec().layer(2).head(1).edge(3, 0)
    as_steering = SteeringSpec.of(spec)
    assert as_steering.is_knockout()
    assert not as_steering.is_steering()
    assert (as_steering.layers, as_steering.heads, as_steering.edges) == ((2,), (1,), spec.edges)
    assert SteeringSpec.scale(0.5).is_steering()
    for one in (SteeringSpec.set_value(0.2).edge(-1, 0).layer(1), as_steering):
        assert SteeringSpec.from_dict(one.to_dict()) == one


SPECS = [
    SteeringSpec.scale(3.0).layer(1).head(0, 4).edge(-1, 2).edge(-1, 0),
    SteeringSpec.scale(0.25).layer(1).to_position(1),
    SteeringSpec.scale(4.0).layer(1).to_position(1).from_position(-2).edge(3, 1),
    SteeringSpec.scale(0.0).layer(1).edge(-1, 2),
    SteeringSpec.set_value(0.6).layer(1).head(2).edge(-1, 4),
    SteeringSpec.set_value(0.3).layer(1).from_to_positions(-1, [3, 4]),
    SteeringSpec.set_value(0.4).layer(1).to_position(1),
    SteeringSpec.set_value(0.0).layer(1).edge(-1, 5),
    SteeringSpec.set_value(0.5).layer(1).from_to_positions(-1, [4, 5]),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_steered_runs_have_the_pattern_that_the_formulas_give(family: str):
    wide = {"sliding_window": 64} if family in ("gemma2", "mistral", "phi3") else {}
    model, text = tiny(family, changes=wide), "abcdefg"
    point = mi.HookPoint.AttnPattern(1)
    plain = model.forward(text, mi.HookSpec().capture(point))[point]
    for spec in SPECS:
        run = model.forward(text, spec.hooks(model, 8).capture(point))
        wanted = apply_steering(plain, spec)
        assert (run[point] - wanted).abs().max() < 1e-5, spec
        assert (run[point].sum(-1) - 1).abs().max() < 1e-5, spec
        assert float(run[point].triu(1).abs().max()) == 0, "nothing leaks to later tokens"


def test_windows_are_kept():
    model = tiny("mistral", changes={"sliding_window": 3})
    point = mi.HookPoint.AttnPattern(1)
    spec = SteeringSpec.set_value(0.4).layer(1).to_position(2)
    plain = model.forward("abcdefg", mi.HookSpec().capture(point))[point]
    run = model.forward("abcdefg", spec.hooks(model, 8).capture(point))[point]
    assert (run - apply_steering(plain, spec, window=3)).abs().max() < 1e-6
    assert run[0, :, 4, 2].tolist() == pytest.approx([0.4] * model.num_heads)
    assert float(run[0, :, 5:, 2].abs().max()) == 0
    assert torch.equal(run[0, :, 5:], plain[0, :, 5:])


@pytest.mark.parametrize("spec", SPECS[:1] + SPECS[4:6])
def test_padding_is_not_seen(spec: SteeringSpec):
    model = tiny("gemma2")
    counted = SteeringSpec(
        spec.layers,
        spec.heads,
        tuple(type(e)(7 if e.from_pos == -1 else e.from_pos, e.to_pos) for e in spec.edges),
        spec.kind,
        spec.amount,
    )
    alone = model.forward("abcdefg", spec.hooks(model, 8)).output[0, -1]
    both = model.forward(["abcdefg", "abcdefghijk"], counted.hooks(model, 8)).output
    assert (both[0, -1] - alone).abs().max() < 1e-5


def test_steering_changes_no_earlier_answer():
    model = tiny("llama")
    for spec in SPECS:
        whole = model.forward("abcdefg", spec.hooks(model, 8)).output
        other = model.forward("abcdefX", spec.hooks(model, 8)).output
        assert (whole[0, :-1] - other[0, :-1]).abs().max() < 1e-5


def test_the_result_says_how_attention_changed(tmp_path):  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
    model = tiny("llama")
    spec = SteeringSpec.set_value(0.5).layer(1).edge(-1, 2)
    found = steer(model, "abcdef", spec)
    point = mi.HookPoint.AttnPattern(1)
    plain = model.forward("abcdef", mi.HookSpec().capture(point))[point]
    assert found.baseline_attention_mean == pytest.approx(float(plain[0, :, -1, 2].mean()))
    assert found.steered_attention_mean == pytest.approx(0.5)
    ratio = found.attention_ratio()
    assert ratio == pytest.approx(0.5 / float(plain[0, :, -1, 2].mean()))
    assert found.kl_divergence() > 0
    again = SteeringResult.load(found.save(tmp_path / "s.json"))
    assert again.to_dict() == found.to_dict()
    assert "-1 → 2 in layer 1, every head set to 0.5" in repr(again)


def test_attention_to_targets():
    pattern = torch.full((1, 2, 4, 4), 0.25)
    pattern[0, 1] = torch.eye(4) * 0.6 + 0.1
    assert attention_to_targets(pattern, 0, [0]).tolist() == pytest.approx([0.25, 0.7])
    assert measure_attention_to_targets(pattern, 0, [0]) == pytest.approx(0.475)
    assert measure_attention_to_targets(pattern, 0, [1, 9]) == pytest.approx(0.175)
    assert measure_attention_to_targets(pattern, 0, [9]) == 0.0
    with pytest.raises(mi.InterventionError, match="from_pos=4 is out of range"):
        measure_attention_to_targets(pattern, 4, [0])


def test_calibration():
    found = SteeringCalibration(0.09, 0.025, 3, 5, 6)
    assert found.attention_ratio == pytest.approx(3.6)
    assert found.scale_factor_to_source() == pytest.approx(3.6)
    assert found.scale_factor_for_target(0.05) == pytest.approx(2.0)
    assert found.dose_levels_absolute()[0] == pytest.approx((0.5, 0.0125))
    assert found.recommended_target == 0.09
    assert found.with_target(0.2).recommended_target == 0.2
    factor = found.exact_scale_factor()
    assert factor * 0.025 / (1 + (factor - 1) * 0.025) == pytest.approx(0.09)
    nothing = SteeringCalibration(0.09, 0.0, 3, 5, 6)
    assert (nothing.attention_ratio, nothing.scale_factor_for_target(0.4)) == (0.0, 1.0)
    with pytest.raises(mi.InterventionError, match=r"target=1\.26 is not between 0 and 1"):
        exact_scale_factor(0.63, 1.26)


def test_one_factor_for_all_heads():
    levels = torch.tensor([0.01, 0.3, 0.9, 0.0])
    c = mean_scale_factor(levels, 0.6)
    assert float((c * levels / (1 + (c - 1) * levels)).mean()) == pytest.approx(0.6)
    assert mean_scale_factor(levels[:1], 0.5) == pytest.approx(exact_scale_factor(0.01, 0.5))
    with pytest.raises(mi.InterventionError, match=r"factors give 0 … 0\.75"):
        mean_scale_factor(levels, 0.8)


def test_curves_are_read_between_their_points():
    curve = DoseResponseCurve("s", "c", 0, 0.025)
    for point in ((1.0, 0.025, 0.0), (2.0, 0.05, 0.1), (4.0, 0.1, 0.3)):
        curve = curve.add_point(*point)
    assert curve.scale_for_target(0.075) == pytest.approx(3.0)
    assert curve.scale_for_target(0.2) is None
    alone = DoseResponseCurve("s", "c", 0, 0.1).add_point(1.0, 0.1, 0.0)
    assert alone.scale_for_target(0.1) is None


def test_every_dose_is_a_whole_run():
    model, text = tiny("gemma2"), "abcdef"
    edges = EdgeSpec().layer(1).edge(-1, 0)
    point = mi.HookPoint.AttnPattern(1)
    plain = model.forward(text).output[0, -1].double().log_softmax(-1)
    for exact in (False, True):
        curve = dose_response(model, text, edges, doses=(0.5, 1.0, 2.0), exact=exact)
        for dose, p in zip((0.5, 1.0, 2.0), curve.points, strict=True):
            spec = SteeringSpec.scale(p.scale_factor).layer(1).edge(-1, 0)
            run = model.forward(text, spec.hooks(model, 7).capture(point))
            assert p.attention_level == pytest.approx(float(run[point][0, :, -1, 0].mean()))
            logs = run.output[0, -1].double().log_softmax(-1)
            kl = float((plain.exp() * (plain - logs)).sum())
            assert p.kl_divergence == pytest.approx(kl, abs=1e-6)
            if exact:
                assert p.attention_level == pytest.approx(dose * curve.baseline_attention)
    with pytest.raises(mi.InterventionError, match=r"one layer, not of \[0, 1, 2\]"):
        dose_response(model, text, EdgeSpec().edge(-1, 0))
    with pytest.raises(mi.InterventionError, match="factors give 0 … 1"):
        dose_response(model, text, edges, doses=(100.0,), exact=True)


def test_the_demo_model_responds_to_the_dose(tmp_path):  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
    model = mi.MIModel.from_pretrained("demo", device="cpu")
    text = "The capital of France is"
    edges = EdgeSpec().layer(0).edge(-1, model.to_str_tokens(text).index(" France"))
    doses = (1.0, 0.5, 0.1, 0.01, 0.001)
    curve = dose_response(model, text, edges, doses=doses)
    levels = [p.attention_level for p in curve.points]
    moved = [p.kl_divergence for p in curve.points]
    assert levels == sorted(levels, reverse=True)
    assert moved == sorted(moved)
    assert moved[0] < 1e-6 < moved[-1]
    assert levels[0] == pytest.approx(curve.baseline_attention)
    again = DoseResponseCurve.load(curve.save(tmp_path / "c.json"))
    assert again.to_dict() == curve.to_dict()
    assert len(curve.to_pandas()) == len(doses)
    assert "KL divergence" in repr(curve)
    picture: Any = curve.plot()
    assert len(picture.data[0].x) == len(doses)


def test_directions_are_differences_of_means(tmp_path):  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
    model = tiny("qwen2")
    good, bad = ["abc", "de"], ["xy", "zzzz", "q"]
    found = directions(model, good, bad, layers=[0, 2])
    point = mi.HookPoint.ResidPost(2)
    sides = [
        torch.stack([model.forward(t, mi.HookSpec().capture(point))[point][0, -1] for t in side])
        for side in (good, bad)
    ]
    assert (found.at(2) - (sides[0].mean(0) - sides[1].mean(0))).abs().max() < 1e-5
    again = Directions.load(found.save(tmp_path / "d.json"))
    assert again.to_dict() == found.to_dict()
    with pytest.raises(mi.InterventionError, match="layer 1 has no direction"):
        found.at(1)
    metric = mi.logit("q")
    grid = steering_grid(model, ["abc", "defg"], found, metric=metric, strengths=(-1.0, 0.0, 2.0))
    for layer, strength in ((0, -1.0), (2, 2.0)):
        edit = mi.Add(strength * found.at(layer), at=mi.At(pos=-1))
        spec = mi.HookSpec().intervene(mi.HookPoint.ResidPost(layer), edit)
        scores = [
            metric.score(model, model.forward(t, spec).output[0, -1]) for t in ("abc", "defg")
        ]
        at = grid.at("layer", layer).at("strength", strength)
        assert float(at.values) == pytest.approx(float(torch.stack(scores).mean()), abs=1e-5)
    assert grid.at("strength", 0.0).values.tolist() == pytest.approx([grid.baseline] * 2, abs=1e-5)


def test_convergence_is_measured_layer_by_layer(tmp_path):  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
    model = tiny("gpt2")
    along = directions(model, "abc", "xyz")
    found = convergence(model, "hello", along, strength=1.5)
    points = mi.HookPoint.ResidPost
    plain = model.forward("hello", mi.HookSpec().capture(points))
    for steered_at in range(3):
        run = model.forward("hello", along.spec(steered_at, 1.5).capture(points))
        for layer in range(3):
            a, b = run[points(layer)][0, -1], plain[points(layer)][0, -1]
            cosine = float(a @ b / (a.norm() * b.norm()))
            assert float(found.cosines[steered_at, layer]) == pytest.approx(cosine, abs=1e-5)
    again = Convergence.load(found.save(tmp_path / "c.json"))
    assert again.to_dict() == found.to_dict()
    for result in (found, along):
        assert "layer" in repr(result)
        assert result.plot().data
    full = torch.tensor([[0.9, 0.96, 0.5], [1, 0.5, 0.6], [1, 1, 0.99]])
    made = Convergence("m", "p", 1.0, (0, 1, 2), full, found.manifest)
    assert [made.depth(i) for i in range(3)] == [1, None, 0]
    assert made.absorbed == pytest.approx(2 / 3)


def test_a_direction_turns_the_demo_models_answer():
    model = mi.MIModel.from_pretrained("demo", device="cpu")
    good = [f"{start} Italy is" for start in ("The capital of", "The capital city of")]
    bad = [text.replace("Italy", "France") for text in good]
    along = directions(model, good, bad, layers=[4])
    grid = steering_grid(
        model,
        "The capital of France is",
        along,
        metric=mi.logit_diff(" Rome", " Paris"),
        strengths=(0.0, 0.25, 0.5, 0.75, 1.0),
    )
    scores = grid.values[0].tolist()
    assert scores == sorted(scores)
    assert scores[0] < 0 < scores[-1]
