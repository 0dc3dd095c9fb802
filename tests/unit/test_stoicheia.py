# SPDX-License-Identifier: MIT OR Apache-2.0
"""AlgZoo's tasks, networks and kernel, against brute force and the published figures."""

import itertools
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from torch_mi.analysis.stoicheia.handcrafted import handcrafted
from torch_mi.analysis.stoicheia.kernel import BATCH, Hold, outputs, performance, traced
from torch_mi.analysis.stoicheia.networks import StoicheiaRnn, StoicheiaTransformer
from torch_mi.analysis.stoicheia.standardise import StandardForm, standardise
from torch_mi.analysis.stoicheia.statistics import mean, paired, share
from torch_mi.analysis.stoicheia.tables import every_input
from torch_mi.analysis.stoicheia.tasks import TASKS, task_named
from torch_mi.analysis.stoicheia.zoo import load
from torch_mi.errors import ModelError

HERE = Path(__file__).resolve().parents[2]
FILES = Path(os.environ.get("TORCH_MI_SHARED", HERE.parent / "shared")) / "data" / "algzoo"


def file(name: str) -> Path:
    path = FILES / name
    if not path.is_file():
        pytest.skip(f"there is no {path}")
    return path


def m22() -> StoicheiaRnn:
    """The published network of two neurons and two inputs."""
    found = load(file("rnn_2nd_argmax_h2_n2.safetensors"), "2nd_argmax")
    assert isinstance(found, StoicheiaRnn)
    return found


def drawn(task: str, n: int, hidden: int, seed: int = 0) -> StoicheiaRnn:
    """A network with random weights."""
    dice = torch.Generator().manual_seed(seed)
    shapes = ((hidden,), (hidden, hidden), (task_named(task).outputs(n), hidden))
    weights = [torch.randn(*s, generator=dice, dtype=torch.float64) for s in shapes]
    return StoicheiaRnn(task_named(task), n, *weights)


def by_hand(rnn: StoicheiaRnn, x: Tensor) -> Tensor:
    """One input's outputs, as the equations read."""
    h = torch.zeros(rnn.hidden_size, dtype=x.dtype)
    for value in x:
        h = torch.relu(rnn.w_ih.to(x) * value + rnn.w_hh.to(x) @ h)
    return rnn.w_oh.to(x) @ h


def test_truths_of_floats_are_those_of_sorted_lists() -> None:
    for n in (2, 3, 4, 7):
        for row in TASKS["median"].draw(n, 50, seed=n):
            x = [float(value) for value in row]
            ranked = sorted(range(n), key=x.__getitem__)
            middles = [x[ranked[(n - 1) // 2]], x[ranked[n // 2]]]
            centre = sum(x) / n
            wanted = {
                "2nd_argmax": ranked[-2],
                "argmax": ranked[-1],
                "argmedian": ranked[n // 2],
                "argoutlier": max(range(n), key=lambda i: abs(x[i] - centre)),
                "median": sum(middles) / 2,
            }
            found = {name: float(TASKS[name].truth(row[None])[0]) for name in wanted}
            assert found == pytest.approx(wanted), x


def test_the_longest_cycle_counts_no_tails() -> None:
    for row in every_input(4).tolist():
        best = 0
        for start in range(4):
            here, steps = row[start], 1
            while here != start and steps <= 4:
                here, steps = row[here], steps + 1
            best = max(best, steps if here == start else 0)
        assert int(TASKS["longest_cycle"].truth(torch.tensor([row]))[0]) == best - 1
    assert int(TASKS["longest_cycle"].truth(torch.tensor([[1, 2, 3, 3]]))[0]) == 0


def test_the_published_network_gives_its_published_outputs() -> None:
    said = json.loads(file("ref_2nd_argmax_h2_n2.json").read_text())
    found = outputs(m22(), torch.tensor(said["input"]))
    torch.testing.assert_close(found, torch.tensor(said["output"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_handcrafted_networks_are_the_zoos(n: int) -> None:
    theirs = load(file(f"handcrafted_2nd_argmax_n{n}.safetensors"), "2nd_argmax")
    assert isinstance(theirs, StoicheiaRnn)
    said = json.loads(file(f"handcrafted_2nd_argmax_n{n}.json").read_text())
    x = torch.tensor(said["input"], dtype=torch.float64)
    wanted = torch.tensor(said["output_fp64"], dtype=torch.float64)
    torch.testing.assert_close(outputs(theirs, x), wanted, atol=1e-5, rtol=1e-6)
    assert theirs.task.truth(x).tolist() == said["target"]
    ours = handcrafted(n)
    for name, value in theirs.tensors().items():
        torch.testing.assert_close(ours.tensors()[name], value.double(), atol=2e-5, rtol=0)
    assert abs(performance(ours, 50_000).value - said["acc"]) < 0.002


def test_handcrafted_networks_of_other_lengths() -> None:
    for n in (4, 7):
        made = handcrafted(n)
        x = TASKS["2nd_argmax"].draw(n, 200).abs()  # all above zero, where it is exact
        assert bool((outputs(made, x).argmax(1) == made.task.truth(x)).all())
    with pytest.raises(ModelError, match="n is at least 2"):
        handcrafted(1)


def test_the_kernel_is_the_equations() -> None:
    rnn = drawn("2nd_argmax", 5, 7)
    x = rnn.task.draw(5, 40)
    wanted = torch.stack([by_hand(rnn, row) for row in x])
    torch.testing.assert_close(outputs(rnn, x), wanted)
    assert outputs(rnn, x.float()).dtype == torch.float32
    before = traced(rnn, x)
    assert before.shape == (40, 5, 7)
    torch.testing.assert_close(before[:, -1].relu() @ rnn.w_oh.T, wanted)


def test_held_neurons_are_held() -> None:
    rnn = drawn("2nd_argmax", 4, 5)
    x = rnn.task.draw(4, 9)
    kept = [0, 2, 3]
    less = StoicheiaRnn(rnn.task, 4, rnn.w_ih[kept], rnn.w_hh[kept][:, kept], rnn.w_oh[:, kept])
    torch.testing.assert_close(outputs(rnn, x, Hold((1, 4))), outputs(less, x))
    values = torch.rand(4, 5, 9, dtype=torch.float64)
    held = outputs(rnn, x, Hold((3,), values, step=2))
    h = torch.zeros(5, 9, dtype=torch.float64)
    for t in range(4):
        h = torch.relu(rnn.w_ih[:, None] * x[:, t] + rnn.w_hh @ h)
        if t == 2:
            h[3] = values[2, 3]
    torch.testing.assert_close(held, (rnn.w_oh @ h).T)


def test_ties_go_to_the_first() -> None:
    dead = drawn("argmax", 3, 2)
    dead = StoicheiaRnn(dead.task, 3, dead.w_ih, dead.w_hh, torch.zeros(3, 2, dtype=torch.float64))
    x = dead.task.draw(3, 500)
    assert performance(dead, x).value == float((dead.task.truth(x) == 0).double().mean())


def test_batches_do_not_show() -> None:
    rnn = drawn("median", 3, 4)
    x = rnn.task.draw(3, BATCH + 1)
    wanted = (outputs(rnn, x)[:, 0] - rnn.task.truth(x)).square().mean()
    assert performance(rnn, x).value == pytest.approx(float(wanted))


def test_the_standard_form_computes_the_same_and_forgets_scale_and_order() -> None:
    rnn = drawn("2nd_argmax", 6, 8)
    x = rnn.task.draw(6, 100)
    made = standardise(rnn)
    torch.testing.assert_close(outputs(made.rnn, x), outputs(rnn, x), rtol=1e-6, atol=1e-9)
    assert made.deviation < 1e-12
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    scale = torch.rand(8, dtype=torch.float64) + 0.5
    other = StoicheiaRnn(
        rnn.task,
        6,
        (rnn.w_ih * scale)[order],
        (rnn.w_hh * scale[:, None] / scale[None])[order][:, order],
        (rnn.w_oh / scale)[:, order],
    )
    again = standardise(other)
    for name, value in made.rnn.tensors().items():
        torch.testing.assert_close(again.rnn.tensors()[name], value)
    assert [int(order[i]) for i in again.order] == list(made.order)
    assert StandardForm.from_dict(json.loads(json.dumps(made.to_dict()))).order == made.order
    blind = StoicheiaRnn(rnn.task, 6, rnn.w_ih * torch.arange(8), rnn.w_hh, rnn.w_oh)
    with pytest.raises(ModelError, match=r"neurons \[0\] do not read the input"):
        standardise(blind)


def test_the_published_standard_form() -> None:
    made = standardise(m22())
    hh, oh = (
        [[-0.382124, 2.085166], [1.141529, -0.751523]],
        [
            [39.824366, -173.526628],
            [-39.812591, 173.160282],
        ],
    )
    torch.testing.assert_close(made.rnn.w_hh, torch.tensor(hh).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(made.rnn.w_oh, torch.tensor(oh).double(), atol=1e-4, rtol=0)
    assert made.signs == (1, -1)


def test_misshapen_weights_are_refused() -> None:
    good = drawn("2nd_argmax", 3, 2).tensors()
    with pytest.raises(ModelError, match=r"weight_hh_l0 has shape \[2, 3\]"):
        StoicheiaRnn.from_tensors(good | {"rnn.weight_hh_l0": torch.zeros(2, 3).double()}, "argmax")
    with pytest.raises(ModelError, match=r"there is no tensor 'linear\.weight'"):
        StoicheiaRnn.from_tensors({k: v for k, v in good.items() if "linear" not in k}, "argmax")
    with pytest.raises(ModelError, match=r"have no rnn\.bias_ih_l0"):
        StoicheiaRnn.from_tensors(good | {"rnn.bias_ih_l0": torch.zeros(2)}, "argmax")
    with pytest.raises(ModelError, match=r"linear\.weight has shape \[3, 2\]"):
        StoicheiaRnn.from_tensors(good, "2nd_argmax", 4)
    with pytest.raises(ModelError, match="not finite"):
        StoicheiaRnn.from_tensors(good | {"linear.weight": good["linear.weight"] / 0}, "argmax")
    with pytest.raises(ModelError, match="give seq_len"):
        StoicheiaRnn.from_tensors(drawn("median", 3, 2).tensors(), "median")
    with pytest.raises(ModelError, match="task of transformers"):
        StoicheiaRnn.from_tensors(good, "longest_cycle")
    with pytest.raises(ModelError, match="all float32 or all float64"):
        StoicheiaRnn.from_tensors(good | {"linear.weight": torch.zeros(3, 2)}, "argmax")
    with pytest.raises(ModelError, match="did you mean 'argmax'"):
        task_named("argmx")
    flat = torch.zeros(2, 2)
    with pytest.raises(ModelError, match="task of recurrent networks"):
        StoicheiaTransformer(TASKS["median"], flat, flat, (), flat)


def test_intervals_cover_what_they_should() -> None:
    """Of repeated draws, about 95 in 100 intervals hold the true value."""
    dice = torch.Generator().manual_seed(0)
    held = {"share": 0, "paired": 0, "mean": 0}
    tries, count = 400, 300
    for _ in range(tries):
        u = torch.rand(3, count, generator=dice)
        a, b = (u[0] < 0.97).double(), (u[1] < 0.9).double()
        found = share(float(a.sum()), count)
        held["share"] += found.low <= 0.97 <= found.high
        change = b - a
        found = paired(float(change.sum()), float(change.square().sum()), count)
        held["paired"] += found.low <= -0.07 <= found.high
        found = mean(float(u[2].sum()), float(u[2].square().sum()), count)
        held["mean"] += found.low <= 0.5 <= found.high
    for name, times in held.items():
        assert 0.92 <= times / tries <= 0.98, (name, times / tries)
    whole = share(50.0, 50)
    assert whole.value == whole.high == 1
    assert 0.9 < whole.low < 1


def test_all_inputs_are_listed_once() -> None:
    found = every_input(3).tolist()
    assert found == [list(row) for row in itertools.product(range(3), repeat=3)]
    with pytest.raises(ModelError, match="up to 7"):
        every_input(8)
