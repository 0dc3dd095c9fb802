# SPDX-License-Identifier: MIT OR Apache-2.0
"""What can only be measured in a fresh process: imports and loading."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch

from benchmarks.pairing import BenchmarkError, Effort, Pair, Ratio, Row, Times, rows
from benchmarks.peers import SMALL, TINY, Shape, agree, has, need, save

ROOT = Path(__file__).resolve().parent.parent

IMPORTS = {
    "import torch_mi; torch_mi.MIModel": "torch_mi",
    "import torch": "torch",
    "import transformers' llama": "transformers",
    "import TransformerBridge": "transformer_lens",
}
"""What is imported, and the package that it needs."""

STATEMENTS = {
    "torch_mi": "import torch_mi; torch_mi.MIModel",
    "torch": "import torch",
    "transformers": "from transformers import AutoModelForCausalLM, LlamaForCausalLM",
    "transformer_lens": "from transformer_lens.model_bridge import TransformerBridge",
}

STOPWATCH = """
import json, time
wall, cpu = time.perf_counter(), time.process_time()
{statement}
print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))
"""


def imports(effort: Effort) -> list[Row]:
    """Import times in fresh processes, in turns, after one turn that warms the file cache.

    The slow peers take part in the first turns only.
    """
    names = [name for name, package in IMPORTS.items() if has(package)]
    times = {name: Times() for name in names}
    for turn in range(effort.least + 5):
        for name in names if turn < 4 else names[:2]:
            code = STOPWATCH.format(statement=STATEMENTS[IMPORTS[name]])
            wall, cpu = _answer(["-c", code])
            if turn:
                times[name].wall.append(wall)
                times[name].cpu.append(cpu)
    ours, torch_alone, *others = IMPORTS
    pairs = [Pair(ours, torch_alone, 1.25), *(Pair(ours, other) for other in others)]
    return rows("import", "fresh process", times, pairs)


@dataclass(frozen=True)
class Loading:
    """What a fresh process reported about loading a checkpoint."""

    seconds: float
    cpu: float
    first_run: float
    """Seconds from the start of loading to the end of a first run: every weight has been read."""
    loaded: float
    """Bytes of memory at the peak of loading, over what the libraries themselves take."""
    ran: float
    """The same at the end of the first run."""
    logits: list[float]


def loading(scratch: Path, effort: Effort, *, quick: bool) -> list[Row]:
    """Time and memory of loading, from one file and from several."""
    need("transformers")
    shape = TINY if quick else SMALL
    warm = save(TINY, scratch / "warm")
    found: list[Row] = []
    for setting, shard in (("one file", "5GB"), ("several files", "150MB")):
        folder = save(shape, scratch / setting.replace(" ", "-"), "100KB" if quick else shard)
        found += _compare(setting, folder, warm, shape, effort)
    return found


def _compare(setting: str, folder: Path, warm: Path, shape: Shape, effort: Effort) -> list[Row]:
    ours: list[Loading] = []
    theirs: list[Loading] = []
    for turn in range(min(effort.least, 3) + 1):
        pair = [_load(side, folder, warm) for side in ("torch_mi", "transformers")]
        agree("logits after loading", *(torch.tensor(p.logits) for p in pair))
        if turn:
            ours.append(pair[0])
            theirs.append(pair[1])
    size = [float(sum(file.stat().st_size for file in folder.glob("*.safetensors")))] * len(ours)
    peers = "transformers, from_pretrained"
    timed = {
        "torch-mi, from_pretrained": Times([p.seconds for p in ours], [p.cpu for p in ours]),
        peers: Times([p.seconds for p in theirs], [p.cpu for p in theirs]),
    }
    found = rows("load", setting, timed, [Pair("torch-mi, from_pretrained", peers, 0.5)])
    first = ([p.first_run for p in ours], [p.first_run for p in theirs])
    found.append(_row(setting, "torch-mi, load and run 16 tokens", "transformers", "ms", *first))
    found += _memory(setting, ours, theirs, size)
    return found


def _memory(
    setting: str, ours: Sequence[Loading], theirs: Sequence[Loading], size: Sequence[float]
) -> list[Row]:
    """Peak memory against the weights' own size; the bound is for ours, after everything ran."""
    bare, ran = [p.loaded for p in ours], [p.ran for p in ours]
    return [
        _row(setting, "torch-mi, peak memory of loading", "weight files", "MB", bare, size, 1.15),
        _row(setting, "torch-mi, peak memory after a run", "weight files", "MB", ran, size, 1.15),
        _row(
            setting,
            "transformers, peak memory of loading",
            "weight files",
            "MB",
            [p.loaded for p in theirs],
            size,
        ),
        _row(
            setting,
            "transformers, peak memory after a run",
            "weight files",
            "MB",
            [p.ran for p in theirs],
            size,
        ),
    ]


def _row(  # noqa: PLR0913 - a line of the table
    setting: str,
    ours: str,
    peer: str,
    unit: str,
    values: Sequence[float],
    peers: Sequence[float],
    bound: float | None = None,
) -> Row:
    scale = 1e3 if unit == "ms" else 1e-6
    ratio = Ratio.of(values, peers)
    return Row(
        "load",
        setting,
        ours,
        peer,
        unit,
        scale * median(values),
        scale * median(peers),
        ratio,
        None,
        bound,
    )


def _load(side: str, folder: Path, warm: Path) -> Loading:
    return Loading(**_answer(["-m", "benchmarks.load", side, str(folder), str(warm)]))


def _answer(arguments: Sequence[str]) -> Any:
    """The JSON that a fresh Python prints as its last line."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"python {arguments[-1]} failed:\n{done.stderr.strip()}")
    return cast("object", json.loads(done.stdout.splitlines()[-1]))
