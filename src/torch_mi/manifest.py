# SPDX-License-Identifier: MIT OR Apache-2.0
"""What it takes to make a run again: model, weights, tokens, spec, kernels, versions."""

import hashlib
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from torch_mi.hooks.interventions import KINDS
from torch_mi.hooks.saving import spec_to_dict
from torch_mi.hooks.spec import HookSpec

_SAMPLES = 4096


@dataclass(frozen=True)
class Origin:
    """Where a model came from."""

    model_id: str
    family: str
    revision: str | None = None
    eos_ids: tuple[int, ...] = ()
    folder: Path | None = None
    """Where its files are."""
    tokenizer_problem: str = "this model was made without a tokenizer"
    """Why there is no tokenizer, if there is none."""
    assumed: tuple[str, ...] = ()
    """What was made out from names and keys, where the family is not a known one."""


@dataclass(frozen=True)
class Manifest:
    """Enough to repeat a run and to tell whether it is the same one."""

    model_id: str
    revision: str | None
    weights: str
    """Fingerprint of the weights; see `fingerprint`."""
    tokens: list[list[int]] | None
    """Token ids of each row, padding left out."""
    spec: dict[str, object] | None
    attention: str
    """`auto` (fused wherever nobody looks) or `explicit`."""
    explicit_layers: list[int]
    """Layers in which attention ran step by step."""
    dtype: str
    device: str
    versions: dict[str, str]
    seed: int | None = None

    def to_dict(self) -> dict[str, object]:
        """This, as JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, object]) -> "Manifest":
        """The manifest that `to_dict` took apart."""
        return Manifest(**data)  # pyright: ignore[reportArgumentType] - checked by the caller's JSON


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    from torch_mi import __version__  # noqa: PLC0415 - the package imports this module

    return {
        "torch_mi": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def fingerprint(weights: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over every tensor's name, shape, dtype and up to 4096 evenly spaced entries."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights):
        sample = spread(tensor.detach(), _SAMPLES)
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(sample.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def spread(x: Tensor, samples: int) -> Tensor:
    """Evenly spaced entries, in the order of the flattened tensor, at least `samples` if it has."""
    step = max(1, x.numel() // samples)
    if x.is_contiguous():
        return x.view(-1)[::step]
    # flattening a transposed weight would copy all of it
    return x[torch.unravel_index(torch.arange(0, x.numel(), step, device=x.device), x.shape)]


def describe_spec(spec: HookSpec | None) -> dict[str, object] | None:
    """A spec as JSON; tensors by shape and digest, functions by name."""
    if spec is None or spec.is_empty():
        return None
    saved = [(place, e) for place, e in spec.edits if KINDS.get(type(e).__name__) is type(e)]
    data, tensors = spec_to_dict(
        HookSpec(
            captures=spec.captures,
            limits=spec.limits,
            edits=saved,
            state_knockout=spec.state_knockout,
            state_steering=spec.state_steering,
            allow_unfired=spec.allow_unfired,
        )
    )
    data["tensors"] = {
        name: {"shape": list(t.shape), "sha256": fingerprint([("", t)])}
        for name, t in tensors.items()
    }
    custom = [f"{place}: {edit!r}" for place, edit in spec.edits if (place, edit) not in saved]
    if custom:
        data["unsaved_edits"] = custom
    return data
