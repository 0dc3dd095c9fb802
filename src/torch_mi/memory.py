# SPDX-License-Identifier: MIT OR Apache-2.0
"""How much memory there is, how much this process holds, and whether something will fit."""

import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from torch_mi.errors import MemoryForecastError, ModelError

KB = 1024
MB = KB * KB
UNITS = ("B", "KB", "MB", "GB", "TB", "PB")
CGROUP = Path("/sys/fs/cgroup")
PROC = Path("/proc")


def human_bytes(n: int) -> str:
    """`n` bytes in the unit that reads best (1 KB = 1024 B).

    >>> human_bytes(28_000_000_000), human_bytes(512)
    ('26.1 GB', '512 B')
    """
    size, unit = float(n), 0
    while abs(size) >= KB and unit < len(UNITS) - 1:
        size, unit = size / KB, unit + 1
    return f"{n} B" if unit == 0 else f"{size:.1f} {UNITS[unit]}"


def _read(path: Path) -> str | None:
    """The text of a small kernel file, or None where this system has none."""
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None


def _kilobytes(text: str | None, key: str) -> int | None:
    """The bytes that a `Key:   123 kB` line of /proc states."""
    for line in (text or "").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


def _number(text: str | None) -> int | None:
    """The number a cgroup file holds; `max` means no limit."""
    return int(text) if text is not None and text.strip().isdigit() else None


def _inactive_file(folder: Path, key: str) -> int:
    """Page cache that the kernel gives back before it refuses anything."""
    for line in (_read(folder / "memory.stat") or "").splitlines():
        if line.startswith(f"{key} "):
            return int(line.split()[1])
    return 0


def _room(folder: Path, limit: str, usage: str, cache: str) -> int | None:
    """What one cgroup folder still allows, or None if it sets no limit."""
    allowed, used = _number(_read(folder / limit)), _number(_read(folder / usage))
    if allowed is None or used is None:
        return None
    return max(0, allowed - max(0, used - _inactive_file(folder, cache)))


def _cgroup_room() -> int | None:
    """What this process's control groups (v2, then v1) and those above them still allow."""
    rooms: list[int | None] = []
    for line in (_read(PROC / "self" / "cgroup") or "").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers not in {"", "memory"}:
            continue
        names = ("memory.max", "memory.current", "inactive_file")
        base = CGROUP
        if controllers == "memory":
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            base = CGROUP / "memory"
        folder = base / group.strip("/")
        for place in (folder, *folder.parents):
            rooms.append(_room(place, *names))
            if place == base:
                break
    return min((room for room in rooms if room is not None), default=None)


def _available_ram() -> int | None:
    free = _kilobytes(_read(PROC / "meminfo"), "MemAvailable")
    if free is None:
        return _psutil_available()
    room = _cgroup_room()
    return free if room is None else min(free, room)


def _psutil_available() -> int | None:
    """Free memory where there is no /proc, if psutil or the system says."""
    try:
        import psutil  # noqa: PLC0415 - optional, and only used off Linux
    except ImportError:
        names = os.sysconf_names if sys.platform != "win32" else {}
        if "SC_AVPHYS_PAGES" not in names:
            return None
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(psutil.virtual_memory().available)


def available_bytes(device: str | torch.device = "cpu") -> int | None:
    """Memory that can still be taken on `device`, or None where nobody can say."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        pooled = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + pooled
    return _available_ram() if device.type in {"cpu", "mps"} else None


def check_fits(
    needed: int,
    device: str | torch.device,
    what: str,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Refuse `what`, which needs `needed` bytes in `dtype`, if `device` has not that much free."""
    free = available_bytes(device)
    if free is None or needed <= free:
        return
    message = (
        f"{what} needs {human_bytes(needed)} on {device}, and {human_bytes(free)} are free"
        f" ({human_bytes(needed - free)} short)"
    )
    if dtype.itemsize > torch.bfloat16.itemsize:
        half = needed * torch.bfloat16.itemsize // dtype.itemsize
        verdict = "fits" if half <= free else "does not fit either"
        message += f"; dtype=torch.bfloat16 needs {human_bytes(half)}, which {verdict}"
    raise MemoryForecastError(message)


def resident_bytes() -> int | None:
    """The memory that this process holds now, or None where nobody can say."""
    resident = _kilobytes(_read(PROC / "self" / "status"), "VmRSS")
    if resident is not None:
        return resident
    try:
        import psutil  # noqa: PLC0415 - optional, and only used off Linux
    except ImportError:
        return None
    return int(psutil.Process().memory_info().rss)


@dataclass(frozen=True)
class MemorySnapshot:
    """What is held at one moment; `None` where nobody can say, and for GPUs off CUDA."""

    ram_bytes: int | None
    """This process in RAM."""
    vram_bytes: int | None = None
    """On the GPU: by this process if `vram_per_process`, else by all that use it."""
    vram_total_bytes: int | None = None
    vram_per_process: bool | None = None
    gpu_name: str | None = None
    tensor_bytes: int | None = None
    """On the GPU, by live tensors of this process."""
    tensor_peak_bytes: int | None = None
    """The most that its tensors have held since torch's count began or was reset."""

    @classmethod
    def now(cls, device: str | torch.device = "cpu") -> "MemorySnapshot":
        """What this process holds, and `device`, if it is a GPU."""
        ram, device = resident_bytes(), torch.device(device)
        if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
            return cls(ram)
        try:
            free, total = torch.cuda.mem_get_info(device)
            card = cast("Any", torch.cuda.get_device_properties(device))  # pyright: ignore[reportUnknownMemberType] - torch's stub
            tensors = torch.cuda.memory_allocated(device)
            peak = torch.cuda.max_memory_allocated(device)
        except RuntimeError:  # a GPU that is lost, or another's alone
            return cls(ram)
        ours = _nvml_bytes(str(card.uuid), total)
        used = total - free if ours is None else ours
        return cls(ram, used, total, ours is not None, card.name, tensors, peak)

    def ram_mb(self) -> float | None:
        return None if self.ram_bytes is None else self.ram_bytes / MB

    def vram_mb(self) -> float | None:
        return None if self.vram_bytes is None else self.vram_bytes / MB


def _nvml_bytes(uuid: str, total: int) -> int | None:
    """What this process holds of a GPU by NVIDIA's library, where that is here and knows us."""
    try:
        import pynvml  # noqa: PLC0415 - optional # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
        card = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        found = {p.pid: p.usedGpuMemory for p in nvml.nvmlDeviceGetComputeRunningProcesses(card)}
    except nvml.NVMLError:
        return None
    ours = found.get(os.getpid())  # in a container the numbers are the host's, and ours is absent
    return ours if isinstance(ours, int) and ours <= total else None


@dataclass(frozen=True)
class MemoryReport:
    """Two snapshots and what changed between them."""

    before: MemorySnapshot
    after: MemorySnapshot

    def ram_delta_mb(self) -> float | None:
        before, after = self.before.ram_mb(), self.after.ram_mb()
        return None if before is None or after is None else after - before

    def vram_delta_mb(self) -> float | None:
        before, after = self.before.vram_mb(), self.after.vram_mb()
        return None if before is None or after is None else after - before

    def print_delta(self, label: str) -> None:
        """One line: how much more is held than before."""
        sys.stdout.write(f"  {label}: {self}\n")

    def print_before_after(self, label: str) -> None:
        """A line for RAM, and one for the GPU if there is one: before, after, the difference."""
        sys.stdout.write(f"  {label}: RAM {_change(self.before.ram_mb(), self.after.ram_mb())}\n")
        if self.vram_delta_mb() is None:
            return
        change = _change(self.before.vram_mb(), self.after.vram_mb(), self.after.vram_total_bytes)
        name = f" [{self.after.gpu_name}]" if self.after.gpu_name else ""
        sys.stdout.write(f"  {label}: VRAM {change}{self._whose()}{name}\n")

    def _whose(self) -> str:
        """Whether the GPU's numbers are of this process or of all."""
        ours = self.after.vram_per_process
        return "" if ours is None else " [per-process]" if ours else " [device-wide]"

    def __str__(self) -> str:
        ram, vram = self.ram_delta_mb(), self.vram_delta_mb()
        parts = [f"RAM {ram:+.0f} MB"] if ram is not None else ["RAM unknown"]
        if vram is not None:
            parts.append(f"VRAM {vram:+.0f} MB{self._whose()}")
        return "  |  ".join(parts)


def _change(before: float | None, after: float | None, total: int | None = None) -> str:
    """From so many MB to so many."""
    if before is None or after is None:
        return "unknown"
    of = "" if total is None else f" / {total / MB:.0f} MB"
    return f"{before:.0f} MB → {after:.0f} MB{of} ({after - before:+.0f} MB)"


def sync_and_trim_gpu(device: str | torch.device) -> None:
    """Wait for the GPU and give its unused pooled memory back; nothing to do off CUDA."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        with torch.cuda.device(device):
            torch.cuda.empty_cache()


@contextmanager
def running(rows: int, pos: int) -> Generator[None]:
    """A run of so many tokens; if the memory gives out, what to do about it."""
    try:
        yield
    except torch.OutOfMemoryError as cause:
        raise ModelError(
            f"out of memory running {rows} × {pos} tokens; use fewer at a time, "
            "capture less, or load with dtype=torch.bfloat16"
        ) from cause
