# SPDX-License-Identifier: MIT OR Apache-2.0
"""All benchmarks: `python -m benchmarks.run`, best by `make bench`.

Needs no network: models have random weights, made here and kept in a temporary folder.
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import psutil
import torch

from benchmarks import fresh, running
from benchmarks.pairing import SMOKE, BenchmarkError, Effort, Row
from benchmarks.peers import SMALL, TINY, Peers, gather
from benchmarks.table import show
from torch_mi.errors import MIError, did_you_mean
from torch_mi.storage import write_json

FRESH = ("import", "load")
RUNNING: dict[str, Callable[[Peers, running.Setting], list[Row]]] = {
    "forward": running.forward,
    "residual": running.residual,
    "generate": running.generation,
    "capture": running.capture,
    "capture-kept": running.capture_kept,
}
"""The last one changes how this process holds memory."""
CASES = (*FRESH, *RUNNING)
LENGTHS = {
    "forward": (16, 64, 256, 512),
    "residual": (64, 256),
    "generate": (64,),
    "capture": (16, 64, 512),
    "capture-kept": (64, 512),
}
"""Prompt lengths, in tokens."""


@dataclass(frozen=True)
class Options:
    """What to measure, and how thoroughly."""

    cases: tuple[str, ...]
    threads: tuple[int, ...]
    quick: bool
    device: str

    @property
    def effort(self) -> Effort:
        return SMOKE if self.quick else Effort()


def measure(options: Options, scratch: Path) -> list[Row]:
    """Every case that is asked for."""
    found: list[Row] = []
    if "import" in options.cases:
        found += _told("import", fresh.imports(options.effort))
    if "load" in options.cases:
        found += _told("load", fresh.loading(scratch, options.effort, quick=options.quick))
    cases = [case for case in RUNNING if case in options.cases]
    if not cases:
        return found
    peers = gather(TINY if options.quick else SMALL, scratch / "peers", options.device)
    for case in cases:
        lengths = (16,) if options.quick else LENGTHS[case]
        for threads in options.threads:
            for length in lengths:
                setting = running.Setting(length, threads, options.effort)
                found += _told(case, RUNNING[case](peers, setting))
    return found


def without_bounds(rows: Sequence[Row]) -> list[Row]:
    """The same, judging nothing: a smoke test is no measurement."""
    return [replace(row, bound=None) for row in rows]


def _told(case: str, found: list[Row]) -> list[Row]:
    """The same rows, with a word that they are there."""
    where = found[0].setting if found else "not on this system"
    print(f"{case}: {where}", file=sys.stderr, flush=True)
    return found


def machine(options: Options) -> dict[str, object]:
    """What the numbers depend on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": psutil.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if options.device.startswith("cuda") else None,
        "system": platform.platform(),
        "threads": list(options.threads),
        "python": platform.python_version(),
        "versions": {
            name: metadata.version(name)
            for name in ("torch-mi", "torch", "transformers", "transformer-lens", "safetensors")
            if _installed(name)
        },
    }


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def read_options(arguments: Sequence[str] | None = None) -> tuple[Options, Path | None]:
    """The command line, and where the JSON goes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(CASES), help=str(CASES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny model, two turns: a smoke test"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    read = parser.parse_args(arguments)
    for name in read.only:
        if name not in CASES:
            raise BenchmarkError(f"no benchmark is named {name!r}{did_you_mean(name, CASES)}")
    if wrong := [n for n in read.threads if n < 1]:
        raise BenchmarkError(f"--threads {wrong[0]}: at least 1")
    if read.device.startswith("cuda") and not torch.cuda.is_available():
        raise BenchmarkError("--device cuda, but torch sees no GPU here")
    return Options(tuple(read.only), tuple(read.threads), read.quick, read.device), read.json


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    try:
        options, path = read_options(arguments)
        facts = machine(options)
        with tempfile.TemporaryDirectory(prefix="torch-mi-bench-") as scratch:
            found = measure(options, Path(scratch))
        if options.quick:
            found = without_bounds(found)
        show(found, facts)
        if path is not None:
            write_json(path, {"machine": facts, "rows": [row.to_dict() for row in found]})
    except MIError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.exit(main())
