# SPDX-License-Identifier: MIT OR Apache-2.0
"""Seeded tiny models of every family, and the laws that any backend must obey.

A law takes a model and token ids [batch pos], three or more long, and raises `AssertionError` where
the model breaks it. A new backend is tested with `check_laws(MIModel(backend))`.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_mi.backends.build import Config, build
from torch_mi.errors import ConfigError, did_you_mean
from torch_mi.families import FAMILIES, RECURRENTS, read_config
from torch_mi.laws import (
    LAWS,
    Law,
    a_prefix_and_the_rest_are_the_whole,
    any_layer_can_be_resumed,
    captures_can_be_differentiated,
    edits_reach_no_earlier_position,
    every_hook_fires,
    heads_read_each_for_themselves,
    heads_take_up_values_by_their_pattern,
    identity_edits_change_nothing,
    knocked_out_edges_are_exactly_gone,
    norms_divide_by_their_scale,
    padding_is_not_seen,
    the_last_residual_gives_the_logits,
    the_parts_add_up,
    the_residual_stream_adds_up,
    watching_changes_nothing,
)
from torch_mi.manifest import Origin
from torch_mi.model import MIModel
from torch_mi.types import Tokens

if TYPE_CHECKING:
    from torch_mi.tokens.tokenizer import MITokenizer

__all__ = [
    "CHARACTERS",
    "COMMON",
    "LAWS",
    "Law",
    "a_prefix_and_the_rest_are_the_whole",
    "any_layer_can_be_resumed",
    "captures_can_be_differentiated",
    "check_laws",
    "edits_reach_no_earlier_position",
    "every_hook_fires",
    "heads_read_each_for_themselves",
    "heads_take_up_values_by_their_pattern",
    "identity_edits_change_nothing",
    "knocked_out_edges_are_exactly_gone",
    "norms_divide_by_their_scale",
    "padding_is_not_seen",
    "random_tokens",
    "the_last_residual_gives_the_logits",
    "the_parts_add_up",
    "the_residual_stream_adds_up",
    "tiny",
    "watching_changes_nothing",
]

CHARACTERS = ("<s>", "\n", *map(chr, range(32, 127)))
"""The vocabulary of a tiny model: what begins a text, and every printable character."""

SHARED: Mapping[str, object] = {"vocab_size": len(CHARACTERS), "max_position_embeddings": 64}

COMMON: Mapping[str, object] = {
    **SHARED,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "rope_theta": 100.0,
    "bos_token_id": 0,
}


def tiny(
    family: str,
    seed: int = 0,
    changes: Mapping[str, object] | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> MIModel:
    """A small random model of a family that reads and writes characters; nothing is downloaded.

    Every parameter is random, so that gains are not one and biases not zero. `changes` are keys of
    the family's `config.json`.
    """
    cfg = tiny_config(family, changes or {})
    backend = build(cfg)
    dice = torch.Generator().manual_seed(seed)
    of = drawn_recurrent if family in RECURRENTS else drawn
    with torch.no_grad():
        for name, value in backend.named_parameters():
            value.copy_(of(name, value.shape, dice))
    backend = backend.to(device, dtype).eval()
    reads = cfg.vocab_size == len(CHARACTERS)
    return MIModel(backend, _characters() if reads else None, Origin(f"tiny:{family}", family))


def tiny_config(family: str, changes: Mapping[str, object]) -> Config:
    """What the tiny model of a family computes."""
    if family in RECURRENTS:
        return RECURRENTS[family].config(
            {"model_type": family, **SHARED, **RECURRENTS[family].tiny, **changes}
        )
    if family not in FAMILIES:
        known = [*FAMILIES, *RECURRENTS]
        raise ConfigError(
            f"there is no tiny model of {family!r}; there are {', '.join(known)}"
            f"{did_you_mean(family, known)}"
        )
    of = FAMILIES[family]
    raw = {"model_type": family, **COMMON, **of.respelt(of.tiny), **of.respelt(changes)}
    return read_config(raw)[1]


def drawn(name: str, shape: torch.Size, dice: torch.Generator) -> Tensor:
    """A parameter of a transformer: gains near one, and maps that keep the size of things."""
    noise = torch.randn(shape, generator=dice)
    if len(shape) == 1:
        return name.endswith("weight") + 0.3 * noise
    return noise if name == "tokens.weight" else noise / shape[-1] ** 0.5


def drawn_recurrent(name: str, shape: torch.Size, dice: torch.Generator) -> Tensor:
    """A parameter of a recurrent model, in which no state explodes or is gone at once."""
    path = ["", *name.split(".")]
    if path[-1].startswith("mix_") and len(shape) == 1:
        return torch.rand(shape, generator=dice)
    noise = torch.randn(shape, generator=dice)
    if path[-1] == "decay" or name.endswith("decay.up.bias"):
        return 0.4 * noise - 1
    if path[-2].startswith("norm") or path[-1] in ("erased", "kept"):
        return (path[-1] != "bias") + 0.3 * noise
    if path[-1] in ("bias", "bonus"):
        return 0.5 * noise
    inner = shape[-2] if path[-1].startswith("mix_") else shape[-1]  # those are kept [in, out]
    return noise if name == "tokens.weight" else noise / inner**0.5


@cache
def _characters() -> "MITokenizer":
    """One token for each character, and one that begins a text."""
    from tokenizers import Regex, Tokenizer, decoders, models  # noqa: PLC0415 - late
    from tokenizers.pre_tokenizers import Split  # noqa: PLC0415 - tokenizers loads late
    from tokenizers.processors import TemplateProcessing  # noqa: PLC0415 - tokenizers loads late

    from torch_mi.tokens.tokenizer import MITokenizer  # noqa: PLC0415 - only with text

    table = {text: i for i, text in enumerate(CHARACTERS)}
    made = Tokenizer(models.WordLevel(table, unk_token="?"))
    made.pre_tokenizer = Split(Regex("[\\s\\S]"), "isolated")
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made.decoder = decoders.Fuse()
    made.add_special_tokens(["<s>"])  # pyright: ignore[reportUnknownMemberType]
    return MITokenizer(made)


def random_tokens(model: MIModel, batch: int = 2, pos: int = 9, seed: int = 0) -> Tokens:
    """Token ids [batch pos], the same for the same seed."""
    dice = torch.Generator().manual_seed(seed)
    return torch.randint(model.vocab_size, (batch, pos), generator=dice)


def check_laws(
    model: MIModel, tokens: Tensor | None = None, *, without: Iterable[Law] = ()
) -> None:
    """Hold a model to every law, `without` those that do not apply to its kind."""
    left_out = list(without)
    for law in LAWS:
        if law not in left_out:
            law(model, random_tokens(model) if tokens is None else tokens)
