# SPDX-License-Identifier: MIT OR Apache-2.0
"""Published models of the later dense families, and configs that none of them could have."""

import json

import pytest

from tests.parity.oracle import same_arithmetic, same_tensors
from tests.parity.published import PUBLISHED, Raw
from tests.parity.test_configs import CONFIGS, SMALL, reference
from torch_mi.backends.transformer import parameter_shapes
from torch_mi.config.activation import Activation
from torch_mi.config.parts import BlockLayout, NormType, Over, QkNorm
from torch_mi.config.rope import DynamicNtk, Linear, Llama3, Rope, Yarn
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError, MIError, ModelError
from torch_mi.families import eos_token_ids, read_config

SHARED = ("qwen3", "gemma3", "cohere", "olmo2", "stablelm")
"""Folders of genuine files."""


def genuine() -> dict[str, Raw]:
    """Published configs: files, as first released and as transformers 5 rewrites them, and ours."""
    files = [
        path
        for family in SHARED
        for folder in (CONFIGS / family, CONFIGS / "transformers5" / family)
        for path in sorted(folder.glob("*.json"))
    ]
    read = {str(path): json.loads(path.read_text(encoding="utf-8")) for path in files}
    return {**PUBLISHED, **read}


def published(name: str) -> TransformerConfig:
    """What we make of one of them."""
    if name in PUBLISHED:
        return read_config(PUBLISHED[name])[1]
    path = CONFIGS / name
    if not path.exists():
        pytest.skip(f"no published configs in {CONFIGS}")
    return read_config(json.loads(path.read_text(encoding="utf-8")))[1]


def test_published_configs_mean_what_they_mean_to_transformers() -> None:
    for name, raw in genuine().items():
        try:
            same_arithmetic(read_config(raw)[1], reference(raw))
        except (AssertionError, MIError) as error:
            error.add_note(name)
            raise


def test_published_configs_survive_being_rewritten() -> None:
    for name, raw in genuine().items():
        rewritten = json.loads(reference(raw).to_json_string(use_diff=True))
        full = json.loads(reference(raw).to_json_string(use_diff=False))
        assert read_config(rewritten)[1] == read_config(raw)[1] == read_config(full)[1], name


ONE_EACH = ("OLMo-1B", "Olmo-3-7B", "SmolLM3-3B", "granite-3.1-2b", "EXAONE-4.0-1.2B")
FEWER = ("command-r-plus", "command-r7b", "gemma-3-4b")


@pytest.mark.parametrize("name", [*ONE_EACH, *FEWER])
def test_every_tensor_of_a_published_model_has_one_place(name: str) -> None:
    same_tensors(PUBLISHED[name])


@pytest.mark.parametrize("era", ["", "transformers5/"])
def test_qwen_3_8b(era: str) -> None:
    cfg = published(f"{era}qwen3/qwen__qwen3-8b.json")
    assert (cfg.num_layers, cfg.num_attention_heads, cfg.num_kv_heads) == (36, 32, 8)
    assert (cfg.head_dim, cfg.hidden_size, cfg.intermediate_size) == (128, 4096, 12288)
    assert cfg.qk_norm == QkNorm(NormType.Rms, Over.Head)
    assert cfg.ropes == (Rope(1e6, 128),) * 36
    assert cfg.windows == (None,) * 36
    assert (cfg.qkv_bias, cfg.o_proj_bias, cfg.mlp_bias) == (False, False, False)
    assert not cfg.tie_word_embeddings


@pytest.mark.parametrize("era", ["", "transformers5/"])
def test_gemma_3_1b(era: str) -> None:
    cfg = published(f"{era}gemma3/google__gemma-3-1b-it.json")
    local, whole = Rope(1e4, 256), Rope(1e6, 256)
    assert cfg.ropes == ((local,) * 5 + (whole,)) * 4 + (local,) * 2
    assert cfg.windows == ((512,) * 5 + (None,)) * 4 + (512,) * 2
    assert cfg.qk_norm == QkNorm(NormType.RmsPlusOne, Over.Head)
    assert cfg.layout is BlockLayout.Sandwich
    assert cfg.norm_type is NormType.RmsPlusOne
    assert cfg.attn_scales == (1 / 16,) * 26
    assert cfg.embedding_scale == 1152**0.5
    assert (cfg.attn_logit_softcapping, cfg.final_logit_softcapping) == (None, None)
    assert cfg.activation is Activation.GeluTanh
    assert cfg.tie_word_embeddings


def test_gemma_3_with_images() -> None:
    cfg = published("gemma-3-4b")
    assert (cfg.num_layers, cfg.num_attention_heads, cfg.num_kv_heads) == (34, 8, 4)
    assert (cfg.head_dim, cfg.hidden_size, cfg.vocab_size) == (256, 2560, 262_208)
    assert cfg.max_position_embeddings == 131_072
    assert cfg.ropes[4:7] == (Rope(1e4, 256), Rope(1e6, 256, Linear(8.0)), Rope(1e4, 256))
    assert cfg.windows[4:7] == (1024, None, 1024)
    assert cfg.tie_word_embeddings
    assert eos_token_ids(PUBLISHED["gemma-3-4b"]) == (1, 106)
    assert eos_token_ids({"text_config": {"eos_token_id": 7}}) == (7,)
    large = published("gemma-3-27b")
    assert large.attn_scales == (168**-0.5,) * 62
    assert (large.num_kv_heads, large.head_dim) == (16, 128)


@pytest.mark.parametrize("era", ["", "transformers5/"])
def test_olmo_2(era: str) -> None:
    cfg = published(f"{era}olmo2/olmo2_32b.json")
    assert (cfg.num_layers, cfg.num_attention_heads, cfg.num_kv_heads) == (64, 40, 8)
    assert cfg.layout is BlockLayout.Post
    assert cfg.norm_type is NormType.RmsFloat
    assert cfg.norm_eps == 1e-6
    assert cfg.qk_norm == QkNorm(NormType.RmsFloat, Over.Whole)
    assert cfg.ropes == (Rope(5e5, 128),) * 64


def test_olmo_and_olmo_3() -> None:
    cfg = published("OLMo-7B-0424")
    assert cfg.norm_type is NormType.LayerBare
    assert (cfg.norm_eps, cfg.clip_qkv) == (1e-5, 8.0)
    assert published("OLMo-1B").clip_qkv is None
    assert published("OLMo-1B").tie_word_embeddings
    third = published("Olmo-3-7B")
    assert third.windows == (4096, 4096, 4096, None) * 8
    yarn = Yarn(8.0, 8192, 1.2079441541679836, 32.0, 1.0, truncate=True)
    assert third.ropes == ((Rope(5e5, 128),) * 3 + (Rope(5e5, 128, yarn),)) * 8


def test_smollm3_and_granite() -> None:
    cfg = published("SmolLM3-3B")
    assert cfg.ropes == (*(Rope(5e6, 128),) * 3, None) * 9
    assert cfg.windows == (None,) * 36
    assert (cfg.num_kv_heads, cfg.tie_word_embeddings) == (4, True)
    granite = published("granite-3.1-2b")
    assert granite.attn_scales == (0.015625,) * 40
    assert (granite.embedding_scale, granite.residual_scale) == (12.0, 0.22)
    assert granite.head.scale == 0.125
    assert granite.ropes == (Rope(5e6, 64),) * 40


def test_cohere() -> None:
    cfg = published("cohere/aya-23.json")
    assert cfg.layout is BlockLayout.Parallel
    assert cfg.norm_type is NormType.LayerGain
    assert cfg.ropes == (Rope(1e4, 128, interleaved=True),) * 32
    assert (cfg.head.scale, cfg.qk_norm, cfg.norm_eps) == (0.0625, None, 1e-5)
    assert cfg.tie_word_embeddings
    plus = published("command-r-plus")
    assert plus.qk_norm == QkNorm(NormType.LayerGain, Over.EachHead)
    assert plus.ropes[0] == Rope(75e6, 128, interleaved=True)
    seven = published("command-r7b")
    assert seven.windows == (4096, 4096, 4096, None) * 8
    assert seven.ropes == (*(Rope(5e4, 128, interleaved=True),) * 3, None) * 8
    assert seven.head.scale == 0.25


def test_exaone_4() -> None:
    cfg = published("EXAONE-4.0-1.2B")
    rope = Rope(1e6, 64, Llama3(16.0, 1.0, 4.0, 8192))
    assert cfg.ropes == (rope,) * 30
    assert cfg.windows == (None,) * 30
    assert cfg.layout is BlockLayout.Post
    assert cfg.qk_norm == QkNorm(NormType.Rms, Over.Head)
    silent = {**PUBLISHED["EXAONE-4.0-1.2B"], "layer_types": None}
    assert read_config(silent)[1] == cfg
    large = published("EXAONE-4.0-32B")
    assert large.windows == (4096, 4096, 4096, None) * 16
    assert [rope is None for rope in large.ropes] == [False, False, False, True] * 16


@pytest.mark.parametrize("era", ["", "transformers5/"])
def test_stablelm(era: str) -> None:
    cfg = published(f"{era}stablelm/stablelm-2-zephyr-1_6b.json")
    assert cfg.norm_type is NormType.Layer
    assert cfg.ropes == (Rope(1e4, 16),) * 24
    assert (cfg.qkv_bias, cfg.o_proj_bias, cfg.mlp_bias) == (True, False, False)
    assert (cfg.layout, cfg.qk_norm) == (BlockLayout.Pre, None)
    assert not published(f"{era}stablelm/stablelm.json").qkv_bias


def test_internlm() -> None:
    second = published("internlm2/internlm2_5_7b.json")
    assert (second.num_attention_heads, second.num_kv_heads, second.head_dim) == (32, 8, 128)
    assert second.ropes == (Rope(1e6, 128, DynamicNtk(2.0, 32768)),) * 32
    assert not second.qkv_bias
    assert published("internlm2/internlm2.json").ropes == (Rope(1e6, 128),) * 32
    first = published("internlm/internlm.json")
    assert first.ropes == (Rope(1e4, 128, DynamicNtk(1.0, 2048)),) * 32
    assert (first.qkv_bias, first.o_proj_bias, first.mlp_bias) == (True, True, False)
    assert first.num_kv_heads == 32


def text_names(layers: int) -> list[str]:
    """The text tensors of Gemma 3, below any module."""
    norms = ["input", "post_attention", "pre_feedforward", "post_feedforward"]
    attn = ["q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"]
    inner = [f"{norm}_layernorm" for norm in norms] + [f"self_attn.{name}" for name in attn]
    inner += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    layered = [f"layers.{i}.{name}.weight" for i in range(layers) for name in inner]
    return ["embed_tokens.weight", "norm.weight", *layered]


@pytest.mark.parametrize(
    ("text", "rest"), [("language_model.model.", ""), ("model.language_model.", "model.")]
)
def test_images_are_passed_over_and_said_to_be(text: str, rest: str) -> None:
    family, cfg = read_config(PUBLISHED["gemma-3-4b"])
    images = [
        f"{rest}vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
        f"{rest}vision_tower.vision_model.embeddings.position_embedding.weight",
        f"{rest}multi_modal_projector.mm_input_projection_weight",
    ]
    names = [f"{text}{name}" for name in text_names(cfg.num_layers)]
    plan = family.place(cfg, parameter_shapes(cfg), [*names, *images])
    assert set(plan.ignored) == set(images)
    assert sorted(name for p in plan.placements for name in p.theirs) == sorted(names)
    with pytest.raises(ModelError, match="1 of the checkpoint's tensors have no place"):
        family.place(cfg, parameter_shapes(cfg), [*names, f"{rest}audio_tower.weight"])


REFUSED: dict[str, tuple[Raw, str]] = {
    "window without a width": (
        {"model_type": "gemma3_text", "sliding_window": None},
        "there is no sliding_window",
    ),
    "pattern of none": (
        {"model_type": "cohere2", "sliding_window_pattern": 0},
        "sliding_window_pattern = 0 is not positive",
    ),
    "flat rotary embedding": (
        {"model_type": "gemma3_text", "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
        "by kind of layer has no use for factor",
    ),
    "base for which layers": ({"model_type": "olmo3", "rope_theta": 1e4}, "rope_theta = 10000.0"),
    "too few NoPE layers": (
        {"model_type": "smollm3", "no_rope_layers": [1, 0]},
        "2 no_rope_layers",
    ),
    "NoPE layers of no kind": (
        {"model_type": "smollm3", "no_rope_layers": [1, 2, 0]},
        "no_rope_layers has 2",
    ),
    "interval of none": (
        {"model_type": "smollm3", "no_rope_layer_interval": 0},
        "no_rope_layer_interval = 0",
    ),
    "division by nothing": ({"model_type": "granite", "logits_scaling": 0}, "logits_scaling = 0"),
    "caps on scores": (
        {"model_type": "gemma3_text", "attn_logit_softcapping": 50.0},
        "attn_logit_softcapping = 50.0",
    ),
    "a key beside the text": (
        {**PUBLISHED["gemma-3-4b"], "hidden_size": 2560},
        "config.json has hidden_size beside text_config",
    ),
    "another text model": (
        {**PUBLISHED["gemma-3-4b"], "text_config": {"model_type": "gemma2"}},
        "text_config has model_type = 'gemma2'",
    ),
    "tied or not": (
        {**PUBLISHED["gemma-3-4b"], "text_config": {"tie_word_embeddings": False}},
        "text_config has tie_word_embeddings = False",
    ),
    "a pattern in letters alone": (
        {"model_type": "exaone4", "sliding_window_pattern": "LLLG"},
        "sliding_window_pattern = 'LLLG' where a whole number",
    ),
    "rotary embedding of another kind": (
        {"model_type": "internlm", "rotary": {"base": 1e4, "type": "spiral"}},
        "type = 'spiral'",
    ),
    "heads of their own width": ({"model_type": "stablelm", "head_dim": 16}, "head_dim = 16"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_meaning_is_refused(what: str) -> None:
    raw, message = REFUSED[what]
    base = {} if raw["model_type"] == "gemma3" else SMALL
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        read_config({**base, "num_key_value_heads": None, **raw} if base else raw)
