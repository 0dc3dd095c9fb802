# SPDX-License-Identifier: MIT OR Apache-2.0
"""Mutations of the experts and of latent attention: some law or the reference must notice each."""

import pytest

from tests.laws.mutants import Mutation
from tests.laws.test_the_tests import examine, rewrite
from torch_mi.errors import MIError
from torch_mi.nn import experts, latent

MIXTURE, LATENT = experts.Mixture, latent.LatentAttention
GROUPED = "deepseek_v3"


def forgotten(owner: type, name: str, point: str) -> Mutation:
    """A place that is not handed over."""
    old = f"tap(HookPoint.{point},"
    new = old.replace("tap(", "(lambda point, x: x)(")
    return Mutation(f"{point} is forgotten", owner, name, old, new, GROUPED)


MUTATIONS = (
    *(
        forgotten(MIXTURE, "forward", point)
        for point in (
            "RouterLogits",
            "ExpertWeights",
            "ExpertIndices",
            "ExpertGates",
            "SharedExpertOut",
            "MlpRawOut",
        )
    ),
    *(forgotten(LATENT, "ask", point) for point in ("AttnQ", "AttnRotQ")),
    *(
        forgotten(LATENT, "remember", point)
        for point in ("AttnLatent", "AttnK", "AttnV", "AttnRotK")
    ),
    Mutation("all experts run", MIXTURE, "weigh", "torch.zeros_like(", "torch.ones_like("),
    Mutation("weights stay as they are", MIXTURE, "weigh", "if self.how.normalised", "if False"),
    Mutation("the scale is forgotten", MIXTURE, "weigh", "* self.how.scale", "", GROUPED),
    Mutation("the worst are chosen", MIXTURE, "choose", "scores.topk(", "(-scores).topk("),
    Mutation("choices are not corrected", MIXTURE, "choose", "if self.correction is None", "if 1"),
    Mutation("any group will do", MIXTURE, "choose", "self.how.groups > 1", "False", GROUPED),
    Mutation("the best alone speaks", MIXTURE, "choose", "else 2", "else 1", GROUPED),
    Mutation("a sigmoid is a softmax", MIXTURE, "scores", "Scoring.Sigmoid", "None", GROUPED),
    Mutation("gates weigh nothing", MIXTURE, "outputs", "* gates[rows, expert, None]", "* 1"),
    Mutation(
        "the shared expert is not weighed", MIXTURE, "shared_out", "is None", "is None or True"
    ),
    Mutation(
        "a gate of zero has no slope", MIXTURE, "mix", "every = graph and", "every = False and"
    ),
    Mutation("shares are always captured late", MIXTURE, "mix", "or (graph and", "or (False and"),
    Mutation("shares cannot be edited", MIXTURE, "mix", "tap.edits(HookPoint.ExpertOut) or", ""),
    Mutation("all of a head turns", LATENT, "turned", ": self.how.nope_dim", ":0", GROUPED),
    Mutation(
        "nothing turns", LATENT, "turned", "shared.rotate(turns, self.rope)", "turns", GROUPED
    ),
    Mutation("keys are not kept", LATENT, "remember", "[past[0], k]", "[k, past[0]]", GROUPED),
    Mutation(
        "the latent is not normed", LATENT, "remember", "self.norm_kv(narrow, silent)", "narrow"
    ),
    Mutation(
        "queries are not normed",
        LATENT,
        "queries",
        "self.norm_q(self.q_down(x), silent)",
        "self.q_down(x)",
        GROUPED,
    ),
)

FAMILY = {
    "all experts run": "mixtral",
    "weights stay as they are": "mixtral",
    "the worst are chosen": "mixtral",
    "choices are not corrected": GROUPED,
    "gates weigh nothing": "mixtral",
    "the shared expert is not weighed": "qwen2_moe",
    "a gate of zero has no slope": "mixtral",
    "shares are always captured late": "mixtral",
    "shares cannot be edited": "mixtral",
    "the latent is not normed": "deepseek_v2",
}
"""Families that have what is broken, where the mutation does not say."""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["deepseek_v2", GROUPED])
def test_nothing_is_wrong_without_a_mutation(family: str) -> None:
    examine(family)


SLOW = ("a gate of zero has no slope", "shares are always captured late")
CASES = [pytest.param(m, marks=[pytest.mark.slow] if m.what in SLOW else []) for m in MUTATIONS]


@pytest.mark.parametrize("mutation", CASES, ids=str)
def test_a_mutation_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(monkeypatch, mutation.owner, mutation.name, mutation.old, mutation.new)
    with pytest.raises((AssertionError, MIError, RuntimeError)):
        examine(FAMILY.get(mutation.what, mutation.family), dict(mutation.changes))
