# SPDX-License-Identifier: MIT OR Apache-2.0
"""Prompts of every kind, as padded token batches with positions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from torch_mi.backends.protocol import MIBackend
from torch_mi.cache import Prefix
from torch_mi.errors import ModelError, TokenizerError
from torch_mi.hooks.coordinates import Text
from torch_mi.types import Carry, numbers

if TYPE_CHECKING:
    from torch_mi.tokens.tokenizer import MITokenizer

Ids = Sequence[int] | Sequence[Sequence[int]] | Sequence[Tensor]
Prompt = str | Tensor | Sequence[str] | Ids | Sequence[float] | Sequence[Sequence[float]]
"""Text or token ids; of a model that reads numbers, the numbers."""


@runtime_checkable
class _HasIds(Protocol):
    def encode(self, text: str) -> list[int]: ...


@dataclass(frozen=True, eq=False)
class Batch:
    """Token ids [batch pos] of one run; which are real; and, with a prefix, where they stand."""

    tokens: Tensor
    real: Tensor | None = None
    """Where tokens of this run [batch pos] are not padding; `None` if all are real."""
    padding: Tensor | None = None
    """The same for the prefix and this run together [batch seen+pos]."""
    positions: Tensor = field(default_factory=lambda: torch.empty(0))
    known: bool = True
    """Whether there are tokens at all: a run may start from a residual stream."""

    @staticmethod
    def blank(residual: Tensor, width: int) -> "Batch":
        """The batch of a residual stream [batch pos d_model]: it has no tokens."""
        if residual.ndim != 3 or residual.shape[-1] != width:  # noqa: PLR2004 - its axes
            raise ModelError(
                f"a Residual of this layer holds [batch pos {width}], got {list(residual.shape)}; "
                "mi.partial.stream(model, cache, layer) makes one of a run's captures"
            )
        return Batch(torch.zeros(residual.shape[:2], dtype=torch.long), known=False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.tokens.shape[0], self.tokens.shape[1]

    def rows(self) -> list[list[int]]:
        """The token ids of each row, padding left out."""
        tokens = [numbers(row) for row in self.tokens]
        if self.real is None:
            return tokens
        keep = [numbers(row) for row in self.real]
        return [
            [t for t, k in zip(row, ks, strict=True) if k]
            for row, ks in zip(tokens, keep, strict=True)
        ]

    def ids(self) -> list[list[int]] | None:
        """The same, if there are token ids: a run may start from a residual, or read numbers."""
        return self.rows() if self.known and not self.tokens.is_floating_point() else None

    def columns(self) -> tuple[tuple[int, ...], ...] | None:
        """Where each row, prefix included, has real tokens; `None` if all are."""
        if self.padding is None:
            return None
        return tuple(tuple(numbers(row.nonzero().flatten())) for row in self.padding.cpu())

    def checked(self, vocab: int) -> "Batch":
        """This batch, if all of its ids are those of tokens."""
        low, high = int(self.tokens.min()), int(self.tokens.max())
        if low < 0 or high >= vocab:
            wrong = low if low < 0 else high
            raise ModelError(f"token id {wrong} is out of range: the model has 0 … {vocab - 1}")
        return self

    def place(
        self, mask: Tensor | None, positions: Tensor | None, prefix: Prefix, device: torch.device
    ) -> "Batch":
        """This batch on a device, after a prefix, with padding and positions settled."""
        batch, pos = self.shape
        if prefix.tokens is not None and len(prefix.tokens) != batch:
            raise ModelError(f"the prefix has {len(prefix.tokens)} rows, the prompt {batch}")
        real = self.real if mask is None else _read_mask(mask, self.shape)
        real = None if real is None else real.to(device)
        padding = _joined(prefix.real, real, batch, prefix.seen, pos, device)
        if positions is None:
            positions = _counted(padding, prefix, pos, device)
        elif positions.shape not in ((batch, pos), (1, pos), (pos,)):
            raise ModelError(
                f"position_ids are {list(positions.shape)}, tokens are [{batch}, {pos}]"
            )
        elif positions.is_floating_point() or int(positions.min()) < 0:
            lowest = positions.min().item()
            raise ModelError(f"position ids are whole numbers from 0 upwards; got {lowest}")
        positions = positions.reshape(-1, pos).to(device, torch.long)
        return Batch(self.tokens.to(device), real, padding, positions, self.known)

    def with_prefix(self, prefix: Prefix) -> "Batch":
        """This batch with the prefix's tokens in front."""
        if prefix.tokens is None:
            return self
        return replace(self, tokens=torch.cat([prefix.tokens, self.tokens], 1), real=self.padding)

    def follow(self, prefix: Prefix, carries: Mapping[int, Carry], of: MIBackend) -> Prefix:
        """The prefix that a run of this batch leaves behind."""
        rows = self.tokens.shape[0]
        here = self.positions.expand(rows, -1)
        before = here[:, :0] if prefix.positions is None else prefix.positions
        return Prefix(
            carries,
            self.with_prefix(prefix).tokens,
            torch.cat([before, here], 1),
            self.padding,
            of.recurrent,
        )


def read_prompt(
    prompt: object, tokenizer: "MITokenizer | None", why_none: str = "no tokenizer was given"
) -> Batch:
    """A prompt as a batch; texts or id lists of different lengths are padded on the left."""
    if isinstance(prompt, Tensor):
        return Batch(_read_tensor(prompt))
    if isinstance(prompt, str):
        return Batch(torch.tensor([_encode(prompt, tokenizer, why_none)]))
    if not isinstance(prompt, Sequence) or not prompt:
        raise ModelError(
            f"a prompt is text, token ids [pos] or [batch pos], or a list of either, not {prompt!r}"
        )
    items = cast("Sequence[object]", prompt)
    if all(isinstance(item, int) for item in items):
        return Batch(_read_tensor(torch.tensor(items)))
    return _pad([_row(item, tokenizer, why_none) for item in items], tokenizer)


def read_numbers(prompt: object) -> Tensor:
    """A prompt of a model that reads numbers, [batch pos]."""
    if isinstance(prompt, str) or not isinstance(prompt, Tensor | Sequence):
        raise ModelError(f"this model reads numbers [pos] or [batch pos], not {prompt!r}")
    try:
        x = prompt if isinstance(prompt, Tensor) else torch.tensor(prompt, dtype=torch.float64)
    except (TypeError, ValueError) as cause:
        raise ModelError(f"these are no rows of equally many numbers: {cause}") from cause
    if x.is_complex() or x.ndim not in (1, 2) or 0 in x.shape:
        raise ModelError(f"numbers are [pos] or [batch pos], got {list(x.shape)} of {x.dtype}")
    if not bool(x.isfinite().all()):
        raise ModelError("a prompt of numbers holds one that is not finite")
    return x.reshape(-1, x.shape[-1]).to(torch.float64)


def spelt(tokenizer: "MITokenizer", ids: list[int]) -> Text:
    """The text of token ids and the stretch of it that each of them covers."""
    return tokenizer.decode(ids), tokenizer.offsets_of(ids).offsets


def _row(item: object, tokenizer: "MITokenizer | None", why_none: str) -> list[int]:
    if isinstance(item, str):
        return _encode(item, tokenizer, why_none)
    if isinstance(item, Tensor) and item.ndim == 1:
        return numbers(_read_tensor(item)[0])
    if isinstance(item, Sequence) and item:
        ids = list(cast("Sequence[object]", item))
        if all(isinstance(i, int) for i in ids):
            return cast("list[int]", ids)
    raise ModelError(f"{item!r} in a list of prompts is neither text nor token ids")


def _encode(text: str, tokenizer: "_HasIds | None", why_none: str) -> list[int]:
    if tokenizer is None:
        raise TokenizerError(f"text needs a tokenizer, and {why_none}; give token ids")
    ids = tokenizer.encode(text)
    if not ids:
        raise TokenizerError("an empty text has no tokens, and this tokenizer adds none")
    return ids


def _read_tensor(tokens: Tensor) -> Tensor:
    if tokens.dtype.is_floating_point or tokens.dtype in (torch.bool, torch.complex64):
        raise ModelError(f"token ids are integers, got a tensor of {tokens.dtype}")
    if tokens.ndim not in (1, 2) or 0 in tokens.shape:
        raise ModelError(f"token ids are [pos] or [batch pos], got shape {list(tokens.shape)}")
    return tokens.reshape(-1, tokens.shape[-1]).long()


def _pad(rows: list[list[int]], tokenizer: "MITokenizer | None") -> Batch:
    longest = max(map(len, rows))
    if all(len(row) == longest for row in rows):
        return Batch(torch.tensor(rows))
    filler = (tokenizer.pad_id if tokenizer is not None else None) or 0
    tokens = [[filler] * (longest - len(row)) + row for row in rows]
    real = [[False] * (longest - len(row)) + [True] * len(row) for row in rows]
    return Batch(torch.tensor(tokens), torch.tensor(real))


def _read_mask(mask: Tensor, shape: tuple[int, int]) -> Tensor | None:
    if not isinstance(mask, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance] - users are untyped
        raise ModelError(f"attention_mask is a tensor [batch pos], not a {type(mask).__name__}")
    if tuple(mask.shape) != shape:
        raise ModelError(f"attention_mask is {list(mask.shape)}, tokens are {list(shape)}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ModelError("attention_mask holds 1 (or True) at real tokens and 0 at padding only")
    real = mask.bool()
    if empty := numbers((~real.any(1)).nonzero().flatten()):
        raise ModelError(f"row {empty[0]} of attention_mask has no real token")
    return None if bool(real.all()) else real


def _joined(
    before: Tensor | None,
    here: Tensor | None,
    batch: int,
    seen: int,
    pos: int,
    device: torch.device,
) -> Tensor | None:
    """Where the prefix and this run together are real."""
    if before is None and here is None:
        return None
    ones = torch.ones(batch, seen + pos, dtype=torch.bool, device=device)
    before = ones[:, :seen] if before is None else before
    return torch.cat([before, ones[:, :pos] if here is None else here], 1)


def _counted(padding: Tensor | None, prefix: Prefix, pos: int, device: torch.device) -> Tensor:
    """Positions counted on from the prefix, padding left out."""
    if padding is None and prefix.positions is None:
        return torch.arange(pos, device=device)[None]
    here = torch.ones(1, pos, device=device) if padding is None else padding[:, prefix.seen :]
    steps = here.long().cumsum(1)
    if prefix.positions is None:
        return (steps - 1).clamp(min=0)
    last = prefix.positions
    if prefix.real is not None:
        last = last.masked_fill(~prefix.real, -1)
    return (last.amax(1, keepdim=True) + steps).clamp(min=0)
