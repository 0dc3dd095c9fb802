# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a run leaves behind: the cache and the manifest."""

import json
from collections.abc import Callable

import pytest
import torch

from torch_mi.cache import HookCache, Prefix, Residual
from torch_mi.errors import HookError, MIError
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.interventions import Add, Apply, Scale
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import Manifest
from torch_mi.testing import random_tokens, tiny

MODEL = tiny("mistral")
TOKENS = random_tokens(MODEL, 2, 7)
RESID = HookPoint.ResidPost(1)
SCORES, PATTERN = HookPoint.AttnScores(1), HookPoint.AttnPattern(1)

ABSENT: list[tuple[Callable[[HookCache], object], str]] = [
    (lambda c: c["blocks.1.hook_resid_pre"], "was not captured in this run"),
    (lambda c: c["hook_embd"], "did you mean 'hook_embed'"),
    (lambda c: c.get("hook_embd"), "did you mean 'hook_embed'"),
    (lambda c: c.require(HookPoint.Logits), "was not captured"),
    (lambda c: c.stack(HookPoint.ResidPre), "no layer's .* was captured"),
    (lambda c: c.stack("hook_embed"), "no layer's hook_embed was captured"),
    (lambda c: c.residual, "this run went to the end; it has .output"),
    (lambda c: c.prefix, "this run kept no prefix"),
]


class TestCache:
    def test_it_is_a_mapping_from_places(self) -> None:
        cache = MODEL.forward(TOKENS, HookSpec().capture(HookPoint.ResidPost, "hook_embed"))
        assert list(cache) == [*HookPoint.ResidPost.on(3), "hook_embed"]
        assert len(cache) == cache.num_captures() == 4
        assert dict(cache).keys() == {HookPoint.Embed, *HookPoint.ResidPost.on(3)}
        assert "blocks.1.hook_resid_post" in cache
        assert "blocks.1.hook_resid_pre" not in cache
        assert cache.get("blocks.1.hook_resid_pre") is None
        assert cache.require(RESID) is cache[RESID]
        assert cache.stack(HookPoint.ResidPost).shape == (3, 2, 7, 24)
        assert repr(cache) == "<HookCache: logits [2, 7, 97], 4 captures>"

    def test_other_spellings_find_the_same(self) -> None:
        cache = MODEL.forward(TOKENS, HookSpec().capture("blocks.1.attn.hook_attn_scores"))
        assert torch.equal(cache[SCORES], cache["blocks.1.attn.hook_attn_scores"])

    @pytest.mark.parametrize(("look", "wrong"), ABSENT)
    def test_what_is_not_there(self, look: Callable[[HookCache], object], wrong: str) -> None:
        cache = MODEL.forward(TOKENS, HookSpec().capture(HookPoint.ResidPost))
        with pytest.raises(MIError, match=wrong):
            look(cache)

    def test_a_run_that_stopped_has_a_residual(self) -> None:
        cache = MODEL.forward(TOKENS, stop=2)
        assert cache.residual.layer == 2
        assert repr(cache) == "<HookCache: stopped before layer 2 [2, 7, 24], 0 captures>"
        with pytest.raises(HookError, match=r"stopped before layer 2; it has .residual"):
            _ = cache.output

    def test_to_moves_everything(self) -> None:
        everything = HookSpec().capture(HookPoint.ResidPost, HookPoint.AttnResult)
        spec = everything.capture(HookPoint.Embed, when="before")
        cache = MODEL.forward(TOKENS, spec.intervene(HookPoint.Embed, Scale(2.0)))
        moved = cache.to("meta")
        assert {x.device.type for x in (*moved.values(), moved.output)} == {"meta"}
        assert moved.before[HookPoint.Embed].device.type == "meta"
        assert moved.receipts == cache.receipts
        prefix = MODEL.forward(TOKENS, after=Prefix()).to("meta").prefix
        assert {x.device.type for carry in prefix.carries.values() for x in carry} == {"meta"}
        assert list(moved) == list(cache)
        assert MODEL.forward(TOKENS, stop=1).to("meta").residual.x.device.type == "meta"


class TestManifest:
    def test_it_says_what_ran(self) -> None:
        spec = HookSpec().capture(PATTERN).intervene(RESID, Add(torch.ones(24), at=At(pos=0)))
        spec.intervene(RESID, Apply(lambda x, _: x))
        manifest = MODEL.forward([[1, 2, 3], [4, 5]], spec).manifest
        assert manifest.model_id == "tiny:mistral"
        assert manifest.weights == MODEL.fingerprint
        assert manifest.tokens == [[1, 2, 3], [4, 5]]
        assert manifest.explicit_layers == [1]
        assert (manifest.attention, manifest.dtype, manifest.device) == ("auto", "float32", "cpu")
        assert set(manifest.versions) == {"torch_mi", "torch", "python"}
        text = json.dumps(manifest.to_dict(), allow_nan=False)
        assert Manifest.from_dict(json.loads(text)) == manifest
        assert manifest.spec is not None
        assert manifest.spec["captures"] == {"after": [str(PATTERN)], "before": []}
        assert "unsaved_edits" in manifest.spec

    def test_it_tells_values_apart(self) -> None:
        def of(value: float) -> Manifest:
            spec = HookSpec().intervene(RESID, Add(torch.full((24,), value)))
            return MODEL.forward(TOKENS, spec).manifest

        assert of(1.0) == of(1.0)
        assert of(1.0) != of(2.0)

    def test_it_speaks_of_the_spec_as_it_was(self) -> None:
        spec = HookSpec().intervene(RESID, Scale(2.0))
        ran = MODEL.forward(TOKENS, spec)
        spec.intervene(RESID, Scale(3.0)).capture(PATTERN)
        manifest = ran.manifest
        assert manifest == MODEL.forward(TOKENS, HookSpec().intervene(RESID, Scale(2.0))).manifest

    def test_plain_runs(self) -> None:
        assert MODEL.forward(TOKENS).manifest.spec is None
        explicit = MODEL.forward(TOKENS, attention="explicit").manifest
        assert (explicit.attention, explicit.explicit_layers) == ("explicit", [0, 1, 2])
        capped = tiny("gemma2").forward(TOKENS).manifest
        assert capped.explicit_layers == [0, 1, 2]
        assert MODEL.forward(Residual(1, torch.zeros(1, 2, 24))).manifest.tokens is None
