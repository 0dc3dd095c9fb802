# SPDX-License-Identifier: MIT OR Apache-2.0
"""GLA, RetNet, HGRN2 and DeltaNet token by token in float64, from their papers and fla's names.

One sequence at a time, one head at a time: a state is a matrix [key, value], and each layer writes
its equations out. `run` gives the stream that leaves each layer, and the logits.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import elu, relu, sigmoid, silu

Weights = Mapping[str, Tensor]


def positive(x: Tensor) -> Tensor:
    return elu(x) + 1


def unchanged(x: Tensor) -> Tensor:
    return x


ACTIVE = {"silu": silu, "relu": relu, "elu": positive, "identity": unchanged}


def rms(x: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def swept(x: Tensor, kernel: Tensor) -> Tensor:
    """Row t of x [pos channel] with those before it, by a kernel [channel 1 size]."""
    size, out = kernel.shape[-1], torch.zeros_like(x)
    for t in range(len(x)):
        for lag in range(min(size, t + 1)):
            out[t] += x[t - lag] * kernel[:, 0, size - 1 - lag]
    return out


def turned(x: Tensor) -> Tensor:
    """Row t of x [pos dim] turned by t, dimension j with j + dim/2."""
    half = x.shape[-1] // 2
    angle = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(half) / half).double()
    a, b = x[:, :half], x[:, half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def scanned(q: Tensor, k: Tensor, v: Tensor, decay: Tensor) -> Tensor:
    """What a head reads: q, k, decay [pos key], v [pos value]."""
    state, out = torch.zeros(k.shape[1], v.shape[1]).double(), list[Tensor]()
    for t in range(len(q)):
        state = decay[t][:, None] * state + torch.outer(k[t], v[t])
        out.append(q[t] / len(q[t]) ** 0.5 @ state)
    return torch.stack(out)


def corrected(q: Tensor, k: Tensor, v: Tensor, rate: Tensor) -> Tensor:
    """The same by the delta rule: what a key finds is replaced as far as the rate says."""
    state, out = torch.zeros(k.shape[1], v.shape[1]).double(), list[Tensor]()
    for t in range(len(q)):
        found = k[t] @ state
        state = state + rate[t] * torch.outer(k[t], v[t] - found)
        out.append(q[t] / len(q[t]) ** 0.5 @ state)
    return torch.stack(out)


class Layer:
    """One layer's tensors by their short names, and its config."""

    def __init__(self, weights: Weights, cfg: Mapping[str, Any], index: int) -> None:
        self.weights, self.cfg, self.index = weights, cfg, index

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[f"model.layers.{self.index}.{name}"].double()

    def has(self, name: str) -> bool:
        return f"model.layers.{self.index}.{name}" in self.weights

    def projected(self, x: Tensor, letter: str, *, active: bool = False) -> Tensor:
        """Through its matrix, and its convolution if it has one."""
        out = x @ self[f"attn.{letter}_proj.weight"].T
        if self.has(f"attn.{letter}_conv1d.weight"):
            out = swept(out, self[f"attn.{letter}_conv1d.weight"])
            out = silu(out) if active else out
        return out

    def gated(self, heads: list[Tensor], x: Tensor, norm: str, eps: float) -> Tensor:
        """Each head normed, all gated if there is a gate, and mixed."""
        out = torch.cat([rms(head, eps) * self[f"attn.{norm}.weight"] for head in heads], -1)
        if self.has("attn.g_proj.weight"):
            out = out * silu(x @ self["attn.g_proj.weight"].T)
        return out @ self["attn.o_proj.weight"].T


def by_head(x: Tensor, size: int) -> list[Tensor]:
    return list(x.split(size, -1))


def gla(at: Layer, x: Tensor) -> Tensor:
    cfg, heads = at.cfg, at.cfg["num_heads"]
    q, k, v = (at.projected(x, letter, active=True) for letter in "qkv")
    low = x @ at["attn.gk_proj.0.weight"].T @ at["attn.gk_proj.1.weight"].T
    gate = (low + at["attn.gk_proj.1.bias"]).sigmoid().log() / 16
    if cfg.get("clamp_min") is not None:
        gate = gate.clamp(min=cfg["clamp_min"])
    if cfg.get("feature_map"):
        q, k = ACTIVE[cfg["feature_map"]](q), ACTIVE[cfg["feature_map"]](k)
    shared = heads // (cfg.get("num_kv_heads") or heads)
    size, wide = q.shape[-1] // heads, v.shape[-1] * shared // heads
    qs, ks, vs, gs = by_head(q, size), by_head(k, size), by_head(v, wide), by_head(gate, size)
    groups = [h // shared for h in range(heads)]
    read = [scanned(qs[h], ks[g], vs[g], gs[g].exp()) for h, g in enumerate(groups)]
    norm = "g_norm_swish_gate" if at.has("attn.g_norm_swish_gate.weight") else "g_norm"
    return at.gated(read, x, norm, cfg["norm_eps"])


def retnet(at: Layer, x: Tensor) -> Tensor:
    cfg, heads = at.cfg, at.cfg["num_heads"]
    q, k, v = (at.projected(x, letter) for letter in "qkv")
    shared = heads // (cfg.get("num_kv_heads") or heads)
    size, wide = q.shape[-1] // heads, v.shape[-1] * shared // heads
    qs, ks, vs = by_head(q, size), by_head(k, size), by_head(v, wide)
    read = list[Tensor]()
    for h in range(heads):
        decay = torch.full((len(x), size), 1 - 2.0 ** (-5 - h)).double()
        group = h // shared
        read.append(scanned(turned(qs[h]), turned(ks[group]), vs[group], decay))
    norm = "g_norm_swish_gate" if at.has("attn.g_norm_swish_gate.weight") else "g_norm"
    return at.gated(read, x, norm, cfg["norm_eps"])


def hgrn2(at: Layer, x: Tensor) -> Tensor:
    size = at.cfg["expand_ratio"]
    q, f, v = (at.projected(x, letter) for letter in "qfi")
    forget = sigmoid(f)
    if at.cfg.get("use_lower_bound", True) and at.index:
        shares = at.weights["model.lower_bounds"].double().softmax(0)
        bound = shares[1 : at.index + 1].sum(0)
        forget = bound + (1 - bound) * forget
    parts = zip(by_head(silu(q), size), by_head(forget, size), by_head(v, size), strict=True)
    read = torch.cat([scanned(a, 1 - b, c, b) for a, b, c in parts], -1)
    return rms(read, 1e-5) * at["attn.g_norm.weight"] @ at["attn.o_proj.weight"].T


def delta_net(at: Layer, x: Tensor) -> Tensor:
    cfg, heads = at.cfg, at.cfg["num_heads"]
    active = ACTIVE[cfg.get("qk_activation", "silu")]
    q, k = (active(at.projected(x, letter)) for letter in "qk")
    v = silu(at.projected(x, "v"))
    rate = torch.ones(len(x), heads).double()
    if at.has("attn.b_proj.weight"):
        rate = sigmoid(x @ at["attn.b_proj.weight"].T)
    rate = rate * (2 if cfg.get("allow_neg_eigval") else 1)

    def one(y: Tensor) -> Tensor:
        if cfg.get("qk_norm", "l2") == "sum":
            return y / y.sum(-1, keepdim=True)
        return y / (y.pow(2).sum(-1, keepdim=True) + 1e-6).sqrt()

    size, wide = q.shape[-1] // heads, v.shape[-1] // heads
    qs, ks, vs = by_head(q, size), by_head(k, size), by_head(v, wide)
    read = [corrected(one(qs[h]), one(ks[h]), vs[h], rate[:, h]) for h in range(heads)]
    return at.gated(read, x, "o_norm", cfg["norm_eps"])


MIXERS = {"gla": gla, "retnet": retnet, "hgrn2": hgrn2, "delta_net": delta_net}


def run(weights: Weights, cfg: Mapping[str, Any], tokens: Tensor) -> tuple[list[Tensor], Tensor]:
    """The stream that leaves each layer [pos width], and the logits [pos vocab], of one text."""
    x, eps, stream = (
        weights["model.embeddings.weight"].double()[tokens],
        cfg["norm_eps"],
        list[Tensor](),
    )
    for index in range(cfg["num_hidden_layers"]):
        at = Layer(weights, cfg, index)
        x = x + MIXERS[cfg["model_type"]](at, rms(x, eps) * at["attn_norm.weight"])
        h = rms(x, eps) * at["mlp_norm.weight"]
        gate, up = (h @ at[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (silu(gate) * up) @ at["mlp.down_proj.weight"].T
        stream.append(x)
    return stream, rms(x, eps) * weights["model.norm.weight"].double() @ weights[
        "lm_head.weight"
    ].double().T
