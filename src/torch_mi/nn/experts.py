# SPDX-License-Identifier: MIT OR Apache-2.0
"""A mixture of experts: a router weighs many small MLPs, and few of them see each token.

Whatever made a token's gates, edits included, the experts that run for it are those whose gate is
not zero.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from torch_mi.config.parts import Experts, GroupScore, Scoring
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ModelError
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.trace import Tap, silent
from torch_mi.nn.mlp import Mlp
from torch_mi.types import Resid, numbers

PerExpert = Float[Tensor, "batch pos expert"]
Chosen = Int[Tensor, "batch pos chosen"]
Shares = Float[Tensor, "batch pos expert d_model"]
Rows = Float[Tensor, "row d_model"]
Uses = Bool[Tensor, "row expert"]

TINY = 1e-20
"""Keeps a sum of weights from being zero; beside any other sum it is lost in rounding."""


class Matrices(nn.Module):
    """One matrix for each expert."""

    def __init__(self, count: int, inner: int, outer: int) -> None:
        super().__init__()
        drawn = torch.rand(count, outer, inner) * 2 - 1
        self.weight = nn.Parameter(drawn * inner**-0.5)

    def forward(self, expert: int, x: Tensor) -> Tensor:
        return linear(x, self.weight[expert])


class Bank(nn.Module):
    """The experts' own MLPs."""

    def __init__(self, cfg: TransformerConfig, count: int, inner: int) -> None:
        super().__init__()
        self.act = cfg.activation.function
        self.gate = Matrices(count, cfg.hidden_size, inner) if cfg.gated_mlp else None
        self.up = Matrices(count, cfg.hidden_size, inner)
        self.down = Matrices(count, inner, cfg.hidden_size)

    def forward(self, expert: int, x: Rows) -> Rows:
        up = self.up(expert, x)
        post = self.act(up) if self.gate is None else self.act(self.gate(expert, x)) * up
        return self.down(expert, post)


class Correction(nn.Module):
    """What is added to the experts' scores for the choice among them, and for nothing else."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(count), requires_grad=False)

    def forward(self, weights: PerExpert) -> PerExpert:
        return weights + self.bias.float()


class Mixture(nn.Module):
    """Routed experts, weighed by their gates, and the one that every token goes to."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        if cfg.experts is None:
            raise ModelError("a mixture of experts needs cfg.experts")
        self.how: Experts = cfg.experts
        self.router = nn.Linear(cfg.hidden_size, self.how.count, bias=False)
        self.correction = Correction(self.how.count) if self.how.correction else None
        self.experts = Bank(cfg, self.how.count, self.how.width)
        self.shared = None
        if self.how.shared_width:
            self.shared = Mlp(replace(cfg, intermediate_size=self.how.shared_width))
        weighed = self.shared is not None and self.how.shared_gate
        self.shared_gate = nn.Linear(cfg.hidden_size, 1, bias=False) if weighed else None

    def forward(self, x: Resid, tap: Tap) -> Resid:
        logits = tap(HookPoint.RouterLogits, self.judge(x))
        weights = tap(HookPoint.ExpertWeights, self.scores(logits))
        chosen = tap(HookPoint.ExpertIndices, self.choose(weights))
        gates = tap(HookPoint.ExpertGates, self.weigh(weights, chosen))
        out = self.mix(x, gates, tap)
        if self.shared is not None:
            out = out + tap(HookPoint.SharedExpertOut, self.shared_out(self.shared, x))
        return tap(HookPoint.MlpRawOut, out)

    def judge(self, x: Resid) -> PerExpert:
        """The router's logits."""
        if self.how.exact:
            return linear(x.float(), self.router.weight.float())
        return self.router(x)

    def scores(self, logits: PerExpert) -> PerExpert:
        """The weight of every expert, in float32."""
        if self.how.scoring is Scoring.Sigmoid:
            return logits.float().sigmoid()
        return logits.float().softmax(-1)

    def choose(self, weights: PerExpert) -> Chosen:
        """The experts for each token, best first, out of the groups that are best."""
        scores = weights if self.correction is None else self.correction(weights)
        if self.how.groups > 1:
            grouped = scores.view(*scores.shape[:-1], self.how.groups, -1)
            best = 1 if self.how.group_score is GroupScore.Best else 2
            groups = grouped.topk(best).values.sum(-1).topk(self.how.chosen_groups).indices
            within = torch.zeros_like(grouped[..., 0]).scatter(-1, groups, 1.0) > 0
            scores = grouped.masked_fill(~within[..., None], -torch.inf).flatten(-2)
        return scores.topk(self.how.chosen).indices

    def weigh(self, weights: PerExpert, chosen: Chosen) -> PerExpert:
        """The gates: the weights of the chosen, in proportion to each other if so agreed."""
        values = weights.gather(-1, chosen)
        if self.how.normalised:
            values = values / (values.sum(-1, keepdim=True) + TINY)
        return torch.zeros_like(weights).scatter(-1, chosen, values * self.how.scale)

    def mix(self, x: Resid, gates: PerExpert, tap: Tap) -> Resid:
        """What the experts add up to.

        Each one's share is formed on its own only where an edit or a gradient goes through it. The
        gradient of a gate is also asked for where it is zero, so that all experts run for it.
        """
        graph = x.requires_grad or gates.requires_grad
        every = graph and tap.watches(HookPoint.ExpertGates)
        if tap.edits(HookPoint.ExpertOut) or (graph and tap.watches(HookPoint.ExpertOut)):
            return tap(HookPoint.ExpertOut, self.shares(x, gates, every=every)).sum(2)
        tap.later(HookPoint.ExpertOut, partial(self.shares, x, gates))
        rows, out = x.flatten(0, 1), torch.zeros_like(x).flatten(0, 1)
        for _, where, share in self.outputs(rows, gates.flatten(0, 1), every=every):
            out = out.index_add(0, where, share)
        return out.view_as(x)

    def shares(self, x: Resid, gates: PerExpert, *, every: bool = False) -> Shares:
        """What each expert adds to the output: zero for the tokens that it does not see."""
        rows = x.flatten(0, 1)
        blank = torch.zeros_like(rows)
        made = {
            expert: blank.index_add(0, where, share)
            for expert, where, share in self.outputs(rows, gates.flatten(0, 1), every=every)
        }
        every_one = [made.get(expert, blank) for expert in range(self.how.count)]
        return torch.stack(every_one, 1).view(*x.shape[:2], self.how.count, -1)

    def outputs(
        self, x: Rows, gates: Float[Tensor, "row expert"], *, every: bool
    ) -> Iterator[tuple[int, Int[Tensor, " some"], Float[Tensor, "some d_model"]]]:
        """Expert by expert: the rows that it sees, and its output for them times their gates."""
        uses: Uses = torch.ones_like(gates, dtype=torch.bool) if every else gates != 0
        chosen = self.how.count if every else self.how.chosen
        for expert, rows in enumerate(rows_of(uses, chosen)):
            if len(rows):
                share = self.experts(expert, x[rows]) * gates[rows, expert, None]
                yield expert, rows, share.to(x.dtype)

    def shared_out(self, shared: Mlp, x: Resid) -> Resid:
        """The output of the expert that sees every token."""
        out = shared(x, silent)
        return out if self.shared_gate is None else torch.sigmoid(self.shared_gate(x)) * out


def rows_of(uses: Uses, chosen: int) -> Sequence[Int[Tensor, " some"]]:
    """The rows that each expert sees; in a run without data, as many as if all saw equally many."""
    rows, experts = uses.shape
    if uses.is_meta:
        return [uses.new_zeros(-(-rows * chosen // experts), dtype=torch.long)] * experts
    return torch.split(uses.mT.nonzero()[:, 1], numbers(uses.sum(0)))
