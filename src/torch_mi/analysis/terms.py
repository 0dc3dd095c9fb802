# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a residual stream is a sum of: embedding, positions, heads, experts, neurons, biases.

The denominators of norms on the outputs of attention and MLP are held at their values, so that all
that follows is linear and each term has its own share of what is written.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from torch_mi.cache import HookCache, Residual
from torch_mi.errors import ModelError, did_you_mean
from torch_mi.hooks.interventions import Replace
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel

P = HookPoint
Split = Literal["heads", "neurons", "experts"]
SPLITS: dict[str, tuple[HookPoint, ...]] = {
    "heads": (P.AttnResult,),
    "neurons": (P.MlpPost, P.Ln2PostScale),
    "experts": (P.ExpertOut, P.SharedExpertOut, P.Ln2PostScale),
}
"""What can be taken apart, and the points that it takes."""
ALWAYS = (P.Embed, P.PosEmbed, P.AttnOut, P.Ln1PostScale, P.MlpOut)
ROWS = 4096
"""Neurons looked at in one run of a layer."""


@dataclass(frozen=True)
class Term:
    """One term of a residual stream."""

    name: str
    kind: str
    """embedding, positions, attention, head, attention bias, mlp, neuron, mlp bias, expert …"""
    layer: int | None = None
    index: int | None = None
    """Which head, neuron or expert of its layer."""


@dataclass(frozen=True, eq=False)
class Block:
    """Some terms: what each is at every position, or a vector of each that activations multiply."""

    terms: tuple[Term, ...]
    each: Tensor
    """[term pos d_model], or [term one d_model] with `times`."""
    times: Tensor | None = None
    """Activations [term pos]."""

    def vectors(self) -> Tensor:
        """Every term [term pos d_model]."""
        return self.each if self.times is None else self.each * self.times[..., None]

    def along(self, direction: Tensor) -> Tensor:
        """How far every term [term pos] goes along a direction [d_model]."""
        far = self.each @ direction
        return far if self.times is None else far * self.times


@dataclass(frozen=True)
class Stream:
    """The residual stream of one prompt's run at some positions, in double precision."""

    model: MIModel
    cache: HookCache
    places: tuple[int, ...]
    split: frozenset[str] = field(default_factory=lambda: frozenset({"heads"}))

    def at(self, where: str) -> Tensor:
        """A capture [pos ...] at the positions."""
        return self.cache[where][0, list(self.places)].double()

    def blocks(self, layers: int) -> Iterator[Block]:
        """The terms of the stream that enters layer `layers`, in the order of the forward pass."""
        yield from self._beginning()
        for layer in range(layers):
            yield from self._attention(layer)
            points = self.model.backend.layer_points(layer)
            if P.ExpertOut in points and "experts" in self.split:
                yield from self._experts(layer)
            elif P.MlpPost in points and "neurons" in self.split:
                yield from self._neurons(layer)
            elif P.MlpOut in points:
                yield _one(Term(f"L{layer} MLP", "mlp", layer), self.at(P.MlpOut(layer)))

    def _beginning(self) -> Iterator[Block]:
        """What the stream begins with; a norm of the embedding leaves nothing to take apart."""
        whole, tokens = self.cache[P.ResidPre(0)], self.cache[P.Embed]
        positions = self.cache.get(P.PosEmbed)
        if not torch.equal(whole, tokens if positions is None else tokens + positions):
            yield _one(Term("embedding", "embedding"), self.at(P.ResidPre(0)))
            return
        yield _one(Term("embedding", "embedding"), self.at(P.Embed))
        if positions is not None:
            yield _one(Term("positions", "positions"), self.at(P.PosEmbed))

    def _attention(self, layer: int) -> Iterator[Block]:
        """What attention adds, head by head if wanted, and its bias."""
        bias = self._attention_bias(layer)
        if "heads" in self.split:
            heads = self._heads(layer)
            names = [Term(f"L{layer}H{i}", "head", layer, i) for i in range(len(heads))]
            yield Block(tuple(names), heads)
        else:
            out = self.at(P.AttnOut(layer))
            out = out if bias is None else out - bias
            yield _one(Term(f"L{layer} attention", "attention", layer), out)
        if bias is not None:
            term = Term(f"L{layer} attention bias", "attention bias", layer)
            yield _one(term, bias.expand(len(self.places), -1))

    def _heads(self, layer: int) -> Tensor:
        """What each head adds [head pos d_model]."""
        written = self.model.backend.attention_written(layer)
        heads = self.at(P.AttnResult(layer)).movedim(1, 0)
        if written.norm is not None:
            heads = written.norm.linear(heads, self.at(P.Ln1PostScale(layer)))
        return heads * written.scale

    def _attention_bias(self, layer: int) -> Tensor | None:
        """What attention adds beside its heads [pos d_model], if anything."""
        written = self.model.backend.attention_written(layer)
        bias = None if written.bias is None else written.bias.double()[None]
        if written.norm is not None:
            if bias is not None:
                bias = written.norm.linear(bias, self.at(P.Ln1PostScale(layer)))
            after = written.norm.bias
            if after is not None:
                bias = after.double()[None] if bias is None else bias + after.double()
        return None if bias is None else bias * written.scale

    def _neurons(self, layer: int) -> Iterator[Block]:
        """What each neuron adds, and what is added beside them."""
        width = self.model.backend.sizes["d_mlp"]
        names = [Term(f"L{layer}N{i}", "neuron", layer, i) for i in range(width)]
        weights, bias = carried(self.model, layer, P.MlpPost, torch.eye(width))
        times = self.at(P.MlpPost(layer)).T / self._held(layer)
        yield Block(tuple(names), weights[:, None], times)
        yield from self._rest(layer, times.new_zeros(len(self.places), 1) + bias)

    def _experts(self, layer: int) -> Iterator[Block]:
        """What each expert adds, and the one that every token goes to."""
        made = self.at(P.ExpertOut(layer)).movedim(1, 0)
        names = [Term(f"L{layer}E{i}", "expert", layer, i) for i in range(len(made))]
        if P.SharedExpertOut in self.model.backend.layer_points(layer):
            made = torch.cat([made, self.at(P.SharedExpertOut(layer))[None]])
            names.append(Term(f"L{layer} shared expert", "shared expert", layer))
        flat, bias = carried(self.model, layer, P.MlpRawOut, made.flatten(0, 1))
        yield Block(tuple(names), flat.view_as(made) / self._held(layer)[:, None])
        yield from self._rest(layer, made.new_zeros(len(self.places), 1) + bias)

    def _held(self, layer: int) -> Tensor:
        """The denominator [pos] of the norm on the MLP's output; one where there is none."""
        if P.Ln2PostScale in self.model.backend.layer_points(layer):
            return self.at(P.Ln2PostScale(layer))[:, 0]
        return torch.ones((), dtype=torch.float64, device=self.model.device).expand(
            len(self.places)
        )

    def _rest(self, layer: int, parts: Tensor) -> Iterator[Block]:
        """What an MLP adds beside its parts: its bias, and that of a norm after it."""
        yield _one(Term(f"L{layer} MLP bias", "mlp bias", layer), parts)


def _one(term: Term, vectors: Tensor) -> Block:
    return Block((term,), vectors[None])


def carried(model: MIModel, layer: int, point: HookPoint, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What an MLP adds to the stream for each of `rows` at `point`, and what it adds for none.

    Found by running the layer with each row in its place, so that it holds for any architecture in
    which what follows `point` is linear. The denominator of a norm after the MLP is one.
    """
    parts = [rows[:0], *torch.split(rows, ROWS)]
    nothing = torch.zeros_like(rows[:1])
    made = [_carried(model, layer, point, torch.cat([nothing, part])) for part in parts]
    bias = made[0][0]
    return torch.cat([part[1:] - bias for part in made]), bias
