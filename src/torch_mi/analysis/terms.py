# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a residual stream is a sum of: embedding, positions, heads, experts, neurons, biases.

The denominators of norms on the outputs of attention and MLP are held at their values, so that all
that follows is linear and each term has its own share of what is written.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torch_mi.analysis.readout import Readout, readout, readout_points
from torch_mi.cache import HookCache
from torch_mi.errors import ModelError, did_you_mean
from torch_mi.hooks.interventions import Replace
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel, batch_of
from torch_mi.partial import blank
from torch_mi.prompts import Prompt

P = HookPoint
SPLITS: dict[str, tuple[HookPoint, ...]] = {
    "heads": (P.AttnResult,),
    "neurons": (P.MlpPost, P.Ln2PostScale, P.MlpGate),
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
    gate: Tensor | None = None
    """What all terms are multiplied by [pos d_model], if anything."""

    def vectors(self) -> Tensor:
        """Every term [term pos d_model]."""
        each = self.each if self.gate is None else self.each * self.gate
        return each if self.times is None else each * self.times[..., None]

    def along(self, direction: Tensor) -> Tensor:
        """How far every term [term pos] goes along a direction [d_model]."""
        if self.gate is None:
            far = self.each @ direction
        else:
            far = torch.einsum("tpd,pd->tp", self.each, self.gate * direction)
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
            mixes = P.RwkvWkv in self.model.backend.layer_points(layer)
            name = "time mixing" if mixes else "attention"
            yield _one(Term(f"L{layer} {name}", "attention", layer), out)
        if bias is not None:
            term = Term(f"L{layer} attention bias", "attention bias", layer)
            yield _one(term, bias.expand(len(self.places), -1))

    def _heads(self, layer: int) -> Tensor:
        """What each head adds [head pos d_model]."""
        reads = self._readout(layer)
        if reads is not None:
            return reads.heads(self.at(P.RwkvWkv(layer)))
        written = self.model.backend.attention_written(layer)
        heads = self.at(P.AttnResult(layer)).movedim(1, 0)
        if written.norm is not None:
            heads = written.norm.linear(heads, self.at(P.Ln1PostScale(layer)))
        return heads * written.scale

    def _readout(self, layer: int) -> Readout | None:
        """How a recurrent layer's heads write; `None` if there is no state, or all is one term."""
        if "heads" not in self.split or P.RwkvWkv not in self.model.backend.layer_points(layer):
            return None
        return readout(self.model, layer, self.cache, self.places)

    def _attention_bias(self, layer: int) -> Tensor | None:
        """What attention adds beside its heads [pos d_model], if anything."""
        reads = self._readout(layer)
        if reads is not None:
            constant = reads.constant()
            return constant if bool(constant.any()) else None
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
        posts = self.at(P.MlpPost(layer)).T
        names = [Term(f"L{layer}N{i}", "neuron", layer, i) for i in range(len(posts))]
        one, held = posts.new_ones(1), self._held(layer)
        weights = torch.cat(
            [
                carried(self.model, layer, P.MlpPost, rows, one.expand(len(rows)))
                for rows in torch.split(torch.eye(len(posts), device=posts.device), ROWS)
            ]
        )
        none = carried(self.model, layer, P.MlpPost, torch.zeros_like(posts[:, :1]).T, one)
        gates = P.MlpGate in self.model.backend.layer_points(layer)
        gate = self.at(P.MlpGate(layer)) if gates else None
        yield Block(tuple(names), (weights - none)[:, None], posts / held, gate)
        if gate is None:  # what is gated has no bias
            yield from self._rest(layer, P.MlpPost, len(posts))

    def _experts(self, layer: int) -> Iterator[Block]:
        """What each expert adds, and the one that every token goes to."""
        made = self.at(P.ExpertOut(layer)).movedim(1, 0)
        names = [Term(f"L{layer}E{i}", "expert", layer, i) for i in range(len(made))]
        if P.SharedExpertOut in self.model.backend.layer_points(layer):
            made = torch.cat([made, self.at(P.SharedExpertOut(layer))[None]])
            names.append(Term(f"L{layer} shared expert", "shared expert", layer))
        if P.Ln2PostScale in self.model.backend.layer_points(layer):
            held = self._held(layer).expand(len(made), -1).flatten()
            rows = made.flatten(0, 1)
            full = carried(self.model, layer, P.MlpRawOut, rows, held)
            none = carried(self.model, layer, P.MlpRawOut, torch.zeros_like(rows), held)
            made = (full - none).view_as(made)
        yield Block(tuple(names), made)
        yield from self._rest(layer, P.MlpRawOut, made.shape[-1])

    def _held(self, layer: int) -> Tensor:
        """The denominator [pos] of the norm on the MLP's output; one where there is none."""
        if P.Ln2PostScale in self.model.backend.layer_points(layer):
            return self.at(P.Ln2PostScale(layer))[:, 0]
        return self.at(P.MlpOut(layer))[:, 0].new_ones(len(self.places))

    def _rest(self, layer: int, point: HookPoint, width: int) -> Iterator[Block]:
        """What an MLP adds without its parts: its bias, and that of a norm after it."""
        held = self._held(layer)
        rest = carried(self.model, layer, point, held.new_zeros(len(held), width), held)
        if bool(rest.any()):
            yield _one(Term(f"L{layer} MLP bias", "mlp bias", layer), rest)


def _one(term: Term, vectors: Tensor) -> Block:
    return Block((term,), vectors[None])


def carried(model: MIModel, layer: int, point: HookPoint, rows: Tensor, held: Tensor) -> Tensor:
    """What an MLP adds to the stream [row d_model] for each of `rows` [row width] at `point`.

    Found by running the layer with the rows in place, on texts of one token, so that it holds for
    any architecture. The denominator of a norm after the MLP is `held` [row], a gate on its output
    open.
    """
    points = model.backend.layer_points(layer)
    spec = HookSpec().capture(P.MlpOut(layer))
    spec.intervene(point(layer), Replace(rows[:, None].to(model.dtype)))
    if P.Ln2PostScale in points:
        spec.intervene(P.Ln2PostScale(layer), Replace(held[:, None, None].float()))
    if P.MlpGate in points:
        open_gate = rows.new_ones(len(rows), 1, model.hidden_size).to(model.dtype)
        spec.intervene(P.MlpGate(layer), Replace(open_gate))
    start = blank(model, layer, len(rows))
    return model.forward(start, spec, stop=layer + 1)[P.MlpOut(layer)][:, 0].double()


def heads_apart(model: MIModel) -> bool:
    """Whether what layers mix comes apart into heads that are few.

    Heads of one channel each, as in RWKV-4, are as many as the stream is wide, and are left whole;
    so are heads of recurrent models for which it is not known here how they are put together.
    """
    points, sizes = model.backend.hook_points, model.backend.sizes
    known = P.RwkvWkv in points and model.backend.mixed_written(0) is not None
    return P.AttnResult in points or (known and sizes["d_value"] > 1)


def check_split(model: MIModel, split: str | Collection[str]) -> frozenset[str]:
    """What is to be taken apart; an error where there is no such thing."""
    wanted = frozenset([split] if isinstance(split, str) else split)
    for name in sorted(wanted):
        if name not in SPLITS:
            known = ", ".join(map(repr, SPLITS))
            raise ModelError(f"split={name!r} is not one of {known}{did_you_mean(name, SPLITS)}")
        there = SPLITS[name][0] in model.backend.hook_points
        if not (heads_apart(model) if name == "heads" else there):
            raise ModelError(
                f"split={name!r}: this model has no {name}"
                + (
                    " of more than a channel each"
                    if name == "heads" and P.RwkvWkv in model.backend.hook_points
                    else f", for no layer has {SPLITS[name][0]}"
                )
            )
    return wanted


def run_for(
    model: MIModel,
    prompt: Prompt,
    split: frozenset[str],
    more: HookSpec,
    stop: int | None = None,
) -> HookCache:
    """A run of one prompt that has captured what its terms are read from."""
    batch = batch_of(model, prompt)
    if len(batch.tokens) != 1:
        raise ModelError(f"one prompt at a time, got {len(batch.tokens)}")
    offered = model.backend.hook_points
    points = [*ALWAYS, *(point for name in sorted(split) for point in SPLITS[name])]
    spec = HookSpec().capture(P.ResidPre(0), *(p for p in points if p in offered))
    if "heads" in split:
        layers = range(model.num_layers if stop is None else stop)
        spec.capture(*(point for i in layers for point in readout_points(model, i)))
    return model.forward(batch.tokens, spec | more, stop=stop)
