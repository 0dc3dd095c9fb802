# SPDX-License-Identifier: MIT OR Apache-2.0
"""Linear recurrences alone: `python -m benchmarks.recurrences`, of RWKV-6's and RWKV-7's shape.

Ours by chunks next to ours token by token, to the loop that the `rwkv` package runs on processors
(taken out of its source where it is installed, and scripted as it does), and to the reference
loops of flash-linear-attention where that is installed.
"""

import argparse
import ast
import importlib
import importlib.util
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.pairing import BenchmarkError, Effort, Pair, Row, race, rows
from benchmarks.peers import TOLERANCE, has
from benchmarks.table import show
from torch_mi.nn.recurrence import Recurrence, recur, stepwise
from torch_mi.storage import write_json

OURS, STEPS, RWKV, FLA = "torch-mi", "token by token", "rwkv", "flash-linear-attention"
CASES = ("rwkv7", "rwkv6", "rwkv6-sharp")
LENGTHS = (512, 2048)
BOUNDS = {
    ("rwkv7", RWKV): 1 / 4,
    ("rwkv7", FLA): 1 / 5,
    ("rwkv6", RWKV): 1 / 4,
    ("rwkv6", FLA): 1 / 5,
}
"""How much of a peer's time ours may take."""
Works = dict[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Size:
    """Heads, their width, and tokens."""

    heads: int = 12
    width: int = 64
    lengths: tuple[int, ...] = LENGTHS


SMALL, TINY = Size(), Size(2, 16, (40,))


@dataclass(frozen=True, eq=False)
class Contest:
    """One recurrence; `judged` if it is large enough for bounds."""

    case: str
    judged: bool
    terms: Recurrence
    bonus: Tensor | None = None
    """What RWKV-6 adds for a token's own write."""
    rate: Tensor | None = None
    """How much of what RWKV-7 finds at a key it erases."""

    @property
    def length(self) -> int:
        return self.terms.length


def contest(case: str, size: Size, length: int) -> Contest:
    """Random terms in a model's ranges.

    RWKV-7's decays lie between 0.55 and 1. RWKV-6's are e^-e^x; in a trained one, x differs by 1.6
    between channels, by 1 from token to token, around -3.3, with hardly any channel's mean above
    0.6 and hardly any x above 3. `sharp` ones go far beyond.
    """
    dice = torch.Generator().manual_seed(0)
    shape = (1, length, size.heads, size.width)

    def normal() -> Tensor:
        return torch.randn(shape, generator=dice)

    r, k, v = normal(), normal() / size.width**0.5, normal()
    if case == "rwkv7":
        kappa, rate = normalize(normal(), dim=-1), normal().sigmoid()
        decay = -0.606531 * normal().sigmoid()
        terms = Recurrence(r, k, v, decay, inclusive=True, alpha=-kappa, beta=kappa * rate)
        return Contest(case, size == SMALL, terms, rate=rate)
    channel = (1.6 * torch.randn(shape[2:], generator=dice) - 3.3).clamp(max=0.6)
    mild = (channel + normal()).clamp(max=3)
    decay = -(2 * normal() - 2 if case == "rwkv6-sharp" else mild).exp()
    bonus = torch.randn(shape[2:], generator=dice)
    terms = Recurrence(r, k, v, decay, inclusive=False)
    return Contest(case, size == SMALL, terms, bonus=bonus)


def measure(one: Contest, effort: Effort, folder: Path) -> list[Row]:
    """The works of one contest, checked against each other and timed."""
    works: Works = {OURS: lambda: ours(one), STEPS: lambda: ours(one, stepwise)}
    if has("rwkv"):
        works[RWKV] = rwkv(one, folder)
    if has("fla"):
        works[FLA] = fla(one)
    check(one, works)
    times = race(works, effort)
    pairs = [Pair(OURS, STEPS)]
    bounds = BOUNDS if one.judged else {}
    pairs += [Pair(OURS, peer, bounds.get((one.case, peer))) for peer in (RWKV, FLA)]
    setting = f"{one.length} tokens, {torch.get_num_threads()} threads"
    return rows(f"recurrence, {one.case}", setting, times, pairs)


def check(one: Contest, works: Works) -> None:
    """An error unless all give the same."""
    right = works[STEPS]()
    for name, work in works.items():
        apart = float((work() - right).abs().max() / right.abs().max())
        if not apart <= TOLERANCE:
            raise BenchmarkError(f"{one.case}: {STEPS} and {name} differ by {apart:.2g}")


def ours(one: Contest, form: Callable[[Recurrence, None], tuple[Tensor, Tensor]] = recur) -> Tensor:
    """What is read, [pos head d_value]."""
    read = form(one.terms, None)[0]
    if one.bonus is not None:
        own = (one.terms.q * one.bonus * one.terms.k).sum(-1, keepdim=True)
        read = torch.addcmul(read, own, one.terms.v)
    return read[0]


def fla(one: Contest) -> Callable[[], Tensor]:
    """The reference loops, which want heads before positions; one of them scales queries itself."""
    r = one.terms
    q, k, v, decay = (x.transpose(1, 2).contiguous() for x in (r.q, r.k, r.v, r.decay))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it would rather have a GPU
        dplr = importlib.import_module("fla.ops.generalized_delta_rule.dplr.naive")
        naive = importlib.import_module("fla.ops.rwkv6.recurrent_naive")

    def run() -> Tensor:
        if r.alpha is not None and r.beta is not None:
            alpha, beta = r.alpha.transpose(1, 2), r.beta.transpose(1, 2)
            read = dplr.dplr_recurrence(q * q.shape[-1] ** 0.5, k, v, alpha, beta, decay)[0]
        else:
            read = naive.naive_recurrent_rwkv6(q, k, v, decay, one.bonus, 1.0)[0]
        return read[0].transpose(0, 1)

    return run


LOOPS = {
    "rwkv7": (
        "RWKV_x070_TMix_seq",
        "state, r, w, k, v, kk, a, xx, H: int, N: int",
        "T, x = r.shape[0], xx",
        "xx",
    ),
    "rwkv6": ("att_seq_v6_0", "s, r, k, v, w, t_first, out", "T = out.shape[0]", "out"),
}
"""The function that has the loop, what the loop needs, how that is come by, and what it fills."""


def rwkv(one: Contest, folder: Path) -> Callable[[], Tensor]:
    """The package's loop over positions, on tensors in the shapes that it prepares for it."""
    loop, r = rwkv_loop(one.case.removesuffix("-sharp"), folder), one.terms
    heads, width = r.q.shape[2:]
    state = torch.zeros(heads, width, width)
    if r.alpha is not None and one.rate is not None:
        terms = (r.q, r.decay.exp(), r.k, r.v, -r.alpha, one.rate)
        flat = [x[0].flatten(1) for x in terms]

        def seventh() -> Tensor:
            return loop(state, *flat, torch.empty_like(flat[0]), heads, width).view(r.v[0].shape)

        return seventh
    q, v, k = r.q[0].transpose(0, 1), r.v[0].transpose(0, 1), r.k[0].permute(1, 2, 0)
    fade, bonus = r.decay[0].exp()[..., None], torch.as_tensor(one.bonus)[..., None]
    return lambda: loop(state, q, k, v, fade, bonus, torch.empty_like(r.q[0]))


def rwkv_loop(case: str, folder: Path) -> Callable[..., Tensor]:
    """The loop of the installed package as a scripted function of its own."""
    found = importlib.util.find_spec("rwkv")
    if found is None or not found.submodule_search_locations:
        raise BenchmarkError("the rwkv package is not installed")
    name, needs, before, filled = LOOPS[case]
    tree = ast.parse((Path(found.submodule_search_locations[0]) / "model.py").read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name]
    loops = [n for function in functions for n in function.body if isinstance(n, ast.For)]
    if len(loops) != 1:
        raise BenchmarkError(f"this rwkv package has {len(loops)} loops in {name}, not 1")
    body = "\n".join(f"    {line}" for line in ast.unparse(loops[0]).splitlines())
    path = folder / f"{case}_loop.py"
    path.write_text(
        f"import torch\nmatmul = torch.matmul\n"
        f"def loop({needs}):\n    {before}\n{body}\n    return {filled}\n"
    )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise BenchmarkError(f"{path} cannot be imported")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return torch.jit.script(module.loop)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recurrences", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a few tokens: a smoke test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    read = parser.parse_args(arguments)
    torch.set_num_threads(read.threads)
    size = TINY if read.quick else SMALL
    effort = Effort(least=read.turns, most=read.turns, seconds=0.0, warm_up=2)
    facts: Mapping[str, object] = {"threads": read.threads}
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="torch-mi-bench-") as scratch:
        for case in read.only:
            for length in size.lengths:
                found += measure(contest(case, size, length), effort, Path(scratch))
    show(found, dict(facts))
    if read.json is not None:
        write_json(read.json, {"machine": facts, "rows": [row.to_dict() for row in found]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
