# SPDX-License-Identifier: MIT OR Apache-2.0
"""Places, specs, edits: what they are, how they are written down, what they refuse."""

import copy
import json
import pickle  # noqa: TID251 - a hook must survive other people's pickles
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from inline_snapshot import snapshot

from torch_mi.errors import FileError, HookError, InterventionError, MIError
from torch_mi.hooks.coordinates import At, Span, Token
from torch_mi.hooks.interventions import (
    Add,
    Apply,
    Knockout,
    Replace,
    Scale,
    Zero,
)
from torch_mi.hooks.point import Hook, HookPoint, locate
from torch_mi.hooks.spec import HookSpec
from torch_mi.hooks.states import StateKnockoutSpec, StateSteeringSpec
from torch_mi.testing import random_tokens, tiny

MODEL = tiny("llama")
TOKENS = random_tokens(MODEL)
LAYERED = [point for point in HookPoint if point.per_layer]
GLOBAL = [point for point in HookPoint if not point.per_layer]


def said(error: type[MIError], make: Any) -> str:
    """What the error says."""
    with pytest.raises(error) as caught:
        make()
    return str(caught.value)


def outside_the_tests(*statements: str) -> list[str]:
    """The errors of statements run where annotations are not checked, as for a user."""
    program = f"""
import torch, torch_mi as mi
from torch_mi import HookPoint, HookSpec
for line in {statements!r}:
    try:
        exec(line)
    except Exception as e:
        print(f"{{type(e).__name__}}: {{e}}")
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return ran.stdout.splitlines()


class TestPlaces:
    def test_a_place_is_its_name(self) -> None:
        hook, name = HookPoint.AttnPattern(5), "blocks.5.attn.hook_pattern"
        assert hook == name
        assert hash(hook) == hash(name)
        assert str(hook) == name
        table: dict[str, int] = {hook: 1}
        assert table[name] == {name: 1}[hook] == 1
        assert (hook.point, hook.layer) == (HookPoint.AttnPattern, 5)
        assert hook != HookPoint.AttnPattern(4)
        assert HookPoint.AttnPattern == "blocks.*.attn.hook_pattern"
        assert repr(hook) == "HookPoint.AttnPattern(5)"

    @pytest.mark.parametrize("layer", [0, 1, 7, 25, 100])
    @pytest.mark.parametrize("point", LAYERED)
    def test_every_layered_name_reads_back(self, point: HookPoint, layer: int) -> None:
        for path in (str(point), *point.aliases):
            assert Hook.parse(path.replace("*", str(layer))) == point(layer)
        assert Hook.parse(point(layer)) is not None
        assert locate(str(point)) is point

    @pytest.mark.parametrize("point", GLOBAL)
    def test_every_other_name_reads_back(self, point: HookPoint) -> None:
        found = Hook.parse(str(point))
        assert found == point
        assert (found.point, found.layer) == (point, None)
        assert repr(found) == f"HookPoint.{point.name}"

    def test_other_spellings(self) -> None:
        assert Hook.parse("blocks.2.attn.hook_attn_scores") == HookPoint.AttnScores(2)
        assert Hook.parse("blocks.2.mlp.hook_in") == HookPoint.MlpIn(2)
        assert Hook.parse("blocks.07.hook_resid_pre") == HookPoint.ResidPre(7)

    def test_names_are_unique(self) -> None:
        names = [name for point in HookPoint for name in (str(point), *point.aliases)]
        assert len(names) == len(set(names))

    def test_hooks_can_be_copied_and_pickled(self) -> None:
        hook = HookPoint.ResidPost(3)
        for twin in (copy.copy(hook), copy.deepcopy(hook), pickle.loads(pickle.dumps(hook))):
            assert (twin, twin.point, twin.layer) == (hook, hook.point, 3)

    @pytest.mark.parametrize(
        "name", ["blocks.5", "blocks.-1.hook_resid_pre", "blocks.x.hook_resid_pre", "", "Embed"]
    )
    def test_what_is_not_a_name(self, name: str) -> None:
        with pytest.raises(HookError, match="no hook point is named"):
            Hook.parse(name)

    def test_errors_name_the_nearest(self) -> None:
        assert said(HookError, lambda: Hook.parse("blocks.1.atn.hook_pattern")) == snapshot(
            "no hook point is named 'blocks.1.atn.hook_pattern'; "
            "did you mean 'blocks.1.attn.hook_pattern'?"
        )
        assert said(HookError, lambda: Hook.parse("hook_embd")) == snapshot(
            "no hook point is named 'hook_embd'; did you mean 'hook_embed'?"
        )
        assert said(HookError, lambda: Hook.parse("AttnPatern")) == snapshot(
            "no hook point is named 'AttnPatern'; did you mean 'AttnPattern'?"
        )
        assert said(HookError, lambda: Hook.parse(HookPoint.ResidPre)) == snapshot(
            "blocks.*.hook_resid_pre is a place in every layer; name one, as HookPoint.ResidPre(0)"
        )
        assert said(HookError, lambda: Hook(HookPoint.ResidPre)) == snapshot(
            "ResidPre is inside a layer, numbered from 0; write HookPoint.ResidPre(0)"
        )
        assert said(HookError, lambda: HookPoint.Embed(0)) == snapshot(
            "Embed is not inside a layer; write HookPoint.Embed"
        )
        with pytest.raises(HookError):
            HookPoint.ResidPre(-1)


class TestWhatAModelHas:
    def test_absent_points_and_layers(self) -> None:
        def run(*where: str) -> Any:
            return lambda: MODEL.forward(TOKENS, HookSpec().capture(*where))

        assert said(HookError, run("blocks.9.hook_resid_pre")) == snapshot(
            "HookPoint.ResidPre(9) is out of range: this model has layers 0 … 2"
        )
        message = said(HookError, run(HookPoint.PosEmbed))
        assert message.startswith("this model has no PosEmbed; it has Embed, ResidPre, Ln1Scale")
        plain = tiny("starcoder2")
        with pytest.raises(HookError, match="no MlpPreLinear"):
            plain.forward(TOKENS, HookSpec().capture("blocks.*.mlp.hook_pre_linear"))

    def test_hooks_lists_every_place_once(self) -> None:
        per_layer = sum(p.per_layer for p in MODEL.backend.hook_points)
        others = len(MODEL.backend.hook_points) - per_layer
        assert len(MODEL.hooks) == 3 * per_layer + others
        assert MODEL.hooks[HookPoint.AttnK(0)] == ("batch", "pos", 3, 10)
        assert MODEL.hooks[HookPoint.Ln1Scale(0)] == ("batch", "pos", 1)
        assert MODEL.hooks[HookPoint.AttnPattern(2)] == ("batch", 6, "query", "key")

    def test_a_place_in_every_layer_captures_every_layer(self) -> None:
        for name in (HookPoint.ResidPost, "blocks.*.hook_resid_post"):
            cache = MODEL.forward(TOKENS, HookSpec().capture(name))
            assert list(cache) == [HookPoint.ResidPost(i) for i in range(3)]


class TestSpec:
    def test_counts(self) -> None:
        spec = (
            HookSpec()
            .capture(HookPoint.Embed, "blocks.0.hook_resid_pre", HookPoint.Embed)
            .intervene(HookPoint.ResidPost(0), Zero())
            .intervene("blocks.0.hook_resid_post", Scale(2.0))
            .intervene(HookPoint.ResidPost(1), Zero())
        )
        assert (spec.num_captures(), spec.num_interventions()) == (2, 3)
        assert list(spec.interventions_at(HookPoint.ResidPost(0))) == [Zero(), Scale(2.0)]
        assert spec.has_intervention_at("blocks.1.hook_resid_post")
        assert not spec.has_intervention_at(HookPoint.ResidPost(2))
        assert spec.is_captured("hook_embed")
        assert not spec.is_captured(HookPoint.ResidPre(1))
        assert not spec.is_empty()

    def test_a_point_covers_its_layers(self) -> None:
        spec = HookSpec().capture(HookPoint.ResidPre).intervene(HookPoint.MlpOut, Zero())
        assert spec.is_captured(HookPoint.ResidPre(7))
        assert spec.has_intervention_at(HookPoint.MlpOut(7))
        assert not HookSpec().capture(HookPoint.ResidPre(7)).is_captured(HookPoint.ResidPre)

    def test_empty(self) -> None:
        assert HookSpec().is_empty()
        assert HookSpec() == HookSpec()
        assert not HookSpec().set_state_knockout(StateKnockoutSpec((1,))).is_empty()
        assert not HookSpec().set_state_steering(StateSteeringSpec((1,), scale=2.0)).is_empty()
        assert repr(HookSpec()) == "<HookSpec: a plain run>"

    def test_extend_unites_captures_and_appends_edits(self) -> None:
        first = HookSpec().capture(HookPoint.Embed).intervene(HookPoint.Embed, Scale(1.0))
        second = (
            HookSpec(allow_unfired=True)
            .capture(HookPoint.Embed, HookPoint.Logits)
            .intervene(HookPoint.Embed, Scale(2.0))
            .set_state_knockout(StateKnockoutSpec((0,)))
        )
        both = first | second
        assert both.num_captures() == 2
        assert list(both.interventions_at(HookPoint.Embed)) == [Scale(1.0), Scale(2.0)]
        assert both.state_knockout == StateKnockoutSpec((0,))
        assert both.allow_unfired
        assert (first.num_captures(), first.num_interventions()) == (1, 1)
        assert first.extend(second) is first
        assert first == both

    def test_states_that_differ_do_not_mix(self) -> None:
        one = HookSpec().set_state_knockout(StateKnockoutSpec((0,)))
        other = HookSpec().set_state_knockout(StateKnockoutSpec((1,)))
        assert (one | one).state_knockout == StateKnockoutSpec((0,))
        assert said(InterventionError, lambda: one | other) == snapshot(
            "both specs have a state knockout, and they differ"
        )
        steering = HookSpec().set_state_steering(StateSteeringSpec((0,), scale=2.0))
        with pytest.raises(InterventionError, match="state steering"):
            steering.extend(HookSpec().set_state_steering(StateSteeringSpec((0,), scale=3.0)))

    def test_a_transformer_has_no_state(self) -> None:
        spec = HookSpec().set_state_knockout(StateKnockoutSpec((0,)))
        assert said(InterventionError, lambda: MODEL.forward(TOKENS, spec)) == snapshot(
            "this model has no recurrent state to knock out or steer; "
            "its attention is edited at AttnScores and AttnPattern"
        )

    def test_a_spec_reads_as_a_sentence(self) -> None:
        spec = (
            HookSpec()
            .capture(HookPoint.ResidPost)
            .capture(HookPoint.Embed, when="before")
            .intervene(HookPoint.MlpOut(1), Add(torch.zeros(24), at=At(pos=-1)))
        )
        assert repr(spec) == snapshot(
            "<HookSpec: at HookPoint.MlpOut(1): Add(float32[24], at=At(pos=-1)); "
            "capture HookPoint.ResidPost; capture HookPoint.Embed before edits>"
        )

    def test_what_it_refuses(self) -> None:
        with pytest.raises(HookError, match="did you mean 'hook_embed'"):
            HookSpec().capture("hook_embedd")
        assert outside_the_tests(
            "HookSpec().intervene(HookPoint.Embed, 3.0)",
            "HookSpec().capture(HookPoint.Embed, when='later')",
            "HookSpec().capture(3)",
        ) == snapshot(
            [
                "InterventionError: 3.0 is not an intervention; "
                "use Replace, Add, Knockout, Scale, Zero or Apply(fn)",
                "HookError: when='later'; a capture is taken 'after' the edits or 'before' them",
                "HookError: 3 is not a hook point or a name",
            ]
        )

    def test_edits_compare_by_value(self) -> None:
        assert Add(torch.ones(2)) == Add(torch.ones(2))
        assert Add(torch.ones(2)) != Add(torch.zeros(2))
        assert Add(torch.ones(2)) != Replace(torch.ones(2))
        assert Scale(2.0, at=At(pos=1)) != Scale(2.0)


def full_spec() -> HookSpec:
    return (
        HookSpec(allow_unfired=True)
        .capture(HookPoint.ResidPost, "blocks.1.attn.hook_pattern")
        .capture(HookPoint.Embed, when="before")
        .intervene(HookPoint.ResidPre(0), Replace(torch.randn(3), at=At(batch=0, pos=1)))
        .intervene(HookPoint.MlpOut, Add(torch.randn(24).bfloat16(), at=At(pos=Token("a", nth=1))))
        .intervene(HookPoint.AttnScores(1), Knockout(at=At(query=-1, key=[0, 2], head=slice(1, 3))))
        .intervene(HookPoint.AttnScores, Knockout(torch.tensor([0.0, -torch.inf])))
        .intervene(HookPoint.AttnZ, Scale(0.5, at=At(pos=Span("the cat").last)))
        .intervene(HookPoint.MlpPost(2), Zero(at=At(neuron=5, pos=Span("dog", nth=0))))
        .set_state_knockout(StateKnockoutSpec((1, 2), (0,)))
        .set_state_steering(StateSteeringSpec((3,), scale=1.5))
    )


class TestSaving:
    def test_a_spec_comes_back_equal(self, tmp_path: Path) -> None:
        spec = full_spec()
        path = spec.save(tmp_path / "spec.json")
        assert HookSpec.load(path) == spec
        assert (tmp_path / "spec.safetensors").is_file()

    def test_a_spec_without_tensors_is_one_file(self, tmp_path: Path) -> None:
        spec = HookSpec().capture(HookPoint.Embed).intervene(HookPoint.Embed, Scale(2.0))
        spec.save(tmp_path / "spec.json")
        assert [path.name for path in tmp_path.iterdir()] == ["spec.json"]
        assert HookSpec.load(tmp_path / "spec.json") == spec

    def test_functions_cannot_be_saved(self, tmp_path: Path) -> None:
        spec = HookSpec().intervene(HookPoint.Embed, Apply(lambda x, _: x))
        message = said(InterventionError, lambda: spec.save(tmp_path / "spec.json"))
        assert "at hook_embed holds a function and cannot be saved" in message
        assert "Replace, Add, Knockout, Scale, Zero can" in message
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("damage", "wrong"),
        [
            ({"format": "else"}, "its format is 'else'"),
            ({"edits": [{"where": "hook_embed", "kind": "Nothing"}]}, "incomplete or damaged"),
            ({"edits": [{"where": "hook_embed"}]}, "incomplete or damaged"),
            ({"captures": ["hook_embed"]}, "incomplete or damaged"),
            ({"captures": {"after": ["hook_embedd"]}}, "did you mean 'hook_embed'"),
        ],
    )
    def test_damaged_files(self, tmp_path: Path, damage: dict[str, Any], wrong: str) -> None:
        path = HookSpec().intervene(HookPoint.Embed, Scale(2.0)).save(tmp_path / "spec.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | damage))
        with pytest.raises(FileError, match=wrong):
            HookSpec.load(path)

    @pytest.mark.parametrize("key", ["captures", "edits", "allow_unfired", "state_knockout"])
    def test_files_that_lack_a_part(self, tmp_path: Path, key: str) -> None:
        path = full_spec().save(tmp_path / "spec.json")
        data = json.loads(path.read_text())
        del data[key]
        path.write_text(json.dumps(data))
        with pytest.raises(FileError, match="incomplete or damaged"):
            HookSpec.load(path)

    def test_files_that_are_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileError, match="there is no file"):
            HookSpec.load(tmp_path / "spec.json")
        path = full_spec().save(tmp_path / "full.json")
        (tmp_path / "full.safetensors").unlink()
        with pytest.raises(FileError, match=r"there is no file .*full\.safetensors"):
            HookSpec.load(path)


class TestStates:
    def test_builders(self) -> None:
        spec = StateKnockoutSpec().position(1, 2).position(2).layer(0).layer_range(1, 3)
        assert spec == StateKnockoutSpec((1, 2, 2), (1, 2, 3))
        assert spec.position_set() == {1, 2}
        assert spec.applies_to_layer(3)
        assert not spec.applies_to_layer(0)
        assert StateSteeringSpec(scale=3.0).position(1) == StateSteeringSpec((1,), scale=3.0)

    @pytest.mark.parametrize(
        ("spec", "wrong"),
        [
            (StateKnockoutSpec(), "names no positions"),
            (StateKnockoutSpec((20,)), "position 20 is out of range: the run has 20"),
            (StateKnockoutSpec((0,), (30,)), "layer 30 is out of range: the model has 30"),
        ],
    )
    def test_validate(self, spec: StateKnockoutSpec, wrong: str) -> None:
        with pytest.raises(InterventionError, match=wrong):
            spec.validate(30, 20)
        StateKnockoutSpec((0, 19), (0, 29)).validate(30, 20)
