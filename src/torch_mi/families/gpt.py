# SPDX-License-Identifier: MIT OR Apache-2.0
"""GPT-2 and its kin: layer norms, MLPs without a gate, learned positions.

Where a config is silent, the defaults are those of transformers' config classes.
"""

from typing import cast

from torch_mi.config.parts import BlockLayout, Learned, NormType
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError
from torch_mi.families.compose import embedding, every
from torch_mi.families.decoder import ALWAYS, FIXED, INERT, NEVER, qkv_rows
from torch_mi.families.family import Family
from torch_mi.families.rules import (
    Reader,
    Rule,
    activation,
    brief,
    constant,
    even_heads,
    flag,
    integer,
    inverse_root,
    no_window,
    number,
)
from torch_mi.families.sources import Columns, Grouped, Source, Transposed

GPT_KEYS = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
}
"""What GPT-2 calls the sizes of a model."""

SUMMARY = frozenset(
    """
    n_ctx n_special predict_special_tokens summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj
    """.split()  # noqa: SIM905 - shorter than a list
)
"""Keys of heads that a language model has not."""

EVEN_SHARE: dict[str, object] = {"head_dim": None, "num_key_value_heads": None, "rope_theta": None}
"""Keys that tiny models have and these families have not."""


def four_times(c: Reader) -> int:
    """Four neurons for each dimension of the residual stream."""
    return 4 * c.need(int, "hidden_size")


def learned(longest: int, offset: int = 0) -> Rule:
    """A learned vector for each position, after `offset` rows that stand for none."""
    rows = integer("max_position_embeddings", longest)

    def rule(c: Reader) -> Learned:
        return Learned(cast("int", rows(c)) + offset, offset)

    return embedding(learned=rule)


def root_unless_told(c: Reader) -> float:
    """What scores are multiplied by, unless the config leaves them as they are."""
    scales = flag("scale_attn_weights", default=True)(c)
    return even_heads(c) ** -0.5 if scales else 1.0


def less_by_layer(c: Reader) -> tuple[float, ...]:
    """The same, divided by the number of the layer if the config says so."""
    scale, shrinks = root_unless_told(c), c.get(bool, "scale_attn_by_inverse_layer_idx")
    layers = range(c.need(int, "num_hidden_layers"))
    return tuple(scale / (layer + 1) if shrinks else scale for layer in layers)


def group_rows(cfg: TransformerConfig) -> tuple[int, ...]:
    """The queries that share a key, that key, and its value."""
    shared = cfg.num_attention_heads // cfg.num_kv_heads
    return (shared * cfg.head_dim, cfg.head_dim, cfg.head_dim)


def kv_groups(cfg: TransformerConfig) -> int:
    """How many heads of keys there are."""
    return cfg.num_kv_heads


def in_turn(theirs: str) -> dict[str, Source]:
    """Queries, keys and values in one matrix, head by head, or group by group of heads."""
    parts = enumerate("qkv")
    return {f"blocks.*.attn.{part}": Grouped(theirs, group_rows, i, kv_groups) for i, part in parts}


GPT2 = Family(
    "gpt2",
    rules={
        "hidden_size": integer("hidden_size"),
        "num_layers": integer("num_hidden_layers"),
        "num_attention_heads": integer("num_attention_heads"),
        "num_kv_heads": integer("num_attention_heads"),
        "head_dim": even_heads,
        "intermediate_size": integer("intermediate_size", four_times),
        "vocab_size": integer("vocab_size"),
        "max_position_embeddings": integer("max_position_embeddings", 1024),
        "embedding": learned(1024),
        "norm_type": constant(NormType.Layer),
        "norm_eps": number("layer_norm_epsilon", 1e-5),
        "activation": activation("activation_function", "gelu_new"),
        "gated_mlp": NEVER,
        "qkv_bias": ALWAYS,
        "o_proj_bias": ALWAYS,
        "mlp_bias": ALWAYS,
        "ropes": every(constant(None)),
        "windows": no_window,
        "attn_scales": less_by_layer,
        "tie_word_embeddings": flag("tie_word_embeddings", default=True),
    },
    sources={
        "tokens": "transformer.wte",
        "positions": "transformer.wpe",
        "blocks.*.norm1": "transformer.h.*.ln_1",
        "blocks.*.attn.q": Columns("transformer.h.*.attn.c_attn", qkv_rows, 0),
        "blocks.*.attn.k": Columns("transformer.h.*.attn.c_attn", qkv_rows, 1),
        "blocks.*.attn.v": Columns("transformer.h.*.attn.c_attn", qkv_rows, 2),
        "blocks.*.attn.o": Transposed("transformer.h.*.attn.c_proj"),
        "blocks.*.norm2": "transformer.h.*.ln_2",
        "blocks.*.mlp.up": Transposed("transformer.h.*.mlp.c_fc"),
        "blocks.*.mlp.down": Transposed("transformer.h.*.mlp.c_proj"),
        "norm": "transformer.ln_f",
        "head": "lm_head",
    },
    # scores that are computed in float32 are what they are in a float32 model anyway
    inert=INERT | SUMMARY | {"attn_pdrop", "reorder_and_upcast_attn"},
    fixed=FIXED,
    buffers=("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias"),
    aliases=GPT_KEYS,
    tiny={**EVEN_SHARE, "scale_attn_by_inverse_layer_idx": True},
)


def one_or_all(c: Reader) -> int:
    """One head of keys for all queries, or one for each."""
    shared = flag("multi_query", default=True)(c)
    return 1 if shared else c.need(int, "num_attention_heads")


BIGCODE_INERT = frozenset(
    """
    attention_softmax_in_fp32 inference_runner max_batch_size max_sequence_length
    num_key_value_heads pad_key_length pre_allocate_kv_cache runner_max_sequence_length
    scale_attention_softmax_in_fp32 validate_runner_input
    """.split()  # noqa: SIM905 - shorter than a list
)

GPT_BIGCODE = GPT2.but(
    "gpt_bigcode",
    rules={
        "num_kv_heads": one_or_all,
        "activation": activation("activation_function", "gelu_pytorch_tanh"),
        "attn_scales": every(root_unless_told),
    },
    sources={
        **in_turn("transformer.h.*.attn.c_attn"),
        "blocks.*.attn.o": "transformer.h.*.attn.c_proj",
        "blocks.*.mlp.up": "transformer.h.*.mlp.c_fc",
        "blocks.*.mlp.down": "transformer.h.*.mlp.c_proj",
    },
    inert=BIGCODE_INERT,
    fixed={"reorder_and_upcast_attn": (False,), "scale_attn_by_inverse_layer_idx": (False,)},
    tiny=EVEN_SHARE,
)

NEO_LAYERS = {"global": False, "local": True}
"""Whether each kind of layer looks through the window."""


def neo_layers(c: Reader) -> list[object]:
    """The kind of each layer: patterns and how often each is repeated, written out."""
    found, layers = list[object](), c.need(int, "num_hidden_layers")
    for item in cast("list[object]", c.get(list, "attention_types") or []):
        said, pair = brief(item), cast("list[object]", item if isinstance(item, list) else [])
        if [type(part) for part in pair] != [list, int]:
            raise ConfigError(
                f"{c.name}: attention_types has {said} where a list of kinds and how often "
                "it is repeated are needed"
            )
        kinds, times = cast("list[object]", pair[0]), cast("int", pair[1])
        if len(kinds) * times + len(found) > layers:
            raise ConfigError(f"{c.name}: attention_types has more than {layers} layers")
        found += kinds * times
    return found


def neo_windows(c: Reader) -> tuple[int | None, ...]:
    """Global layers and local ones; they take turns unless the config says otherwise."""
    layers, window = c.need(int, "num_hidden_layers"), integer("window_size", 256)(c)
    kinds = neo_layers(c) or [list(NEO_LAYERS)[i % 2] for i in range(layers)]
    listed = cast("list[object] | None", c.get(list, "attention_layers"))
    if listed is not None and listed != kinds:
        raise ConfigError(
            f"{c.name}: attention_layers = {brief(listed)}, but attention_types makes them "
            f"{brief(kinds)}"
        )
    if len(kinds) != layers:
        raise ConfigError(f"{c.name}: attention_types has {len(kinds)} layers, not {layers}")
    unknown = [kind for kind in kinds if kind not in list(NEO_LAYERS)]
    if unknown:
        raise ConfigError(
            f"{c.name}: layers of type {unknown[0]!r} are not modelled; "
            f"known are {', '.join(NEO_LAYERS)}"
        )
    return tuple(cast("int", window) if NEO_LAYERS[cast("str", kind)] else None for kind in kinds)


NEO_ATTENTION = "transformer.h.*.attn.attention"

GPT_NEO = GPT2.but(
    "gpt_neo",
    rules={
        "max_position_embeddings": integer("max_position_embeddings", 2048),
        "embedding": learned(2048),
        "qkv_bias": NEVER,
        "windows": neo_windows,
        "attn_scales": every(constant(1.0)),
    },
    sources={
        "blocks.*.attn.q": f"{NEO_ATTENTION}.q_proj",
        "blocks.*.attn.k": f"{NEO_ATTENTION}.k_proj",
        "blocks.*.attn.v": f"{NEO_ATTENTION}.v_proj",
        "blocks.*.attn.o": f"{NEO_ATTENTION}.out_proj",
        "blocks.*.mlp.up": "transformer.h.*.mlp.c_fc",
        "blocks.*.mlp.down": "transformer.h.*.mlp.c_proj",
    },
    inert={"classifier_dropout", "embed_dropout", "resid_dropout"},
    fixed={
        "reorder_and_upcast_attn": (False,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "scale_attn_weights": (),
    },
    buffers=(f"{NEO_ATTENTION}.bias", f"{NEO_ATTENTION}.masked_bias"),
    aliases={"num_heads": "num_attention_heads", "num_layers": "num_hidden_layers"},
    tiny={**EVEN_SHARE, "window_size": 3},
)


def norms_before(c: Reader) -> BlockLayout:
    """The layout of every OPT but one."""
    if c.get(bool, "do_layer_norm_before") is False:
        raise ConfigError(
            f"{c.name}: do_layer_norm_before = False puts norms on the residual stream itself, "
            "after attention and after the MLP (OPT-350m), which is not modelled"
        )
    width, given = c.need(int, "hidden_size"), c.get(int, "word_embed_proj_dim")
    if given not in (None, width):
        raise ConfigError(
            f"{c.name}: word_embed_proj_dim = {given} is not hidden_size = {width}; embeddings "
            "that are projected to the model's width (OPT-350m) are not modelled"
        )
    return BlockLayout.Pre


def gain_and_bias(c: Reader) -> NormType:
    """Layer norms, which may have no parameters."""
    affine = flag("layer_norm_elementwise_affine", default=True)(c)
    return NormType.Layer if affine else NormType.LayerBare


OPT_LAYER = "model.decoder.layers.*"
OPT_BIASED = flag("enable_bias", default=True)

OPT = Family(
    "opt",
    rules={
        **GPT2.rules,
        "intermediate_size": integer("intermediate_size", 3072),
        "max_position_embeddings": integer("max_position_embeddings", 2048),
        "embedding": learned(2048, offset=2),
        "layout": norms_before,
        "norm_type": gain_and_bias,
        "norm_eps": constant(1e-5),
        "activation": activation("activation_function", "relu"),
        "qkv_bias": OPT_BIASED,
        "o_proj_bias": OPT_BIASED,
        "mlp_bias": OPT_BIASED,
        "attn_scales": every(inverse_root(even_heads)),
    },
    sources={
        "tokens": "model.decoder.embed_tokens",
        "positions": "model.decoder.embed_positions",
        "blocks.*.norm1": f"{OPT_LAYER}.self_attn_layer_norm",
        "blocks.*.attn.q": f"{OPT_LAYER}.self_attn.q_proj",
        "blocks.*.attn.k": f"{OPT_LAYER}.self_attn.k_proj",
        "blocks.*.attn.v": f"{OPT_LAYER}.self_attn.v_proj",
        "blocks.*.attn.o": f"{OPT_LAYER}.self_attn.out_proj",
        "blocks.*.norm2": f"{OPT_LAYER}.final_layer_norm",
        "blocks.*.mlp.up": f"{OPT_LAYER}.fc1",
        "blocks.*.mlp.down": f"{OPT_LAYER}.fc2",
        "norm": "model.decoder.final_layer_norm",
        "head": "lm_head",
    },
    inert=INERT | {"activation_dropout", "dropout", "init_std", "layerdrop", "output_projection"},
    fixed={**FIXED, "_remove_final_layer_norm": (False,)},
    aliases={"ffn_dim": "intermediate_size"},
    tiny=EVEN_SHARE,
)

GPTS = (GPT2, GPT_BIGCODE, GPT_NEO, OPT)
