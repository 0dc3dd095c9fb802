# SPDX-License-Identifier: MIT OR Apache-2.0
"""The decoder-only families, each as what distinguishes it from another.

Where a config is silent, the defaults are those of transformers' config classes.
"""

from torch_mi.config.parts import BlockLayout, NormType
from torch_mi.config.transformer import TransformerConfig
from torch_mi.families.compose import embedding, every, head
from torch_mi.families.family import Family
from torch_mi.families.rope import RopeRule, longrope, plain
from torch_mi.families.rules import (
    ACTIVATIONS,
    HEAD_DIM,
    activation,
    alternating,
    constant,
    every_layer,
    flag,
    integer,
    inverse_root,
    kv_heads,
    no_window,
    nullable,
    number,
    root_width,
    upper_layers,
)
from torch_mi.families.sources import Rows

PROVENANCE = """
    _commit_hash _from_auto _name_or_path architectures auto_map dtype finetuning_task
    is_llama_config model_type name_or_path task_specific_params tokenizer_class torch_dtype
    transformers.js_config transformers_version unsloth_fixed unsloth_version use_bfloat16
"""

TRAINING = """
    attention_dropout embd_pdrop embedding_dropout gradient_checkpointing hidden_dropout
    id2label initializer_range label2id num_labels problem_type resid_pdrop residual_dropout
"""

RUNNING = """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal
    _experts_implementation _experts_implementation_internal attn_implementation
    cache_implementation chunk_size_feed_forward experts_implementation output_attentions
    output_hidden_states output_scores pretraining_tp return_dict tf_legacy_loss torchscript
    use_cache
"""

GENERATING = """
    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens
    bos_token_id decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size encoder_repetition_penalty eos_token_id epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty
    max_length max_new_tokens min_length no_repeat_ngram_size num_assistant_tokens
    num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences pad_token_id
    prefix remove_invalid_values repetition_penalty return_dict_in_generate sep_token_id
    suppress_tokens target_lookbehind temperature top_k top_p typical_p
"""

INERT = frozenset(f"{PROVENANCE} {TRAINING} {RUNNING} {GENERATING}".split())

FIXED: dict[str, tuple[object, ...]] = {
    "add_cross_attention": (False,),
    "is_causal": (True,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "pruned_heads": (dict[str, object](),),
    "tie_encoder_decoder": (False,),
    "use_bidirectional_attention": (False,),
    "use_mrope": (False,),
}

NEVER, ALWAYS = constant(value=False), constant(value=True)

LLAMA = Family(
    "llama",
    rules={
        "hidden_size": integer("hidden_size"),
        "num_layers": integer("num_hidden_layers"),
        "num_attention_heads": integer("num_attention_heads"),
        "num_kv_heads": kv_heads(),
        "head_dim": HEAD_DIM,
        "intermediate_size": integer("intermediate_size"),
        "vocab_size": integer("vocab_size"),
        "max_position_embeddings": integer("max_position_embeddings", 2048),
        "norm_type": constant(NormType.Rms),
        "norm_eps": number("rms_norm_eps", 1e-6),
        "activation": activation("hidden_act", "silu"),
        "qkv_bias": flag("attention_bias", default=False),
        "o_proj_bias": flag("attention_bias", default=False),
        "mlp_bias": flag("mlp_bias", default=False),
        "ropes": every(RopeRule(2048)),
        "windows": no_window,
        "attn_scales": every(inverse_root(HEAD_DIM)),
        "tie_word_embeddings": flag("tie_word_embeddings", default=False),
    },
    sources={
        "tokens": "model.embed_tokens",
        "blocks.*.norm1": "model.layers.*.input_layernorm",
        "blocks.*.attn.q": "model.layers.*.self_attn.q_proj",
        "blocks.*.attn.k": "model.layers.*.self_attn.k_proj",
        "blocks.*.attn.v": "model.layers.*.self_attn.v_proj",
        "blocks.*.attn.o": "model.layers.*.self_attn.o_proj",
        "blocks.*.norm2": "model.layers.*.post_attention_layernorm",
        "blocks.*.mlp.gate": "model.layers.*.mlp.gate_proj",
        "blocks.*.mlp.up": "model.layers.*.mlp.up_proj",
        "blocks.*.mlp.down": "model.layers.*.mlp.down_proj",
        "norm": "model.norm",
        "head": "lm_head",
    },
    inert=INERT,
    fixed={**FIXED, "rope_interleaved": (False,)},
    buffers=(
        "model.rotary_emb.inv_freq",
        "model.layers.*.self_attn.rotary_emb.inv_freq",
        "model.layers.*.self_attn.rotary_emb.cos_cached",
        "model.layers.*.self_attn.rotary_emb.sin_cached",
    ),
    tiny={"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 3},
)

UNBIASED = {
    "qkv_bias": NEVER,
    "o_proj_bias": NEVER,
    "mlp_bias": NEVER,
}

MISTRAL = LLAMA.but(
    "mistral",
    rules={
        **UNBIASED,
        "num_kv_heads": kv_heads(absent=8),
        "max_position_embeddings": integer("max_position_embeddings", 131072),
        "ropes": every(RopeRule(131072)),
        "windows": every_layer(absent=4096),
    },
    fixed={"attention_bias": (False,), "mlp_bias": (False,)},
    tiny={"sliding_window": 5},
)

QWEN2 = LLAMA.but(
    "qwen2",
    rules={
        **UNBIASED,
        "num_kv_heads": kv_heads(absent=32),
        "max_position_embeddings": integer("max_position_embeddings", 32768),
        "ropes": every(RopeRule(32768)),
        "qkv_bias": ALWAYS,
        "windows": upper_layers,
    },
    inert={"attention_bias"},
    fixed={"mlp_bias": (False,)},
    tiny={
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
)

WIDE_HEAD = integer("head_dim", 256)

GEMMA = LLAMA.but(
    "gemma",
    rules={
        "num_kv_heads": kv_heads(absent=16),
        "head_dim": WIDE_HEAD,
        "max_position_embeddings": integer("max_position_embeddings", 8192),
        "norm_type": constant(NormType.RmsPlusOne),
        "activation": activation(
            "hidden_act", "gelu_pytorch_tanh", meant={"gelu": "gelu_pytorch_tanh"}
        ),
        "mlp_bias": NEVER,
        "ropes": every(RopeRule(8192, WIDE_HEAD)),
        "attn_scales": every(inverse_root(WIDE_HEAD)),
        "embedding": embedding(scale=root_width),
        "tie_word_embeddings": flag("tie_word_embeddings", default=True),
    },
    fixed={"hidden_activation": ("gelu_pytorch_tanh",), "mlp_bias": (False,)},
    tiny={"num_key_value_heads": 1},
)

GEMMA2 = GEMMA.but(
    "gemma2",
    rules={
        "num_kv_heads": kv_heads(absent=4),
        "activation": activation("hidden_activation", "gelu_pytorch_tanh"),
        "layout": constant(BlockLayout.Sandwich),
        "windows": alternating,
        "attn_scales": every(inverse_root(number("query_pre_attn_scalar", 256.0))),
        "attn_logit_softcapping": nullable("attn_logit_softcapping", 50.0),
        "head": head(softcap=nullable("final_logit_softcapping", 30.0)),
    },
    sources={
        "blocks.*.post1": "model.layers.*.post_attention_layernorm",
        "blocks.*.norm2": "model.layers.*.pre_feedforward_layernorm",
        "blocks.*.post2": "model.layers.*.post_feedforward_layernorm",
    },
    inert={"hidden_act", "sliding_window_size"},
    fixed={"hidden_activation": tuple(ACTIVATIONS)},
    tiny={
        "sliding_window": 4,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 7,
    },
)


def qkv_rows(cfg: TransformerConfig) -> tuple[int, ...]:
    """Queries, keys and values, stacked."""
    keys = cfg.num_kv_heads * cfg.head_dim
    return (cfg.num_attention_heads * cfg.head_dim, keys, keys)


def gate_up_rows(cfg: TransformerConfig) -> tuple[int, ...]:
    """Gate and up, stacked."""
    return (cfg.intermediate_size, cfg.intermediate_size)


PHI3 = LLAMA.but(
    "phi3",
    rules={
        **UNBIASED,
        "max_position_embeddings": integer("max_position_embeddings", 4096),
        "norm_eps": number("rms_norm_eps", 1e-5),
        "ropes": every(
            RopeRule(
                4096,
                kinds={"default": plain, "longrope": longrope, "su": longrope, "yarn": longrope},
                partial=True,
                context=4096,
            )
        ),
        "windows": every_layer(),
    },
    sources={
        "blocks.*.attn.q": Rows("model.layers.*.self_attn.qkv_proj", qkv_rows, 0),
        "blocks.*.attn.k": Rows("model.layers.*.self_attn.qkv_proj", qkv_rows, 1),
        "blocks.*.attn.v": Rows("model.layers.*.self_attn.qkv_proj", qkv_rows, 2),
        "blocks.*.mlp.gate": Rows("model.layers.*.mlp.gate_up_proj", gate_up_rows, 0),
        "blocks.*.mlp.up": Rows("model.layers.*.mlp.gate_up_proj", gate_up_rows, 1),
    },
    fixed={
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "lm_head_bias": (False,),
        "full_attn_mod": (1,),
        "interpolate_factor": (1,),
    },
    tiny={"partial_rotary_factor": 0.6, "sliding_window": 6, "num_key_value_heads": 6},
)

STARCODER2 = LLAMA.but(
    "starcoder2",
    rules={
        "num_kv_heads": kv_heads(absent=2),
        "max_position_embeddings": integer("max_position_embeddings", 4096),
        "norm_type": constant(NormType.Layer),
        "norm_eps": number("norm_epsilon", 1e-5),
        "activation": activation("hidden_act", "gelu_pytorch_tanh"),
        "gated_mlp": NEVER,
        "qkv_bias": flag("use_bias", default=True),
        "o_proj_bias": flag("use_bias", default=True),
        "mlp_bias": flag("use_bias", default=True),
        "ropes": every(RopeRule(4096)),
        "windows": every_layer(),
        "tie_word_embeddings": flag("tie_word_embeddings", default=True),
    },
    sources={
        "blocks.*.mlp.up": "model.layers.*.mlp.c_fc",
        "blocks.*.mlp.down": "model.layers.*.mlp.c_proj",
    },
    inert={
        "activation_function",
        "attention_softmax_in_fp32",
        "layer_norm_epsilon",
        "norm_type",
        "scale_attention_softmax_in_fp32",
    },
    fixed={"mlp_type": ("default",), "scale_attn_weights": (True,)},
    tiny={"sliding_window": 5},
)

DECODERS = (LLAMA, MISTRAL, QWEN2, GEMMA, GEMMA2, PHI3, STARCODER2)
