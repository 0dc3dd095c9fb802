# SPDX-License-Identifier: MIT OR Apache-2.0
"""New models from a config written by hand, and folders to keep them in."""

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from torch_mi.backends.transformer import Transformer, parameter_shapes
from torch_mi.config.parts import NormType
from torch_mi.config.recurrent import RecurrentConfig
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import FileError, ModelError
from torch_mi.families.own import MODEL_TYPE, own_config
from torch_mi.families.transformer_lens import completed, place_lens
from torch_mi.families.transformer_lens_config import read_lens_config
from torch_mi.families.world import VOCABULARIES
from torch_mi.files.checkpoint import SINGLE
from torch_mi.loading import assemble, check_shapes, settled
from torch_mi.manifest import Origin, versions
from torch_mi.model import MIModel
from torch_mi.nn.norm import Norm
from torch_mi.storage import read_json, write_json, write_tensors

if TYPE_CHECKING:
    from torch_mi.tokens.tokenizer import MITokenizer

SPREAD = 0.8
"""Standard deviation of the entries of a matrix, times the root of the model's width.

TransformerLens begins its models like this (`init_mode="gpt2"`); GPT-2 itself took 0.02 at any
width.
"""

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", VOCABULARIES)
"""The files that a tokenizer is saved in."""


def make(
    cfg: object,
    seed: int,
    device: str | torch.device | None,
    dtype: torch.dtype,
    tokenizer: object,
) -> MIModel:
    """A model of this config with random weights."""
    if not isinstance(cfg, TransformerConfig):
        raise ModelError(
            f"from_config takes a TransformerConfig, not a {type(cfg).__name__}; "
            "TransformerConfig.toy(...) makes one"
        )
    device = settled(device, dtype)
    drawn_before = torch.get_rng_state()
    backend = Transformer(cfg)
    torch.set_rng_state(drawn_before)  # modules draw what is drawn anew here
    begin(backend, seed)
    return MIModel(backend.to(device, dtype).eval(), readable(tokenizer), Origin("toy", MODEL_TYPE))


def begin(backend: Transformer, seed: int) -> None:
    """Fill a model's weights; what is drawn depends on the seed alone."""
    dice = torch.Generator().manual_seed(seed)
    spread = SPREAD / backend.cfg.hidden_size**0.5
    for module in backend.modules():
        for leaf, value in module.named_parameters(recurse=False):
            if isinstance(module, Norm):
                one = leaf == "weight" and module.kind is not NormType.RmsPlusOne
                torch.nn.init.constant_(value, float(one))
            elif leaf == "bias" or value.ndim == 1:
                torch.nn.init.zeros_(value)
            else:
                torch.nn.init.normal_(value, std=spread, generator=dice)


def readable(tokenizer: object) -> "MITokenizer | None":
    """Ours, or one that can be wrapped."""
    if tokenizer is None:
        return None
    from torch_mi.tokens.tokenizer import MITokenizer  # noqa: PLC0415 - only with text

    return tokenizer if isinstance(tokenizer, MITokenizer) else MITokenizer.from_hf(tokenizer)


def from_transformer_lens(
    state_dict: Mapping[str, Tensor],
    cfg: object,
    *,
    tokenizer: object = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> MIModel:
    """A TransformerLens `HookedTransformer`, from its `state_dict()` and its `cfg`.

    `cfg` is a `HookedTransformerConfig` or a dict of its entries. Weights may be folded or not, and
    are copied. Every tensor and every entry has to be accounted for.
    """
    device = settled(device, dtype)
    ours = read_lens_config(cfg)
    tensors = completed(state_dict, ours)
    plan = place_lens(ours, parameter_shapes(ours), list(tensors))
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    check_shapes(plan, shapes, "its config")

    def move(value: Tensor) -> Tensor:
        return value.detach().to(device, dtype, copy=True).contiguous()

    backend = assemble(ours, plan, tensors.__getitem__, move)
    return MIModel(backend, readable(tokenizer), Origin("custom", "transformer_lens"))


def save(model: MIModel, folder: str | Path) -> Path:
    """Write a model's config, weights and tokenizer."""
    folder, cfg = Path(folder).expanduser(), cast("object", model.config)
    if not isinstance(cfg, TransformerConfig | RecurrentConfig):
        raise ModelError(f"a model with a {type(cfg).__name__} cannot be saved")
    _check_free(folder)
    config: dict[str, object] = {
        **own_config(cfg),
        "vocab_size": cfg.vocab_size,
        "torch_mi_version": versions()["torch_mi"],
    }
    if model.origin.eos_ids:
        config["eos_token_id"] = list(model.origin.eos_ids)
    if model.has_tokenizer:
        ids = {"bos_token_id": model.tokenizer.bos_id, "pad_token_id": model.tokenizer.pad_id}
        config |= {key: value for key, value in ids.items() if value is not None}
        model.tokenizer.save(folder)
    else:
        for wanted in TOKENIZER:
            for path in folder.glob(wanted):
                path.unlink()
    write_tensors(folder / SINGLE, dict(model.backend.named_parameters()))
    write_json(folder / "config.json", config)
    return folder


def _check_free(folder: Path) -> None:
    """A folder may hold an older model saved here, and nothing else."""
    held = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    ours = (SINGLE, "config.json", *TOKENIZER)
    if held and (
        any(not any(fnmatch(name, wanted) for wanted in ours) for name in held)
        or read_json(folder / "config.json").get("model_type") != MODEL_TYPE
    ):
        raise FileError(f"{folder} holds other files ({', '.join(held[:5])}); give a new folder")
