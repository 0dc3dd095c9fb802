# SPDX-License-Identifier: MIT OR Apache-2.0
"""From a folder, a Hub id or a model in memory to an `MIModel`: every tensor in its one place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor

from torch_mi.backends.build import Config, build, shapes_of
from torch_mi.backends.recurrent import Recurrent
from torch_mi.backends.transformer import Transformer
from torch_mi.errors import ConfigError, ModelError, TokenizerError
from torch_mi.families import eos_token_ids
from torch_mi.families.names import Plan
from torch_mi.families.report import understand
from torch_mi.files import checkpoint, hub
from torch_mi.files.adapters import read_adapter
from torch_mi.files.gguf import GgufFile
from torch_mi.files.opening import Files, gguf_of, open_files
from torch_mi.files.weights import Weights
from torch_mi.manifest import Origin
from torch_mi.memory import check_fits
from torch_mi.model import MIModel

if TYPE_CHECKING:
    from torch_mi.tokens.tokenizer import MITokenizer

DEMO = Path(__file__).parent / "demo"
PACKAGED = {"demo": DEMO, "demo-rwkv": DEMO / "rwkv"}
"""The models that this package holds."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Auto = Literal["auto"]
TINY = "tiny:"
"""What begins the name of a small random model, as in `tiny:gemma2`."""


@dataclass(frozen=True)
class Request:
    """How to fetch from the Hub, and what to merge into the weights."""

    revision: str | None = None
    token: str | None = None
    local_files_only: bool = False
    adapter: str | Path | None = None


def load(
    source: str | Path,
    request: Request,
    device: str | torch.device | None,
    dtype: torch.dtype | Auto,
) -> MIModel:
    """The model in a folder or a file, on the Hub, or in this package."""
    device = _usable(device) if dtype == "auto" else settled(device, dtype)
    if isinstance(source, str) and source.startswith(TINY):
        return _tiny(source.removeprefix(TINY), request, device, dtype)
    found = locate(source, request)
    files = open_files(found)
    if request.adapter is not None:
        files = files.adapted(read_adapter(_adapter_folder(request.adapter, request)))
    found_out = understand(files.config, partial(_headers, files), believable_shapes)
    cfg = found_out.config
    with files.open() as weights:
        held = own_dtype(files.config, weights) if isinstance(dtype, str) else dtype
        plan = found_out.place(believable_shapes(cfg, weights.shapes()), list(weights.shapes()))
        check_shapes(plan, weights.shapes())
        needed = sum(torch.Size(p.shape).numel() for p in plan.placements) * held.itemsize
        check_fits(needed, device, f"loading {found.model_id}", dtype=held)
        fetch = lru_cache(1)(weights.tensor)  # ours often lie side by side in one of theirs
        backend = assemble(cfg, plan, fetch, partial(Tensor.to, device=device, dtype=held))
    tokenizer, problem = _tokenizer(files, found.folder)
    stops = eos_token_ids(files.config)
    if files.metadata is None:
        stops = (*stops, *_generation_stops(found.folder))
    origin = Origin(
        found.model_id if request.adapter is None else f"{found.model_id} + {request.adapter}",
        found_out.model_type,
        found.revision,
        tuple(dict.fromkeys(stops)),
        None if files.altered else found.folder,
        problem,
        found_out.assumptions,
    )
    return MIModel(backend, tokenizer, origin)


def _headers(files: Files) -> Mapping[str, tuple[int, ...]]:
    """The shape of every tensor."""
    with files.open() as weights:
        return dict(weights.shapes())


def believable_shapes(
    cfg: Config, stored: Mapping[str, tuple[int, ...]]
) -> Mapping[str, tuple[int, ...]]:
    """The parameters of a model of this config, if its sizes are not beyond all reason."""
    largest = max((torch.Size(shape).numel() for shape in stored.values()), default=0)
    sizes = {
        "layers": (cfg.num_layers, len(stored)),
        "hidden_size": (cfg.hidden_size, largest),
        "head_dim": (cfg.head_dim, largest),
        "intermediate_size": (cfg.intermediate_size, largest),
        "vocab_size": (cfg.vocab_size, largest),
    }
    for name, (size, most) in sizes.items():
        if size > most:
            raise ModelError(
                f"config.json makes {name} = {size}, for which the checkpoint's {len(stored)} "
                f"tensors, of up to {largest} numbers, are too few or too small"
            )
    return shapes_of(cfg)


def _tiny(
    family: str, request: Request, device: torch.device, dtype: torch.dtype | Auto
) -> MIModel:
    """A small random model, made on the spot."""
    from torch_mi.testing import tiny  # noqa: PLC0415 - only for models made on the spot

    if request.adapter is not None:
        raise ModelError(f"adapter={request.adapter!r} has no base model in a random one")
    held = torch.float32 if isinstance(dtype, str) else dtype
    return tiny(family, device=device, dtype=held)


def _adapter_folder(adapter: str | Path, request: Request) -> Path:
    """The folder of an adapter; a revision is the model's, not the adapter's."""
    return hub.locate_adapter(
        adapter, token=request.token, local_files_only=request.local_files_only
    ).folder


def own_dtype(config: Mapping[str, object], weights: Weights) -> torch.dtype:
    """The dtype that a checkpoint is meant for: what its config says, or most of its weights."""
    named = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
    said = config.get("dtype") or config.get("torch_dtype")
    if isinstance(said, str) and said in named:
        return named[said]
    sizes = dict.fromkeys(DTYPES, 0)
    shapes = weights.shapes()
    for name, dtype in weights.dtypes().items():
        if dtype in sizes:
            sizes[dtype] += torch.Size(shapes[name]).numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


def adopt(hf_model: Any, tokenizer: Any = None) -> MIModel:
    """An in-memory `transformers` model under our hooks; the two share their parameters."""
    try:
        raw = cast("dict[str, object]", hf_model.config.to_dict())
        tensors = cast("Mapping[str, Tensor]", hf_model.state_dict(keep_vars=True))
    except AttributeError as cause:
        raise ModelError(
            f"from_hf takes a transformers model, not a {type(hf_model).__name__}"
        ) from cause
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    found = understand(raw, lambda: shapes, believable_shapes)
    plan = found.place(shapes_of(found.config), list(tensors))
    check_shapes(plan, shapes)

    name = str(raw.get("_name_or_path") or type(hf_model).__name__)
    origin = Origin(name, found.model_type, None, eos_token_ids(raw), assumed=found.assumptions)
    wrapped = None
    if tokenizer is not None:
        from torch_mi.tokens.tokenizer import MITokenizer  # noqa: PLC0415 - only with text

        wrapped = MITokenizer.from_hf(tokenizer)
    return MIModel(assemble(found.config, plan, tensors.__getitem__), wrapped, origin)


def locate(source: str | Path, request: Request, kind: hub.Kind = hub.MODEL) -> hub.Source:
    """The folder of a model: in this package, on this machine, or fetched from the Hub."""
    if isinstance(source, str) and source in PACKAGED:
        return hub.Source(PACKAGED[source], source, None)
    return hub.locate(
        source,
        revision=request.revision,
        token=request.token,
        local_files_only=request.local_files_only,
        kind=kind,
    )


def assemble(
    cfg: Config,
    plan: Plan,
    fetch: Callable[[str], Tensor],
    move: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> Transformer | Recurrent:
    """A backend around tensors that are already there: no second copy is made.

    `fetch` gives a checkpoint's tensor; `move` takes it to its device and dtype.
    """
    with torch.device("meta"):
        backend = build(cfg)
    state = {
        p.ours: p.source.moved(p.take([fetch(name) for name in p.theirs]), move)
        for p in plan.placements
    }
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


def check_shapes(
    plan: Plan, found: Mapping[str, tuple[int, ...]], config: str = "config.json"
) -> None:
    """Raise `ModelError` unless every tensor found has the shape that it is to have."""
    for p in plan.placements:
        for name in p.theirs:
            if not p.source.fits(tuple(found[name]), p.stored):
                raise ModelError(
                    f"{name} has shape {list(found[name])} in the checkpoint; "
                    f"{config} makes it {list(p.stored)}"
                )


def settled(device: str | torch.device | None, dtype: torch.dtype) -> torch.device:
    """The device to use, once it and the dtype are found to be usable."""
    if dtype not in DTYPES:
        raise ModelError(f"dtype={dtype!r} cannot hold a model; use one of {list(DTYPES)}")
    return _usable(device)


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


def tokenizer_of(found: hub.Source) -> "MITokenizer":
    """A model's tokenizer, without the model."""
    path = gguf_of(found)
    return _read_tokenizer(None if path is None else GgufFile(path).metadata, found.folder, None)


def _read_tokenizer(
    metadata: Mapping[str, object] | None, folder: Path, config: Mapping[str, object] | None
) -> "MITokenizer":
    """The tokenizer in a GGUF file's metadata, or in the folder of a model of this config."""
    from torch_mi.tokens.gguf import read_tokenizer  # noqa: PLC0415 - tokenizers loads late
    from torch_mi.tokens.tokenizer import MITokenizer  # noqa: PLC0415 - tokenizers loads late

    if metadata is not None:
        return read_tokenizer(metadata)
    return MITokenizer.from_folder(folder, config)


def _tokenizer(files: Files, folder: Path) -> "tuple[MITokenizer | None, str]":
    """The model's tokenizer, or why there is none."""
    try:
        return _read_tokenizer(files.metadata, folder, files.config), ""
    except TokenizerError as cause:
        return None, str(cause)


def _generation_stops(folder: Path) -> tuple[int, ...]:
    extra = checkpoint.read_generation_config(folder)
    try:
        return () if extra is None else eos_token_ids(extra)
    except ConfigError as cause:
        raise ConfigError(f"generation_config.json: {cause}") from cause
