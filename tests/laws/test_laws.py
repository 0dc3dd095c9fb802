# SPDX-License-Identifier: MIT OR Apache-2.0
"""The public laws, held against tiny models of every family."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kinds import KINDS
from tests.laws import examples
from torch_mi import testing
from torch_mi.config.parts import NormType
from torch_mi.errors import ConfigError
from torch_mi.families import FAMILIES, RECURRENTS
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.model import MIModel

# beartype looks at a random item of a list, in strategies too; that decides no example
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

SLOW = {
    testing.watching_changes_nothing,
    testing.identity_edits_change_nothing,
    testing.edits_reach_no_earlier_position,
    testing.captures_can_be_differentiated,
}
"""Laws that take many runs: one example, and none for families that add no arithmetic."""


CASES = [
    pytest.param(law, family, id=f"{law.__name__}-{family}")
    for law in testing.LAWS
    for family in FAMILIES
    if law not in SLOW or family in KINDS
]


@pytest.mark.parametrize(("law", "family"), CASES)
def test_law(law: testing.Law, family: str) -> None:
    @settings(max_examples=2 if family in KINDS and law not in SLOW else 1)
    @given(st.data())
    def hold(data: st.DataObject) -> None:
        model = data.draw(examples.models(family))
        law(model, data.draw(examples.prompts(model)))

    hold()


@pytest.mark.parametrize("family", [*FAMILIES, *RECURRENTS])
def test_every_family_says_what_its_tiny_model_is(family: str) -> None:
    assert {**FAMILIES, **RECURRENTS}[family].tiny
    assert testing.tiny(family).origin.family == family


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_leave_nothing_at_its_default(family: str) -> None:
    model = testing.tiny(family)
    for name, value in model.backend.named_parameters():
        assert value.float().std() > 0.05, f"all of {name} is alike"
    cfg = model.config
    even = FAMILIES[family].tiny.get("head_dim", 0) is None  # heads that always share evenly
    assert even or cfg.head_dim * cfg.num_attention_heads != cfg.hidden_size
    same = testing.tiny(family)
    other = testing.tiny(family, seed=1)
    assert model.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize("family", RECURRENTS)
def test_tiny_recurrent_models_leave_nothing_at_its_default(family: str) -> None:
    model = testing.tiny(family)
    for name, value in model.backend.named_parameters():
        assert value.std() > 0.05, f"all of {name} is alike"
    mixer = model.config.mixer
    even = family in ("rwkv7", "hgrn2")  # heads that always share evenly
    assert even or mixer.heads * mixer.value_size != model.config.hidden_size
    other = testing.tiny(family, seed=1)
    assert model.fingerprint == testing.tiny(family).fingerprint != other.fingerprint


def test_tiny_models_load_by_name() -> None:
    model = MIModel.from_pretrained("tiny:gemma2", dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.origin.family == "gemma2"
    assert model.to_str_tokens("a b") == ["<s>", "a", " ", "b"]
    wanted = testing.tiny("gemma2", dtype=torch.bfloat16)
    assert model.fingerprint == wanted.fingerprint
    assert MIModel.from_pretrained("tiny:rwkv7").origin.family == "rwkv7"
    with pytest.raises(ConfigError, match=r"no tiny model of 'gema2'.*did you mean 'gemma2'"):
        MIModel.from_pretrained("tiny:gema2")


@pytest.mark.parametrize("family", FAMILIES)
def test_head_results_and_bias_are_the_attention_output(family: str) -> None:
    model = testing.tiny(family)
    points = (HookPoint.AttnResult, HookPoint.AttnZ, HookPoint.AttnOut)
    cfg = model.config
    seen = model.forward(testing.random_tokens(model), HookSpec().capture(*points))
    for layer, block in enumerate(model.backend.blocks):  # pyright: ignore[reportAttributeAccessIssue]
        result, z, out = (seen[point(layer)] for point in points)
        weight = block.attn.o.weight.unflatten(1, (model.num_heads, -1))
        torch.testing.assert_close(result, torch.einsum("bphd,ehd->bphe", z, weight))
        mixed = result.sum(2)
        mixed = mixed if block.attn.o.bias is None else mixed + block.attn.o.bias
        if block.post1 is not None:
            rms = (mixed.square().mean(-1, keepdim=True) + cfg.norm_eps).sqrt()
            mixed = mixed / rms * (block.post1.weight + (cfg.norm_type is NormType.RmsPlusOne))
        if cfg.residual_scale is not None:
            mixed = mixed * cfg.residual_scale
        torch.testing.assert_close(mixed, out, atol=1e-5, rtol=0)
