# SPDX-License-Identifier: MIT OR Apache-2.0
"""Edges against their definition and their sum rules; circuits against runs by hand."""

import json
import sys
from pathlib import Path

import pytest
import torch

import torch_mi as mi
from torch_mi.analysis.attribution_patching import attribution_patch
from torch_mi.analysis.circuits import (
    Circuit,
    Faithfulness,
    faithfulness,
    greedy_circuit,
    random_circuit,
    top_circuit,
    whole_circuit,
)
from torch_mi.analysis.edge_patching import Edges, find_edges
from torch_mi.analysis.parts import Graph
from torch_mi.cli import main as door
from torch_mi.testing import tiny

P = mi.HookPoint
CLEAN, CORRUPTED = "abcdefg", "abXdefg"
METRIC = mi.logit_diff("q", "z")
# grouped keys, learned positions and biases, parallel blocks with one and two norms, experts,
# a scale on what is added to the stream
FAMILIES = ("llama", "gpt2", "phi", "gpt_neox", "mixtral", "granite")


@pytest.fixture(scope="module")
def demo() -> mi.MIModel:
    return mi.MIModel.from_pretrained("demo")


def reader(found: Edges, name: str) -> int:
    return next(i for i, r in enumerate(found.graph.readers) if r.name == name)


def writer(found: Edges, name: str) -> int:
    return next(i for i, w in enumerate(found.graph.writers) if w.name == name)


@pytest.mark.parametrize("method", ["gradient", "integrated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_edges_out_of_a_part_add_up_to_the_part(family: str, method: str) -> None:
    """What everyone hears of a part is what patching its whole output does, to first order."""
    model = tiny(family)
    found = find_edges(model, CLEAN, CORRUPTED, metric=METRIC, method=method, steps=3)  # pyright: ignore[reportArgumentType]
    out = found.scores.sum(1)

    def part(at: str) -> torch.Tensor:
        grid = attribution_patch(
            model, CLEAN, CORRUPTED, at=at, metric=METRIC, direction="noising",
            method=method, steps=3,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        return grid.baseline - grid.values

    heads, mlps, whole = part("z"), part("mlp_out").sum(1), part("resid_pre")[0].sum()
    for layer in range(model.num_layers):
        assert float(out[writer(found, f"m{layer}")]) == pytest.approx(float(mlps[layer]), abs=2e-5)
        for head in range(model.num_heads):
            wanted = float(heads[layer, head])
            assert float(out[writer(found, f"a{layer}.h{head}")]) == pytest.approx(wanted, abs=2e-5)
    assert float(out[0]) == pytest.approx(float(whole), abs=2e-5)


def test_edges_into_the_logits_add_up_to_the_stream() -> None:
    model = tiny("gpt2")
    found = find_edges(model, CLEAN, CORRUPTED, metric=METRIC)
    grid = attribution_patch(
        model, CLEAN, CORRUPTED, at="resid_post", metric=METRIC, direction="noising", layers=2
    )
    into = float(found.scores[:, -1].sum())
    assert into == pytest.approx(float((grid.baseline - grid.values).sum()), abs=2e-5)
    assert float(found.scores[~found.graph.allowed].abs().max()) == 0


def test_one_edge_by_its_definition() -> None:
    """From the first MLP to the queries of a head: a hand-made norm, and torch's own gradients."""
    model = tiny("llama")
    found = find_edges(model, CLEAN, CORRUPTED, metric=METRIC)
    spec = mi.HookSpec().capture(P.MlpOut(0), P.ResidPre(1), P.AttnQ(1))
    clean, corrupted = (model.forward(t, spec, grad=True) for t in (CLEAN, CORRUPTED))
    (slope,) = torch.autograd.grad(
        METRIC.score(model, clean.output[0, -1]), clean[P.AttnQ(1)], retain_graph=True
    )
    block = model.backend.blocks[1]  # pyright: ignore[reportAttributeAccessIssue]
    x = clean[P.ResidPre(1)].detach().requires_grad_()
    normed = x * (x.square().mean(-1, keepdim=True) + block.norm1.eps).rsqrt() * block.norm1.weight
    head = 3
    width = model.backend.sizes["d_head"]
    queries = normed @ block.attn.q.weight[head * width : (head + 1) * width].T
    (before,) = torch.autograd.grad(queries, x, slope[:, :, head])
    moved = (clean[P.MlpOut(0)] - corrupted[P.MlpOut(0)]).detach()
    score = found.scores[writer(found, "m0"), reader(found, f"a1.h{head}.q")]
    assert float(score) == pytest.approx(float((moved * before).sum()), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_is_faithful_and_nothing_is_not(family: str) -> None:
    model = tiny(family)
    graph = Graph.of(model)
    circuits = {"whole": whole_circuit(graph), "nothing": Circuit(graph, frozenset())}
    found = faithfulness(model, CLEAN, CORRUPTED, circuits, metric=METRIC)
    ends = [float(METRIC.score(model, model.forward(t).output[0, -1])) for t in (CLEAN, CORRUPTED)]
    assert found.scores.tolist() == pytest.approx(ends, abs=1e-4)
    assert (found.clean, found.corrupted) == pytest.approx(ends, abs=1e-4)
    assert found.values.tolist() == pytest.approx([1, 0], abs=1e-3)
    assert found.edges == len(circuits["whole"]) == found.sizes[0]


def test_without_the_edges_into_a_head_its_output_is_the_corrupted_one() -> None:
    """A circuit that lacks what one head reads is the run with that head's `z` replaced."""
    model = tiny("llama", changes={"num_key_value_heads": 6})
    graph = Graph.of(model)
    cut = [r for r, reader in enumerate(graph.readers) if reader.nodes == ("a1.h2",)]
    circuit = Circuit(
        graph, frozenset((w, r) for w, r in whole_circuit(graph).edges if r not in cut)
    )
    assert len(cut) == 3
    found = faithfulness(model, CLEAN, CORRUPTED, [circuit], metric=METRIC)
    z = model.forward(CORRUPTED, mi.HookSpec().capture(P.AttnZ(1)))[P.AttnZ(1)][:, :, 2]
    spec = mi.HookSpec().intervene(P.AttnZ(1), mi.Replace(z, at=mi.At(head=2)))
    wanted = METRIC.score(model, model.forward(CLEAN, spec).output[0, -1])
    assert float(found.scores[0]) == pytest.approx(float(wanted), abs=1e-4)
    whole = found.clean
    assert abs(float(wanted) - whole) > 1e-3, "or this would show nothing"


def test_an_edge_to_the_logits_is_its_direct_effect() -> None:
    """Without one MLP's edge to the logits, the last stream lacks the difference it makes."""
    model = tiny("gpt2")
    graph = Graph.of(model)
    number = next(i for i, w in enumerate(graph.writers) if w.name == "m0")
    edge = (number, len(graph.readers) - 1)
    circuit = Circuit(graph, whole_circuit(graph).edges - {edge})
    found = faithfulness(model, CLEAN, CORRUPTED, [circuit], metric=METRIC)
    spec = mi.HookSpec().capture(P.MlpOut(0), P.ResidPost(2))
    clean, corrupted = (model.forward(t, spec) for t in (CLEAN, CORRUPTED))
    stream = clean[P.ResidPost(2)] - clean[P.MlpOut(0)] + corrupted[P.MlpOut(0)]
    wanted = METRIC.score(model, model.project_to_vocab(stream[0, -1]).detach())
    assert float(found.scores[0]) == pytest.approx(float(wanted), abs=1e-4)


def test_prompts_of_different_lengths_are_averaged() -> None:
    model = tiny("qwen2")
    clean, corrupted = ["abcdefg", "hij"], ["abXdefg", "hXj"]
    together = find_edges(model, clean, corrupted, metric=METRIC)
    alone = [
        find_edges(model, one, other, metric=METRIC)
        for one, other in zip(clean, corrupted, strict=True)
    ]
    mean = torch.stack([found.scores for found in alone]).mean(0)
    assert torch.allclose(together.scores, mean, atol=1e-5)
    circuit = greedy_circuit(together, 40)
    both = faithfulness(model, clean, corrupted, [circuit], metric=METRIC)
    each = [
        faithfulness(model, one, other, [circuit], metric=METRIC)
        for one, other in zip(clean, corrupted, strict=True)
    ]
    assert float(both.scores[0]) == pytest.approx(
        sum(float(one.scores[0]) for one in each) / 2, abs=1e-5
    )


@pytest.mark.parametrize("choose", [top_circuit, greedy_circuit])
def test_pruning_changes_nothing_but_the_size(choose) -> None:  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
    model = tiny("llama")
    found = find_edges(model, CLEAN, CORRUPTED, metric=METRIC)
    circuits = [choose(found, n) for n in (10, 30, 80)]
    pruned = [circuit.pruned() for circuit in circuits]
    assert [len(circuit) for circuit in circuits] == [10, 30, 80]
    assert any(len(a) < len(b) for a, b in zip(pruned, circuits, strict=True))
    assert all(a.edges <= b.edges for a, b in zip(pruned, circuits, strict=True))
    scored = faithfulness(model, CLEAN, CORRUPTED, circuits + pruned, metric=METRIC).scores
    assert torch.allclose(scored[:3], scored[3:], atol=1e-4)


def test_circuits_are_made_of_the_heaviest_edges() -> None:
    model = tiny("llama")
    found = find_edges(model, CLEAN, CORRUPTED, metric=METRIC)
    weights = found.scores.abs()
    kept = top_circuit(found, 20).mask()
    left = weights[found.graph.allowed & ~kept]
    assert float(weights[kept].min()) >= float(left.max())
    grown = greedy_circuit(found, 20)
    readers = found.graph.readers
    for _, r in grown.edges:
        names = {found.graph.writers[w].name for w, _ in grown.edges} | {"logits"}
        assert names & set(readers[r].nodes), "every edge leads into the circuit"
    assert len(greedy_circuit(found, len(found))) == len(found) == len(whole_circuit(found.graph))
    assert random_circuit(found.graph, 9, 1).edges != random_circuit(found.graph, 9, 2).edges


def test_a_small_circuit_copies_where_random_ones_do_not(demo: mi.MIModel) -> None:
    """Induction: the second time round a name is said as the first time."""
    dice = torch.Generator().manual_seed(0)
    words = torch.randint(300, 1500, (4, 9), generator=dice)
    other = words.clone()
    other[:, 4] = torch.randint(300, 1500, (4,), generator=dice)
    start = demo.encode("a")[:, :1].expand(4, -1)
    clean = torch.cat([start, words, words[:, :4]], 1)
    corrupted = torch.cat([start, other, words[:, :4]], 1)
    metric = mi.logit_diff(words[:, 4].tolist(), other[:, 4].tolist())
    found = find_edges(demo, clean, corrupted, metric=metric, method="integrated")
    assert found.clean > 1 > found.corrupted
    small = 60
    circuits = {"greedy": greedy_circuit(found, small), "half": greedy_circuit(found, 400)}
    for seed in range(2):
        circuits |= {f"random {n}": random_circuit(found.graph, n, seed) for n in (small, 400)}
    scored = faithfulness(demo, clean, corrupted, circuits, metric=metric)
    values = scored.values.tolist()
    assert values[0] > 0.8
    assert values[1] > 0.9
    assert max(abs(value) for value in values[2:]) < 0.2


def test_results_are_saved_whole_and_shown(tmp_path) -> None:  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
    model = tiny("llama")
    found = find_edges(model, CLEAN, CORRUPTED, metric=METRIC, method="integrated", steps=2)
    loaded = Edges.load(found.save(tmp_path / "edges.json"))
    assert loaded.to_dict() == found.to_dict()
    assert loaded.order() == found.order()
    circuit = greedy_circuit(found, 12)
    assert Circuit.load(circuit.save(tmp_path / "circuit.json")).edges == circuit.edges
    scored = faithfulness(model, CLEAN, CORRUPTED, {"a": circuit}, metric=METRIC)
    again = Faithfulness.load(scored.save(tmp_path / "scored.json"))
    assert again.to_dict() == scored.to_dict()
    assert len(found.to_pandas()) == len(found)
    assert len(circuit.to_pandas()) == 12
    assert scored.to_pandas()["edges"].tolist() == [12]
    for result, word in ((found, "logits"), (circuit, "12 edges"), (scored, "faithful")):
        assert word in repr(result)
        assert result.plot().data


@pytest.mark.parametrize(
    ("family", "why"), [("gemma2", "a norm comes"), ("deepseek_v2", "AttnQIn")]
)
def test_what_has_no_edges_says_so(family: str, why: str) -> None:
    with pytest.raises(mi.ModelError, match=why):
        find_edges(tiny(family), CLEAN, CORRUPTED, metric=METRIC)


def test_the_verb_shows_and_writes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, page = tmp_path / "edges.json", tmp_path / "edges.html"
    words = ["edges", CLEAN, CORRUPTED, "-m", "tiny:llama", "--size", "7", "--method", "gradient"]
    words += ["--target", "q", "--other", "z", "--json", str(file), "--html", str(page)]
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", ["torch-mi", *words])
    with pytest.raises(SystemExit) as ended:
        door.main()
    assert not ended.value.code
    assert "a circuit of 7 edges" in capsys.readouterr().out
    written = json.loads(file.read_text())
    found = Edges.from_dict(written["edges"])
    expected = find_edges(tiny("llama"), CLEAN, CORRUPTED, metric=METRIC)
    assert torch.allclose(found.scores, expected.scores, atol=1e-6)
    assert Faithfulness.from_dict(written["faithfulness"]).values[-1] == pytest.approx(1, abs=1e-3)
    assert "Which part listens to which" in page.read_text()


def test_wrong_requests_say_what_is_right() -> None:
    model = tiny("llama")
    found = find_edges(model, CLEAN, CORRUPTED, metric=METRIC)
    with pytest.raises(mi.ModelError, match=f"this model has {len(found)}"):
        greedy_circuit(found, len(found) + 1)
    other = tiny("gpt2")
    with pytest.raises(mi.InterventionError, match="circuit 0 is one of another model"):
        faithfulness(other, CLEAN, CORRUPTED, [top_circuit(found, 3)], metric=METRIC)
    same = faithfulness(model, CLEAN, CLEAN, [top_circuit(found, 3)], metric=METRIC)
    with pytest.raises(mi.ModelError, match="score the same"):
        _ = same.values
