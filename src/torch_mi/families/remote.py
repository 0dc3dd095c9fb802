# SPDX-License-Identifier: MIT OR Apache-2.0
"""Families whose checkpoints bring code of their own, which is never run.

Where a config is silent, the defaults are those of that code.
"""

from torch_mi.config.rope import DynamicNtk, Rope
from torch_mi.config.transformer import TransformerConfig
from torch_mi.errors import ConfigError
from torch_mi.families.compose import every
from torch_mi.families.decoder import LLAMA, NEVER
from torch_mi.families.rope import RopeRule, dynamic, linear, plain, positive
from torch_mi.families.rules import Reader, even_heads, flag, inverse_root
from torch_mi.families.sources import Grouped


def group_rows(cfg: TransformerConfig) -> tuple[int, ...]:
    """The queries that share a key, that key, and its value."""
    sharing = cfg.num_attention_heads // cfg.num_kv_heads
    return (sharing * cfg.head_dim, cfg.head_dim, cfg.head_dim)


def key_groups(cfg: TransformerConfig) -> int:
    """How many keys there are to share."""
    return cfg.num_kv_heads


INTERNLM2 = LLAMA.but(
    "internlm2",
    rules={
        "head_dim": even_heads,
        "qkv_bias": flag("bias", default=True),
        "o_proj_bias": flag("bias", default=True),
        "mlp_bias": NEVER,
        "ropes": every(
            RopeRule(
                2048, even_heads, kinds={"default": plain, "linear": linear, "dynamic": dynamic}
            )
        ),
        "attn_scales": every(inverse_root(even_heads)),
    },
    sources={
        "tokens": "model.tok_embeddings",
        "blocks.*.norm1": "model.layers.*.attention_norm",
        "blocks.*.attn.q": Grouped("model.layers.*.attention.wqkv", group_rows, 0, key_groups),
        "blocks.*.attn.k": Grouped("model.layers.*.attention.wqkv", group_rows, 1, key_groups),
        "blocks.*.attn.v": Grouped("model.layers.*.attention.wqkv", group_rows, 2, key_groups),
        "blocks.*.attn.o": "model.layers.*.attention.wo",
        "blocks.*.norm2": "model.layers.*.ffn_norm",
        "blocks.*.mlp.gate": "model.layers.*.feed_forward.w1",
        "blocks.*.mlp.up": "model.layers.*.feed_forward.w3",
        "blocks.*.mlp.down": "model.layers.*.feed_forward.w2",
        "head": "output",
    },
    fixed={"attention_bias": (False,), "mlp_bias": (False,)},
    buffers=("model.layers.*.attention.rotary_emb.inv_freq",),
    tiny={"head_dim": None, "hidden_size": 36, "bias": True, "num_key_value_heads": 3},
)


def internlm_rope(c: Reader) -> Rope:
    """A base that grows beyond the context unless `rotary` says otherwise."""
    rotary = c.objects("rotary").get("rotary", {"base": 10_000, "type": "dynamic"})
    r = Reader(rotary, "rotary")
    kind, base = r.need(str, "type"), positive(r, "base")
    growth = r.get(float, "scaling_factor")
    r.refuse_unread(frozenset(), "rotary embedding")
    if kind not in {"origin", "dynamic"}:
        raise ConfigError(f"rotary has type = {kind!r}; known are 'origin' and 'dynamic'")
    longest = c.get(int, "max_position_embeddings") or 2048
    scaling = DynamicNtk(1.0 if growth is None else growth, longest) if kind == "dynamic" else None
    return Rope(base, even_heads(c), scaling)


INTERNLM = LLAMA.but(
    "internlm",
    rules={
        "num_kv_heads": lambda c: c.need(int, "num_attention_heads"),
        "head_dim": even_heads,
        "qkv_bias": flag("bias", default=True),
        "o_proj_bias": flag("bias", default=True),
        "mlp_bias": NEVER,
        "ropes": every(internlm_rope),
        "attn_scales": every(inverse_root(even_heads)),
    },
    fixed={"attention_bias": (False,), "mlp_bias": (False,)},
    tiny={
        "head_dim": None,
        "num_key_value_heads": None,
        "rope_theta": None,
        "hidden_size": 36,
        "max_position_embeddings": 5,
        "rotary": {"base": 100, "type": "dynamic", "scaling_factor": 2.0},
    },
)

REMOTE = (INTERNLM, INTERNLM2)
