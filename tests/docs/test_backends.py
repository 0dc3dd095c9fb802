# SPDX-License-Identifier: MIT OR Apache-2.0
"""`docs/backends.md`, followed to the letter: a family is added, held to the laws, and loaded."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.docs.pages import ROOT, fences
from tests.parity import hf
from tests.parity.cases.case import COMMON, Case
from torch_mi import testing
from torch_mi.cache import HookCache
from torch_mi.errors import ConfigError, ModelError
from torch_mi.families import FAMILIES, Family, register
from torch_mi.families.rules import constant
from torch_mi.hooks.point import HookPoint
from torch_mi.model import MIModel

PAGE = ROOT / "docs" / "backends.md"
STEPS = [f.text for f in fences(PAGE, "python") if "acorn" in f.text or "(folder)" in f.text]
CONFIG = json.loads(fences(PAGE, "json")[0].text)
SAME = Case("acorn", "llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}})


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    """The families as they were, afterwards."""
    before = dict(FAMILIES)
    yield
    families = cast("dict[str, Family]", FAMILIES)
    families.clear()
    families.update(before)


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A llama checkpoint as Acorn would have saved it."""
    names = {
        r"model\.embed_tokens": "words",
        r"model\.layers\.(\d+)\.input_layernorm": r"layer.\1.look.norm",
        r"model\.layers\.(\d+)\.self_attn\.o_proj": r"layer.\1.look.out",
        r"model\.layers\.(\d+)\.post_attention_layernorm": r"layer.\1.think.norm",
        r"model\.layers\.(\d+)\.mlp\.(gate|up|down)_proj": r"layer.\1.think.\2",
        r"model\.norm": "norm",
        r"lm_head": "predict",
    }
    found: dict[str, Tensor] = {}
    stacks: dict[str, list[Tensor]] = {}
    for name, value in tensors.items():
        stack = re.fullmatch(r"model\.layers\.(\d+)\.self_attn\.[qkv]_proj\.weight", name)
        if stack:
            stacks.setdefault(f"layer.{stack[1]}.look.qkv.weight", []).append(value)
            continue
        theirs = next(each for each in names if re.match(rf"{each}\.weight$", name))
        acorns = re.sub(theirs, names[theirs], name)
        found[acorns] = value.mT.contiguous() if acorns.endswith("look.out.weight") else value
    return found | {name: torch.cat(parts) for name, parts in stacks.items()}


@pytest.fixture
def theirs() -> Any:
    assert {CONFIG["width"], CONFIG["neurons"]} == {
        COMMON["hidden_size"],
        COMMON["intermediate_size"],
    }
    return hf.build(SAME)


@pytest.fixture
def folder(tmp_path: Path, theirs: Any) -> Path:
    """An Acorn checkpoint, made of a llama of transformers."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    state = {name: value.detach().clone() for name, value in theirs.state_dict().items()}
    save_file(renamed(state), tmp_path / "model.safetensors")
    return tmp_path


def follow(steps: int = len(STEPS), **given: object) -> dict[str, Any]:
    """The steps of the page, in order, as a reader would run them."""
    space: dict[str, Any] = {"__name__": "page", **given}
    for step in STEPS[:steps]:
        exec(compile(step, str(PAGE), "exec"), space)  # what the page says
    return space


def test_the_page_has_all_its_steps() -> None:
    assert len(STEPS) == 4
    assert "register(acorn)" in STEPS[1]
    assert "check_laws" in STEPS[2]
    assert "from_pretrained" in STEPS[3]


def test_a_family_added_by_the_page_computes_what_transformers_does(
    folder: Path, theirs: Any
) -> None:
    tokens = torch.randint(83, (2, 12), generator=torch.Generator().manual_seed(0))
    space = follow(folder=folder, tokens=tokens)
    model, cache = cast("MIModel", space["model"]), cast("HookCache", space["cache"])
    wanted = hf.run(theirs, tokens)
    assert model.origin.family == "acorn"
    torch.testing.assert_close(cache.output, wanted.logits, atol=1e-5, rtol=0)
    for i, leaving in enumerate(wanted.leaving):
        torch.testing.assert_close(cache[HookPoint.ResidPost(i)], leaving, atol=1e-5, rtol=0)


def test_what_the_config_says_is_used_and_the_rest_refused(folder: Path) -> None:
    follow(steps=2)
    config = {**CONFIG, "residual_factor": 0.25}
    (folder / "config.json").write_text(json.dumps(config))
    assert MIModel.from_pretrained(folder).config.residual_scale == 0.25
    (folder / "config.json").write_text(json.dumps({**CONFIG, "acorns": 3}))
    with pytest.raises(ConfigError, match="acorn has no use for acorns = 3"):
        MIModel.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "neurons": 45}))
    with pytest.raises(ModelError, match=r"layer\.0\.think\.\w+\.weight has shape"):
        MIModel.from_pretrained(folder)


def test_the_tiny_model_is_of_the_new_family() -> None:
    follow(steps=2)
    model = testing.tiny("acorn")
    assert model.config.residual_scale == 0.5
    assert model.origin.family == "acorn"


def test_families_that_cannot_be_are_refused() -> None:
    llama = FAMILIES["llama"]
    with pytest.raises(ConfigError, match="there is a family 'llama' already"):
        register(llama)
    with pytest.raises(ConfigError, match="there is a family 'torch_mi' already"):
        register(llama.but("torch_mi"))
    wrong = llama.but("acorn", rules={"residual_scal": constant(1.0)})
    with pytest.raises(
        ConfigError, match=r"'residual_scal', which .*did you mean 'residual_scale'"
    ):
        register(wrong)
    rules = {name: rule for name, rule in llama.rules.items() if name != "norm_eps"}
    with pytest.raises(ConfigError, match="acorn has no rule for norm_eps"):
        register(Family("acorn", rules, llama.sources, llama.inert, llama.fixed))
    assert "acorn" not in FAMILIES
