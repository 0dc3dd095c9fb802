# SPDX-License-Identifier: MIT OR Apache-2.0
"""A relu network that reads numbers one by one: one layer, whose stream is its neurons."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from torch_mi.backends.protocol import Run, Written
from torch_mi.config.stoicheia import ReluRnnConfig
from torch_mi.errors import ModelError
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap
from torch_mi.types import Carry, Logits, Mask, Resid

State = Float[Tensor, "batch d_model"]


class ReluRnn(nn.Module):
    """h_t = relu(w_ih · x_t + w_hh · h_{t-1}), outputs w_oh · h_t at every step.

    The outputs after the last input are the answer; those before it are what the answer would be
    if there were no more inputs.
    """

    n_layers = 1
    read_only = frozenset[HookPoint]()
    always_explicit = parallel = norms_attention_output = adds_attention_bias = False
    causal = recurrent = True
    logit_scale = 1.0
    unembedding_bias = final_norm = None
    hook_points = frozenset(
        [
            HookPoint.Embed, HookPoint.ResidPre, HookPoint.RnnPreActivation, HookPoint.RnnHidden,
            HookPoint.ResidPost, HookPoint.RnnFinalState, HookPoint.RnnOutput, HookPoint.Logits,
        ]
    )  # fmt: skip

    def __init__(self, cfg: ReluRnnConfig) -> None:
        super().__init__()
        self.cfg, self.reads_numbers = cfg, cfg.seq_len
        self.w_ih = nn.Parameter(torch.zeros(1, cfg.hidden_size))
        self.w_hh = nn.Parameter(torch.zeros(cfg.hidden_size, cfg.hidden_size))
        self.w_oh = nn.Parameter(torch.zeros(cfg.output_size, cfg.hidden_size))

    def layer_points(self, layer: int) -> frozenset[HookPoint]:  # noqa: ARG002 - there is one
        return frozenset(point for point in self.hook_points if point.per_layer)

    def stream_points(self, layer: int) -> tuple[HookPoint, ...]:  # noqa: ARG002 - there is one
        return (HookPoint.ResidPre,)

    @property
    def sizes(self) -> Mapping[str, int]:
        width = self.cfg.hidden_size
        return {"d_model": width, "d_mlp": width, "vocab": self.cfg.output_size}

    @property
    def embedding(self) -> Tensor:
        """What a neuron reads of the number one [1, d_model]."""
        return self.w_ih

    @property
    def unembedding(self) -> Tensor:
        return self.w_oh

    def attention_written(self, layer: int) -> Written:  # noqa: ARG002 - there is no attention
        return Written()

    def mixed_written(self, layer: int) -> None:
        """Nothing: what is read is no state of keys and values."""

    def normed(self, layer: int, point: HookPoint, x: Tensor) -> Tensor:  # noqa: ARG002
        return x

    @property
    def device(self) -> torch.device:
        return self.w_ih.device

    @property
    def dtype(self) -> torch.dtype:
        return self.w_ih.dtype

    def begin(self, run: Run) -> Mask | None:
        """Which numbers are real, if not all of them are."""
        count = run.seen + run.positions.shape[1]
        if run.padding is None and count > self.reads_numbers:
            raise ModelError(f"this network reads {self.reads_numbers} numbers, not {count}")
        return None if run.padding is None else run.padding[:, run.seen :]

    def embed(self, tokens: Num[Tensor, "batch pos"], shared: Mask | None, tap: Tap) -> Resid:  # noqa: ARG002
        return tap(HookPoint.Embed, tokens.to(self.dtype)[:, :, None] * self.w_ih)

    def block(
        self,
        layer: int,  # noqa: ARG002 - there is one
        x: Resid,
        shared: Mask | None,
        tap: Tap,
        past: Carry,
    ) -> tuple[Resid, Carry]:
        states = self.states(x, shared, tap, past)
        return tap(HookPoint.ResidPost, states), (states[:, -1],)

    def remember(
        self,
        layer: int,  # noqa: ARG002 - there is one
        x: Resid,
        shared: Mask | None,
        tap: Tap,
        past: Carry,
    ) -> Carry:
        return (self.states(x, shared, tap, past)[:, -1],)

    def states(self, x: Resid, real: Mask | None, tap: Tap, past: Carry) -> Resid:
        """The neurons after each number; a number that is not real changes nothing."""
        x = tap(HookPoint.ResidPre, x)
        h = past[0] if past else torch.zeros_like(x[:, 0])
        found: list[Tensor] = []
        for t in range(x.shape[1]):
            before = tap.step(HookPoint.RnnPreActivation, t, x[:, t] + h @ self.w_hh.T)
            new = tap.step(HookPoint.RnnHidden, t, torch.relu(before))
            h = new if real is None else torch.where(real[:, t, None], new, h)
            found = [*found, h]
        return torch.stack(found, 1)

    def unembed(self, x: Resid, tap: Tap) -> Logits:
        if tap.watches(HookPoint.RnnFinalState):
            last = tap(HookPoint.RnnFinalState, x[:, -1])
            x = torch.cat([x[:, :-1], last[:, None]], 1)
        out = x @ self.w_oh.T
        if tap.watches(HookPoint.RnnOutput):
            answer = tap(HookPoint.RnnOutput, out[:, -1])
            out = torch.cat([out[:, :-1], answer[:, None]], 1)
        return tap(HookPoint.Logits, out)

    def grows_differently(self, before: int, total: int) -> bool:  # noqa: ARG002
        return False
