# SPDX-License-Identifier: MIT OR Apache-2.0
"""What texts have left behind, kept in files; and states that were trained to begin texts with."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from torch_mi.cache import Prefix
from torch_mi.errors import FileError, ModelError, did_you_mean
from torch_mi.files.legacy import read_bin
from torch_mi.hooks.point import HookPoint
from torch_mi.model import MIModel
from torch_mi.storage import read_json, read_tensors, write_json, write_tensors

FORMAT = "torch-mi Prefix 1"
TUNED = ("blocks.{}.att.time_state", "rwkv.blocks.{}.attention.time_state")
"""What checkpoints of state tuning call the state of a layer: [head d_value d_key]."""
OUTSIDE = ("tokens", "positions", "real")


def save_prefix(prefix: Prefix, path: str | Path) -> Path:
    """Write a prefix (keys and values, or states) to `path` as JSON, with safetensors beside it."""
    path = Path(path)
    tensors = {
        f"{layer}.{i}": part
        for layer, carry in prefix.carries.items()
        for i, part in enumerate(carry)
    }
    given = {"tokens": prefix.tokens, "positions": prefix.positions, "real": prefix.real}
    tensors |= {name: value for name, value in given.items() if value is not None}
    beside = path.with_suffix(".safetensors")
    write_tensors(beside, tensors)
    return write_json(
        path, {"format": FORMAT, "recurrent": prefix.recurrent, "tensors": beside.name}
    )


def load_prefix(path: str | Path) -> Prefix:
    """Read what `save_prefix` wrote."""
    path = Path(path)
    data = read_json(path)
    if data.get("format") != FORMAT:
        raise FileError(f"{path} is not a {FORMAT}: its format is {data.get('format')!r}")
    tensors = read_tensors(path.with_suffix(".safetensors"))
    carries: dict[int, tuple[Tensor, ...]] = {}
    for name in sorted(tensors, key=lambda n: [int(i) for i in n.split(".") if i.isdecimal()]):
        if name not in OUTSIDE:
            layer = int(name.partition(".")[0])
            carries[layer] = (*carries.get(layer, ()), tensors[name])
    outside = [tensors.get(name) for name in OUTSIDE]
    return Prefix(carries, *outside, recurrent=data.get("recurrent") is True)


def tuned_state(model: MIModel, source: str | Path | Mapping[str, Tensor]) -> Prefix:
    """A trained initial state, as a prefix of no tokens: `forward(..., after=tuned_state(...))`.

    `source` is a file of RWKV state tuning (`.pth` or `.safetensors`, `blocks.*.att.time_state`
    [head d_value d_key]) or its tensors.
    """
    tensors = _read(source)
    sizes, points = model.backend.sizes, model.backend.hook_points
    if HookPoint.RwkvState not in points or HookPoint.RwkvBonus not in points:
        raise ModelError("only RWKV-5 to 7 begin with a state of keys and values; this does not")
    shape = (sizes["head"], sizes["d_value"], sizes["d_key"])
    carries: dict[int, tuple[Tensor, ...]] = {}
    for layer in range(model.num_layers):
        names = [name.format(layer) for name in TUNED]
        found = next((name for name in names if name in tensors), None)
        if found is None:
            raise FileError(f"no tensor is named {names[0]}{did_you_mean(names[0], tensors)}")
        if tuple(tensors[found].shape) != shape:
            raise ModelError(
                f"{found} has shape {list(tensors[found].shape)}; this model's is {list(shape)}"
            )
        state = tensors[found].to(model.device, torch.float32).mT[None]
        empty = torch.zeros(1, sizes["d_model"], device=model.device, dtype=model.dtype)
        carries[layer] = (empty, state, empty)
    return Prefix(carries, recurrent=True)


def _read(source: str | Path | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if isinstance(source, Mapping):
        return source
    path = Path(source).expanduser()
    if not path.is_file():
        raise FileError(f"there is no file {path}")
    return read_tensors(path) if path.suffix == ".safetensors" else read_bin(path)
