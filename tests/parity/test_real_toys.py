# SPDX-License-Identifier: MIT OR Apache-2.0
"""Real toy models: they do what their authors say, and compute what others computed."""

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import torch_mi as mi
from torch_mi.hooks.point import HookPoint

HERE = Path(__file__).resolve().parents[2]
MODELS = Path(os.environ.get("TORCH_MI_SHARED", HERE.parent / "shared")) / "data" / "models"
SORTING = "gpt-nano-sort"
PIZZAS = ("pizza-modelA-pizza59", "pizza-modelB-clock59")


def folder(name: str) -> Path:
    path = MODELS / name
    if not path.is_dir():
        pytest.skip(f"no {name} in {MODELS}")
    return path


def real(name: str) -> mi.MIModel:
    return mi.MIModel.from_pretrained(folder(name), device="cpu")


def near(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    size = max(1.0, float(wanted.nan_to_num(neginf=0).abs().max()))
    torch.testing.assert_close(found, wanted, atol=tolerance * size, rtol=0)


class TestSorting:
    def test_it_sorts_every_input(self) -> None:
        """6 letters of A, B, C, and then the same letters in order: 729 of 729."""
        model = real(SORTING)
        tokens = torch.tensor(list(itertools.product(range(3), repeat=6)))
        wanted = tokens.sort(1).values
        for _ in range(6):
            chosen = model.forward(tokens).output[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, chosen], 1)
        assert int((tokens[:, 6:] == wanted).all(1).sum()) == 729

    def test_it_reads_letters(self) -> None:
        found = real(SORTING).generate("C B A C B A", max_new_tokens=5)
        assert found.tokens == [0, 0, 1, 1, 2]

    def test_its_insides_are_a_third_partys(self) -> None:
        """The activations of the first layer and of the end, and every layer's stream."""
        model, theirs = real(SORTING), load_file(folder(SORTING) / "partials.safetensors")
        ours = model.run_with_cache(theirs["idx"].long())[1]
        rows, length = theirs["idx"].shape
        for name, point in {
            "tok_emb": HookPoint.Embed,
            "x": HookPoint.ResidPre(0),
            "ln1": HookPoint.AttnIn(0),
            "attSm": HookPoint.AttnPattern(0),
            "yProj": HookPoint.AttnOut(0),
            "attnResid": HookPoint.ResidMid(0),
            "ln2": HookPoint.MlpIn(0),
            "fc": HookPoint.MlpPre(0),
            "gelu": HookPoint.MlpPost(0),
            "mlp": HookPoint.MlpOut(0),
            "mlpResid": HookPoint.ResidPost(0),
            "block0": HookPoint.ResidPost(0),
            "block1": HookPoint.ResidPost(1),
            "block2": HookPoint.ResidPost(2),
            "ln_f": HookPoint.FinalNorm,
            "lm_head": HookPoint.Logits,
        }.items():
            near(ours[point], theirs[name])
        near(ours[HookPoint.PosEmbed][:1], theirs["pos_emb"])
        near(ours[HookPoint.AttnZ(0)].flatten(2), theirs["y"])
        near(ours[HookPoint.Logits].softmax(-1), theirs["probs"])
        for name, point in {
            "q": HookPoint.AttnQ,
            "k": HookPoint.AttnK,
            "v": HookPoint.AttnV,
        }.items():
            near(ours[point(0)].transpose(1, 2), theirs[name])
        seen = torch.ones(length, length).tril().bool()
        scores = ours[HookPoint.AttnScores(0)]
        near(scores.masked_fill(~seen, 0), theirs["att"].masked_fill(~seen, 0))
        assert scores.shape[0] == rows


class TestModularAddition:
    @pytest.mark.parametrize("name", PIZZAS)
    def test_every_sum_is_right(self, name: str) -> None:
        model = real(name)
        pairs = torch.cartesian_prod(torch.arange(59), torch.arange(59))
        answers = model.forward(pairs).output[:, -1].argmax(-1)
        assert int((answers == pairs.sum(1) % 59).sum()) == 3481

    @pytest.mark.parametrize("name", PIZZAS)
    def test_logits_and_patterns_are_the_reference(self, name: str) -> None:
        theirs = load_file(folder(name) / "reference.safetensors")
        ours = real(name).run_with_cache(theirs["input_ids"])[1]
        near(ours[HookPoint.Logits], theirs["logits"])
        near(ours[HookPoint.AttnPattern(0)], theirs["pattern.0"])

    @pytest.mark.parametrize("name", PIZZAS)
    def test_it_is_a_toy_without_norms(self, name: str) -> None:
        """The architecture as the paper writes it down, under the same weights.

        The files double the residual stream to be a GPT-2 whose norms do nothing (their eps is
        1e12, and what they divide by is 1e6).
        """
        theirs, cfg = real(name), toy_of_the_paper()
        model = mi.MIModel.from_config(cfg, device="cpu")
        weights = without_norms(load_file(folder(name) / "model.safetensors"))
        ours = dict(model.backend.named_parameters())
        assert set(ours) == set(weights)
        with torch.no_grad():
            for key, value in ours.items():
                value.copy_(weights[key])
        reference = load_file(folder(name) / "reference.safetensors")
        near(model.forward(reference["input_ids"]).output, reference["logits"])
        pairs = torch.cartesian_prod(torch.arange(59), torch.arange(59))
        near(model.forward(pairs).output, theirs.forward(pairs).output)
        assert model.hooks.keys() < theirs.hooks.keys()

    @pytest.mark.parametrize("name", PIZZAS)
    def test_it_comes_from_transformer_lens_too(self, name: str) -> None:
        """The same weights, head by head, as a `HookedTransformer` would hold them."""
        weights = without_norms(load_file(folder(name) / "model.safetensors"))
        cfg: dict[str, Any] = {
            "n_layers": 1, "d_model": 256, "n_ctx": 2, "d_head": 64, "n_heads": 4, "d_mlp": 512,
            "d_vocab": 59, "act_fn": "relu", "normalization_type": None,
        }  # fmt: skip
        model = mi.from_transformer_lens(heads_apart(weights), cfg)
        reference = load_file(folder(name) / "reference.safetensors")
        near(model.forward(reference["input_ids"]).output, reference["logits"])

    def test_shares_are_the_logit_without_a_norm(self) -> None:
        model = mi.MIModel.from_config(toy_of_the_paper(), device="cpu")
        weights = without_norms(load_file(folder(PIZZAS[0]) / "model.safetensors"))
        model.backend.load_state_dict(weights)  # pyright: ignore[reportAttributeAccessIssue] - a module
        found = mi.attribute(model, [17, 50], target=8, versus=9)
        assert found.error < 1e-4
        assert found.logit > 1
        assert {share.kind for share in found.shares} == {
            "embedding", "positions", "head", "attention bias", "mlp",
        }  # fmt: skip


def toy_of_the_paper() -> mi.TransformerConfig:
    """One layer, 4 heads, ReLU, learned positions, no norms (Zhong et al. 2023)."""
    cfg = mi.TransformerConfig.toy(
        vocab_size=59, num_layers=1, hidden_size=256, num_attention_heads=4, intermediate_size=512,
        max_position_embeddings=2, norm_type="absent", activation="relu",
    )  # fmt: skip
    return replace(cfg, head=replace(cfg.head, bias=False))


def without_norms(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2's tensors under our names, norms left out."""
    layer, found = "transformer.h.0", {}
    for i, name in enumerate("qkv"):
        part = slice(256 * i, 256 * (i + 1))
        found[f"blocks.0.attn.{name}.weight"] = theirs[f"{layer}.attn.c_attn.weight"][:, part].T
        found[f"blocks.0.attn.{name}.bias"] = theirs[f"{layer}.attn.c_attn.bias"][part]
    for ours, name in {
        "attn.o": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
    }.items():  # fmt: skip
        found[f"blocks.0.{ours}.weight"] = theirs[f"{layer}.{name}.weight"].T
        found[f"blocks.0.{ours}.bias"] = theirs[f"{layer}.{name}.bias"]
    return {
        **found,
        "tokens.weight": theirs["transformer.wte.weight"],
        "positions.weight": theirs["transformer.wpe.weight"],
        "head.weight": theirs["lm_head.weight"],
    }


def heads_apart(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same under TransformerLens' names, in its layout."""
    found: dict[str, Tensor] = {}
    for name in "qkv":
        weight, bias = (ours[f"blocks.0.attn.{name}.{leaf}"] for leaf in ("weight", "bias"))
        found[f"blocks.0.attn.W_{name.upper()}"] = weight.unflatten(0, (4, 64)).mT
        found[f"blocks.0.attn.b_{name.upper()}"] = bias.unflatten(0, (4, 64))
    mix = ours["blocks.0.attn.o.weight"]
    return {
        **found,
        "blocks.0.attn.W_O": mix.unflatten(1, (4, 64)).permute(1, 2, 0),
        "blocks.0.attn.b_O": ours["blocks.0.attn.o.bias"],
        "blocks.0.mlp.W_in": ours["blocks.0.mlp.up.weight"].T,
        "blocks.0.mlp.b_in": ours["blocks.0.mlp.up.bias"],
        "blocks.0.mlp.W_out": ours["blocks.0.mlp.down.weight"].T,
        "blocks.0.mlp.b_out": ours["blocks.0.mlp.down.bias"],
        "embed.W_E": ours["tokens.weight"],
        "pos_embed.W_pos": ours["positions.weight"],
        "unembed.W_U": ours["head.weight"].T,
        "unembed.b_U": torch.zeros(59),
    }
