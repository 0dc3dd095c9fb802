# SPDX-License-Identifier: MIT OR Apache-2.0
"""Which heads do what: previous-token, duplicate-token, induction and copying heads.

The first three are known by where they look. A random sequence is shown twice, and a head is scored
by the attention that its queries in the second showing pay, on average, to the one key that its
kind would look at (Olsson et al. 2022, "In-context Learning and Induction Heads", §"prefix
matching"; duplicate-token heads as in Wang et al. 2022, "Interpretability in the Wild").

A copying head is known by what it writes. Of the same random tokens, the score is how many are
among the `TOP` tokens that the head raises most when it attends to that token alone, as embedded
(the copy score of Wang et al. 2022, §3.3, over all tokens in place of names). That reads the head's
OV circuit, through its norms with their denominators held, and needs no layer before it; a head
that copies what an earlier layer made of a token scores low.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.analysis.edges import instead
from torch_mi.cache import Residual
from torch_mi.errors import ModelError, did_you_mean
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel
from torch_mi.results import Result, data_frame, floats, predicts_tokens
from torch_mi.types import numbers

FORM = "torch-mi heads 1"
LOOKS_BACK: dict[str, str] = {
    "induction": "the token that came after this one the first time",
    "previous_token": "the token just before",
    "duplicate_token": "the same token the first time",
}
"""What each kind of head looks at."""
TOP = 5
"""A copied token is among so many."""
SCORES: dict[str, str] = {
    **{kind: f"mean attention to {what}" for kind, what in LOOKS_BACK.items()},
    "copying": f"tokens that are among the {TOP} raised most by attention to them alone",
}
"""What each kind of head is scored by."""


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores(Result):
    """How much each head [layer, head] is of a kind, as `SCORES` says."""

    form = FORM

    kind: str
    model_id: str
    scores: Tensor
    """Between 0 and 1."""
    chance: float
    """What a head gets that attends evenly to everything it may see, or writes at random."""
    length: int
    repeats: int
    seed: int
    manifest: Manifest

    def best(self, k: int = 5) -> list[tuple[int, int, float]]:
        """The `k` heads with the highest scores: layer, head, score."""
        heads = self.scores.shape[1]
        order = self.scores.flatten().argsort(descending=True)[:k]
        flat = floats(self.scores.flatten())
        return [(int(i) // heads, int(i) % heads, flat[int(i)]) for i in order]

    def to_pandas(self) -> Any:
        """A DataFrame with a row for each head (needs pandas)."""
        return data_frame(
            [
                {"layer": layer, "head": head, "score": score}
                for layer, row in enumerate(self.scores)
                for head, score in enumerate(floats(row))
            ]
        )

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "kind": self.kind,
            "model_id": self.model_id,
            "scores": [floats(row) for row in self.scores],
            "chance": self.chance,
            "length": self.length,
            "repeats": self.repeats,
            "seed": self.seed,
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["kind"],
            data["model_id"],
            torch.tensor(data["scores"]),
            data["chance"],
            data["length"],
            data["repeats"],
            data["seed"],
            Manifest.from_dict(data["manifest"]),
        )


def find_heads(
    model: MIModel,
    *,
    kind: str = "induction",
    length: int = 20,
    repeats: int = 8,
    seed: int = 0,
) -> HeadScores:
    """Score every head as an "induction", "previous_token", "duplicate_token" or "copying" head.

    On `repeats` sequences of `length` distinct random tokens, each shown twice; the BOS token
    stands in front if the tokenizer adds one.
    """
    if kind not in SCORES:
        raise ModelError(
            f"kind={kind!r} is not one of {', '.join(SCORES)}{did_you_mean(kind, SCORES)}"
        )
    needed = HookPoint.AttnResult if kind == "copying" else HookPoint.AttnPattern
    if needed not in model.backend.hook_points:
        hint = "effective_attention in torch_mi.analysis.effective shows what its states do instead"
        raise ModelError(f"this model has no attention heads to score{instead(model, hint)}")
    if length < 2 or repeats < 1:  # noqa: PLR2004 - a sequence of one has no next token
        raise ModelError(f"length={length} needs to be at least 2, repeats={repeats} at least 1")
    tokens, start = repeated(model, length, repeats, seed)
    if kind == "copying":
        scores, manifest = _copying(model, _distinct(tokens[:, start : start + length]))
        chance = TOP / model.vocab_size
    else:
        back = {"induction": length - 1, "previous_token": 1, "duplicate_token": length}[kind]
        query = torch.arange(start + length, start + 2 * length - 1, device=model.device)
        scores, manifest = _looking(model, tokens, query, back)
        causal = model.backend.causal
        chance = float((1 / (query + 1)).mean()) if causal else 1 / tokens.shape[1]
    return HeadScores(
        kind=kind,
        model_id=model.origin.model_id,
        scores=scores.float().cpu(),
        chance=chance,
        length=length,
        repeats=repeats,
        seed=seed,
        manifest=manifest,
    )


def _looking(model: MIModel, tokens: Tensor, query: Tensor, back: int) -> tuple[Tensor, Manifest]:
    """The mean attention [layer head] that queries pay to what is so far back."""
    patterns = HookSpec().capture(HookPoint.AttnPattern)
    cache = model.forward(tokens, patterns, stop=model.num_layers)
    looked = [
        cache[HookPoint.AttnPattern(layer)][:, :, query, query - back].mean((0, 2))
        for layer in range(model.num_layers)
    ]
    return torch.stack(looked), cache.manifest


def _distinct(tokens: Tensor) -> Tensor:
    """Each of these tokens once."""
    return torch.tensor(sorted(set(numbers(tokens.flatten()))), device=tokens.device)


def _copying(model: MIModel, tokens: Tensor) -> tuple[Tensor, Manifest]:
    """How many of these tokens [token] each head [layer head] copies, and the run of the tokens."""
    if not predicts_tokens(model):
        raise ModelError("copying is of tokens, and this model's logits do not stand for tokens")
    points = [HookPoint.ResidPre(0), HookPoint.Embed]
    points += [HookPoint.PosEmbed] if HookPoint.PosEmbed in model.backend.hook_points else []
    cache = model.forward(tokens[:, None], HookSpec().capture(*points), stop=1)
    embedded, positions = cache[HookPoint.Embed], cache.get(HookPoint.PosEmbed)
    if positions is None or not torch.equal(cache[points[0]], embedded + positions):
        embedded = cache[points[0]]  # normed: tokens and positions do not come apart
    rows = [_raised(model, layer, embedded, tokens) for layer in range(model.num_layers)]
    return torch.stack(rows), cache.manifest


def _raised(model: MIModel, layer: int, embedded: Tensor, tokens: Tensor) -> Tensor:
    """The fraction of tokens [head] that are among the `TOP` that one layer's heads raise most.

    In a text of one token attention is all on that token, whatever the queries and keys.
    """
    point, written = HookPoint.AttnResult(layer), model.backend.attention_written(layer)
    start = Residual(layer, embedded)
    made = model.forward(start, HookSpec().capture(point), stop=layer + 1)[point][:, 0]
    one = torch.ones_like(made[..., :1])
    for norm in (written.norm, model.backend.final_norm):
        made = made if norm is None else norm.linear(made, one)
    logits = (
        made * (written.scale * model.backend.logit_scale) @ model.backend.unembedding.detach().T
    )
    own = logits.gather(-1, tokens[:, None, None].expand(-1, made.shape[1], 1))
    return ((logits > own).sum(-1) < TOP).float().mean(0)


def repeated(model: MIModel, length: int, repeats: int, seed: int) -> tuple[Tensor, int]:
    """Random sequences shown twice [repeats, start + 2 * length], and where they start."""
    tokenizer = model.tokenizer if model.has_tokenizer else None
    known = model.vocab_size if tokenizer is None else min(model.vocab_size, tokenizer.vocab_size)
    ids = [i for i in range(known) if tokenizer is None or not tokenizer.is_special(i)]
    if len(ids) < length:
        raise ModelError(f"length={length} distinct tokens of a vocabulary of {len(ids)}")
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(len(ids), generator=generator)[:length] for _ in range(repeats)]
    once = torch.tensor(ids)[torch.stack(rows)]
    bos = None if tokenizer is None else tokenizer.bos_id
    front = once[:, :0] if bos is None else torch.full((repeats, 1), bos)
    return torch.cat([front, once, once], 1).to(model.device), front.shape[1]
