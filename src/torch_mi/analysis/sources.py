# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a recurrent layer writes to the residual stream, by the token that it comes from.

What heads read of their state is linear in the values that tokens wrote (`effective`), and with the
denominators of the norm over heads and the gates held at their values, so is the rest of the way:
each earlier token has its own share of what is written, and the shares add up to it.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.analysis.attribution import Direction, before_norm, final_points
from torch_mi.analysis.changes import one_prompt
from torch_mi.analysis.decomposition import Positions, Words
from torch_mi.analysis.readout import Readout, readout, readout_points
from torch_mi.analysis.states import needs_state
from torch_mi.cache import HookCache
from torch_mi.errors import ModelError
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel
from torch_mi.prompts import Prompt
from torch_mi.results import Result, data_frame, floats, pieces_of, position_in

P = HookPoint
FORM = "torch-mi sources 1"
SHARES_FORM = "torch-mi source shares 1"
REST = ("bonus", "bias")
"""What is written beside what comes of the state: what a token reads of itself, and the bias of the
norm behind the gate."""


@dataclass(frozen=True, eq=False, repr=False)
class Sources(Result):
    """What one layer's time mixing writes at some positions, by where it comes from."""

    form = FORM

    model_id: str
    layer: int
    words: Words
    """The positions that are written to."""
    tokens: tuple[str, ...]
    """The whole prompt."""
    vectors: Tensor
    """[query source d_model]: by token of the prompt, and after them `REST`."""
    whole: Tensor
    """What is written in all, [query d_model]: the run's `AttnOut`."""
    scales: Tensor
    """The denominators of the final norm at these positions [query]; 1 without one."""
    manifest: Manifest

    @property
    def error(self) -> float:
        """The largest entry by which the shares' sum differs from what was written."""
        return float((self.vectors.sum(1) - self.whole).abs().max())

    @property
    def sources(self) -> tuple[str, ...]:
        """What the sources are called, in order."""
        return (*self.tokens, *REST)

    def sizes(self) -> Tensor:
        """How large each share is [query source]."""
        return self.vectors.square().sum(-1).sqrt()

    def toward(self, direction: Tensor, name: str = "a direction") -> "SourceShares":
        """How far each share goes along a direction [d_model] of the residual stream."""
        if direction.shape != self.whole.shape[-1:]:
            raise ModelError(
                f"a direction here is [{self.whole.shape[-1]}], not {list(direction.shape)}"
            )
        along = self.vectors.double() @ direction.detach().double().cpu()
        return self._shares(along, name)

    def toward_logit(
        self, model: MIModel, target: str | int, versus: str | int | None = None
    ) -> "SourceShares":
        """Each share of the logit of `target`, or of its lead over `versus`.

        The final norm's denominator is held, as in direct logit attribution.
        """
        wanted = model.token_id(target, output=True)
        other = None if versus is None else model.token_id(versus, output=True)
        before = before_norm(model, Direction.of(model, wanted, other).vector).cpu()
        along = self.vectors.double() @ before / self.scales.double()[:, None]
        names = pieces_of(model, [wanted, *([] if other is None else [other])], output=True)
        return self._shares(along, " over ".join(names))

    def _shares(self, along: Tensor, name: str) -> "SourceShares":
        return SourceShares(
            self.model_id, self.layer, self.words, self.tokens, name, along.float(), self.manifest
        )

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each position and source: the size of its share."""
        return data_frame(list(rows_of(self.words, self.sources, self.sizes())))

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "model_id": self.model_id,
            "layer": self.layer,
            "words": asdict(self.words),
            "tokens": list(self.tokens),
            "vectors": [[floats(vector) for vector in row] for row in self.vectors],
            "whole": [floats(row) for row in self.whole],
            "scales": floats(self.scales),
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["model_id"],
            data["layer"],
            Words.from_dict(data["words"]),
            tuple(data["tokens"]),
            torch.tensor(data["vectors"]),
            torch.tensor(data["whole"]),
            torch.tensor(data["scales"]),
            Manifest.from_dict(data["manifest"]),
        )


@dataclass(frozen=True, eq=False, repr=False)
class SourceShares(Result):
    """How far what each source wrote goes in one direction."""

    form = SHARES_FORM

    model_id: str
    layer: int
    words: Words
    tokens: tuple[str, ...]
    toward: str
    values: Tensor
    """[query source]: by token of the prompt, and after them `REST`."""
    manifest: Manifest

    @property
    def sources(self) -> tuple[str, ...]:
        """What the sources are called, in order."""
        return (*self.tokens, *REST)

    def best(self, k: int = 5, query: int = -1) -> list[tuple[int, float]]:
        """The `k` sources that weigh most at one of the positions, and how much."""
        row = floats(self.values[query])
        order = sorted(range(len(row)), key=lambda i: -abs(row[i]))
        return [(i, row[i]) for i in order[:k]]

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each position and source (needs pandas)."""
        return data_frame(list(rows_of(self.words, self.sources, self.values)))

    def to_dict(self) -> dict[str, object]:
        return {
            "format": SHARES_FORM,
            "model_id": self.model_id,
            "layer": self.layer,
            "words": asdict(self.words),
            "tokens": list(self.tokens),
            "toward": self.toward,
            "values": [floats(row) for row in self.values],
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["model_id"],
            data["layer"],
            Words.from_dict(data["words"]),
            tuple(data["tokens"]),
            data["toward"],
            torch.tensor(data["values"]),
            Manifest.from_dict(data["manifest"]),
        )


def rows_of(words: Words, sources: tuple[str, ...], values: Tensor) -> Iterator[dict[str, object]]:
    """Rows for pandas of values [query source]."""
    for query, row in zip(words.positions, values, strict=True):
        for i, value in enumerate(floats(row)):
            yield {"query": query, "source": i, "name": sources[i], "value": value}


def source_decomposition(
    model: MIModel, prompt: Prompt, layer: int, *, position: Positions = -1
) -> Sources:
    """What time mixing in one layer writes at `position`, or at "all", by source position.

    With the denominators of the norm over heads and the gates held. A source's share is what came
    of its write through the state; what a token reads of itself beside the state is "bonus"
    (RWKV-4 has no such part of its own, there it is in the share of the token itself). The prompt
    is run whole, so nothing came before.
    """
    needs_state(model)
    if not 0 <= layer < model.num_layers:
        raise ModelError(f"layer {layer} is out of range: layers are 0 … {model.num_layers - 1}")
    ids = one_prompt(model, prompt)
    places = range(len(ids)) if position == "all" else [position_in(len(ids), position)]
    points = [P.RwkvEffectiveAttn, P.RwkvV, P.AttnOut]
    spec = HookSpec().capture(*(point(layer) for point in points), *readout_points(model, layer))
    run = model.forward(torch.tensor([ids]), spec | final_points(model))
    where = tuple(places)
    reads = readout(model, layer, run, where)
    beside_state = run.get(P.RwkvBonus(layer))
    bonus = reads.bonus_held(
        None if beside_state is None else beside_state[0, list(where)].double()
    )
    beside = [reads.written(bonus)[:, None], reads.constant()[:, None]]
    scales = torch.ones(len(where))
    if P.FinalScale in model.backend.hook_points:
        scales = run[P.FinalScale][0, list(where), 0]
    vectors = torch.cat([_through_state(layer, run, where, reads, bonus), *beside], 1)
    return Sources(
        model_id=model.origin.model_id,
        layer=layer,
        words=Words.of(model, ids, where),
        tokens=pieces_of(model, ids),
        vectors=vectors.float().cpu(),
        whole=run[P.AttnOut(layer)][0, list(where)].float().cpu(),
        scales=scales.float().cpu(),
        manifest=run.manifest,
    )


def _through_state(
    layer: int, run: HookCache, places: tuple[int, ...], reads: Readout, bonus: Tensor
) -> Tensor:
    """What each token's write comes to [query source d_model]."""
    weights = run[P.RwkvEffectiveAttn(layer)][0].double()
    values = run[P.RwkvV(layer)][0].double()
    found: list[Tensor] = []
    for i, place in enumerate(places):
        read = weights[:, place].T[..., None] * values  # [source head d_value]
        held = reads.only(i).held(read[:, None])[:, 0]
        if reads.bonus is None:  # what a token reads of itself is in its weight
            own = torch.zeros_like(held)
            own[place] = bonus[i]
            held = held - own
        found.append(reads.written(held))
    return torch.stack(found)
