# SPDX-License-Identifier: MIT OR Apache-2.0
"""From a folder, a Hub id or a model in memory to an `MIModel`: every tensor in its one place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from torch_mi.backends.transformer import Transformer, parameter_shapes
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError, ModelError, TokenizerError
from torch_mi.families import eos_token_ids, read_config
from torch_mi.families.names import Plan
from torch_mi.files import checkpoint, hub
from torch_mi.manifest import Origin
from torch_mi.memory import check_fits
from torch_mi.model import MIModel

if TYPE_CHECKING:
    from torch_mi.tokens.tokenizer import MITokenizer

DEMO = Path(__file__).parent / "demo"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TINY = "tiny:"
"""What begins the name of a small random model, as in `tiny:gemma2`."""


@dataclass(frozen=True)
class Request:
    """How to fetch from the Hub."""

    revision: str | None = None
    token: str | None = None
    local_files_only: bool = False


def load(
    source: str | Path,
    request: Request,
    device: str | torch.device | None,
    dtype: torch.dtype,
) -> MIModel:
    """The model in a folder, on the Hub, or in this package."""
    if dtype not in DTYPES:
        raise ModelError(f"dtype={dtype!r} cannot hold a model; use one of {list(DTYPES)}")
    device = _usable(device)
    if isinstance(source, str) and source.startswith(TINY):
        from torch_mi.testing import tiny  # noqa: PLC0415 - only for models made on the spot

        return tiny(source.removeprefix(TINY), device=device, dtype=dtype)
    found = locate(source, request)
    raw = checkpoint.read_config(found.folder)
    family, cfg = read_config(raw)
    with checkpoint.Checkpoint(found.folder) as weights:
        plan = family.place(cfg, parameter_shapes(cfg), list(weights.shapes()))
        _check_shapes(plan, weights.shapes())
        needed = sum(torch.Size(p.shape).numel() for p in plan.placements) * dtype.itemsize
        check_fits(needed, device, f"loading {found.model_id}", dtype=dtype)

        backend = assemble(
            cfg, plan, weights.tensor, partial(Tensor.to, device=device, dtype=dtype)
        )
    tokenizer, problem = _tokenizer(found.folder)
    stops = (*eos_token_ids(raw), *_generation_stops(found.folder))
    origin = Origin(
        found.model_id,
        family.model_type,
        found.revision,
        tuple(dict.fromkeys(stops)),
        found.folder,
        problem,
    )
    return MIModel(backend, tokenizer, origin)


def adopt(hf_model: Any, tokenizer: Any = None) -> MIModel:
    """An in-memory `transformers` model under our hooks; the two share their parameters."""
    try:
        raw = cast("dict[str, object]", hf_model.config.to_dict())
        tensors = cast("Mapping[str, Tensor]", hf_model.state_dict(keep_vars=True))
    except AttributeError as cause:
        raise ModelError(
            f"from_hf takes a transformers model, not a {type(hf_model).__name__}"
        ) from cause
    family, cfg = read_config(raw)
    plan = family.place(cfg, parameter_shapes(cfg), list(tensors))
    _check_shapes(plan, {name: tuple(t.shape) for name, t in tensors.items()})

    name = str(raw.get("_name_or_path") or type(hf_model).__name__)
    origin = Origin(name, family.model_type, None, eos_token_ids(raw))
    wrapped = None
    if tokenizer is not None:
        from torch_mi.tokens.tokenizer import MITokenizer  # noqa: PLC0415 - only with text

        wrapped = MITokenizer.from_hf(tokenizer)
    return MIModel(assemble(cfg, plan, tensors.__getitem__), wrapped, origin)


def locate(source: str | Path, request: Request) -> hub.Source:
    """The folder of a model: in this package, on this machine, or fetched from the Hub."""
    if source == "demo":
        return hub.Source(DEMO, "demo", None)
    return hub.locate(
        source,
        revision=request.revision,
        token=request.token,
        local_files_only=request.local_files_only,
    )


def assemble(
    cfg: TransformerConfig,
    plan: Plan,
    fetch: Callable[[str], Tensor],
    move: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Transformer:
    """A transformer around tensors that are already there: no second copy is made.

    `fetch` gives a checkpoint's tensor; `move` takes it to its device and dtype.
    """
    with torch.device("meta"):
        backend = Transformer(cfg)
    state = {p.ours: move(p.take([fetch(name) for name in p.theirs])) for p in plan.placements}
    for theirs, ours in plan.duplicates.items():
        if not torch.equal(move(fetch(theirs)), state[ours]):
            raise ModelError(
                f"config.json ties the unembedding to the embedding, but the checkpoint's {theirs} "
                "differs from it; set tie_word_embeddings to false to use both"
            )
    if cfg.tie_word_embeddings:
        state["head.weight"] = state["tokens.weight"]
    backend.load_state_dict(state, strict=True, assign=True)
    if cfg.tie_word_embeddings:
        backend.head.weight = backend.tokens.weight
    return backend.eval()


def _check_shapes(plan: Plan, found: Mapping[str, tuple[int, ...]]) -> None:
    for p in plan.placements:
        for name in p.theirs:
            if tuple(found[name]) != p.stored:
                raise ModelError(
                    f"{name} has shape {list(found[name])} in the checkpoint; "
                    f"config.json makes it {list(p.stored)}"
                )


def _usable(wanted: str | torch.device | None) -> torch.device:
    """The device asked for, or the first GPU, or the CPU."""
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as cause:
        raise ModelError(f"device={wanted!r} is no device; use 'cpu', 'cuda' or 'mps'") from cause
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        gpus = torch.cuda.device_count() or "no"
        raise ModelError(
            f"device={str(device)!r}, but torch sees {gpus} GPU here; use device='cpu'"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("device='mps', but torch has no Metal here; use device='cpu'")
    return device


def _tokenizer(folder: Path) -> "tuple[MITokenizer | None, str]":
    """The folder's tokenizer, or why there is none."""
    from torch_mi.tokens.tokenizer import MITokenizer  # noqa: PLC0415 - tokenizers loads late

    try:
        return MITokenizer.from_folder(folder), ""
    except TokenizerError as cause:
        return None, str(cause)


def _generation_stops(folder: Path) -> tuple[int, ...]:
    extra = checkpoint.read_generation_config(folder)
    try:
        return () if extra is None else eos_token_ids(extra)
    except ConfigError as cause:
        raise ConfigError(f"generation_config.json: {cause}") from cause
