# SPDX-License-Identifier: MIT OR Apache-2.0
"""The front door: prompts of every kind, what a run refuses, and the small conveniences."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from inline_snapshot import snapshot
from torch import Tensor

from torch_mi.cache import Prefix, Residual
from torch_mi.errors import MIError, ModelError, TokenizerError
from torch_mi.hooks.point import HookPoint
from torch_mi.hooks.spec import HookSpec
from torch_mi.manifest import fingerprint
from torch_mi.model import MIModel
from torch_mi.testing import random_tokens, tiny

MODEL = tiny("llama")
TOKENS = random_tokens(MODEL)
ONE = MODEL.encode("a cat")


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def said(make: Callable[[], object], error: type[MIError] = ModelError) -> str:
    with pytest.raises(error) as caught:
        make()
    return str(caught.value)


class TestPrompts:
    @pytest.mark.parametrize(
        "prompt",
        [
            "a cat",
            ["a cat"],
            ONE,
            ONE[0],
            ONE.int(),
            ONE[0].tolist(),
            ONE.tolist(),
            [ONE[0]],
        ],
        ids=["text", "texts", "2d", "1d", "int32", "ids", "rows", "tensors"],
    )
    def test_every_spelling_is_the_same_run(self, prompt: Any) -> None:
        same(MODEL.forward(prompt).output, MODEL.forward(ONE).output)

    def test_texts_and_ids_of_different_lengths(self) -> None:
        mixed: Any = ["a cat", [5, 6], ONE[0, :3]]
        cache = MODEL.forward(mixed)
        assert cache.tokens is not None
        assert cache.real is not None
        assert cache.real.sum(1).tolist() == [6, 2, 3]
        assert cache.real[:, -1].all()
        same(cache.output[1, -2:], MODEL.forward([5, 6]).output[0])

    def test_calling_a_model_runs_it(self) -> None:
        assert torch.equal(MODEL(TOKENS).output, MODEL.forward(TOKENS).output)

    def test_what_is_no_prompt(self) -> None:
        empty = torch.empty(1, 0, dtype=torch.long)
        assert said(lambda: MODEL.forward(empty)) == snapshot(
            "token ids are [pos] or [batch pos], got shape [1, 0]"
        )
        assert said(lambda: MODEL.forward(torch.zeros(1, 3))) == snapshot(
            "token ids are integers, got a tensor of torch.float32"
        )
        assert said(lambda: MODEL.forward([])) == snapshot(
            "a prompt is text, token ids [pos] or [batch pos], or a list of either, not []"
        )
        assert said(lambda: MODEL.forward([[1], []])) == snapshot(
            "[] in a list of prompts is neither text nor token ids"
        )
        assert said(lambda: MODEL.forward([True, False])) == snapshot(
            "token ids are integers, got a tensor of torch.bool"
        )
        assert said(lambda: MODEL.forward([1, 97])) == snapshot(
            "token id 97 is out of range: the model has 0 … 96"
        )
        assert said(lambda: MODEL.forward([-1])) == snapshot(
            "token id -1 is out of range: the model has 0 … 96"
        )

    def test_text_without_a_tokenizer(self) -> None:
        mute = MIModel(MODEL.backend)
        assert said(lambda: mute.forward("a"), TokenizerError) == snapshot(
            "text needs a tokenizer, and this model was made without a tokenizer; give token ids"
        )
        assert said(lambda: mute.tokenizer, TokenizerError) == snapshot(
            "no tokenizer: this model was made without a tokenizer"
        )
        assert repr(mute.generate([1, 2], max_new_tokens=2)).startswith("'1 2' → ' ")


class TestRuns:
    def test_masks_that_do_not_fit(self) -> None:
        def run(mask: Tensor) -> Callable[[], object]:
            return lambda: MODEL.forward(TOKENS, attention_mask=mask)

        assert said(run(torch.ones(2, 8))) == snapshot(
            "attention_mask is [2, 8], tokens are [2, 9]"
        )
        assert said(run(torch.full((2, 9), 0.5))) == snapshot(
            "attention_mask holds 1 (or True) at real tokens and 0 at padding only"
        )
        assert said(run(torch.tensor([[1] * 9, [0] * 9]))) == snapshot(
            "row 1 of attention_mask has no real token"
        )
        bare = MODEL.forward(TOKENS).output
        for ones in (torch.ones(2, 9), torch.ones(2, 9, dtype=torch.bool)):
            assert torch.equal(MODEL.forward(TOKENS, attention_mask=ones).output, bare)

    def test_positions(self) -> None:
        bare = MODEL.forward(TOKENS).output
        for positions in (torch.arange(9), torch.arange(9)[None], torch.arange(9).expand(2, 9)):
            assert torch.equal(MODEL.forward(TOKENS, position_ids=positions).output, bare)
        shifted = MODEL.forward(TOKENS, position_ids=torch.arange(9) + 7).output
        same(shifted, bare)
        assert not torch.allclose(
            MODEL.forward(TOKENS, position_ids=2 * torch.arange(9)).output, bare, atol=1e-3
        )
        prefix = MODEL.forward(TOKENS[:, :4], position_ids=torch.arange(4) + 7, after=Prefix())
        rest = MODEL.forward(TOKENS[:, 4:], after=prefix.prefix)
        same(rest.output, shifted[:, 4:])

    @pytest.mark.parametrize(
        ("positions", "wrong"),
        [
            (torch.arange(8), r"position_ids are \[8\], tokens are \[2, 9\]"),
            (torch.arange(9) - 1, "whole numbers from 0 upwards; got -1"),
            (torch.arange(9) / 2, "whole numbers from 0 upwards; got 0.0"),
        ],
    )
    def test_positions_that_do_not_fit(self, positions: Tensor, wrong: str) -> None:
        with pytest.raises(ModelError, match=wrong):
            MODEL.forward(TOKENS, position_ids=positions)

    def test_parts_that_are_not_there(self) -> None:
        assert said(lambda: MODEL.forward(TOKENS, stop=4)) == snapshot(
            "a run from layer 0 to the door of layer 4 is not possible: this model has layers 0 … 2"
        )
        x = torch.zeros(1, 3, 24)
        with pytest.raises(ModelError, match="from layer 2 to the door of layer 1"):
            MODEL.forward(Residual(2, x), stop=1)
        with pytest.raises(ModelError, match="from layer -1"):
            MODEL.forward(Residual(-1, x))
        with pytest.raises(
            ModelError, match=r"a Residual of this layer holds \[batch pos 24\], got \[1, 3, 23\]"
        ):
            MODEL.forward(Residual(0, x[..., 1:]))
        assert MODEL.forward(Residual(3, x)).output.shape == (1, 3, 97)

    def test_prefixes_that_do_not_fit(self) -> None:
        whole = MODEL.forward(TOKENS, after=Prefix()).prefix
        assert said(lambda: MODEL.forward(TOKENS[:1], after=whole)) == snapshot(
            "the prefix has 2 rows, the prompt 1"
        )
        part = MODEL.forward(TOKENS, after=Prefix(), stop=1).prefix
        assert said(lambda: MODEL.forward(TOKENS, after=part)) == snapshot(
            "the prefix was run through layers [0], and this run goes through layer 1"
        )
        assert MODEL.forward(TOKENS, after=part, stop=1).residual.layer == 1

    def test_a_prefix_can_be_continued_many_times(self) -> None:
        prefix = MODEL.forward(TOKENS[:, :4], after=Prefix()).prefix
        kept = {layer: [x.clone() for x in carry] for layer, carry in prefix.carries.items()}
        for ending in (TOKENS[:, 4:], TOKENS[:, :2], TOKENS[:, 4:6]):
            whole = MODEL.forward(torch.cat([TOKENS[:, :4], ending], 1)).output
            same(MODEL.forward(ending, after=prefix).output, whole[:, 4:])
        for layer, carry in prefix.carries.items():
            assert all(torch.equal(a, b) for a, b in zip(carry, kept[layer], strict=True))

    def test_a_padded_prefix(self) -> None:
        rows = [[5, 6, 7, 8], [9, 10]]
        prefix = MODEL.forward(rows, after=Prefix()).prefix
        rest = MODEL.forward(torch.tensor([[1, 2], [3, 4]]), after=prefix)
        for row, ending in enumerate(([1, 2], [3, 4])):
            alone = MODEL.forward([*rows[row], *ending]).output
            same(rest.output[row], alone[0, -2:])
        again = MODEL.forward(torch.tensor([[1], [3]]), after=rest.prefix)
        same(again.output[1, 0], MODEL.forward([9, 10, 3, 4, 3]).output[0, -1])

    def test_wrong_words(self) -> None:
        from tests.unit.test_hooks import outside_the_tests  # noqa: PLC0415 - it makes a model too

        run = "from torch_mi.testing import tiny; tiny('llama').forward([1, 2, 3], "
        edit = f"{run}HookSpec().intervene('hook_embed', mi."
        assert outside_the_tests(
            f"{run}attention='flash')",
            f"{run}'hook_embed')",
            f"{edit}Add(1.0)))",
            f"{edit}Add(torch.ones(24, dtype=torch.complex64))))",
            f"{edit}Scale('2')))",
            f"{edit}Apply(3)))",
            f"{edit}Zero(at=mi.At(pos=1.5))))",
            f"{edit}Zero(at=mi.At(pos=True))))",
            f"{edit}Zero(at=mi.At(pos='a'))))",
            f"{edit}Zero(at=mi.At(pos=torch.tensor([1, -2])))))",
            "import numpy as np; assert mi.At(pos=np.int64(1), key=np.arange(2)) "
            "== mi.At(pos=1, key=[0, 1])",
        ) == snapshot(
            [
                "ModelError: attention='flash' is neither 'auto' nor 'explicit'",
                "HookError: 'hook_embed' is not a HookSpec; "
                "write HookSpec().capture(…).intervene(…)",
                "InterventionError: Add needs a tensor of real numbers, not float",
                "InterventionError: Add needs a tensor of real numbers, not torch.complex64",
                "InterventionError: Scale needs a number, not '2'; Apply takes more",
                "InterventionError: Apply needs a function, not 3",
                "InterventionError: pos=1.5 is neither a whole number, nor a list of them, "
                "nor a slice",
                "InterventionError: pos=True is neither a whole number, nor a list of them, "
                "nor a slice",
                "InterventionError: pos='a': text is named by Token('a') or Span('a')",
                "InterventionError: pos=[1, -2] names one place twice",
            ]
        )


class TestConveniences:
    def test_run_with_cache(self) -> None:
        logits, cache = MODEL.run_with_cache(TOKENS)
        assert set(cache) == set(MODEL.hooks)
        assert torch.equal(logits, cache.output)
        assert set(MODEL.run_with_cache(TOKENS, "hook_embed")[1]) == {HookPoint.Embed}
        names = ["hook_embed", "blocks.*.hook_resid_post"]
        assert len(MODEL.run_with_cache(TOKENS, names)[1]) == 4

    def test_text_and_back(self) -> None:
        assert MODEL.encode("ab").tolist() == [[0, *(ord(c) - 30 for c in "ab")]]
        assert MODEL.encode(["ab", "cd"]).shape == (2, 3)
        assert MODEL.decode(MODEL.encode("a b!")[0]) == "<s>a b!"
        assert MODEL.to_str_tokens("a b") == ["<s>", "a", " ", "b"]
        with pytest.raises(TokenizerError, match=r"these texts are \[3, 2\] tokens long"):
            MODEL.encode(["ab", "c"])
        with pytest.raises(TokenizerError, match="takes one prompt, got 2"):
            MODEL.to_str_tokens(["a", "b"])

    def test_vectors_of_tokens(self) -> None:
        token = MODEL.token_id("a")
        assert torch.equal(MODEL.embedding_vector("a"), MODEL.backend.embedding[token])
        assert torch.equal(MODEL.unembedding_vector(token), MODEL.backend.unembedding[token])
        with pytest.raises(TokenizerError, match="is not one token but 2"):
            MODEL.embedding_vector("ab")
        with pytest.raises(TokenizerError, match=r"token id 97 is out of range: 0 … 96"):
            MODEL.unembedding_vector(97)

    def test_projection_keeps_the_axes_it_is_given(self) -> None:
        x = torch.randn(2, 3, 4, 24)
        projected = MODEL.project_to_vocab(x)
        assert projected.shape == (2, 3, 4, 97)
        same(MODEL.project_to_vocab(x[1, 2, 3]), projected[1, 2, 3])
        with pytest.raises(ModelError, match=r"needs vectors of 24, got \[2, 23\]"):
            MODEL.project_to_vocab(torch.zeros(2, 23))

    def test_it_says_what_it_is(self) -> None:
        assert repr(MODEL) == snapshot(
            "<MIModel 'tiny:llama' (llama): 3 layers, d_model 24, "
            "6 heads (3 for keys and values), vocabulary 97, 0.0 M parameters, float32 on cpu>"
        )
        assert (MODEL.num_layers, MODEL.num_heads, MODEL.num_kv_heads) == (3, 6, 3)
        assert (MODEL.hidden_size, MODEL.head_dim, MODEL.vocab_size) == (24, 10, 97)

    def test_every_spec_leaves_the_model_as_it_was(self) -> None:
        before = MODEL.fingerprint
        MODEL.forward(TOKENS, HookSpec().capture(HookPoint.ResidPost), grad=True)
        assert tiny("llama").fingerprint == before


def test_the_fingerprint_is_of_the_weights_as_they_are() -> None:
    model = tiny("llama")
    before = model.fingerprint
    assert model.fingerprint == before == tiny("llama").fingerprint
    with torch.no_grad():
        dict(model.backend.named_parameters())["norm.weight"].mul_(1.5)
    assert model.fingerprint != before


@pytest.mark.parametrize("shape", [(30, 500), (7, 3, 900), (90, 91)])
def test_the_fingerprint_is_of_the_values_however_they_lie(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    back = tuple(reversed(range(x.ndim)))
    turned = x.permute(back).contiguous().permute(back)
    assert fingerprint([("x", turned)]) == fingerprint([("x", x)])
    assert fingerprint([("x", turned + 1)]) != fingerprint([("x", x)])
