# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a model's weights take, what loading one would take, and what a run would take: in bytes."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

from torch_mi.backends.build import Config, shapes_of
from torch_mi.cache import HookCache, Prefix
from torch_mi.families import RECURRENTS, read_config
from torch_mi.families.report import understand
from torch_mi.files.checkpoint import has_weights
from torch_mi.files.hub import CONFIG, Source
from torch_mi.files.opening import Files, open_files
from torch_mi.hooks.point import Hook
from torch_mi.hooks.spec import HookSpec
from torch_mi.memory import available_bytes, human_bytes
from torch_mi.results import Result

if TYPE_CHECKING:
    from torch_mi.model import MIModel
    from torch_mi.prompts import Prompt


@dataclass(frozen=True)
class Part:
    """Parameters of one kind: the same module of every layer."""

    kind: str
    """Their module, with a star for the layer."""
    dtype: str
    device: str
    parameters: int
    bytes: int


@dataclass(frozen=True, repr=False)
class Footprint(Result):
    """The bytes of a model's parameters, kind by kind; what is tied counts once."""

    form = "torch-mi footprint 1"

    model_id: str
    parts: tuple[Part, ...]

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(part.bytes for part in self.parts)

    @property
    def parameters(self) -> int:
        """How many numbers there are."""
        return sum(part.parameters for part in self.parts)

    def by(self, what: Literal["kind", "dtype", "device"]) -> dict[str, int]:
        """Bytes by kind, dtype or device."""
        found: dict[str, int] = {}
        for part in self.parts:
            name = {"kind": part.kind, "dtype": part.dtype, "device": part.device}[what]
            found[name] = found.get(name, 0) + part.bytes
        return found

    def to_dict(self) -> dict[str, object]:
        return {
            "format": self.form,
            "model_id": self.model_id,
            "parameters": self.parameters,
            "bytes": self.total,
            "parts": [asdict(part) for part in self.parts],
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(data["model_id"], tuple(Part(**part) for part in data["parts"]))


@dataclass(frozen=True, repr=False)
class LoadForecast(Result):
    """What a model's parameters would take, by its config alone, and what is free for them."""

    form = "torch-mi load forecast 1"

    footprint: Footprint
    device: str
    free: int | None
    """Bytes that can be had on the device; `None` where nobody can say."""

    @property
    def total(self) -> int:
        """Bytes that the parameters would take."""
        return self.footprint.total

    @property
    def fits(self) -> bool:
        """Whether there is room, as far as anybody can say."""
        return self.free is None or self.total <= self.free

    def to_dict(self) -> dict[str, object]:
        return {
            "format": self.form,
            "footprint": self.footprint.to_dict(),
            "device": self.device,
            "free": self.free,
            "fits": self.fits,
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(Footprint.from_dict(data["footprint"]), data["device"], data["free"])


@dataclass(frozen=True)
class PointBytes:
    """What the captures at one hook point keep."""

    point: str
    places: int
    """How many layers, or one outside them."""
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    """Of tensors that no earlier point keeps already: what two points share counts once."""


@dataclass(frozen=True, repr=False)
class RunForecast(Result):
    """What one run would take beside the weights.

    Tensors are counted as torch holds them, each storage once. What kernels take for themselves
    while they run is not in it.
    """

    form = "torch-mi run forecast 1"

    model_id: str
    batch: int
    pos: int
    device: str
    points: tuple[PointBytes, ...]
    keys_values: int
    """What layers hand on to later tokens, which a run with `after=` keeps."""
    logits: int
    attention: int
    """The most that a layer with explicit attention adds to what was there; 0 if all are fused."""
    total: int
    """The most that the run holds at once, captures and output included."""
    free: int | None
    """Bytes that can be had on the device; `None` where nobody can say."""

    @property
    def captures(self) -> int:
        """What the captures keep, once all have been looked at."""
        return sum(point.bytes for point in self.points)

    @property
    def fits(self) -> bool:
        """Whether there is room, as far as anybody can say."""
        return self.free is None or self.total <= self.free

    @property
    def warning(self) -> str:
        """What to do, if there is no room; nothing if there is."""
        if self.free is None or self.fits:
            return ""
        return (
            f"{self.batch} × {self.pos} tokens need about {human_bytes(self.total)} on "
            f"{self.device} beside the weights, and {human_bytes(self.free)} are free "
            f"({human_bytes(self.total - self.free)} short); use fewer tokens at a time, capture "
            "less, or load in bfloat16"
        )

    def to_dict(self) -> dict[str, object]:
        return {
            "format": self.form,
            **asdict(self),
            "points": [asdict(point) | {"shape": list(point.shape)} for point in self.points],
            "captures": self.captures,
            "fits": self.fits,
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        points = [PointBytes(**(p | {"shape": tuple(p["shape"])})) for p in data["points"]]
        names = ("model_id", "batch", "pos", "device", "keys_values", "logits", "attention")
        said: dict[str, Any] = {name: data[name] for name in (*names, "total", "free")}
        return cls(points=tuple(points), **said)


def footprint(model: "MIModel") -> Footprint:
    """What a model's parameters take."""
    found = (
        (name, tuple(p.shape), p.dtype, str(p.device))
        for name, p in model.backend.named_parameters()
    )
    return Footprint(model.origin.model_id, tuple(_parts(found)))


def _parts(
    weights: Iterable[tuple[str, tuple[int, ...], torch.dtype, str]],
) -> Iterator[Part]:
    """Weights gathered by module, dtype and device, in the order of their coming."""
    counts: dict[tuple[str, torch.dtype, str], int] = {}
    for name, shape, dtype, device in weights:
        module = name.rpartition(".")[0] or name
        kind = ".".join("*" if piece.isdecimal() else piece for piece in module.split("."))
        key = kind, dtype, device
        counts[key] = counts.get(key, 0) + torch.Size(shape).numel()
    for (kind, dtype, device), count in counts.items():
        said = str(dtype).removeprefix("torch.")
        yield Part(kind, said, device, count, count * dtype.itemsize)


def forecast(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: "torch.dtype | Literal['auto']" = torch.float32,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> LoadForecast:
    """What loading a model would take, by its config alone: no weights are fetched or read."""
    from torch_mi import loading  # noqa: PLC0415 - loading builds models

    request = loading.Request(revision, token, local_files_only)
    if isinstance(source, str) and source.startswith(loading.TINY):
        made = loading.load(source, request, device, dtype)
        return _against(footprint(made), made.device)
    found = loading.locate(source, request, CONFIG)
    files = open_files(found)
    held = dtype
    if isinstance(held, str):
        with files.open() as weights:
            held = loading.own_dtype(files.config, weights)
    place = loading.settled(device, held)
    shapes = shapes_of(_config(files, found)).items()
    parts = tuple(_parts((name, shape, held, str(place)) for name, shape in shapes))
    return _against(Footprint(found.model_id, parts), place)


def _config(files: Files, found: Source) -> Config:
    """What a model is, by its config and, where they are here, the headers of its weights."""
    shapes = dict[str, tuple[int, ...]]()
    if has_weights(found.folder, found.file):
        with files.open() as weights:
            shapes = dict(weights.shapes())
    elif files.config.get("model_type") not in RECURRENTS:
        return read_config(files.config)[1]
    return understand(files.config, lambda: shapes, lambda cfg, _: shapes_of(cfg)).config


def _against(found: Footprint, device: torch.device) -> LoadForecast:
    """A footprint beside what a device has free."""
    return LoadForecast(found, str(device), available_bytes(device))


def points_of(cache: HookCache) -> Iterator[PointBytes]:
    """What each point's captures keep that no earlier one does."""
    known: set[int] = set()
    found: dict[str, list[Tensor]] = {}
    for captures in (cache.before, cache):
        for name in captures:
            found.setdefault(Hook.parse(name).point, []).append(captures[name])
    for point, tensors in found.items():
        first, size = tensors[0], sum(held(tensors, known))
        said = str(first.dtype).removeprefix("torch.")
        yield PointBytes(str(point), len(tensors), tuple(first.shape), said, size)


def held(tensors: Iterable[Tensor], known: set[int]) -> Iterator[int]:
    """The bytes that each tensor keeps; none where its storage is `known`, which then all are."""
    for tensor in tensors:
        storage = tensor.untyped_storage()
        key = storage._cdata  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - which one it is
        yield 0 if key in known else storage.nbytes()
        known.add(key)


def shortage(model: "MIModel", prompt: "Prompt", spec: HookSpec, *, keep: bool = False) -> str:
    """What to say before a run that would not fit; nothing if it would.

    Only what a generous guess does not let pass is looked at closely, which takes a moment.
    """
    free = available_bytes(model.device)
    from torch_mi.model import batch_of  # noqa: PLC0415 - models forecast their runs

    rows, pos = batch_of(model, prompt).shape
    if free is None or rows * pos * guess(model, pos) * model.dtype.itemsize <= free:
        return ""
    after = Prefix() if keep else None
    return model.rehearsal.estimate(prompt, spec, after=after).warning


def guess(model: "MIModel", pos: int) -> int:
    """More numbers than any one of `pos` tokens takes, were everything captured at once."""
    sizes = model.backend.sizes
    width, heads = sizes["d_model"], sizes.get("head", 0)
    wide = 64 * width + 16 * sizes.get("d_mlp", 0) + 2 * width * (heads + sizes.get("expert", 0))
    return model.num_layers * (wide + 8 * heads * pos) + 8 * sizes["vocab"]
