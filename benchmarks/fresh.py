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
from benchmarks.peers import SMALL, TINY, agree, has, need, save

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

PEER = "transformers, from_pretrained"

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
    ran: float
    """Seconds from the start of loading to the end of a first run of 16 tokens."""
    ran_cpu: float
    peak: float
    """Bytes of memory at the peak of loading, over what the libraries themselves take."""
    ran_peak: float
    """The same by the end of the first run, when every weight but most embeddings was read."""
    logits: list[float]


def loading(scratch: Path, effort: Effort, *, quick: bool) -> list[Row]:
    """Time and memory of loading, from one file and from several."""
    need("transformers")
    shape = TINY if quick else SMALL
    warm = save(TINY, scratch / "warm")
    found: list[Row] = []
    for setting, shard in (("one file", "5GB"), ("several files", "150MB")):
        folder = save(shape, scratch / setting.replace(" ", "-"), "100KB" if quick else shard)
        found += _compare(setting, folder, warm, effort)
    return found


def _compare(setting: str, folder: Path, warm: Path, effort: Effort) -> list[Row]:
    ours: list[Loading] = []
    theirs: list[Loading] = []
    for turn in range(min(effort.least, 3) + 1):
        pair = [_load(side, folder, warm) for side in ("torch_mi", "transformers")]
        agree("logits after loading", *(torch.tensor(p.logits) for p in pair))
        if turn:
            ours.append(pair[0])
            theirs.append(pair[1])
    times = {
        "torch-mi, from_pretrained": Times([p.seconds for p in ours], [p.cpu for p in ours]),
        PEER: Times([p.seconds for p in theirs], [p.cpu for p in theirs]),
        "torch-mi, load and run 16 tokens": Times([p.ran for p in ours], [p.ran_cpu for p in ours]),
        f"{PEER}, and run": Times([p.ran for p in theirs], [p.ran_cpu for p in theirs]),
    }
    pairs = [
        Pair("torch-mi, from_pretrained", PEER, 0.5),
        Pair("torch-mi, load and run 16 tokens", f"{PEER}, and run"),
    ]
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    peaks = [
        _peak(setting, "torch-mi, peak of loading", [p.peak for p in ours], size, 1.15),
        _peak(setting, "torch-mi, peak with a run", [p.ran_peak for p in ours], size, 1.15),
        _peak(setting, "transformers, peak of loading", [p.peak for p in theirs], size),
        _peak(setting, "transformers, peak with a run", [p.ran_peak for p in theirs], size),
    ]
    return [*rows("load", setting, times, pairs), *peaks]


def _peak(
    setting: str, whose: str, peaks: Sequence[float], size: int, bound: float | None = None
) -> Row:
    """Peak memory against the size of the weights."""
    ratio = Ratio.of(peaks, [size] * len(peaks))
    held = 1e-6 * median(peaks)
    return Row("load", setting, whose, "weight files", "MB", held, 1e-6 * size, ratio, bound=bound)


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
