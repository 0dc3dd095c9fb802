# SPDX-License-Identifier: MIT OR Apache-2.0
"""Loads a checkpoint in this process and prints what that took; `benchmarks.fresh` calls it.

A tiny checkpoint is loaded and run first, so that neither imports nor a library's own first-time
work counts, and then the peak of memory is set back to what is held.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.pairing import BenchmarkError

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")

Runner = Callable[[Tensor], Tensor]


def torch_mi_loader(folder: str) -> Runner:
    """Our model, as a function from tokens to logits."""
    from torch_mi import MIModel  # noqa: PLC0415 - one library for each process

    model = MIModel.from_pretrained(folder, device="cpu")
    return lambda tokens: model(tokens).output


def transformers_loader(folder: str) -> Runner:
    """The peer's."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - one library for each process
    from transformers.utils import logging  # noqa: PLC0415

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def run(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            return model(input_ids=tokens, use_cache=False).logits

    return run


LOADERS = {"torch_mi": torch_mi_loader, "transformers": transformers_loader}


def memory(which: str) -> int:
    """Bytes that this process holds (`VmRSS`) or has held at most (`VmHWM`)."""
    if not STATUS.exists():
        raise BenchmarkError("memory is read off /proc, which this system lacks; --only others")
    found = re.search(rf"{which}:\s+(\d+) kB", STATUS.read_text(encoding="ascii"))
    if found is None:
        raise BenchmarkError(f"{STATUS} has no {which}")
    return int(found[1]) * 1024


def main(side: str, folder: str, warm: str) -> None:
    """Load and run; the answer is one line of JSON."""
    load = LOADERS[side]
    load(warm)(torch.arange(16)[None])
    RESET.write_text("5", encoding="ascii")  # the peak is now what is held
    before = memory("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    run = load(folder)
    answer: dict[str, object] = {
        "seconds": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak": memory("VmHWM") - before,
    }
    logits = run(torch.arange(16)[None])
    answer |= {
        "ran": time.perf_counter() - wall,
        "ran_cpu": time.process_time() - cpu,
        "ran_peak": memory("VmHWM") - before,
        "logits": logits[0, -1, :8].tolist(),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
