# SPDX-License-Identifier: MIT OR Apache-2.0
"""RWKV-4 to 7, token by token in float64, as published; random checkpoints in the authors' names.

Nothing here is shared with the package: the equations are those of the papers (Peng et al. 2023,
2024, 2025), the names and layouts those of the released files.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import group_norm, layer_norm, normalize, relu, silu

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Sizes:
    """How large a random checkpoint is; no two numbers need be alike."""

    version: str
    """4, 5.0, 5.1, 5.2, 6 or 7."""
    width: int
    heads: int
    size: int
    layers: int = 2
    inner: int = 20
    vocab: int = 13
    ranks: tuple[int, ...] = (3, 4, 2, 5)
    logarithmic: bool = False
    """Whether the bonus of RWKV-5 is stored as a logarithm, under its older name."""

    @property
    def mixed(self) -> int:
        """The channels of all heads."""
        return self.heads * self.size

    def __str__(self) -> str:
        return f"{self.version}-{self.width}-{self.heads}x{self.size}"


class Maker:
    """Random tensors by name, from one seed."""

    def __init__(self, seed: int) -> None:
        self.dice = torch.Generator().manual_seed(seed)
        self.made: dict[str, Tensor] = {}

    def noise(self, name: str, *shape: int, spread: float = 1.0, mean: float = 0.0) -> None:
        self.made[name] = mean + spread * torch.randn(shape, generator=self.dice)

    def share(self, name: str, width: int) -> None:
        self.made[name] = torch.rand(1, 1, width, generator=self.dice)

    def norm(self, name: str, width: int) -> None:
        self.noise(f"{name}.weight", width, spread=0.3, mean=1.0)
        self.noise(f"{name}.bias", width, spread=0.3)

    def linear(self, name: str, out: int, into: int) -> None:
        self.noise(f"{name}.weight", out, into, spread=into**-0.5)


def checkpoint(s: Sizes, seed: int = 0) -> dict[str, Tensor]:
    """A random model as its authors would keep it."""
    make = Maker(seed)
    make.noise("emb.weight", s.vocab, s.width)
    make.norm("blocks.0.ln0", s.width)
    make.norm("ln_out", s.width)
    make.linear("head", s.vocab, s.width)
    for layer in range(s.layers):
        block = f"blocks.{layer}"
        make.norm(f"{block}.ln1", s.width)
        make.norm(f"{block}.ln2", s.width)
        for name in ("receptance", "key", "value"):
            make.linear(f"{block}.att.{name}", s.mixed, s.width)
        make.linear(f"{block}.att.output", s.width, s.mixed)
        make.linear(f"{block}.ffn.key", s.inner, s.width)
        make.linear(f"{block}.ffn.value", s.width, s.inner)
        if s.version != "7":
            make.linear(f"{block}.ffn.receptance", s.width, s.width)
        if s.version != "4":
            make.norm(f"{block}.att.ln_x", s.mixed)
        {"4": early, "6": finch, "7": goose}.get(s.version, early)(make, s, layer)
    return make.made


def early(make: Maker, s: Sizes, layer: int) -> None:
    """What versions 4 and 5 have beside matrices and norms."""
    att, ffn = f"blocks.{layer}.att", f"blocks.{layer}.ffn"
    gated = s.version in ("5.1", "5.2")
    for letter in "kvrg" if gated else "kvr":
        make.share(f"{att}.time_mix_{letter}", s.width)
    for letter in "kr":
        make.share(f"{ffn}.time_mix_{letter}", s.width)
    shape = {"4": (s.mixed,), "5.2": (s.heads, s.size)}.get(s.version, (s.heads,))
    make.noise(f"{att}.time_decay", *shape, spread=0.4, mean=-1.0)
    bonus = "time_first" if s.version == "4" or s.logarithmic else "time_faaaa"
    make.noise(f"{att}.{bonus}", *shape, spread=0.5)
    if gated:
        make.linear(f"{att}.gate", s.mixed, s.width)


def finch(make: Maker, s: Sizes, layer: int) -> None:
    """What version 6 has beside matrices and norms."""
    att, (mix, fade, *_) = f"blocks.{layer}.att", s.ranks
    for letter in "xwkvrg":
        make.share(f"{att}.time_maa_{letter}", s.width)
    for letter in "kr":
        make.share(f"blocks.{layer}.ffn.time_maa_{letter}", s.width)
    make.noise(f"{att}.time_maa_w1", s.width, 5 * mix, spread=s.width**-0.5)
    make.noise(f"{att}.time_maa_w2", 5, mix, s.width, spread=mix**-0.5)
    make.noise(f"{att}.time_decay", 1, 1, s.mixed, spread=0.4, mean=-1.0)
    make.noise(f"{att}.time_decay_w1", s.width, fade, spread=s.width**-0.5)
    make.noise(f"{att}.time_decay_w2", fade, s.mixed, spread=fade**-0.5)
    make.noise(f"{att}.time_faaaa", s.heads, s.size, spread=0.5)
    make.linear(f"{att}.gate", s.mixed, s.width)


def goose(make: Maker, s: Sizes, layer: int) -> None:
    """What version 7 has beside matrices and norms."""
    att = f"blocks.{layer}.att"
    for letter in "rwkvag":
        make.share(f"{att}.x_{letter}", s.width)
    make.share(f"blocks.{layer}.ffn.x_k", s.width)
    for letter, rank in zip("wavg", s.ranks, strict=True):
        if letter == "v" and not layer:
            continue
        make.noise(f"{att}.{letter}1", s.width, rank, spread=s.width**-0.5)
        make.noise(f"{att}.{letter}2", rank, s.mixed, spread=rank**-0.5)
        if letter != "g":
            make.noise(f"{att}.{letter}0", 1, 1, s.mixed, spread=0.5)
    for name in ("k_k", "k_a"):
        make.noise(f"{att}.{name}", 1, 1, s.mixed, spread=0.3, mean=1.0)
    make.noise(f"{att}.r_k", s.heads, s.size, spread=0.5)


@dataclass
class Memory:
    """What one layer remembers: two norms' last outputs, and its sums or matrix."""

    att: Tensor
    ffn: Tensor
    state: Tensor


@dataclass
class Ran:
    """A run: logits [pos vocab], what enters and leaves layers [layers + 1, pos, width]."""

    logits: Tensor
    resid: Tensor
    decay: Tensor
    """[layers, pos, heads, size]."""
    states: list[Tensor]
    """After the last token, [heads, keys, values]; of RWKV-4 [2, channels]: both sums."""


@dataclass
class Plain:
    """A published model, run one token after the other."""

    z: Weights
    s: Sizes
    head_eps: float = 64e-5
    without: frozenset[tuple[int, int]] = frozenset()
    """The (layer, position) of tokens that write nothing to the state."""

    def __post_init__(self) -> None:
        self.z = {name: value.double() for name, value in self.z.items()}

    def run(self, tokens: list[int]) -> Ran:
        s, zero = self.s, torch.zeros(self.s.width).double()
        sums = (2, s.mixed) if s.version == "4" else (s.heads, s.size, s.size)
        memory = [Memory(zero, zero, torch.zeros(sums).double()) for _ in range(s.layers)]
        logits, resid, decays = list[Tensor](), list[Tensor](), list[Tensor]()
        for position, token in enumerate(tokens):
            x = self.norm(self.z["emb.weight"][token], "blocks.0.ln0")
            streams, first, fade = [x], zero, list[Tensor]()
            for layer, kept in enumerate(memory):
                h, att = self.norm(x, f"blocks.{layer}.ln1"), f"blocks.{layer}.att."
                w, write = self.decay(h, kept.att, att), (layer, position) not in self.without
                out, first = self.mix(h, kept, (att, w, write), first)
                kept.att = h
                x = x + out
                h, ffn = self.norm(x, f"blocks.{layer}.ln2"), f"blocks.{layer}.ffn."
                x = x + self.channels(h, kept.ffn, ffn)
                kept.ffn = h
                streams.append(x)
                fade.append(w)
            logits.append(self.z["head.weight"] @ self.norm(x, "ln_out"))
            resid.append(torch.stack(streams))
            decays.append(torch.stack(fade))
        states = [kept.state for kept in memory]
        return Ran(torch.stack(logits), torch.stack(resid, 1), torch.stack(decays, 1), states)

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.z[f"{name}.weight"], self.z[f"{name}.bias"]
        return layer_norm(x, (self.s.width,), weight, bias, 1e-5)

    def lerp(self, h: Tensor, prev: Tensor, name: str) -> Tensor:
        """What is read of this token and the one before, by version 4 and 5's rule or 7's."""
        mu = self.z[name].flatten()
        return h + (prev - h) * mu if ".x_" in name or "maa" in name else h * mu + prev * (1 - mu)

    def finch_reads(self, h: Tensor, prev: Tensor, att: str, letter: str) -> Tensor:
        xxx = self.lerp(h, prev, f"{att}time_maa_x")
        low = torch.tanh(xxx @ self.z[f"{att}time_maa_w1"]).view(5, -1)
        i = "wkvrg".index(letter)
        more = low[i] @ self.z[f"{att}time_maa_w2"][i]
        return h + (prev - h) * (self.z[f"{att}time_maa_{letter}"].flatten() + more)

    def reads(self, h: Tensor, prev: Tensor, att: str, letter: str) -> Tensor:
        if self.s.version == "6":
            return self.finch_reads(h, prev, att, letter)
        return self.lerp(h, prev, f"{att}{'x' if self.s.version == '7' else 'time_mix'}_{letter}")

    def decay(self, h: Tensor, prev: Tensor, att: str) -> Tensor:
        """What each channel of the state keeps, [heads, size]."""
        s = self.s
        if s.version == "7":
            x = self.reads(h, prev, att, "w")
            low = torch.tanh(x @ self.z[f"{att}w1"]) @ self.z[f"{att}w2"]
            w = low + self.z[f"{att}w0"].flatten()
            return torch.exp(-math.exp(-0.5) * torch.sigmoid(w)).view(s.heads, s.size)
        w = self.z[f"{att}time_decay"].flatten()
        if s.version == "6":
            x = self.reads(h, prev, att, "w")
            low = torch.tanh(x @ self.z[f"{att}time_decay_w1"])
            w = w + low @ self.z[f"{att}time_decay_w2"]
        w = torch.exp(-torch.exp(w))
        return w.view(s.heads, -1).expand(s.heads, s.size)

    def mix(
        self, h: Tensor, kept: Memory, how: tuple[str, Tensor, bool], first: Tensor
    ) -> tuple[Tensor, Tensor]:
        att = how[0]
        r, k, v = (
            self.z[f"{att}{name}.weight"] @ self.reads(h, kept.att, att, name[0])
            for name in ("receptance", "key", "value")
        )
        if self.s.version == "4":
            return self.mix4(r, k, v, kept, how), first
        if self.s.version == "7":
            return self.mix7(h, (r, k, v), kept, how, first)
        s, z, write = self.s, self.z, how[2]
        r, k, v = (each.view(s.heads, s.size) for each in (r, k, v))
        u = z[f"{att}time_first"].exp() if s.logarithmic else z[f"{att}time_faaaa"]
        now = k[:, :, None] * v[:, None, :]
        y = torch.einsum("hk,hkv->hv", r, kept.state + u.view(s.heads, -1, 1) * now)
        kept.state = how[1][:, :, None] * kept.state + now * write
        y = self.head_norm(y, att)
        if f"{att}gate.weight" in z:
            y = y * silu(z[f"{att}gate.weight"] @ self.reads(h, kept.att, att, "g"))
        return z[f"{att}output.weight"] @ y, first

    def head_norm(self, y: Tensor, att: str) -> Tensor:
        weight, bias = self.z[f"{att}ln_x.weight"], self.z[f"{att}ln_x.bias"]
        return group_norm(y.flatten()[None], self.s.heads, weight, bias, self.head_eps)[0]

    def mix4(
        self, r: Tensor, k: Tensor, v: Tensor, kept: Memory, how: tuple[str, Tensor, bool]
    ) -> Tensor:
        att, w, write = how
        a, b = kept.state
        now = torch.exp(self.z[f"{att}time_first"] + k)
        wkv = (a + now * v) / (b + now)
        one = write * k.exp()
        kept.state = torch.stack([w.flatten() * a + one * v, w.flatten() * b + one])
        return self.z[f"{att}output.weight"] @ (torch.sigmoid(r) * wkv)

    def mix7(
        self,
        h: Tensor,
        rkv: tuple[Tensor, Tensor, Tensor],
        kept: Memory,
        how: tuple[str, Tensor, bool],
        first: Tensor,
    ) -> tuple[Tensor, Tensor]:
        (att, w, write), z, heads = how, self.z, (self.s.heads, self.s.size)
        r, k, v = rkv
        a = self.low(h, kept, att, "a")
        g = torch.sigmoid(self.reads(h, kept.att, att, "g") @ z[f"{att}g1"]) @ z[f"{att}g2"]
        if att.startswith("blocks.0."):
            first = v
        else:
            v = v + (first - v) * self.low(h, kept, att, "v")
        kappa = normalize((k * z[f"{att}k_k"].flatten()).view(heads), dim=-1)
        k = k * (1 + (a - 1) * z[f"{att}k_a"].flatten())
        r, k, vs, a = (each.view(heads) for each in (r, k, v, a))
        turn = torch.diag_embed(w) - (kappa * a)[:, :, None] * kappa[:, None, :]
        kept.state = turn @ kept.state + write * k[:, :, None] * vs[:, None, :]
        y = torch.einsum("hk,hkv->hv", r, kept.state)
        own = (r * k * z[f"{att}r_k"]).sum(-1, keepdim=True) * vs
        y = self.head_norm(y, att) + own.flatten()
        return z[f"{att}output.weight"] @ (y * g), first

    def low(self, h: Tensor, kept: Memory, att: str, letter: str) -> Tensor:
        x = self.reads(h, kept.att, att, letter)
        made = x @ self.z[f"{att}{letter}1"] @ self.z[f"{att}{letter}2"]
        return torch.sigmoid(self.z[f"{att}{letter}0"].flatten() + made)

    def channels(self, h: Tensor, prev: Tensor, ffn: str) -> Tensor:
        z = self.z
        mixed = {"6": "time_maa", "7": "x"}.get(self.s.version, "time_mix")
        k = relu(z[f"{ffn}key.weight"] @ self.lerp(h, prev, f"{ffn}{mixed}_k")).square()
        out = z[f"{ffn}value.weight"] @ k
        if self.s.version == "7":
            return out
        r = z[f"{ffn}receptance.weight"] @ self.lerp(h, prev, f"{ffn}{mixed}_r")
        return torch.sigmoid(r) * out
