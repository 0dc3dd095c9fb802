# SPDX-License-Identifier: MIT OR Apache-2.0
"""Regions, ablations, roles, surprise and tables of AlgZoo's networks."""

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from tests.unit.test_stoicheia import by_hand, drawn, file, m22
from torch_mi import show
from torch_mi.analysis.stoicheia.ablation import NeuronAblation, ablate_neurons
from torch_mi.analysis.stoicheia.answers import anatomy, answer
from torch_mi.analysis.stoicheia.exact import exact_regions, linear_cones
from torch_mi.analysis.stoicheia.handcrafted import handcrafted
from torch_mi.analysis.stoicheia.kernel import outputs, performance, traced
from torch_mi.analysis.stoicheia.networks import StoicheiaTransformer
from torch_mi.analysis.stoicheia.regions import activation_regions, region_maps
from torch_mi.analysis.stoicheia.report import analyse
from torch_mi.analysis.stoicheia.roles import probe_roles, signals
from torch_mi.analysis.stoicheia.surprise import (
    Explanation,
    account_for,
    oracle,
    quantised,
    residual_bits,
    smaller,
)
from torch_mi.analysis.stoicheia.tables import answer_every_input, lookup_tables
from torch_mi.analysis.stoicheia.training import Training, train
from torch_mi.analysis.stoicheia.zoo import load
from torch_mi.errors import ModelError
from torch_mi.hooks.spec import HookSpec

if TYPE_CHECKING:
    from torch import Tensor

SHARES = {
    "0110": (0.3525, -83.040, 39.824),
    "1001": (0.3074, -198.086, 173.527),
    "1010": (0.1146, -15.218, 39.824),
    "1011": (0.0770, -213.304, 213.351),
    "0111": (0.0765, -213.450, 213.351),
    "0101": (0.0719, -130.409, 173.527),
}
"""The published regions of the network with two neurons: share, and the first row of the map."""


def longest_cycle() -> StoicheiaTransformer:
    found = load(file("transformer_longest_cycle_h4_n4.safetensors"))
    assert isinstance(found, StoicheiaTransformer)
    return found


def test_the_published_regions() -> None:
    found = activation_regions(m22(), 200_000)
    assert found.distinct == len(found.regions) == 6
    assert found.covered == 1
    exact = {region.bits: region for region in exact_regions(m22()).regions}
    assert set(exact) == set(SHARES)
    for region in found.regions:
        said, *row = SHARES[region.bits]
        assert abs(region.share.value - said) < 0.003
        assert region.share.low < exact[region.bits].share < region.share.high
        assert region.map[0] == pytest.approx(row, abs=1e-3)
        wrong = exact[region.bits].error > 0
        assert wrong == (region.bits in {"1011", "0111"})
    assert exact_regions(m22()).accuracy == pytest.approx(0.999923, abs=5e-6)


@pytest.mark.parametrize(("n", "hidden"), [(2, 3), (5, 4), (11, 32)])
def test_maps_are_the_network_inside_their_regions(n: int, hidden: int) -> None:
    rnn = drawn("argmedian", n, hidden)
    rnn = replace(rnn, w_hh=rnn.w_hh / hidden**0.5)
    x = rnn.task.draw(n, 64)
    active = (traced(rnn, x) >= 0).flatten(1)
    found = (region_maps(rnn, active) @ x[:, :, None])[:, :, 0]
    torch.testing.assert_close(found, outputs(rnn, x), rtol=1e-10, atol=1e-9)
    regions = activation_regions(rnn, x)
    assert regions.distinct == len({tuple(row.tolist()) for row in active})
    assert sum(region.count for region in regions.regions) == 64
    assert len(regions.regions[0].bits) == n * hidden
    assert sum(regions.regions[0].active_at(n)) == regions.regions[0].count_active()


@pytest.mark.parametrize("task", ["2nd_argmax", "argmax", "argmedian", "argoutlier"])
def test_exact_shares_and_errors_are_those_of_many_samples(task: str) -> None:
    rnn = drawn(task, 3, 3, seed=2)
    exact = exact_regions(rnn)
    assert sum(region.share for region in exact.regions) == pytest.approx(1, abs=1e-12)
    sampled = performance(rnn, 100_000, seed=5)
    spread = 4 * math.sqrt(exact.accuracy * exact.error / 100_000)
    assert abs(exact.accuracy - sampled.value) < spread
    seen = activation_regions(rnn, 100_000, seed=5)
    known = {region.bits: region.share for region in exact.regions}
    assert {region.bits for region in seen.regions} <= set(known)
    for region in seen.regions:
        share = known[region.bits]
        assert abs(region.share.value - share) < 5 * math.sqrt(share / 100_000) + 1e-9


def test_exact_regions_know_their_network() -> None:
    """Every cone of four inputs lies in the region that its labels say."""
    rnn = drawn("2nd_argmax", 4, 3)
    cones = linear_cones(rnn)
    seen = (traced(rnn, cones.inside) >= 0).flatten(1)
    assert torch.equal(seen, cones.labels.bool())
    with pytest.raises(ModelError, match="known for 2 and 3 inputs"):
        cones.shares()
    assert exact_regions(handcrafted(2)).accuracy == 1
    with pytest.raises(ModelError, match="no right and wrong"):
        exact_regions(drawn("median", 3, 3))


def test_arcs_of_two_inputs_go_round_once() -> None:
    found = exact_regions(drawn("argmax", 2, 6))
    arcs = sorted(arc for region in found.regions for arc in region.arcs)
    assert sum(b - a for a, b in arcs) == pytest.approx(360)
    for region in found.regions:
        assert sum(b - a for a, b in region.arcs) / 360 == pytest.approx(region.share)
        assert sum(b - a for a, b in region.wrong) / 360 == pytest.approx(region.error)


def test_the_published_ablations() -> None:
    dice = torch.Generator().manual_seed(0)
    found = ablate_neurons(m22(), torch.randn(1_000_000, 2, generator=dice).double(), steps=False)
    assert found.base.value == pytest.approx(0.999923, abs=5e-7)
    assert [c.score.value for c in found.singles] == pytest.approx([0.852673, 0.500162], abs=1e-6)
    assert [c.delta.value for c in found.singles] == pytest.approx([-0.14725, -0.499761], abs=1e-6)
    both = found.pair(1, 0)
    assert both.interaction is not None
    assert both.interaction.value == pytest.approx(0.14725, abs=1e-6)
    assert [cell.neurons for cell in found.ranked()] == [(1,), (0,)]


@pytest.mark.parametrize("method", ["zero", "mean", "resample"])
@pytest.mark.parametrize("task", ["argmax", "median"])
def test_ablations_are_what_they_are_by_hand(task: str, method: str) -> None:
    rnn = drawn(task, 3, 4)
    x = rnn.task.draw(3, 20)
    found = ablate_neurons(rnn, x, method=method)  # pyright: ignore[reportArgumentType]
    states = traced(rnn, x).relu()

    def scores(held: set[int], steps: range) -> "Tensor":
        h = torch.zeros(20, 4, dtype=torch.float64)
        for t in range(3):
            h = torch.relu(x[:, t, None] * rnn.w_ih + h @ rnn.w_hh.T)
            for j in held if t in steps else ():
                donor = states[:, t, j].roll(10)
                value = {"zero": torch.zeros(20), "mean": states[:, t, j].mean(), "resample": donor}
                h[:, j] = value[method]
        out, truth = h @ rnn.w_oh.T, rnn.task.truth(x)
        if rnn.task.scalar:
            return (out[:, 0] - truth).square()
        return (out.argmax(1) == truth).double()

    base = float(scores(set(), range(3)).mean())
    assert found.base.value == pytest.approx(base)
    assert (len(found.singles), len(found.pairs), len(found.steps)) == (4, 6, 12)
    for cell in (*found.singles, *found.pairs, *found.steps):
        steps = range(3) if cell.step is None else range(cell.step, cell.step + 1)
        wanted = float(scores(set(cell.neurons), steps).mean())
        assert cell.score.value == pytest.approx(wanted)
        assert cell.delta.value == pytest.approx(wanted - base)
        assert cell.delta.low <= cell.delta.value <= cell.delta.high
    a, b = found.pairs[2].neurons
    alone = found.singles[a].delta.value + found.singles[b].delta.value
    assert found.pairs[2].interaction is not None
    assert found.pairs[2].interaction.value == pytest.approx(found.pairs[2].delta.value - alone)


def test_roles_of_a_network_written_by_hand() -> None:
    found = probe_roles(handcrafted(10), 3000)
    roles = {role.neuron: role for role in found.final}
    wanted = {9: "RecentInput", 19: "MaxIncrement", 20: "RunningMax", 21: "LeaveOneOutMax"}
    wanted |= dict.fromkeys(range(10, 19), "LeaveOneOutMax") | dict.fromkeys(range(9), "Unknown")
    assert {j: role.role for j, role in roles.items()} == wanted
    assert all(role.certain for j, role in roles.items() if j >= 9)
    assert roles[9].correlation == pytest.approx(1)
    assert all(role.bound <= abs(role.correlation) for role in found.roles)
    assert found.comparisons == 22 * sum(5 + t * (t + 1) for t in range(10))


def test_partial_correlations_are_those_of_residuals() -> None:
    rnn = drawn("2nd_argmax", 4, 3)
    found = probe_roles(rnn, 500)
    x = rnn.task.draw(4, 500)
    state = traced(rnn, x)[:, -1].relu()
    named = signals(x.T)
    for role in found.final:
        plain = [v for name, v in list(named.items())[:5] if name != role.signal]
        basis = torch.stack([torch.ones(500, dtype=torch.float64), *plain], 1)
        rest = []
        for y in (state[:, role.neuron], named[role.signal]):
            fit = torch.linalg.lstsq(basis, y[:, None]).solution
            rest.append(y - (basis @ fit)[:, 0])
        wanted = torch.corrcoef(torch.stack(rest))[0, 1]
        assert role.partial == pytest.approx(float(wanted), abs=1e-6)
        pair = torch.corrcoef(torch.stack([state[:, role.neuron], named[role.signal]]))[0, 1]
        assert role.correlation == pytest.approx(float(pair))


def test_chance_is_no_role() -> None:
    """A neuron that is never active says nothing, and few samples make nothing certain."""
    rnn = drawn("2nd_argmax", 3, 3)
    dead = replace(rnn, w_ih=rnn.w_ih * 0, w_hh=rnn.w_hh * 0)
    assert {(role.role, role.correlation) for role in probe_roles(dead, 100).roles} == {
        ("Unknown", 0.0)
    }
    few, many = (probe_roles(handcrafted(4), n).final for n in (30, 3000))
    assert sum(role.certain for role in few) < sum(role.certain for role in many)
    with pytest.raises(ModelError, match="too few"):
        probe_roles(rnn, 10)


def test_surprise_is_a_code_length() -> None:
    rnn = handcrafted(4)
    found = account_for(rnn, oracle(rnn), samples=2000)
    (said,) = found.accounts
    assert said.agreement.value == found.accuracy.value
    assert found.baseline_bits == 2000 * 2
    missed = round((1 - said.agreement.value) * 2000)
    e = (missed + 1) / 2002
    wanted = missed * -math.log2(e / 3) + (2000 - missed) * -math.log2(1 - e)
    assert said.residual_bits == pytest.approx(wanted)
    assert residual_bits(0.25, 400, 4) == pytest.approx(800, rel=0.01)  # chance explains nothing
    assert found.valid(said) == (said.total_bits <= found.weight_bits)


def test_surprise_of_explanations_that_are_wrong_or_part_of_the_network() -> None:
    rnn = handcrafted(4)
    blind = Explanation("always 0", lambda x: torch.zeros(len(x), dtype=torch.long), 1.0)
    found = account_for(rnn, blind, smaller(rnn, [3], 8), samples=2000)
    always, less = found.accounts
    assert always.residual_bits > found.baseline_bits * 0.95
    assert not found.beats_sampling(always)
    assert 0.2 < less.agreement.value < 0.9
    assert less.description_bits == (rnn.num_parameters - (1 + 2 * 10 - 1 + 4)) * 8 + 96
    with pytest.raises(ModelError, match="has to predict 50 answers"):
        account_for(rnn, Explanation("floats", lambda x: x[:, 0], 1.0), samples=50)
    with pytest.raises(ModelError, match="no answers to count"):
        account_for(drawn("median", 3, 2))


def test_rounded_weights_are_few() -> None:
    rnn = drawn("argmax", 3, 6)
    small = quantised(rnn, 3)
    assert len(small.w_hh.unique()) <= 7
    assert float((small.w_hh - rnn.w_hh).abs().max()) <= float(rnn.w_hh.abs().max()) / 6 + 1e-12


def test_the_transformer_is_right_on_every_input() -> None:
    network = longest_cycle()
    said = json.loads(file("ref_longest_cycle_h4_n4.json").read_text())
    found = network.model().forward(torch.tensor(said["input"])).output[:, -1]
    torch.testing.assert_close(found, torch.tensor(said["output"]), atol=1e-2, rtol=0)
    every = answer_every_input(network)
    assert every.right == every.inputs == 256
    assert len(every.edits) == 10
    assert every.edits["without layer 0"] < 256


def test_tables_are_what_the_transformer_computes() -> None:
    network = longest_cycle()
    model, tables = network.model(), lookup_tables(network)
    x = [2, 0, 3, 1]
    spec = HookSpec().capture("blocks.0.attn.hook_scores", "blocks.0.hook_attn_out")
    cache = model.forward([x], spec)
    for query, key in ((3, 0), (0, 2), (1, 1)):
        wanted = float(cache["blocks.0.attn.hook_scores"][0, 0, query, key])
        found = tables.score((query, x[query]), (key, x[key]))
        assert found == pytest.approx(wanted, rel=1e-5)
    scores = torch.tensor([tables.score((3, x[3]), (k, x[k])) for k in range(4)])
    rows = [k * 4 + x[k] for k in range(4)]
    written = (scores.softmax(0).double()[:, None] * tables.writes[rows]).sum(0)
    unembed = network.unembed.double()
    wanted = cache["blocks.0.hook_attn_out"][0, -1].double() @ unembed.T
    torch.testing.assert_close(written, wanted, rtol=1e-4, atol=1e-2)
    with pytest.raises(ModelError, match="layer 2 is out of range"):
        lookup_tables(network, 2)


def test_training_makes_networks_that_know_something() -> None:
    found = train("2nd_argmax", 3, 2, steps=120, batch=256, rate=0.03, seed=1)
    assert found.score.value > 0.9
    assert found.sequences == 120 * 256
    again = train("2nd_argmax", 3, 2, steps=2, batch=256, rate=0.03, seed=1)
    assert again.losses == pytest.approx(found.losses[:2], rel=0.1)
    least = train("median", 2, 3, steps=40, batch=128, rate=0.03)
    assert least.losses[-1] < least.losses[0]
    small = train("longest_cycle", 4, 3, steps=30, batch=64, rate=0.03)
    assert small.losses[-1] < small.losses[0]
    for made in (found, least, small):
        loaded = Training.from_dict(json.loads(json.dumps(made.to_dict())))
        assert loaded.to_dict() == made.to_dict()
    with pytest.raises(ModelError, match="at least 1"):
        train("argmax", 0, 3)


def test_results_can_be_saved_shown_and_drawn() -> None:
    pytest.importorskip("plotly", reason="plots need plotly")
    pytest.importorskip("pandas", reason="tables need pandas")
    trained = train("longest_cycle", 2, 3, steps=2, batch=8)
    assert isinstance(trained.network, StoicheiaTransformer)
    report, tables = analyse(handcrafted(2), 300, probes=100), anatomy(trained.network)
    scalar = analyse(drawn("median", 3, 2), 300, probes=100)
    pictured = (report, scalar, tables, trained, *report.parts(), *tables.parts())
    for result in (answer(handcrafted(3), 50), *pictured):
        text = json.loads(json.dumps(result.to_dict()))
        assert type(result).from_dict(text).to_dict() == result.to_dict()
        assert max(map(len, show.text(result).splitlines())) <= 80
        assert "[dim]" not in show.text(result)
    assert all(result.plot().to_json() for result in pictured)
    assert scalar.exact is None
    assert scalar.surprise is None


def test_results_are_data_frames() -> None:
    pytest.importorskip("pandas", reason="tables need pandas")
    report, rnn = analyse(handcrafted(2), 100, probes=50), handcrafted(2)
    assert list(report.standard.to_pandas()["sign"]) == [1, -1]
    assert len(report.regions.to_pandas()) == report.regions.distinct
    assert report.exact is not None
    assert report.exact.to_pandas()["share"].sum() == pytest.approx(1)
    assert len(report.ablation.to_pandas()) == 2 + 1 + 4
    assert len(report.roles.to_pandas()) == 4
    assert report.surprise is not None
    assert len(report.surprise.to_pandas()) == 3
    assert len(answer(rnn, 20).to_pandas()) == 10
    trained = train("longest_cycle", 2, 3, steps=2, batch=8)
    assert isinstance(trained.network, StoicheiaTransformer)
    assert len(trained.to_pandas()) == 2
    assert len(answer_every_input(trained.network).to_pandas()) == 9
    assert len(lookup_tables(trained.network).to_pandas()) == 9 * 6 + 9


def test_one_input_by_hand() -> None:
    """A run of one sample, and a network that reads nothing but the last input."""
    rnn = drawn("argmax", 3, 2)
    x = rnn.task.draw(3, 1)
    torch.testing.assert_close(outputs(rnn, x)[0], by_hand(rnn, x[0]))
    found: NeuronAblation = ablate_neurons(rnn, x)
    assert found.samples == 1
    with pytest.raises(ModelError, match="give two or more"):
        ablate_neurons(rnn, x, method="resample")
    with pytest.raises(ModelError, match=r"inputs are \[batch 3\]"):
        outputs(rnn, x[:, :2])
