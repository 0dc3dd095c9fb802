# SPDX-License-Identifier: MIT OR Apache-2.0
"""Activation patching in full grids: `python -m benchmarks.sweeps`, on GPT-2 small's shape.

Ours next to one whole run for each cell, to a loop written by hand on the bare modules (cells side
by side, from the patched layer and position on, one row unembedded), and to TransformerLens's own
patching functions and nnsight where they are installed. What costs the same for every cell is
timed on some of the cells and multiplied. Attribution patching beside it: see `attribution`.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import attribution, traces
from benchmarks.pairing import BenchmarkError, Effort, Pair, Row, Times, race, rows
from benchmarks.peers import bridge_over, has, need
from benchmarks.table import show
from torch_mi.analysis.patching import patch
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Replace
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel
from torch_mi.storage import write_json
from torch_mi.sweeps.metrics import logit_diff

OURS, NAIVE, BY_HAND = "torch-mi", "a run for each cell", "by hand"
LENS, TRACES = "TransformerLens", "nnsight"
WORDS = (5, 6)
TOLERANCE = 1e-4
SAMPLE = 24
"""Cells of which a loop that treats all alike is timed."""
GRIDS = ("resid_pre", "one token", "z")
CASES = (*GRIDS, "attribution")
BOUNDS = {"resid_pre": 1 / 6, "one token": 1 / 15, "z": 1 / 4}
"""How much of TransformerLens's time ours may take."""
OF_HAND = 1.3


@dataclass(frozen=True)
class Size:
    """A GPT-2's shape and the length of its prompts."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    vocab: int = 50257
    length: int = 64


SMALL, TINY = Size(), Size(32, 2, 4, 100, 12)


@dataclass(frozen=True, eq=False)
class Contest:
    """One pair of prompts, and the same weights in every library."""

    case: str
    size: Size
    ours: MIModel
    hf: Any
    lens: Any | None
    traces: Any | None
    clean: Tensor
    corrupted: Tensor

    @property
    def at(self) -> str:
        return "z" if self.case == "z" else "resid_pre"

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Every layer with every head or position."""
        across = self.size.heads if self.at == "z" else self.size.length
        return [(layer, place) for layer in range(self.size.layers) for place in range(across)]

    @property
    def sample(self) -> list[tuple[int, int]]:
        """Cells from all over the grid."""
        step = max(1, len(self.cells) // SAMPLE)
        return self.cells[::step]


Made = tuple[Any, MIModel, Any | None, Any | None]
"""One model in transformers, torch-mi, TransformerLens and nnsight, as far as they are there."""


def gather(size: Size, folder: Path) -> Made:
    """A random GPT-2 in every library."""
    need("transformers")
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415 - a peer

    torch.manual_seed(0)
    cfg = GPT2Config(
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        vocab_size=size.vocab,
        bos_token_id=None,
        eos_token_id=None,
    )
    hf = GPT2LMHeadModel(cfg).eval()
    lens = bridge_over(hf, folder, "cpu") if has("transformer_lens") else None
    return hf, MIModel.from_hf(hf), lens, traces.wrapped(hf) if has("nnsight") else None


def contest(case: str, size: Size, made: Made) -> Contest:
    """Two random prompts; for "one token" the second differs from the first in the middle only."""
    dice = torch.Generator().manual_seed(1)
    clean = torch.randint(size.vocab, (1, size.length), generator=dice)
    other = torch.randint(size.vocab, (1, size.length), generator=dice)
    if case == "one token":
        middle = size.length // 2
        other = torch.cat([clean[:, :middle], other[:, :1], clean[:, middle + 1 :]], 1)
    hf, ours, lens, nn = made
    return Contest(case, size, ours, hf, lens, nn, clean, other)


def measure(one: Contest, effort: Effort) -> list[Row]:
    """The works of one case, checked against each other and timed."""
    if one.case == "attribution":
        prompts = one.clean, one.corrupted
        return attribution.measure(one.ours, one.lens, prompts, WORDS, effort)
    works: dict[str, Callable[[], object]] = {
        OURS: lambda: ours(one),
        BY_HAND: lambda: by_hand(one),
        NAIVE: lambda: naive(one, one.sample),
    }
    if one.lens is not None:
        works[LENS] = lambda: lens(one, one.sample)
    if one.traces is not None:
        works[TRACES] = lambda: nnsight(one, one.sample)
    check(one)
    times = race(works, effort)
    whole = len(one.cells) / len(one.sample)
    times |= {name: _times(times[name], whole) for name in (NAIVE, LENS, TRACES) if name in times}
    pairs = [Pair(OURS, BY_HAND, OF_HAND), Pair(OURS, NAIVE)]
    pairs += [Pair(OURS, LENS, BOUNDS[one.case]), Pair(OURS, TRACES)]
    setting = f"{one.size.length} tokens, {torch.get_num_threads()} threads"
    return rows(f"patching, {one.case}", setting, times, pairs)


def check(one: Contest) -> None:
    """An error unless all give the same scores."""
    grid = ours(one)
    places = [place for place in one.cells if place in set(one.sample)]
    some = torch.stack([grid[place] for place in places])
    others = {BY_HAND: by_hand(one) - grid, NAIVE: naive(one, places) - some}
    if one.lens is not None:
        others[LENS] = lens(one, places) - some
    if one.traces is not None:
        others[TRACES] = nnsight(one, places) - some
    for name, apart in others.items():
        if not (worst := float(apart.abs().max())) <= TOLERANCE:
            raise BenchmarkError(f"{one.case}: torch-mi and {name} differ by {worst:.2g}")


def ours(one: Contest) -> Tensor:
    """The grid by the planner."""
    metric = logit_diff(*WORDS)
    grid = patch(one.ours, one.clean, one.corrupted, at=one.at, metric=metric, progress=False)
    return grid.values


def naive(one: Contest, cells: Sequence[tuple[int, int]]) -> Tensor:
    """A whole run for each cell."""
    point = HookPoint.AttnZ if one.at == "z" else HookPoint.ResidPre
    source = one.ours.forward(one.clean, HookSpec().capture(point))
    found: list[float] = []
    for layer, place in cells:
        value = source[point(layer)].select(2 if one.at == "z" else 1, place)
        at = At(head=place) if one.at == "z" else At(pos=place)
        spec = HookSpec().intervene(point(layer), Replace(value, at=at))
        end = one.ours.forward(one.corrupted, spec).output[0, -1]
        found.append(float(end[WORDS[0]] - end[WORDS[1]]))
    return torch.tensor(found)


def lens(one: Contest, cells: Sequence[tuple[int, int]]) -> Tensor:
    """TransformerLens's own function, for some cells."""
    import pandas as pd  # noqa: PLC0415 - a peer's
    from transformer_lens import patching  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - a peer, not everywhere

    if one.lens is None:
        raise BenchmarkError("TransformerLens is not installed")
    setter, name, axes = patching.layer_pos_patch_setter, "resid_pre", ("layer", "pos")
    if one.at == "z":
        setter, name, axes = patching.layer_head_vector_patch_setter, "z", ("layer", "head")
    with torch.no_grad():
        _, cache = one.lens.run_with_cache(one.clean, names_filter=_ends_with(name))
        return patching.generic_activation_patch(
            one.lens,
            one.corrupted,
            cache,
            _difference,
            setter,
            name,
            index_df=pd.DataFrame(cells, columns=list(axes)),
        )


def nnsight(one: Contest, cells: Sequence[tuple[int, int]]) -> Tensor:
    """An invoke of nnsight's for each of some cells."""
    width = one.size.width // one.size.heads if one.at == "z" else None
    return traces.patched(one.traces, (one.clean, one.corrupted), cells, width, WORDS)


def _ends_with(end: str) -> Callable[[str], bool]:
    return lambda name: name.endswith(end)


def _difference(logits: Tensor) -> Tensor:
    return logits[0, -1, WORDS[0]] - logits[0, -1, WORDS[1]]


@dataclass(frozen=True, eq=False)
class Recorded:
    """What a run by hand leaves behind, layer by layer."""

    residuals: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    mixed: list[Tensor]


@torch.no_grad()
def by_hand(one: Contest) -> Tensor:
    """The grid by a loop that someone who knows all the tricks would write."""
    good, bad = _recorded(one.hf, one.clean), _recorded(one.hf, one.corrupted)
    return _heads(one, good, bad) if one.at == "z" else _positions(one, good, bad)


def _positions(one: Contest, good: Recorded, bad: Recorded) -> Tensor:
    """From each position on, one row more at each layer; nothing before the prompts differ."""
    size = one.size
    out = torch.empty(size.layers, size.length)
    first = int((one.clean != one.corrupted)[0].nonzero()[0])
    out[:, :first] = _read(one.hf, bad.residuals[-1][:, -1])
    for pos in range(first, size.length):
        x = bad.residuals[0][:0, pos:]
        for layer in range(size.layers):
            patched = bad.residuals[layer][:, pos:].clone()
            patched[:, 0] = good.residuals[layer][:, pos]
            x = _block(one.hf, layer, torch.cat([x, patched]), bad, pos)
        out[:, pos] = _read(one.hf, x[:, -1])
    return out


def _heads(one: Contest, good: Recorded, bad: Recorded) -> Tensor:
    """All heads of a layer side by side, from that layer on."""
    size = one.size
    out = torch.empty(size.layers, size.heads)
    for layer in range(size.layers):
        mixed = bad.mixed[layer].repeat(size.heads, 1, 1, 1)
        for head in range(size.heads):
            mixed[head, :, head] = good.mixed[layer][0, :, head]
        x = _after(one.hf.transformer.h[layer], bad.residuals[layer], mixed)
        for later in range(layer + 1, size.layers):
            x = _block(one.hf, later, x, bad, 0)
        out[layer] = _read(one.hf, x[:, -1])
    return out


def _recorded(hf: Any, tokens: Tensor) -> Recorded:
    made = Recorded([], [], [], [])
    places = torch.arange(tokens.shape[1])
    x = hf.transformer.wte(tokens) + hf.transformer.wpe(places)
    for layer in range(len(hf.transformer.h)):
        made.residuals.append(x)
        x = _block(hf, layer, x, made, None)
    made.residuals.append(x)
    return made


def _block(hf: Any, layer: int, x: Tensor, of: Recorded, start: int | None) -> Tensor:
    """One layer for positions from `start` on, earlier ones recorded; without it, record."""
    block, heads = hf.transformer.h[layer], hf.config.n_head
    parts = block.attn.c_attn(block.ln_1(x)).split(x.shape[-1], -1)
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
    if start is None:
        of.keys.append(k)
        of.values.append(v)
    mask = None
    if start:
        many = x.shape[0]
        k = torch.cat([of.keys[layer][:, :, :start].expand(many, -1, -1, -1), k], 2)
        v = torch.cat([of.values[layer][:, :, :start].expand(many, -1, -1, -1), v], 2)
        place = torch.arange(k.shape[2])
        mask = place[None] <= place[start:, None]
    z = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    z = z.transpose(1, 2)
    if start is None:
        of.mixed.append(z)
    return _after(block, x, z)


def _after(block: Any, x: Tensor, z: Tensor) -> Tensor:
    """The rest of a layer once the heads have mixed."""
    x = x + block.attn.c_proj(z.flatten(2))
    return x + block.mlp(block.ln_2(x))


def _read(hf: Any, x: Tensor) -> Tensor:
    logits = hf.lm_head(hf.transformer.ln_f(x))
    return logits[:, WORDS[0]] - logits[:, WORDS[1]]


def _times(times: Times, factor: float) -> Times:
    return Times([t * factor for t in times.wall], [t * factor for t in times.cpu])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tiny model: a smoke test")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    read = parser.parse_args(arguments)
    torch.set_num_threads(read.threads)
    size = TINY if read.quick else SMALL
    effort = Effort(least=read.turns, most=read.turns, seconds=0.0, warm_up=0)
    facts: Mapping[str, object] = {"threads": read.threads, "tokens": size.length}
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="torch-mi-bench-") as scratch:
        made = gather(size, Path(scratch))
        for case in read.only:
            found += measure(contest(case, size, made), effort)
    show(found, dict(facts))
    if read.json is not None:
        write_json(read.json, {"machine": facts, "rows": [row.to_dict() for row in found]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
