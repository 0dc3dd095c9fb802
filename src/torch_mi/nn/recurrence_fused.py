# SPDX-License-Identifier: MIT OR Apache-2.0
"""The Triton kernels of `flash-linear-attention`, for half-precision models on GPUs.

They multiply in the precision of tensor cores, which is no less than that of a half-precision
model, and less than float32: models in float32 keep to this library's own form.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from torch_mi.nn.recurrence_terms import Outcome, Recurrence, State

SHORTEST = 64
"""Below so many tokens, the kernels are no faster."""
WIDEST = 256
"""The most keys or values of a head that they take."""
HALVES = (torch.bfloat16, torch.float16)
GATED, BONUS, ERASING = (
    ("fla.ops.gla", "chunk_gla"),
    ("fla.ops.rwkv6", "chunk_rwkv6"),
    ("fla.ops.generalized_delta_rule", "chunk_dplr_delta_rule"),
)
"""Where each recurrence is: read after the update, before it, and with an erasure."""


@cache
def installed() -> bool:
    """Whether the kernels can be imported."""
    return find_spec("fla") is not None


def fits(r: Recurrence) -> bool:
    """Whether the kernels can and should run this."""
    wide = max(r.k.shape[-1], r.v.shape[-1]) <= WIDEST
    alike = r.q.dtype == r.k.dtype == r.v.dtype  # a state space's keys are more precise
    half = r.v.is_cuda and r.v.dtype in HALVES and alike
    return half and wide and r.length >= SHORTEST and installed()


def fused(r: Recurrence, state: State | None) -> Outcome:
    """What is read and the last state, by the kernels."""
    decay = r.decay.expand(r.k.shape).to(torch.float32).contiguous()
    common: dict[str, Any] = {"k": r.k, "v": r.v, "scale": 1.0}
    common |= {"initial_state": state, "output_final_state": True}
    if r.alpha is not None and r.beta is not None:
        return _call(ERASING, q=r.q, a=r.alpha, b=r.beta, gk=decay, **common)
    if r.inclusive:
        return _call(GATED, q=r.q, g=decay, **common)
    none = torch.zeros(r.k.shape[2:], dtype=torch.float32, device=r.k.device)
    return _call(BONUS, r=r.q, w=decay, u=none, **common)


def _call(kernel: tuple[str, str], **given: Any) -> tuple[Tensor, Tensor]:
    module, name = kernel
    return vars(import_module(module))[name](**given)
