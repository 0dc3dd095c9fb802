# SPDX-License-Identifier: MIT OR Apache-2.0
"""How activations lie in their space: principal components.

Exact, by a singular value decomposition of the centred rows. Eigenvalues are those of the scatter
matrix, the squares of the singular values, not divided by the number of rows. Each component points
to where its largest entry is positive.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor

from torch_mi.errors import HookError, ModelError
from torch_mi.hooks.point import Hook
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel, batch_of
from torch_mi.prompts import Prompt
from torch_mi.results import Result, data_frame, floats, pieces_of, position_in, text_of

FORM = "torch-mi principal components 1"
ROWS = 64
"""Prompts run at once."""
MATRIX = 2
"""A matrix has two axes."""


@dataclass(frozen=True)
class Sample:
    """Where a row of activations comes from."""

    prompt: int
    position: int
    token_id: int
    token: str
    text: str
    """The whole prompt."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Activations [sample width] by place, and where each row comes from."""

    rows: Mapping[str, Tensor]
    samples: tuple[Sample, ...]
    manifest: Manifest


@dataclass(frozen=True, eq=False, repr=False)
class Pca(Result):
    """The directions in which rows spread most, the widest first."""

    form = FORM

    components: Tensor
    """Directions of length one [k width]; zeros beyond the rank of the rows."""
    eigenvalues: Tensor
    """The sum of the squares [k] of the rows' distances along each."""
    ratios: Tensor
    """The part [k] of the whole spread that each explains."""
    mean: Tensor
    """The mean row [width]."""
    fitted: int
    """How many rows the components were made from."""
    at: str | None = None
    projections: Tensor | None = None
    """The rows along the components [sample k], where they are activations of a model."""
    samples: tuple[Sample, ...] = ()
    manifest: Manifest | None = None

    def project(self, rows: Tensor) -> Tensor:
        """Rows [... width] along the components [... k]."""
        self._check(rows, self.components.shape[1])
        return (rows.float().cpu() - self.mean) @ self.components.T

    def reconstruct(self, along: Tensor) -> Tensor:
        """The rows [... width] that lie so far along the components [... k], and not elsewhere."""
        self._check(along, self.components.shape[0])
        return along.float().cpu() @ self.components + self.mean

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each sample, or for each component (needs pandas)."""
        if self.projections is None:
            pairs = zip(floats(self.eigenvalues), floats(self.ratios), strict=True)
            return data_frame([{"eigenvalue": value, "ratio": ratio} for value, ratio in pairs])
        rows: list[dict[str, object]] = [
            {**asdict(sample), **{f"pc{i}": value for i, value in enumerate(floats(row))}}
            for sample, row in zip(self.samples, self.projections, strict=True)
        ]
        return data_frame(rows)

    def to_dict(self) -> dict[str, object]:
        along = self.projections
        return {
            "format": FORM,
            "components": [floats(row) for row in self.components],
            "eigenvalues": floats(self.eigenvalues),
            "ratios": floats(self.ratios),
            "mean": floats(self.mean),
            "fitted": self.fitted,
            "at": self.at,
            "projections": None if along is None else [floats(row) for row in along],
            "samples": [asdict(sample) for sample in self.samples],
            "manifest": None if self.manifest is None else self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        along, manifest = data["projections"], data["manifest"]
        return cls(
            torch.tensor(data["components"]),
            torch.tensor(data["eigenvalues"]),
            torch.tensor(data["ratios"]),
            torch.tensor(data["mean"]),
            data["fitted"],
            data["at"],
            None if along is None else torch.tensor(along),
            tuple(Sample(**sample) for sample in data["samples"]),
            None if manifest is None else Manifest.from_dict(manifest),
        )

    @staticmethod
    def _check(rows: Tensor, width: int) -> None:
        if rows.shape[-1:] != (width,):
            raise ModelError(f"rows of {width} numbers are needed, got {list(rows.shape)}")


def pca(rows: Tensor, k: int = 3, *, n_omit: int = 0) -> Pca:
    """The `k` principal components of `rows` [sample width], the first `n_omit` rows left out."""
    if rows.ndim != MATRIX or not 0 <= n_omit < len(rows):
        raise ModelError(
            f"pca takes rows [sample width] and leaves out fewer of them than there are; got "
            f"{list(rows.shape)} and n_omit={n_omit}"
        )
    if not 1 <= k <= rows.shape[1]:
        raise ModelError(f"k={k} is out of range: 1 … {rows.shape[1]}, the width of the rows")
    kept = rows.detach()[n_omit:].double().cpu()
    if not bool(kept.isfinite().all()):
        raise ModelError("these rows have entries that are not finite numbers")
    mean = kept.mean(0)
    spread, components = _directions(kept - mean)
    total = float(spread.sum())
    short = max(0, k - len(spread))
    found = torch.cat([components[:k], components.new_zeros(short, rows.shape[1])])
    values = torch.cat([spread[:k], spread.new_zeros(short)])
    return Pca(
        components=found.float(),
        eigenvalues=values.float(),
        ratios=(values / total if total > 0 else values).float(),
        mean=mean.float(),
        fitted=len(kept),
    )


def _directions(centred: Tensor) -> tuple[Tensor, Tensor]:
    """The spread along each direction [rank] and the directions [rank width]."""
    parts = cast("tuple[Tensor, ...]", torch.linalg.svd(centred, full_matrices=False))  # pyright: ignore[reportUnknownMemberType] - torch's stub
    sigma, rows = parts[1:]
    tiny = float(sigma.max()) * max(centred.shape) * torch.finfo(sigma.dtype).eps
    keep = sigma > tiny
    sigma, rows = sigma[keep], rows[keep]
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return sigma.square(), rows * largest.sign()


def pca_activations(
    model: MIModel,
    prompts: Prompt,
    *,
    at: str,
    k: int = 3,
    position: int | Literal["all"] = -1,
    n_omit: int = 0,
) -> Pca:
    """The principal components of the activations at one place, and the activations along them.

    One row for each prompt, of the activation at `position`, or one for each of "all" positions;
    the first `n_omit` rows are projected but not fitted. Heads are laid side by side.
    """
    found = activations(model, prompts, at=[at], position=position)
    ((hook, rows),) = found.rows.items()
    made = pca(rows, k, n_omit=n_omit)
    along = made.project(rows)
    return replace(
        made, at=str(hook), projections=along, samples=found.samples, manifest=found.manifest
    )


def activations(
    model: MIModel, prompts: Prompt, *, at: Sequence[str], position: int | Literal["all"] = -1
) -> Samples:
    """The activations at some places, a row for each prompt or for each of its positions.

    Positions are counted without padding, negative from the end.
    """
    hooks = [_one_vector(Hook.parse(where)) for where in at]
    batch = batch_of(model, prompts)
    layers = [hook.layer for hook in hooks if hook.layer is not None]
    stop = max(layers) + 1 if len(layers) == len(hooks) else None
    rows: dict[str, list[Tensor]] = {hook: [] for hook in hooks}
    samples: list[Sample] = []
    manifests: list[Manifest] = []
    for first in range(0, len(batch.tokens), ROWS):
        here = slice(first, first + ROWS)
        real = None if batch.real is None else batch.real[here]
        spec = HookSpec().capture(*hooks)
        cache = model.forward(batch.tokens[here], spec, attention_mask=real, stop=stop)
        manifests.append(cache.manifest)
        for i, ids in enumerate(batch.rows()[here]):
            places = range(len(ids)) if position == "all" else [position_in(len(ids), position)]
            for hook in hooks:
                found = cache[hook][i, -len(ids) :][list(places)]
                rows[hook].append(found.detach().flatten(1).float().cpu())
            samples += _samples(model, first + i, ids, places)
    joined = {hook: torch.cat(parts) for hook, parts in rows.items()}
    return Samples(joined, tuple(samples), replace(manifests[0], tokens=batch.rows()))


def _one_vector(hook: Hook) -> Hook:
    """A hook with a vector for each token; an error for any other."""
    if hook.point.axes[:2] != ("batch", "pos"):
        raise HookError(f"{hook!r} is not one vector for each token: {' '.join(hook.point.axes)}")
    return hook


def _samples(model: MIModel, prompt: int, ids: list[int], places: Sequence[int]) -> list[Sample]:
    pieces, text = pieces_of(model, ids), text_of(model, ids)
    return [Sample(prompt, place, ids[place], pieces[place], text) for place in places]
