# SPDX-License-Identifier: MIT OR Apache-2.0
"""Checkpoints that are no language model of this kind are refused in one clear message."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from torch_mi.compatibility import check
from torch_mi.errors import ConfigError, FileError, MIError
from torch_mi.families import FAMILIES, RECURRENTS, read_config
from torch_mi.families.refusals import HYBRIDS, KINDS, OTHERWISE
from torch_mi.model import MIModel

HERE = Path(__file__).resolve().parents[2]
CONFIGS = Path(os.environ.get("TORCH_MI_SHARED", HERE.parent / "shared")) / "data" / "configs"

Raw = dict[str, Any]

BERT: Raw = {
    "architectures": ["BertForMaskedLM"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}

T5: Raw = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 2048,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "feed_forward_proj": "relu",
    "is_encoder_decoder": True,
    "model_type": "t5",
    "num_heads": 8,
    "num_layers": 6,
    "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}

LLAVA: Raw = {
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": 32000,
    "model_type": "llava",
    "projector_hidden_act": "gelu",
    "text_config": {"model_type": "llama", "vocab_size": 32064},
    "vision_config": {"hidden_size": 1024, "model_type": "clip_vision_model"},
}

REFUSED: dict[str, tuple[Raw, str]] = {
    "encoder": (BERT, "'bert' is an encoder, which predicts no next token"),
    "encoder, newer": (
        {**BERT, "model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"]},
        "'modernbert' is an encoder",
    ),
    "encoder, roberta": ({**BERT, "model_type": "roberta"}, "'roberta' is an encoder"),
    "encoder of a type nobody knows": (
        {**BERT, "model_type": "newbert", "architectures": ["NewBertForMaskedLM"]},
        "'newbert' is an encoder, which predicts no next token; torch-mi runs decoder-only "
        "language models (architectures is NewBertForMaskedLM)",
    ),
    "encoder-decoder": (T5, "'t5' is an encoder with a decoder"),
    "encoder-decoder, bart": ({**T5, "model_type": "bart"}, "'bart' is an encoder with a decoder"),
    "encoder-decoder of a type nobody knows": (
        {**T5, "model_type": "t9"},
        "'t9' is an encoder with a decoder; torch-mi runs decoder-only language models "
        "(config.json has is_encoder_decoder)",
    ),
    "vision and language": (LLAVA, "'llava' is multimodal"),
    "vision and language, qwen": (
        {**LLAVA, "model_type": "qwen2_vl"},
        "'qwen2_vl' is multimodal, with images or sounds beside text",
    ),
    "vision and language, mllama": ({**LLAVA, "model_type": "mllama"}, "is multimodal"),
    "vision and language, paligemma": ({**LLAVA, "model_type": "paligemma"}, "is multimodal"),
    "vision and language of a type nobody knows": (
        {**LLAVA, "model_type": "seer"},
        "'seer' is multimodal, with images or sounds beside text; torch-mi runs decoder-only "
        "language models of text (config.json has vision_config)",
    ),
    "speech": ({"model_type": "whisper", "d_model": 384}, "'whisper' is no language model"),
    "images": ({"model_type": "vit", "hidden_size": 768}, "'vit' is no language model"),
    "recurrent": ({"model_type": "xlstm"}, "'xlstm' is recurrent in a way that is not modelled"),
    "hybrid": ({"model_type": "jamba"}, "'jamba' is a hybrid of recurrent and attention layers"),
    "attention sinks": ({"model_type": "gpt_oss"}, "a learned sink that takes part"),
    "remote code": (
        {"model_type": "mystery", "auto_map": {"AutoConfig": "configuration_mystery.C"}},
        "its arithmetic is in code of its own repository (auto_map), which is never run here",
    ),
    "adapter": (
        {"peft_type": "LORA", "base_model_name_or_path": "org/base", "r": 8},
        "this is an adapter, not a model: load org/base with adapter= this folder",
    ),
    "diffusers": (
        {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.30"},
        "this is a part of a diffusers pipeline, which makes images",
    ),
    "classifier": (
        {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
        "architectures is LlamaForSequenceClassification: this checkpoint classifies texts and "
        "has no unembedding; load the language model it was made from",
    ),
    "reward model": (
        {"model_type": "internlm2", "architectures": ["InternLM2ForRewardModel"]},
        "this checkpoint gives texts a reward",
    ),
    "tagger of a type nobody knows": (
        {"model_type": "novel", "architectures": ["NovelForTokenClassification"]},
        "this checkpoint classifies tokens",
    ),
    "nothing": ({}, "config.json is missing 'model_type'"),
    "no string": ({"model_type": ["llama"]}, "config.json is missing 'model_type'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_wrong_kind_of_model_is_named(what: str, tmp_path: Path) -> None:
    raw, message = REFUSED[what]
    with pytest.raises(ConfigError) as caught:
        read_config(raw)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps(raw))
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError) as caught:
        MIModel.from_pretrained(tmp_path)
    assert message in str(caught.value)
    report = check(tmp_path)
    assert not report.compatible
    assert any(message in issue for issue in report.issues)


GENUINE = {
    "gpt_oss/openai__gpt-oss-20b": "mxfp4",
    "llama4/meta-llama__llama-4-scout-17b-16e-instruct": "'llama4' is multimodal",
    "qwen/qwen": "never run here",
}


@pytest.mark.parametrize("model", GENUINE)
def test_published_models_of_other_kinds(model: str, tmp_path: Path) -> None:
    path = CONFIGS / f"{model}.json"
    if not path.exists():
        pytest.skip(f"no {path}")
    (tmp_path / "config.json").write_bytes(path.read_bytes())
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(MIError) as caught:
        MIModel.from_pretrained(tmp_path)
    assert GENUINE[model] in str(caught.value)
    if path.parent.name != "qwen":
        assert str(caught.value).count("\n") == 0


def test_no_family_is_listed_as_foreign() -> None:
    assert not {*FAMILIES, *RECURRENTS} & (set(KINDS) | set(OTHERWISE))
    assert set(HYBRIDS.split()) <= set(KINDS)


def test_quantised_otherwise(tmp_path: Path) -> None:
    raw = {"model_type": "llama", "quantization_config": {"quant_method": "aqlm", "nbits": 2}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    save_file({"some.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="quantised by 'aqlm', which is not read here"):
        MIModel.from_pretrained(tmp_path)


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(
        FileError, match=r"no config\.json; it holds adapter_config\.json.*adapter="
    ):
        MIModel.from_pretrained(adapter)
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    (pipeline / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(FileError, match="a diffusers pipeline, which makes images"):
        MIModel.from_pretrained(pipeline)
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"not one at all")
    with pytest.raises(FileError, match=r"model\.gguf"):
        check(gguf)
    both = tmp_path / "both"
    both.mkdir()
    for name in ("a.gguf", "b.gguf"):
        (both / name).write_bytes(b"GGUF")
    with pytest.raises(FileError, match=r"holds 2 GGUF files; give one of them: a\.gguf, b\.gguf"):
        check(both)


def test_a_folder_without_weights_is_reported(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    report = check(tmp_path)
    assert "has no weights" in report.issues[0]
    assert any("lacks 'hidden_size'" in issue for issue in report.issues)
