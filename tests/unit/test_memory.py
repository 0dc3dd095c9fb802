# SPDX-License-Identifier: MIT OR Apache-2.0
"""How much memory there is, and whether something fits."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from torch_mi import memory
from torch_mi.errors import MemoryForecastError
from torch_mi.memory import (
    MB,
    MemoryReport,
    MemorySnapshot,
    available_bytes,
    check_fits,
    human_bytes,
    resident_bytes,
    sync_and_trim_gpu,
)


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KB"),
        (1536, "1.5 KB"),
        (500 * MB, "500.0 MB"),
        (28 * 10**9, "26.1 GB"),
        (-2048, "-2.0 KB"),
        (2**60, "1024.0 PB"),
    ],
)
def test_sizes_read_well(n: int, text: str):
    assert human_bytes(n) == text


def test_free_memory_is_what_psutil_says():
    free = available_bytes("cpu")
    assert free is not None
    assert 0 < free <= psutil.virtual_memory().total


def test_resident_memory_is_what_psutil_says():
    held = resident_bytes()
    assert held is not None
    assert held == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)


def test_resident_memory_grows_with_what_is_held():
    before = resident_bytes()
    block = torch.ones(64 * MB // 4)
    after = resident_bytes()
    assert before is not None
    assert after is not None
    assert after - before > 48 * MB
    assert block.sum() == block.numel()


def test_nobody_can_say_for_devices_without_memory():
    assert available_bytes("meta") is None
    check_fits(10**18, "meta", "a model")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB free, whose control groups a test can write."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 99 kB\nMemAvailable:  8388608 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/box/inner\n")
    (tmp_path / "cgroup/box/inner").mkdir(parents=True)
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "cgroup")
    return tmp_path


def test_without_limits_all_that_is_free_can_be_had(machine: Path):
    (machine / "cgroup/box/memory.max").write_text("max\n")
    assert available_bytes("cpu") == 8 * 1024 * MB


def test_a_control_group_limits_what_can_be_had(machine: Path):
    group = machine / "cgroup/box"  # the limit of a group holds for all groups inside it
    (group / "memory.max").write_text(f"{1000 * MB}\n")
    (group / "memory.current").write_text(f"{700 * MB}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {200 * MB}\n")
    assert available_bytes("cpu") == 500 * MB


def test_a_full_control_group_leaves_nothing(machine: Path):
    group = machine / "cgroup/box/inner"
    (group / "memory.max").write_text("100")
    (group / "memory.current").write_text("900")
    assert available_bytes("cpu") == 0


def test_control_groups_of_the_first_version(machine: Path):
    (machine / "proc/self/cgroup").write_text("3:cpu,cpuacct:/x\n5:memory:/job\n")
    group = machine / "cgroup/memory/job"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(str(300 * MB))
    (group / "memory.usage_in_bytes").write_text(str(100 * MB))
    assert available_bytes("cpu") == 200 * MB


def test_without_proc_psutil_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "PROC", tmp_path)
    total = psutil.virtual_memory().total
    free, held = available_bytes("cpu"), resident_bytes()
    assert free is not None
    assert held is not None
    assert 0 < held < total
    assert 0 < free <= total


def test_what_fits_is_let_through(machine: Path):
    check_fits(8 * 1024 * MB, "cpu", "the model")


def test_what_does_not_fit_says_how_much_and_what_to_do(machine: Path):
    with pytest.raises(MemoryForecastError) as caught:
        check_fits(10 * 1024 * MB, "cpu", "big/model")
    assert str(caught.value) == (
        "big/model needs 10.0 GB on cpu, and 8.0 GB are free (2.0 GB short); "
        "dtype=torch.bfloat16 needs 5.0 GB, which fits"
    )


def test_what_does_not_fit_in_half_either_says_so(machine: Path):
    with pytest.raises(MemoryForecastError, match=r"needs 10\.0 GB, which does not fit either"):
        check_fits(20 * 1024 * MB, "cpu", "big/model")


def test_no_smaller_dtype_is_offered_where_there_is_none(machine: Path):
    with pytest.raises(MemoryForecastError) as caught:
        check_fits(10 * 1024 * MB, "cpu", "big/model", dtype=torch.bfloat16)
    assert "bfloat16" not in str(caught.value)


def test_reports_are_differences():
    report = MemoryReport(
        MemorySnapshot(100 * MB, 500 * MB), MemorySnapshot(200 * MB, 1000 * MB, gpu_name="card")
    )
    assert report.ram_delta_mb() == 100
    assert report.vram_delta_mb() == 500
    assert str(report) == "RAM +100 MB  |  VRAM +500 MB"


def test_a_report_without_a_gpu_has_no_gpu_difference():
    report = MemoryReport(MemorySnapshot(200 * MB), MemorySnapshot(100 * MB, 5))
    assert report.vram_delta_mb() is None
    assert str(report) == "RAM -100 MB"
    unknown = MemoryReport(MemorySnapshot(None), MemorySnapshot(5))
    assert unknown.ram_delta_mb() is None
    assert str(unknown) == "RAM unknown"


@pytest.mark.parametrize(
    ("ours", "whose"), [(True, " [per-process]"), (False, " [device-wide]"), (None, "")]
)
def test_reports_are_printed(ours: bool | None, whose: str, capsys: pytest.CaptureFixture[str]):
    before = MemorySnapshot(100 * MB, 500 * MB, 8000 * MB, ours, "card")
    after = MemorySnapshot(80 * MB, 1000 * MB, 8000 * MB, ours, "card")
    report = MemoryReport(before, after)
    report.print_delta("loading")
    report.print_before_after("loading")
    assert capsys.readouterr().out == (
        f"  loading: RAM -20 MB  |  VRAM +500 MB{whose}\n"
        "  loading: RAM 100 MB → 80 MB (-20 MB)\n"
        f"  loading: VRAM 500 MB → 1000 MB / 8000 MB (+500 MB){whose} [card]\n"
    )


def test_reports_off_a_gpu_are_printed_in_a_line_each(capsys: pytest.CaptureFixture[str]):
    report = MemoryReport(MemorySnapshot(100 * MB), MemorySnapshot(None))
    report.print_delta("x")
    report.print_before_after("x")
    assert capsys.readouterr().out == "  x: RAM unknown\n  x: RAM unknown\n"


def test_a_snapshot_of_a_cpu_has_no_gpu():
    snapshot = MemorySnapshot.now("cpu")
    assert snapshot.ram_bytes is not None
    assert snapshot.ram_bytes > 0
    assert snapshot.ram_mb() == snapshot.ram_bytes / 1_048_576
    assert snapshot.vram_bytes is None
    assert snapshot.vram_mb() is None
    sync_and_trim_gpu("cpu")


@pytest.mark.parametrize("device", ["cuda:77", "meta", "mps"])
def test_a_gpu_that_is_not_there_is_not_counted(device: str):
    snapshot = MemorySnapshot.now(device)
    assert snapshot.ram_bytes is not None
    assert (snapshot.vram_bytes, snapshot.vram_per_process) == (None, None)


class Card:
    """A GPU as torch describes it."""

    def __init__(self, name: str, uuid: str) -> None:
        self.name, self.uuid = name, uuid


class Nvml:
    """NVIDIA's library, with one GPU on which two processes run."""

    class NVMLError(Exception):
        pass

    def __init__(self, ours: int | None, pid: int, *, works: bool = True) -> None:
        self.ours, self.pid, self.works = ours, pid, works
        self.asked = list[str]()

    def nvmlInit(self) -> None:  # noqa: N802 - its name
        if not self.works:
            raise self.NVMLError

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802 - its name
        self.asked.append(uuid)
        return "card"

    def nvmlDeviceGetComputeRunningProcesses(self, card: str) -> list[SimpleNamespace]:  # noqa: N802
        assert card == "card"
        return [
            SimpleNamespace(pid=1, usedGpuMemory=7 * MB),
            SimpleNamespace(pid=self.pid, usedGpuMemory=self.ours),
        ]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine whose torch tells of one GPU."""
    cuda: dict[str, object] = {
        "mem_get_info": (60 * MB, 100 * MB),
        "get_device_properties": Card("card", "ab-cd"),
        "memory_allocated": 10 * MB,
        "max_memory_allocated": 20 * MB,
    }
    for name, value in cuda.items():

        def tell(_device: object, said: object = value) -> object:
            return said

        monkeypatch.setattr(torch.cuda, name, tell)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    return monkeypatch


def test_without_nvml_the_whole_device_is_counted(gpu: pytest.MonkeyPatch):
    assert MemorySnapshot.now("cuda") == MemorySnapshot(
        MemorySnapshot.now("cuda").ram_bytes, 40 * MB, 100 * MB, False, "card", 10 * MB, 20 * MB
    )


NOBODY = 2**64 - 1
"""What NVML says where it does not know."""


@pytest.mark.parametrize(
    ("nvml", "used", "ours"),
    [
        (Nvml(12 * MB, os.getpid()), 12 * MB, True),
        (Nvml(12 * MB, 2), 40 * MB, False),
        (Nvml(NOBODY, os.getpid()), 40 * MB, False),
        (Nvml(None, os.getpid()), 40 * MB, False),
        (Nvml(12 * MB, os.getpid(), works=False), 40 * MB, False),
    ],
)
def test_nvml_knows_this_process_or_the_device_is_counted(
    nvml: Nvml, used: int, ours: bool, gpu: pytest.MonkeyPatch
):
    gpu.setitem(sys.modules, "pynvml", nvml)
    found = MemorySnapshot.now("cuda:0")
    assert (found.vram_bytes, found.vram_per_process) == (used, ours)
    assert found.vram_mb() == used / MB
    assert nvml.asked == (["GPU-ab-cd"] if nvml.works else [])


def test_a_gpu_that_does_not_answer_is_not_counted(gpu: pytest.MonkeyPatch):
    def lost(_: object) -> tuple[int, int]:
        raise RuntimeError("the GPU has fallen off the bus")

    gpu.setattr(torch.cuda, "mem_get_info", lost)
    assert MemorySnapshot.now("cuda").vram_bytes is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_gpu_memory_is_counted():
    free = available_bytes("cuda")
    assert free is not None
    before = MemorySnapshot.now("cuda")
    block = torch.zeros(64 * MB, device="cuda", dtype=torch.uint8)
    report = MemoryReport(before, MemorySnapshot.now("cuda"))
    assert report.vram_delta_mb() is not None
    assert report.after.tensor_bytes is not None
    assert report.before.tensor_bytes is not None
    assert report.after.tensor_bytes - report.before.tensor_bytes == 64 * MB
    assert (report.after.tensor_peak_bytes or 0) >= report.after.tensor_bytes
    left = available_bytes("cuda")
    assert left is not None
    assert left <= free - 63 * MB
    with pytest.raises(MemoryForecastError, match="on cuda"):
        check_fits(10**15, "cuda", "the model")
    del block
    sync_and_trim_gpu("cuda")
