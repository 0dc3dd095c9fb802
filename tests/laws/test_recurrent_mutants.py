# SPDX-License-Identifier: MIT OR Apache-2.0
"""Mutations of recurrent models: the published equations, a law or a knockout must notice each."""

from pathlib import Path

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation

from tests.laws.mutants import Mutation
from tests.laws.test_the_tests import rewrite
from tests.parity.rwkv import Plain, Sizes, checkpoint
from tests.parity.test_rwkv import agrees, written
from torch_mi import testing
from torch_mi.backends.recurrent import RecurrentBlock
from torch_mi.cache import Prefix
from torch_mi.errors import MIError
from torch_mi.hooks import states, steps
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Scale, Zero
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.hooks.states import StateKnockoutSpec
from torch_mi.model import MIModel
from torch_mi.nn import reading, rwkv4, rwkv6
from torch_mi.nn.rwkv import Channels
from torch_mi.nn.rwkv4 import Rwkv4Mix
from torch_mi.nn.rwkv6 import MatrixState, Rwkv6Mix
from torch_mi.nn.rwkv7 import Rwkv7Mix
from torch_mi.nn.shift import Steps

SIZES = {
    "rwkv": Sizes("4", 6, 8, 1),
    "rwkv5": Sizes("5.2", 10, 3, 4),
    "rwkv6": Sizes("6", 10, 3, 4),
    "rwkv7": Sizes("7", 12, 3, 4, layers=3),
}
TOKENS = [3, 1, 4, 1, 5, 9]
LAWS = (
    testing.every_hook_fires,
    testing.the_residual_stream_adds_up,
    testing.a_prefix_and_the_rest_are_the_whole,
    testing.padding_is_not_seen,
)
"""Quick ones, which notice what no single run shows."""

MUTATIONS = (
    Mutation("a bonus is dropped", MatrixState, "mixed_out", "y + tap(", "y + 0 * tap(", "rwkv5"),
    Mutation("a bonus is dropped in 7", Rwkv7Mix, "forward", "z = z + tap(", "tap(", "rwkv7"),
    Mutation("the decay is a logarithm", rwkv6, "faded", ".expand(like.shape).exp()", "", "rwkv6"),
    Mutation("the decay of 7 is too strong", Rwkv7Mix, "_decay", "SLOWEST *", "-1.0 *", "rwkv7"),
    Mutation("the first token is its own predecessor", Steps, "_from", "zeros", "ones", "rwkv"),
    Mutation(
        "the shift sees padding", Steps, "shifted", "if self.real is None", "if True", "rwkv6"
    ),
    Mutation("padding is what comes last", Steps, "last", "if self.real is None", "if 1", "rwkv6"),
    Mutation(
        "padding fades", reading, "gated", "decay=steps.only_real(decay)", "decay=decay", "rwkv7"
    ),
    Mutation("padding writes", reading, "gated", "k=steps.only_real(r.k)", "k=r.k", "rwkv5"),
    Mutation("padding erases", reading, "gated", "steps.only_real(r.beta)", "r.beta", "rwkv7"),
    Mutation("padding counts in 4", Rwkv4Mix, "_read", "steps.only_real(decay.", "(decay.", "rwkv"),
    Mutation("layers pass on their own values", Rwkv7Mix, "_v", "v), first", "v), v", "rwkv7"),
    Mutation(
        "values beside the stream are lost",
        RecurrentBlock,
        "_joined",
        "x if",
        "x if x is x or",
        "rwkv7",
    ),
    Mutation("erasing has no rate", Rwkv7Mix, "forward", "kappa * rate", "kappa", "rwkv7"),
    Mutation(
        "the key is normed late", Rwkv7Mix, "forward", "k * self.erased", "k * self.kept", "rwkv7"
    ),
    Mutation(
        "mixes are in another order",
        Rwkv6Mix,
        "_mixes",
        "self.mix_k, self.mix_v",
        "self.mix_v, self.mix_k",
        "rwkv6",
    ),
    Mutation("the gate of channels is open", Channels, "forward", ".sigmoid()", ".exp()", "rwkv"),
    Mutation("squares are forgotten", Channels, "forward", ".square()", "", "rwkv7"),
    Mutation(
        "the norm of heads forgets eps", reading.HeadNorm, "forward", "+ self.eps", "", "rwkv6"
    ),
    Mutation(
        "the state starts anew",
        Rwkv7Mix,
        "forward",
        "None, steps, tap, state",
        "None, steps, tap, None",
        "rwkv7",
    ),
    Mutation("sums start anew at a halt", rwkv4, "halted", "gate, state)", "gate, None)", "rwkv"),
    Mutation(
        "a halt is one too late", reading, "through", "start = stop + 1", "start = stop", "rwkv5"
    ),
    Mutation(
        "steps are kept before edits",
        steps.StepSite,
        "__call__",
        "self._after[column] = x",
        "self._after[column] = self._before[column]",
        "rwkv6",
    ),
    Mutation(
        "a knockout only dampens", states, "edit_of", "Zero(at=at)", "Scale(0.5, at=at)", "rwkv5"
    ),
    Mutation(
        "a knockout is at the next token",
        states,
        "edits_of",
        "At(pos=position, head",
        "At(pos=position + 1, head",
        "rwkv6",
    ),
    Mutation(
        "a knockout is in another layer",
        states,
        "edits_of",
        "Hook(point, layer), edit_of(spec, At(pos=position, ",
        "Hook(point, 1 - layer), edit_of(spec, At(pos=position, ",
        "rwkv7",
    ),
)


def examine(family: str, folder: Path) -> None:
    """Plain runs and knocked out ones against the equations, then laws."""
    sizes, tensors = SIZES[family], checkpoint(SIZES[family])
    eps = 4e-5 if family == "rwkv7" else 64e-5
    model = MIModel.from_pretrained(written(tensors, folder / "model.safetensors"))
    agrees(model, Plain(tensors, sizes, eps).run(TOKENS), TOKENS)
    gone = Plain(tensors, sizes, eps, frozenset({(0, 2)})).run(TOKENS)
    spec = HookSpec().set_state_knockout(StateKnockoutSpec().position(2).layer(0))
    found = model.forward(torch.tensor([TOKENS]), spec).output[0]
    torch.testing.assert_close(found, gone.logits.float(), atol=1e-4, rtol=1e-4)
    subject = testing.tiny(family, changes={"num_hidden_layers": 2})
    tokens = testing.random_tokens(subject, 2, 5)
    for law in LAWS:
        law(subject, tokens)
    edit, where = Zero(at=At(pos=2)), HookPoint.RwkvState(0)
    seen = subject.forward(tokens, HookSpec().capture(where).intervene(where, edit))
    assert not seen[where][:, 2].any(), "a capture is not what flows on"
    decay = subject.forward(tokens, HookSpec().capture(HookPoint.RwkvW))[HookPoint.RwkvW(0)]
    assert ((decay > 0) & (decay <= 1)).all(), "a decay is no factor"
    same = HookSpec().intervene(where, Scale(1.0, at=At(pos=1)))
    plain = subject.forward(tokens).output
    torch.testing.assert_close(subject.forward(tokens, same).output, plain, atol=1e-5, rtol=0)
    passes_over_padding(subject)


def passes_over_padding(subject: MIModel) -> None:
    """What a row filled up on the right leaves behind is what it leaves behind alone."""
    tokens = testing.random_tokens(subject, 2, 5)
    more = testing.random_tokens(subject, 2, 3, seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    prefix = subject.forward(tokens, attention_mask=mask, after=Prefix()).prefix
    found = subject.forward(more, after=prefix).output
    for row, real in enumerate((5, 3)):
        whole = torch.cat([tokens[row, :real], more[row]])[None]
        alone = subject.forward(whole).output[0, real:]
        torch.testing.assert_close(found[row], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", SIZES)
def test_nothing_is_wrong_without_a_mutation(family: str, tmp_path: Path) -> None:
    examine(family, tmp_path)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mutation_is_noticed(
    mutation: Mutation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rewrite(monkeypatch, mutation.owner, mutation.name, mutation.old, mutation.new)
    errors = (AssertionError, MIError, RuntimeError, ValueError, TypeError)
    with pytest.raises((*errors, BeartypeCallHintViolation)):
        examine(mutation.family, tmp_path)
