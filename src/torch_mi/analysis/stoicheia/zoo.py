# SPDX-License-Identifier: MIT OR Apache-2.0
"""AlgZoo's networks by name, from files and from the public bucket.

A name is `{task}_{hidden size}_{n}_{training sequences}_{seed}`. The bucket is
gs://arc-ml-public/alg/zoo, read over HTTPS.
"""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from torch import Tensor

from torch_mi.analysis.stoicheia.networks import Network, StoicheiaRnn, StoicheiaTransformer
from torch_mi.analysis.stoicheia.tasks import TASKS, Task, task_named
from torch_mi.errors import DownloadError, FileError, ModelError
from torch_mi.files.legacy import read_bin
from torch_mi.storage import read_tensors, write_atomically

BUCKET = "https://storage.googleapis.com/arc-ml-public/alg"
PATIENCE = 60.0
"""Seconds without an answer after which a download is given up."""
LARGEST = 1 << 20
"""Bytes that no file of the zoo comes near."""
FINAL = 1 << 30
TRAINED = (0, *(1 << power for power in range(20, 31)))
"""How many sequences a network of the zoo may have seen."""
SEEDS = range(5)
SUFFIXES = (".safetensors", ".pth", ".pkl")
NAME = re.compile(r"(?P<task>\w+?)_(?P<hidden>\d+)_(?P<n>\d+)_(?P<seen>\d+)_(?P<seed>\d+)")

BEST: dict[str, tuple[tuple[int, ...], dict[int, str]]] = {
    "2nd_argmax": (
        (2, 3, 4, 5, 6, 8, 10),
        {
            2: "2023214", 3: "3140011", 4: "3012012", 5: "3143444", 6: "2301102", 8: "3113404",
            16: "3132312", 32: "3423140",
        },
    ),
    "argmedian": (
        (3, 5, 7, 11),
        {2: "0003", 4: "0211", 8: "1204", 16: "1044", 32: "4334"},
    ),
    "median": ((2, 3, 5, 10), {2: "2000", 4: "4041", 8: "3113", 16: "1102", 32: "1110"}),
    "longest_cycle": (
        (3, 4, 5, 6),
        {2: "0232", 3: "0410", 4: "2100", 6: "0023", 8: "0333"},
    ),
}  # fmt: skip
"""By task: the lengths n of the grid, and by hidden size the best of five seeds at each length."""

EXTRA = {"blog": "one_layer_16_hidden_94_acc_2nd_argmax"}
"""Networks beside the grid: that of ARC's post, 432 parameters, for 10 inputs."""


@dataclass(frozen=True)
class ZooName:
    """One network of the zoo."""

    task: Task
    hidden_size: int
    n: int
    seed: int
    trained: int = FINAL
    """How many sequences it has seen."""

    def __post_init__(self) -> None:
        if self.trained not in TRAINED:
            raise ModelError(f"{self.trained} sequences: the zoo has 0 and 2^20, 2^21, … 2^30")
        if self.seed not in SEEDS:
            raise ModelError(f"seed {self.seed}: the zoo has 0 … {SEEDS[-1]}")

    @classmethod
    def of(cls, task: str | Task, hidden_size: int, n: int, seed: int | None = None) -> Self:
        """A cell of the grid, fully trained; unless given, with the best of five seeds."""
        task = task_named(task)
        if seed is not None:
            return cls(task, hidden_size, n, seed)
        lengths, seeds = BEST.get(task.name, ((), {}))
        if n not in lengths or hidden_size not in seeds:
            has = f"sizes {[*seeds]}, n {[*lengths]}" if seeds else f"{', '.join(BEST)}"
            raise ModelError(
                f"the zoo has no {task.name} with hidden size {hidden_size} and n={n}; it has {has}"
            )
        return cls(task, hidden_size, n, int(seeds[hidden_size][lengths.index(n)]))

    @classmethod
    def parse(cls, name: str) -> Self:
        """The network that a name or a file's name means."""
        found = NAME.fullmatch(Path(name).stem)
        if found is None or found["task"] not in TASKS:
            raise ModelError(f"{name!r} is no name of the zoo, as 2nd_argmax_16_10_{FINAL}_3")
        size, n, seen, seed = (int(found[part]) for part in ("hidden", "n", "seen", "seed"))
        return cls(TASKS[found["task"]], size, n, seed, seen)

    @classmethod
    def find(cls, name: str) -> Self:
        """A full name, or task, hidden size and n alone, which mean the best of five seeds."""
        short = re.fullmatch(r"(\w+?)_(\d+)_(\d+)", name)
        if short is not None and short[1] in TASKS:
            return cls.of(short[1], int(short[2]), int(short[3]))
        return cls.parse(name)

    def __str__(self) -> str:
        return f"{self.task.name}_{self.hidden_size}_{self.n}_{self.trained}_{self.seed}"

    def url(self, bucket: str = BUCKET) -> str:
        """Where it is published."""
        return f"{bucket}/zoo/{self}.pth"

    def check(self, network: Network) -> None:
        """Raise `ModelError` unless a network is of this task and size."""
        check_size(network, self.hidden_size, self.n, str(self))


def grid() -> list[ZooName]:
    """The best network of every cell of the grid."""
    return [
        ZooName.of(task, size, n)
        for task, (lengths, seeds) in BEST.items()
        for size in seeds
        for n in lengths
    ]


def load(path: str | Path, task: str | Task | None = None, seq_len: int | None = None) -> Network:
    """The network in a `.safetensors` file, or in a state dict (`.pth`, `.pkl`), tensors only.

    The task is read off a name of the zoo unless given; `seq_len` is needed for `median`, whose
    networks do not tell.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise FileError(f"{path} is none of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileError(f"there is no file {path}")
    tensors = read_tensors(path) if path.suffix == SUFFIXES[0] else read_bin(path)
    named = ZooName.parse(path.name) if NAME.fullmatch(path.stem) else None
    if named is not None and task is None:
        task, seq_len = named.task, named.n if seq_len is None else seq_len
    try:
        return network_from(tensors, task, seq_len)
    except ModelError as cause:
        raise ModelError(f"{path}: {cause}") from cause


def network_from(
    tensors: Mapping[str, Tensor], task: str | Task | None = None, seq_len: int | None = None
) -> Network:
    """The network in a state dict, of the kind that its names tell."""
    if any(name.startswith(("embed.", "attns.")) for name in tensors):
        made = StoicheiaTransformer.from_tensors(tensors, task or "longest_cycle")
        check_size(made, None, seq_len, "seq_len")
        return made
    if task is None:
        rnns = ", ".join(name for name, task in TASKS.items() if not task.discrete)
        raise ModelError(f"a recurrent network does not tell its task; give task= one of {rnns}")
    return StoicheiaRnn.from_tensors(tensors, task, seq_len)


def check_size(network: Network, hidden_size: int | None, seq_len: int | None, by: str) -> None:
    """Raise `ModelError` unless a network has this size, where one is given."""
    for what, found, wanted in (
        ("hidden size", network.hidden_size, hidden_size),
        ("inputs", network.seq_len, seq_len),
    ):
        if wanted is not None and found != wanted:
            raise ModelError(f"{by} says {what} {wanted}; the weights have {found}")


def cache_folder() -> Path:
    """Where downloads are kept: TORCH_MI_CACHE, or torch-mi in the user's cache."""
    base = os.environ.get("TORCH_MI_CACHE")
    if base:
        return Path(base) / "algzoo"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "torch-mi" / "algzoo"


def download(
    name: ZooName | str, folder: str | Path | None = None, *, bucket: str = BUCKET
) -> Path:
    """The file of a network of the zoo, fetched unless it is in the folder already.

    `name` is a full name, one without sequences and seed (`ZooName.find`), or "blog".
    What was fetched is read and measured before it is put in place.
    """
    if isinstance(name, str) and name not in EXTRA:
        name = ZooName.find(name)
    url = name.url(bucket) if isinstance(name, ZooName) else f"{bucket}/{EXTRA[name]}.pth"
    path = (cache_folder() if folder is None else Path(folder).expanduser()) / url.rpartition("/")[
        2
    ]
    if path.is_file():
        return path

    def fetch(scratch: Path) -> None:
        scratch.write_bytes(_read_url(url))
        try:
            tensors = read_bin(scratch)
        except FileError as cause:
            raise DownloadError(f"what {url} sent is not a network: {cause.__cause__}") from cause
        if isinstance(name, ZooName):
            name.check(network_from(tensors, name.task, name.n))

    return write_atomically(path, fetch)


def _read_url(url: str) -> bytes:
    """What is at an address, if it is no larger than a network of the zoo can be."""
    if not url.startswith(("https://", "http://")):
        raise DownloadError(f"{url} is no web address")
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            data: bytes = answer.read(LARGEST + 1)
            whole = answer.headers.get("Content-Length")
    except urllib.error.HTTPError as cause:
        known = " (the zoo has no such network?)" if cause.code in (403, 404) else ""
        raise DownloadError(f"{url} answered {cause.code} {cause.reason}{known}") from cause
    except (OSError, ValueError) as cause:
        raise DownloadError(f"{url} could not be reached: {cause}") from cause
    if len(data) > LARGEST:
        raise DownloadError(f"{url} is larger than any network of the zoo ({LARGEST:,} bytes)")
    if whole is not None and len(data) != int(whole):
        raise DownloadError(f"{url} broke off after {len(data):,} of {whole} bytes")
    return data
