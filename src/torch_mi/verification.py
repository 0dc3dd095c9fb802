# SPDX-License-Identifier: MIT OR Apache-2.0
"""Proof, on the user's own checkpoint, that our numbers are those of `transformers`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from torch_mi.errors import MIError, ModelError
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.model import MIModel, batch_of
from torch_mi.prompts import Prompt
from torch_mi.results import Result, text_of

FORM = "torch-mi verification 1"
TOLERANCE = 1e-4
PROMPTS = (
    "The capital of France is",
    "When Mary and John went to the store, John gave a drink to",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "1, 2, 3, 4, 5, 6,",
    "It was the best of times, it was the worst of times, it was",
)


@dataclass(frozen=True)
class PromptCheck:
    """How far one prompt's numbers are from the reference's."""

    prompt: str
    max_logit_difference: float
    top10_agreement: float
    """The share of the reference's ten likeliest last tokens that are ours, in the same order."""
    first_layer: int | None
    """The first layer whose residual stream differs by more than the tolerance, if one does."""


@dataclass(frozen=True, repr=False)
class Verification(Result):
    """Ours against `transformers` (eager attention, float32), prompt by prompt."""

    form = FORM

    model_id: str
    tolerance: float
    checks: tuple[PromptCheck, ...]
    transformers: str
    """The version compared with."""
    manifest: Manifest

    @property
    def passed(self) -> bool:
        """Whether every logit of every prompt is within the tolerance."""
        return all(check.max_logit_difference <= self.tolerance for check in self.checks)

    def to_dict(self) -> dict[str, object]:
        return {
            "format": FORM,
            "model_id": self.model_id,
            "tolerance": self.tolerance,
            "passed": self.passed,
            "checks": [asdict(check) for check in self.checks],
            "transformers": self.transformers,
            "manifest": self.manifest.to_dict(),
        }

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        return cls(
            data["model_id"],
            data["tolerance"],
            tuple(PromptCheck(**check) for check in data["checks"]),
            data["transformers"],
            Manifest.from_dict(data["manifest"]),
        )


def verify(model: MIModel, prompts: list[Prompt] | None = None) -> Verification:
    """Run prompts through this model and through `transformers` on the same files, and compare.

    Without `prompts`, five texts, or five seeded random token sequences where there is no
    tokenizer. Needs `transformers` and a model that was loaded from a folder or the Hub.
    """
    try:
        import transformers  # noqa: PLC0415 - an optional bridge
    except ImportError as cause:
        raise MIError("verify compares with transformers: pip install transformers") from cause
    if model.origin.folder is None:
        raise ModelError(
            "verify needs a model that transformers loads alike from its folder: neither made here "
            "nor from GGUF, dequantised or with an adapter in it"
        )
    if model.dtype is not torch.float32:
        raise ModelError(f"verify compares float32 with float32; this model is {model.dtype}")
    reference = _reference(transformers, model.origin.folder, model.device)
    asked = prompts or _default_prompts(model)
    checks = tuple(_check(model, reference, prompt) for prompt in asked)
    manifest = model.forward(asked[0]).manifest
    return Verification(
        model.origin.model_id, TOLERANCE, checks, str(transformers.__version__), manifest
    )


def _reference(transformers: Any, folder: Path, device: torch.device) -> Any:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )
    return loaded.eval().to(device)


def _default_prompts(model: MIModel) -> list[Prompt]:
    if model.has_tokenizer:
        return list(PROMPTS)
    dice = torch.Generator().manual_seed(0)
    return [torch.randint(model.vocab_size, (1, n), generator=dice) for n in (5, 9, 17, 33, 65)]


def _check(model: MIModel, reference: Any, prompt: Prompt) -> PromptCheck:
    tokens = batch_of(model, prompt).tokens.to(model.device)
    ours = model.forward(tokens, HookSpec().capture(HookPoint.ResidPre, HookPoint.ResidMid))
    with torch.no_grad():
        theirs = reference(tokens, output_hidden_states=True, use_cache=False)
    best = theirs.logits[0, -1].topk(10).indices
    agreement = (ours.output[0, -1].topk(10).indices == best).float().mean()
    return PromptCheck(
        prompt=text_of(model, tokens),
        max_logit_difference=_apart(ours.output, theirs.logits),
        top10_agreement=float(agreement),
        first_layer=_first_difference(model, ours.stack(HookPoint.ResidPre), theirs.hidden_states),
    )


def _first_difference(model: MIModel, ours: Tensor, theirs: tuple[Tensor, ...]) -> int | None:
    """The first layer that leaves a different residual stream; its input is that of the next."""
    for layer in range(model.num_layers - 1):
        if _apart(ours[layer + 1], theirs[layer + 1]) > TOLERANCE:
            return layer
    return None


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())
