# SPDX-License-Identifier: MIT OR Apache-2.0
"""What a `config.json` describes, where that is no decoder of text that can be run here."""

from collections.abc import Mapping
from typing import cast

ENCODERS = """
    albert bert big_bird camembert canine convbert data2vec-text deberta deberta-v2 distilbert
    electra ernie ernie_m esm eurobert flaubert fnet funnel ibert layoutlm layoutlmv3 longformer
    luke mega megatron-bert mobilebert modernbert mpnet mra neobert nezha nomic_bert nystromformer
    perceiver qdqbert reformer rembert roberta roberta-prelayernorm roc_bert roformer splinter
    squeezebert xlm xlm-roberta xlm-roberta-xl xmod yoso
"""

ENCODER_DECODERS = """
    bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder fsmt gptsan-japanese led
    longt5 m2m_100 marian mbart mt5 mvp nllb-moe pegasus pegasus_x plbart prophetnet
    seamless_m4t switch_transformers t5 t5gemma t5gemma2 tapex udop umt5 xlm-prophetnet
"""

MULTIMODAL = """
    align aria aya_vision blip blip-2 bridgetower chameleon clip clipseg cohere2_vision colpali
    deepseek_vl deepseek_vl_hybrid emu3 flava florence2 fuyu gemma3n git glm4v glm4v_moe got_ocr2
    granite_speech idefics idefics2 idefics3 instructblip internvl internvl_chat janus kosmos-2
    kosmos-2.5 llama4 llava llava_next llava_next_video llava_onevision llava_qwen minicpmo
    minicpmv mistral3 mllama molmo moondream ovis ovis2 paligemma perception_lm phi3_v phi4mm
    phi4_multimodal pixtral qwen2_5_omni qwen2_5_vl qwen2_audio qwen2_vl qwen3_omni_moe qwen3_vl
    qwen3_vl_moe siglip siglip2 smolvlm ultravox video_llava vilt vipllava vision-encoder-decoder
    vision-text-dual-encoder vlm voxtral
"""

NOT_TEXT = """
    audio-spectrogram-transformer autoformer bark beit conditional_detr convnext convnextv2 cvt
    deformable_detr deit depth_anything detr dinov2 dinov3_vit dpt encodec hubert imagegpt
    informer mask2former maskformer mimi moonshine musicgen owlvit patchtst resnet sam segformer
    speech_to_text speecht5 swin swinv2 timesformer univnet vit vit_mae vits wav2vec2
    wav2vec2-conformer wavlm whisper yolos
"""

RECURRENT = """
    falcon_mamba gated_deltanet gated_deltaproduct hgrn linear_attn xlstm
"""

HYBRIDS = """
    bamba falcon_h1 granitemoehybrid jamba kimi_linear lfm2 lfm2_moe minimax nemotron_h phi4flash
    qwen3_next recurrent_gemma rwkv6qwen2 samba zamba zamba2
"""

OTHERWISE = {
    "bitnet": "its layers round what they read to eight bits",
    "codegen": "its queries, keys and values are stored in the order of eight processors",
    "deepseek_v32": "a learned indexer chooses which keys each query sees",
    "diffllama": "its attention is the difference of two softmaxes",
    "gemma3n_text": "it keeps several residual streams and embeds tokens again in every layer",
    "gpt_oss": "each head's softmax has a learned sink that takes part of the attention, and its "
    "experts are stored as MXFP4",
    "llama4_text": "its attention is cut into chunks, and its routing weighs what experts read",
    "openelm": "its layers have different numbers of heads",
    "xglm": "its positions are fixed sinusoids",
    "xlnet": "it is trained on permuted orders of its text",
}
"""Decoders whose arithmetic has no place in a `TransformerConfig`, and what that is."""

RUNS = "torch-mi runs decoder-only language models"

KINDS: Mapping[str, str] = {
    **dict.fromkeys(ENCODERS.split(), f"an encoder, which predicts no next token; {RUNS}"),
    **dict.fromkeys(ENCODER_DECODERS.split(), f"an encoder with a decoder; {RUNS}"),
    **dict.fromkeys(
        MULTIMODAL.split(), f"multimodal, with images or sounds beside text; {RUNS} of text"
    ),
    **dict.fromkeys(NOT_TEXT.split(), f"no language model; {RUNS}"),
    **dict.fromkeys(
        RECURRENT.split(),
        "recurrent in a way that is not modelled here; RWKV-4 to 7, Mamba, Mamba-2, GLA, RetNet, "
        "HGRN2 and DeltaNet are",
    ),
    **dict.fromkeys(
        HYBRIDS.split(),
        "a hybrid of recurrent and attention layers, which is not modelled here",
    ),
}

HEADS = {
    "ForSequenceClassification": "classifies texts",
    "ForTokenClassification": "classifies tokens",
    "ForQuestionAnswering": "marks answers in a text",
    "ForMultipleChoice": "chooses among answers",
    "ForRewardModel": "gives texts a reward",
    "RewardModel": "gives texts a reward",
    "ForProcessRewardModel": "gives texts a reward",
    "ForTextEncoding": "encodes texts",
}
"""What models whose class ends so do instead of predicting tokens."""

TASKS = {
    "ForMaskedLM": "bert",
    "ForPreTraining": "bert",
    "ForSpeechSeq2Seq": "whisper",
    "ForCTC": "whisper",
    "ForImageClassification": "whisper",
    "ForObjectDetection": "whisper",
    "ForSeq2SeqLM": "bart",
    "ForConditionalGeneration": "bart",
}
"""For classes that end so, a `model_type` of the same kind."""

SENSES = ("vision_config", "audio_config", "image_token_id", "image_token_index", "mm_vision_tower")
"""Keys of models that see or hear."""


def classes(raw: Mapping[str, object]) -> list[str]:
    """The classes that a config names for its model."""
    found = raw.get("architectures")
    items = cast("list[object]", found) if isinstance(found, list) else []
    return [item for item in items if isinstance(item, str)]


def headless(raw: Mapping[str, object]) -> str:
    """Why a model of a family we know predicts no tokens, or nothing if it may."""
    for name in classes(raw):
        for ending, does in HEADS.items():
            if name.endswith(ending):
                return (
                    f"architectures is {name}: this checkpoint {does} and has no unembedding; "
                    "load the language model it was made from"
                )
    return ""


def no_model(raw: Mapping[str, object]) -> str:
    """What a config describes that is no whole model, or nothing."""
    if "peft_type" in raw or "base_model_name_or_path" in raw:
        base = raw.get("base_model_name_or_path") or "the model it was trained on"
        return f"this is an adapter, not a model: load {base} with adapter= this folder"
    if "_diffusers_version" in raw or "_class_name" in raw:
        return f"this is a part of a diffusers pipeline, which makes images; {RUNS}"
    return ""


def foreign(raw: Mapping[str, object], name: str) -> str:
    """Why a model of a `model_type` that is not a family here cannot be run, or nothing."""
    if name in OTHERWISE:
        return f"{name!r} is not supported: {OTHERWISE[name]}, which is not modelled"
    if name in KINDS:
        return f"{name!r} is {KINDS[name]}"
    senses = [key for key in SENSES if raw.get(key) is not None]
    if senses:
        return f"{name!r} is {KINDS['llava']} (config.json has {senses[0]})"
    if raw.get("is_encoder_decoder") is True:
        return f"{name!r} is {KINDS['bart']} (config.json has is_encoder_decoder)"
    for architecture in classes(raw):
        for ending, kin in TASKS.items():
            if architecture.endswith(ending):
                return f"{name!r} is {KINDS[kin]} (architectures is {architecture})"
    return ""


def code_of(raw: Mapping[str, object]) -> str:
    """A remark on Python code that a repository brings along, or nothing."""
    if not isinstance(raw.get("auto_map"), dict):
        return ""
    return "; its arithmetic is in code of its own repository (auto_map), which is never run here"
