# SPDX-License-Identifier: MIT OR Apache-2.0
"""Whole recurrent models over a prompt: `python -m benchmarks.prefill`, RWKV-7 or RWKV-6.

A random model of 12 layers and 768 channels in the authors' own file, read by us and by their
`rwkv` package. Ours to all logits, to those of the last position, with every point captured, and
fed token by token.
"""

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.pairing import BenchmarkError, Effort, Pair, Row, Times, race, rows
from benchmarks.peers import TOLERANCE, has
from benchmarks.running import keep_memory
from benchmarks.table import show
from tests.parity.rwkv import Sizes, checkpoint
from torch_mi.cache import Prefix, Residual
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel
from torch_mi.storage import write_json

ALL, LAST, EVERYTHING, STEPS = "all logits", "last row", "every point", "token by token"
THEIRS, THEIRS_LAST = "rwkv, all logits", "rwkv, last row"
LENGTHS = (512, 2048)
SAMPLE = 32
"""Token by token is timed on so many and multiplied."""
PAIRS = ((ALL, THEIRS), (LAST, THEIRS_LAST), (EVERYTHING, ALL), (ALL, STEPS))
"""What is compared."""
BOUNDS: dict[str, dict[str, float]] = {
    "7": {THEIRS: 1 / 1.5, THEIRS_LAST: 1 / 2, ALL: 1.2},
    "6": {ALL: 1.2},
}
"""How much of whose time it may take. Most of a whole RWKV-6 is the same matrix products."""
SMALL = {
    "7": Sizes("7", 768, 12, 64, 12, 3072, 32000, (64, 64, 32, 128)),
    "6": Sizes("6", 768, 12, 64, 12, 2688, 32000, (32, 64)),
}
TINY = {
    "7": Sizes("7", 128, 2, 64, 2, 256, 100, (8, 8, 8, 8)),
    "6": Sizes("6", 128, 2, 64, 2, 256, 100, (8, 8)),
}


def last_row(model: MIModel, tokens: Tensor) -> Tensor:
    """Logits [vocab] of the last position; no other is unembedded."""
    end = model.forward(tokens, stop=model.num_layers).residual
    return model.forward(Residual(end.layer, end.x[:, -1:])).output[0, -1]


def everything(model: MIModel, tokens: Tensor) -> Tensor:
    """Logits [pos vocab] of a run that captures every point, with whatever that took."""
    spec = HookSpec().capture(*model.backend.hook_points)
    return model.forward(tokens, spec).output[0]


def stepwise(model: MIModel, tokens: Tensor) -> Tensor:
    """Logits [pos vocab] of the same run, a token at a time."""
    prefix, found = Prefix(), list[Tensor]()
    for token in tokens.T:
        ran = model.forward(token[None], after=prefix)
        prefix = ran.prefix
        found.append(ran.output[0, -1])
    return torch.stack(found)


Peer = Callable[[Tensor], Tensor]
"""A run of token ids [1 pos]."""


def theirs(path: Path, version: str) -> dict[str, Peer]:
    """The `rwkv` package's runs, with all that it does for processors."""
    os.environ["RWKV_V7_ON"] = str(int(version == "7"))  # read once, when it is imported
    os.environ.setdefault("RWKV_JIT_ON", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rwkv.model import RWKV  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - a peer, not everywhere

    model: Any = RWKV(model=str(path.with_suffix("")), strategy="cpu fp32")

    def run(tokens: Tensor, *, every: bool) -> Tensor:
        return model.forward(tokens[0].tolist(), None, full_output=every)[0]

    return {THEIRS: partial(run, every=True), THEIRS_LAST: partial(run, every=False)}


def check(name: str, ours: Tensor, right: Tensor, most: float = TOLERANCE) -> None:
    """An error if logits differ by more than that much of the largest."""
    apart = float((ours - right).abs().max() / right.abs().max())
    if not apart <= most:
        raise BenchmarkError(f"{name}: logits differ by {apart:.2g}")


def measure(
    model: MIModel,
    peers: Mapping[str, Peer],
    tokens: Tensor,
    turns: int,
    bounds: Mapping[str, float],
) -> list[Row]:
    """One prompt: every side checked against ours, then timed."""
    works: dict[str, Callable[[], Tensor]] = {
        ALL: lambda: model.forward(tokens).output[0],
        LAST: partial(last_row, model, tokens),
        EVERYTHING: partial(everything, model, tokens),
        **{name: partial(peer, tokens) for name, peer in peers.items()},
    }
    right = works[ALL]()
    for name, work in works.items():
        check(name, work(), right[-1] if name in (LAST, THEIRS_LAST) else right)
    length = tokens.shape[1]
    some = min(SAMPLE, length)
    # a first token reads itself alone, and the norm of that makes much of what rounds differently
    check(STEPS, stepwise(model, tokens[:, :some]), right[:some], 10 * TOLERANCE)
    effort = Effort(least=turns, most=turns, seconds=0.0)
    times = race(works, effort)
    steps = race({STEPS: partial(stepwise, model, tokens[:, :some])}, effort)[STEPS]
    whole = length / some
    times[STEPS] = Times([whole * t for t in steps.wall], [whole * t for t in steps.cpu])
    pairs = [Pair(ours, peer, bounds.get(peer)) for ours, peer in PAIRS]
    return rows("prefill", f"{length} tokens, {torch.get_num_threads()} threads", times, pairs)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefill", description=__doc__)
    parser.add_argument("--version", choices=list(SMALL), default="7")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="keep freed memory for the next run")
    parser.add_argument("--quick", action="store_true", help="a tiny model: a smoke test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    read = parser.parse_args(arguments)
    torch.set_num_threads(read.threads)
    if read.keep and not keep_memory():
        raise BenchmarkError("only glibc can be told to keep memory")
    judged = {} if read.quick else BOUNDS[read.version]
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="torch-mi-bench-") as scratch:
        path = Path(scratch) / "model.pth"
        torch.save(checkpoint((TINY if read.quick else SMALL)[read.version]), path)
        model = MIModel.from_pretrained(path, device="cpu")
        peers = theirs(path, read.version) if has("rwkv") else {}
        dice = torch.Generator().manual_seed(0)
        for length in (40,) if read.quick else read.lengths:
            tokens = torch.randint(model.vocab_size, (1, length), generator=dice)
            found += measure(model, peers, tokens, read.turns, judged)
    facts: dict[str, object] = {"threads": read.threads, "version": read.version}
    facts["memory kept"] = read.keep
    show(found, facts)
    if read.json is not None:
        write_json(read.json, {"machine": facts, "rows": [row.to_dict() for row in found]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
