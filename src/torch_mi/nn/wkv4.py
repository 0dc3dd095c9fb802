# SPDX-License-Identifier: MIT OR Apache-2.0
"""RWKV-4's weighted means: attention by key alone, fading with distance, for each channel."""

import torch
from jaxtyping import Float
from torch import Tensor

Channels = Float[Tensor, "batch pos channel"]
Fading = Float[Tensor, "#batch #pos channel"]
Sums = Float[Tensor, "batch channel 3"]
"""Numerator and denominator over e^max, and that max."""
NEVER = -1e38
"""The max over nothing."""
FLOOR = -40.0
"""How far a gate near 0 may lower the scale that its key would set."""


def wkv4(
    k: Channels,
    v: Channels,
    decay: Fading,
    bonus: Float[Tensor, "channel"],
    gate: Channels | None,
    state: Sums | None,
) -> tuple[Channels, Sums]:
    """The mean of all values so far at every position, and the sums after the last.

    A value counts e^{k + decay (distance - 1)}, at its own position e^{k + bonus}. `gate`
    multiplies what a position leaves to later ones. The max only scales: gradients pass it by.
    """
    dtype = torch.promote_types(v.dtype, torch.float32)
    top_k = scales(k.to(dtype), gate)
    above, below, top = (empty(v, dtype) if state is None else state.to(dtype)).unbind(-1)
    fading = decay.to(dtype).expand(k.shape[0], k.shape[1], -1)
    means: list[Tensor] = []
    for t in range(k.shape[1]):
        key, value, fade = k[:, t].to(dtype), v[:, t].to(dtype), fading[:, t]
        scale = torch.maximum(top, (key + bonus).detach())
        past, own = (top - scale).exp(), (key + bonus - scale).exp()
        means.append((past * above + own * value) / (past * below + own))
        scale = torch.maximum(top + fade.detach(), top_k[:, t])
        past, own = (top + fade - scale).exp(), (key - scale).exp()
        own = own if gate is None else own * gate[:, t]
        above, below, top = past * above + own * value, past * below + own, scale
    return torch.stack(means, 1).to(v.dtype), torch.stack([above, below, top], -1)


def scales(k: Channels, gate: Channels | None) -> Channels:
    """The logarithm that what is written may be divided by, without a gradient."""
    k = k.detach()
    return k if gate is None else k + gate.detach().to(k.dtype).abs().log().clamp(FLOOR)


def empty(v: Channels, dtype: torch.dtype) -> Sums:
    """No sums yet."""
    start = torch.tensor([0.0, 0.0, NEVER], dtype=dtype, device=v.device)
    return start.expand(v.shape[0], v.shape[-1], 3)


def effective4(
    k: Channels, decay: Fading, bonus: Float[Tensor, "channel"], gate: Channels | None
) -> Float[Tensor, "batch channel query key"]:
    """How much of every value every mean takes up: exactly `y = A v` from no sums."""
    dtype = torch.promote_types(k.dtype, torch.float32)
    length = k.shape[1]
    k = k.to(dtype).mT
    reach = decay.to(dtype).expand(-1, length, -1).mT.cumsum(-1)
    places = torch.arange(length, device=k.device)
    earlier, own = places[:, None] > places, places[:, None] == places
    before = torch.cat([torch.zeros_like(reach[..., :1]), reach[..., :-1]], -1)
    exponents = before[..., :, None] - reach[..., None, :] + k[..., None, :]
    exponents = torch.where(own, (k + bonus.to(dtype)[:, None])[..., None], exponents)
    exponents = exponents.masked_fill(~(earlier | own), -torch.inf)
    top = exponents.detach().amax(-1, keepdim=True)
    weights = (exponents - top).exp()
    if gate is not None:
        weights = torch.where(earlier, weights * gate.to(dtype).mT[..., None, :], weights)
    return weights / weights.sum(-1, keepdim=True)
