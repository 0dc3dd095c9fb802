# SPDX-License-Identifier: MIT OR Apache-2.0
"""The planner: what it leaves out, what it keeps, what it says, and how it goes on after a stop."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

import torch_mi as mi
from torch_mi.hooks.point import HookPoint as P
from torch_mi.partial import record, rerun
from torch_mi.sweeps import run as running
from torch_mi.sweeps.execute import climb
from torch_mi.sweeps.metrics import Metric, rank
from torch_mi.sweeps.plan import Batch, Plan, Room, arrange
from torch_mi.sweeps.reach import NEVER, TOKENS, Cell, Item, reach
from torch_mi.sweeps.run import plan_sweep, sweep
from torch_mi.testing import random_tokens, tiny


def model() -> mi.MIModel:
    return tiny("llama")


def item_of(m: mi.MIModel, tokens: Tensor, *points: str) -> Item:
    return Item(m, record(m, tokens, points), (tokens.shape[1] - 1,))


def scales(m: mi.MIModel, length: int = 6) -> list[mi.HookSpec]:
    """A spec for each layer and position."""
    return [
        mi.HookSpec().intervene(P.ResidPre(layer), mi.Scale(1.5, at=mi.At(pos=pos)))
        for layer in range(m.num_layers)
        for pos in range(length)
    ]


def test_the_reach_of_an_edit() -> None:
    m = model()
    tokens = m.encode("abcdef")
    item = item_of(m, tokens)

    def found(where: str, edit: mi.Intervention) -> tuple[int, int]:
        cell = reach(item, mi.HookSpec().intervene(where, edit))
        return cell.layer, cell.pos

    at = mi.At
    assert found(P.Embed, mi.Scale(2.0)) == (TOKENS, 0)
    assert found(P.ResidPre(1), mi.Scale(2.0, at=at(pos=3))) == (1, 3)
    assert found(P.ResidPre(1), mi.Scale(2.0, at=at(pos=-2))) == (1, 5)
    assert found(P.ResidPre(1), mi.Scale(2.0, at=at(pos=mi.Token("c")))) == (1, 3)
    assert found(P.ResidPre(1), mi.Scale(2.0, at=at(pos=slice(2, 5)))) == (1, 2)
    assert found(P.ResidPre(1), mi.Scale(2.0)) == (1, 0)
    assert found(P.AttnScores(0), mi.Knockout(at=at(query=4, key=2))) == (0, 4)
    assert found(P.AttnScores(0), mi.Knockout(at=at(key=2))) == (0, 2), "seen from there on"
    assert found(P.AttnScores(0), mi.Add(torch.ones(1, 7), at=at(key=2, head=0))) == (0, 0)
    assert found(P.AttnZ(1), mi.Apply(lambda x, _: x)) == (1, 0)
    assert found(P.AttnZ(1), mi.Apply(lambda x, _: x, at=at(pos=4))) == (1, 4)


def test_the_reach_of_values_that_are_there_already() -> None:
    m = model()
    tokens = m.encode("abcdef")
    plain = m.forward(tokens, mi.HookSpec().capture(P.AttnZ, P.AttnPattern))
    item, at, last = item_of(m, tokens, P.AttnZ, P.AttnPattern), mi.At, m.num_layers - 1

    def found(where: str, edit: mi.Intervention) -> tuple[int, int]:
        cell = reach(item, mi.HookSpec().intervene(where, edit))
        return cell.layer, cell.pos

    same = plain[P.AttnZ(1)].clone()
    assert found(P.AttnZ(1), mi.Replace(same)) == (m.num_layers, NEVER), "nothing changes"
    same[0, 4, 1] += 1
    assert found(P.AttnZ(1), mi.Replace(same)) == (1, 4), "nothing changes before that"
    assert found(P.AttnZ(1), mi.Replace(same[:, :, 0], at=at(head=0)))[1] == NEVER
    assert found(P.AttnZ(1), mi.Replace(same[:, 4], at=at(pos=4))) == (1, 4)
    pattern = plain[P.AttnPattern(1)].clone()
    pattern[0, 2, 5] = 0.1
    assert found(P.AttnPattern(1), mi.Replace(pattern)) == (1, 5)
    assert found(P.MlpOut(last), mi.Scale(2.0, at=at(pos=3)))[1] == NEVER, "nobody reads it"
    assert found(P.AttnV(last), mi.Scale(2.0, at=at(pos=3))) == (last, 3)
    assert found(P.AttnZ(last), mi.Zero()) == (last, 6), "only the last position is read"
    assert found(P.FinalNorm, mi.Zero(at=at(pos=6))) == (m.num_layers, 6)
    assert reach(item, mi.HookSpec()).changes_nothing


def test_cells_of_the_same_positions_share_a_staircase() -> None:
    def cell(layer: int, pos: int) -> Cell:
        return Cell(0, 0, (), layer, pos, opaque=False, ends_edited=False)

    cells = [cell(layer, pos) for pos in (0, 40) for layer in (2, 0, 1)]
    batches = arrange(cells, 64, 3, Room(1000, 32, 1))
    assert [(b.start, [c.layer for c in b.cells]) for b in batches] == [
        (0, [0, 1, 2]),
        (40, [0, 1, 2]),
    ]
    assert batches[0].work(3) == 64 * (3 + 2 + 1)
    narrow = arrange(cells, 64, 3, Room(128, 32, 1))
    assert [len(b.cells) for b in narrow] == [2, 1, 3], "64 tokens a row, 128 at most"
    (one,) = arrange([cell(1, p) for p in range(60, 64)], 64, 3, Room(1000, 32, 1))
    assert one.start == 60, "few tokens more cost less than more calls"
    idle = arrange([cell(3, NEVER)], 64, 3, Room(1000, 32, 1))
    assert idle == []


def test_what_is_saved_is_said() -> None:
    m = model()
    clean, corrupted = m.encode("abcdef"), m.encode("abcXef")
    plain = m.forward(clean, mi.HookSpec().capture(P.ResidPre))
    cells = [
        mi.HookSpec().intervene(
            P.ResidPre(layer), mi.Replace(plain[P.ResidPre(layer)][:, pos], at=mi.At(pos=pos))
        )
        for layer in range(3)
        for pos in range(7)
    ]
    found = sweep(m, corrupted, cells, mi.logit("q"))
    assert found.plan.idle == 3 * 4 + 2, "four positions agree; the embeddings of two more do"
    assert found.plan.whole_work == 21 * 7 * 3
    assert found.plan.work < found.plan.whole_work / 5
    assert found.plan.unembedded == 21 - found.plan.idle
    assert "14 provably change nothing and are not run" in found.explain()
    assert torch.equal(found.scores[:4], torch.full((4,), found.baseline))
    planned = plan_sweep(m, corrupted, cells)
    assert planned == found.plan, "a plan is made without running"
    functions = [mi.HookSpec().intervene(P.ResidPre(0), mi.Apply(lambda x, _: x))] * 2
    said = sweep(m, corrupted, functions, mi.logit("q")).explain()
    assert "2 cells: run by themselves, for they call functions" in said


def test_functions_of_one_cell_are_called_in_order_and_alone() -> None:
    m = model()
    calls: list[str] = []

    def noted(x: Tensor, hook: mi.Hook) -> Tensor:
        calls.append(str(hook))
        return x

    spec = mi.HookSpec()
    for layer in (0, 2):
        spec.intervene(P.MlpOut(layer), mi.Apply(noted))
    sweep(m, "abc", [spec, spec], mi.logit("q"))
    assert calls == ["blocks.0.hook_mlp_out", "blocks.2.hook_mlp_out"] * 2


def test_functions_may_look_from_one_position_to_another() -> None:
    """Nobody reads position 3 of the last layer, but a function that acts there does."""
    m = model()
    last = m.num_layers - 1
    mean = mi.Apply(lambda x, _: x + x.mean(1, keepdim=True))
    spec = mi.HookSpec().intervene(P.MlpIn(last), mi.Scale(9.0, at=mi.At(pos=3)))
    spec.intervene(P.MlpOut(last), mean)
    found = sweep(m, "abcdef", [spec], mi.logit("q"))
    wanted = m.forward("abcdef", spec).output[0, -1, m.token_id("q")]
    assert float(found.scores[0]) == pytest.approx(float(wanted), abs=1e-5)


def test_specs_come_in_every_form() -> None:
    m = model()
    some = scales(m)[:3]
    wanted = sweep(m, "abcdef", some, mi.logit("q"))
    assert wanted.names == ("0", "1", "2")
    assert torch.equal(sweep(m, "abcdef", iter(some), mi.logit("q")).scores, wanted.scores)
    named = sweep(m, "abcdef", dict(zip("xyz", some, strict=True)), mi.logit("q"))
    assert named.names == ("x", "y", "z")
    assert torch.equal(named.scores, wanted.scores)
    both = sweep(m, ["abcdef", "fedcba"], lambda i: some[i : i + 2], mi.logit("q"))
    assert both.per_prompt.shape == (2, 2)
    assert both.per_prompt[0, 0] == pytest.approx(float(wanted.scores[0]), abs=1e-5)
    with pytest.raises(mi.InterventionError, match="has 1, others 2"):
        sweep(m, ["abcdef", "fedcba"], lambda i: some[: 2 - i], mi.logit("q"))
    with pytest.raises(mi.InterventionError, match="at least one spec"):
        sweep(m, "abc", [], mi.logit("q"))
    with pytest.raises(mi.InterventionError, match="may edit and nothing else"):
        sweep(m, "abc", [mi.HookSpec().capture(P.Embed)], mi.logit("q"))
    with pytest.raises(mi.InterventionError, match="out of range"):
        sweep(m, "abc", some, mi.logit("q"), position=9)
    with pytest.raises(mi.InterventionError, match="out of range"):
        sweep(m, "abc", [scales(m, 30)[29]], mi.logit("q"))


def test_metrics_of_datasets() -> None:
    m = model()
    prompts = ["abc", "hello", "zz"]
    plain = [m.forward(p).output[0, -1] for p in prompts]
    spec = [mi.HookSpec().intervene(P.MlpOut(0), mi.Scale(0.0))]
    edited = [m.forward(p, spec[0]).output[0, -1] for p in prompts]
    words, others = ["a", "b", "c"], ["d", "e", "f"]
    ids = [m.token_id(w) for w in words]

    def scores(metric: Metric) -> Tensor:
        return sweep(m, prompts, spec, metric).per_prompt[:, 0]

    logits = torch.stack([end[i] for end, i in zip(edited, ids, strict=True)])
    apart = torch.stack([end[m.token_id(w)] for end, w in zip(edited, others, strict=True)])
    assert torch.allclose(scores(mi.logit(words)), logits, atol=1e-5)
    assert torch.allclose(scores(mi.logit_diff(words, others)), logits - apart, atol=1e-5)
    assert torch.allclose(
        scores(mi.logit_diff(words, "z")),
        logits - torch.stack([e[m.token_id("z")] for e in edited]),
        atol=1e-5,
    )
    lost = [mi.kl(p).score(m, e) for p, e in zip(plain, edited, strict=True)]
    assert torch.allclose(scores(mi.kl()), torch.stack(lost), atol=1e-5)
    ranks = [1 + int((e > e[i]).sum()) for e, i in zip(edited, ids, strict=True)]
    assert scores(rank(words)).tolist() == ranks
    found = sweep(m, prompts, spec, mi.prob(words))
    assert found.standard_errors is not None
    spread = found.per_prompt[:, 0].std() / 3**0.5
    assert float(found.standard_errors[0]) == pytest.approx(float(spread))
    assert sweep(m, "abc", spec, mi.logit("q")).standard_errors is None
    assert float(found.scores[0]) == pytest.approx(float(found.per_prompt.mean()))
    with pytest.raises(mi.ModelError, match="2 words for 3 prompts"):
        scores(mi.logit(["a", "b"]))
    with pytest.raises(mi.ModelError, match="compares with the plain run"):
        mi.kl().score(m, plain[0])
    with pytest.raises(mi.ModelError, match="not for one prompt"):
        mi.logit(words).score(m, plain[0])


def test_a_function_is_a_metric() -> None:
    m = model()
    found = sweep(m, "abcdef", scales(m), lambda logits: logits.max(-1).values)
    spec = scales(m)[5]
    assert float(found.scores[5]) == pytest.approx(
        float(m.forward("abcdef", spec).output[0, -1].max()), abs=1e-5
    )
    with pytest.raises(mi.ModelError, match=r"turned \[1, 97\] into \[\]"):
        sweep(m, "abc", scales(m, 3), lambda logits: logits.sum())


def test_several_positions_are_averaged_over() -> None:
    m = model()
    found = sweep(m, "abcdef", scales(m), mi.logit("q"), position=[1, -1])
    for score, spec in zip(found.scores.tolist(), scales(m), strict=True):
        ends = m.forward("abcdef", spec).output[0, :, m.token_id("q")]
        assert score == pytest.approx(float(ends[[1, -1]].mean()), abs=1e-5)
    named = sweep(m, "abcdef", scales(m), mi.logit("q"), position=mi.Token("c"))
    assert named.plan.idle > found.plan.idle, "what comes after it cannot change it"


def test_results_are_saved_shown_and_taken_apart(tmp_path: Path) -> None:
    m = model()
    found = sweep(m, ["abcdef", "fedcba"], scales(m), mi.logit("q"))
    loaded = mi.SweepResult.load(found.save(tmp_path / "sweep.json"))
    assert loaded.to_dict() == found.to_dict()
    assert torch.equal(loaded.per_prompt, found.per_prompt)
    assert loaded.plan == found.plan
    assert len(found.to_pandas()) == 36
    assert "18 cells on 2 prompts" in repr(found)
    axes = {"layer": tuple(range(3)), "pos": tuple(range(6))}
    grid = found.grid("scaled", axes)
    assert grid.values.shape == (3, 6)
    assert grid.errors is not None
    assert grid.prompts == 2
    assert mi.Grid.from_dict(grid.to_dict()).to_dict() == grid.to_dict()
    part = grid.at("layer", 1)
    assert list(part.axes) == ["pos"]
    assert torch.equal(part.values, grid.values[1])
    with pytest.raises(mi.ModelError, match="no layer=7"):
        grid.at("layer", 7)
    with pytest.raises(mi.ModelError, match="18 cells do not fill"):
        found.grid("wrong", {"layer": (0, 1)})


def test_memory_that_runs_out_halves_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model()
    wanted = sweep(m, "abcdef", scales(m), mi.logit("q"))
    tried: list[int] = []

    def small(model: mi.MIModel, items: dict[int, Item], batch: Batch) -> object:
        tried.append(len(batch.cells))
        if len(batch.cells) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return climb(model, items, batch)

    monkeypatch.setattr(running, "climb", small)
    found = sweep(m, "abcdef", scales(m), mi.logit("q"))
    assert torch.allclose(found.scores, wanted.scores, atol=1e-6)
    assert found.plan.splits > 0
    assert "when memory ran out" in found.explain()
    assert sum(n > 2 for n in tried) < sum(n <= 2 for n in tried), "it learns"

    def none(model: mi.MIModel, items: dict[int, Item], batch: Batch) -> object:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(running, "climb", none)
    with pytest.raises(mi.ModelError, match="out of memory with a single run of"):
        sweep(m, "abcdef", scales(m), mi.logit("q"))

    def broken(model: mi.MIModel, items: dict[int, Item], batch: Batch) -> object:
        raise RuntimeError("something else")

    monkeypatch.setattr(running, "climb", broken)
    with pytest.raises(RuntimeError, match="something else"):
        sweep(m, "abcdef", scales(m), mi.logit("q"))


def counted(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[int]:
    """How many cells each batch has; with `stop_after`, a Ctrl-C after so many batches."""
    ran: list[int] = []

    def noted(model: mi.MIModel, items: dict[int, Item], batch: Batch) -> object:
        if stop_after is not None and len(ran) == stop_after:
            raise KeyboardInterrupt
        ran.append(len(batch.cells))
        return climb(model, items, batch)

    monkeypatch.setattr(running, "climb", noted)
    return ran


def test_an_interrupted_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_mi.sweeps.plan.ROUND", 4)
    monkeypatch.setattr("torch_mi.sweeps.plan.MOST", {"cpu": 16, "cuda": 16})
    m, path = model(), tmp_path / "kept" / "sweep.jsonl"
    whole = sweep(m, "abcdef", scales(m), mi.logit("q"))
    first = counted(monkeypatch, stop_after=3)
    with pytest.raises(KeyboardInterrupt):
        sweep(m, "abcdef", scales(m), mi.logit("q"), checkpoint=path)
    kept = len(json.dumps(path.read_text()))
    assert kept > 0
    assert sum(first) > 0
    # by now there is less memory, or more: the batches stay what they were
    monkeypatch.setattr("torch_mi.sweeps.plan.MOST", {"cpu": 500, "cuda": 500})
    second = counted(monkeypatch)
    found = sweep(m, "abcdef", scales(m), mi.logit("q"), checkpoint=path)
    assert torch.equal(found.per_prompt, whole.per_prompt), "bit by bit"
    assert found.plan.stored == 18 - sum(second)
    assert 0 < found.plan.stored <= sum(first)
    third = counted(monkeypatch)
    again = sweep(m, "abcdef", scales(m), mi.logit("q"), checkpoint=path)
    assert third == []
    assert torch.equal(again.per_prompt, whole.per_prompt)
    assert again.plan.stored == 18
    more = sweep(
        m,
        "abcdef",
        [*scales(m), mi.HookSpec().intervene(P.Embed, mi.Scale(2.0))],
        mi.logit("q"),
        checkpoint=path,
    )
    assert more.plan.stored == 18
    assert sum(third) == 1, "only what is missing"


def test_a_checkpoint_tells_apart_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    m, path = model(), tmp_path / "sweep.jsonl"
    cells = scales(m)[:2]
    sweep(m, "abcdef", cells, mi.logit("q"), checkpoint=path)
    ran = counted(monkeypatch)
    sweep(m, "abcdef", cells, mi.logit("q"), checkpoint=path)
    assert ran == []
    for other in (
        lambda: sweep(m, "abcdeg", cells, mi.logit("q"), checkpoint=path),
        lambda: sweep(m, "abcdef", scales(m)[2:4], mi.logit("q"), checkpoint=path),
        lambda: sweep(m, "abcdef", cells, mi.logit("z"), checkpoint=path),
        lambda: sweep(m, "abcdef", cells, mi.logit("q"), position=-2, checkpoint=path),
        lambda: sweep(tiny("llama", 1), "abcdef", cells, mi.logit("q"), checkpoint=path),
    ):
        ran.clear()
        other()
        assert sum(ran) == 2
    with pytest.raises(mi.InterventionError, match=r"cannot tell .* from another function"):
        sweep(m, "abc", cells, lambda x: x[:, 0], checkpoint=path)
    function = [mi.HookSpec().intervene(P.ResidPre(0), mi.Apply(lambda x, _: x))]
    with pytest.raises(mi.InterventionError, match="holds a function"):
        sweep(m, "abc", function, mi.logit("q"), checkpoint=path)


def test_half_written_lines_are_cut_off(tmp_path: Path) -> None:
    m, path = model(), tmp_path / "sweep.jsonl"
    found = sweep(m, "abcdef", scales(m), mi.logit("q"), checkpoint=path)
    whole = path.read_bytes()
    for cut in (3, len(whole) - 5, len(whole) - 30):
        path.write_bytes(whole[:cut])
        again = sweep(m, "abcdef", scales(m), mi.logit("q"), checkpoint=path)
        assert torch.equal(again.per_prompt, found.per_prompt)
        assert path.read_bytes() == whole
    path.write_text("something else\n")
    with pytest.raises(mi.FileError, match="is not a checkpoint of a sweep"):
        sweep(m, "abcdef", scales(m), mi.logit("q"), checkpoint=path)
    path.write_bytes(whole + b"{broken\n")
    with pytest.raises(mi.FileError, match="is damaged"):
        sweep(m, "abcdef", scales(m), mi.logit("q"), checkpoint=path)


def test_a_killed_sweep_goes_on(tmp_path: Path) -> None:
    """kill -9 in the middle, in another process; the second run gives the same bytes."""
    path = tmp_path / "sweep.jsonl"
    program = textwrap.dedent(f"""
        import os, signal
        import torch_mi as mi
        from torch_mi.hooks.point import HookPoint as P
        from torch_mi.sweeps import plan, run
        from torch_mi.sweeps.store import Store
        from torch_mi.testing import tiny
        plan.ROUND, plan.CALL["cpu"], plan.MOST["cpu"] = 4, 1, 20
        if os.environ.get("KILL"):
            add, count = Store.add, []
            def killed(self, keys, scores):
                add(self, keys, scores)
                count.append(1)
                if len(count) == 2:
                    os.kill(os.getpid(), signal.SIGKILL)
            Store.add = killed
        m = tiny("llama")
        cells = [
            mi.HookSpec().intervene(P.ResidPre(i), mi.Scale(1.5, at=mi.At(pos=p)))
            for i in range(3) for p in range(9)
        ]
        found = mi.sweep(m, list(range(20, 29)), cells, mi.logit(5), checkpoint={str(path)!r})
        print(found.per_prompt.numpy().tobytes().hex(), found.plan.stored)
    """)

    def run(**env: str) -> subprocess.CompletedProcess[str]:
        whole = {**os.environ, "OMP_NUM_THREADS": "1", **env}
        command = [sys.executable, "-c", program]
        return subprocess.run(command, env=whole, capture_output=True, text=True, check=False)

    assert run(KILL="1").returncode == -signal.SIGKILL
    first = path.read_text().count("\n")
    scores, stored = run().stdout.split()
    path.rename(tmp_path / "first.jsonl")
    unbroken, none = run().stdout.split()
    assert scores == unbroken
    assert first > 2
    assert 0 < int(stored) < 27
    assert int(none) == 0


def test_progress_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    m = model()
    sweep(m, "abcdef", scales(m), mi.logit("q"))
    assert capsys.readouterr().err == "", "nobody watches"
    told: list[int] = []

    @contextmanager
    def bar(total: int | None, wanted: bool | None) -> Generator[object]:
        told.append(total or 0)
        assert wanted
        yield told.append

    monkeypatch.setattr(running, "bar", bar)
    sweep(m, "abcdef", scales(m), mi.logit("q"), progress=True)
    assert told[0] == 18 == sum(told[1:])


def test_the_bar_is_drawn_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    sweep(model(), "abcdef", scales(model()), mi.logit("q"), progress=True)
    assert "sweep" in capsys.readouterr().err


def test_parts_of_runs_that_cannot_be() -> None:
    m = model()
    made = record(m, m.encode("abc"))
    with pytest.raises(mi.ModelError, match=r"start=9 is out of range: .* 0 … 3"):
        rerun(m, made, start=9)
    with pytest.raises(mi.ModelError, match="a record is of one prompt"):
        record(m, random_tokens(m, 2))
    with pytest.raises(mi.ModelError, match="no first 9"):
        made.prefix(9)


def test_plans_are_values() -> None:
    plan = Plan(cells=3, prompts=1, notes={"why": 2})
    assert Plan(**plan.to_dict()) == plan  # pyright: ignore[reportArgumentType] - read back
    assert "2 cells: why" in plan.explain()
