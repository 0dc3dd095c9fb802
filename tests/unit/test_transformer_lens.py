# SPDX-License-Identifier: MIT OR Apache-2.0
"""HookedTransformer checkpoints, against a forward pass written from its definition."""

import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from inline_snapshot import snapshot
from torch import Tensor
from torch.nn.functional import gelu, relu, silu

import torch_mi as mi
from benchmarks.peers import has_hooked_transformer
from torch_mi.config.activation import Activation
from torch_mi.config.parts import BlockLayout, NormType
from torch_mi.hooks.point import HookPoint

Config = dict[str, Any]
Weights = dict[str, Tensor]

SMALL: Config = {
    "n_layers": 2,
    "d_model": 24,
    "n_ctx": 12,
    "d_head": 10,
    "n_heads": 4,
    "d_mlp": 20,
    "d_vocab": 11,
    "act_fn": "gelu",
}
ROTARY: Config = {"positional_embedding_type": "rotary", "rotary_dim": 6, "rotary_base": 100}
FAR: Config = {"use_local_attn": True, "window_size": 3, "attn_types": ["global", "local"]}
RMS: Config = {"normalization_type": "RMS"}

CASES: dict[str, Config] = {
    "plain": {},
    "folded": {"normalization_type": "LNPre"},
    "rms": RMS,
    "rms folded": {"normalization_type": "RMSPre"},
    "no norms": {"normalization_type": None},
    "attention only": {"attn_only": True},
    "attention only, no norms": {"attn_only": True, "normalization_type": None, "act_fn": None},
    "rotary, far pairs": ROTARY,
    "rotary, near pairs": {**ROTARY, "rotary_adjacent_pairs": True},
    "rotary, whole heads": {"positional_embedding_type": "rotary"},
    "rotary, local base": {**ROTARY, **FAR, "rotary_base_local": 20, "rotary_scaling_factor": 4.0},
    "alibi": {"positional_embedding_type": "alibi"},
    "grouped": {"n_key_value_heads": 2},
    "grouped, one each": {"n_key_value_heads": 4},
    "solu": {"act_fn": "solu"},
    "solu_ln": {"act_fn": "solu_ln"},
    "solu_ln folded": {"act_fn": "solu_ln", "normalization_type": "LNPre"},
    "gelu_new": {"act_fn": "gelu_new"},
    "relu": {"act_fn": "relu"},
    "relu2": {"act_fn": "relu2"},
    "gated": {"act_fn": "silu", "gated_mlp": True, **RMS},
    "both ways": {"attention_dir": "bidirectional"},
    "local": FAR,
    "both ways and local": {"attention_dir": "bidirectional", **FAR},
    "other logits": {"d_vocab_out": 5},
    "final rms": {"final_rms": True},
    "final rms folded": {"final_rms": True, "normalization_type": "LNPre"},
    "parallel": {"parallel_attn_mlp": True},
    "sandwich": {"use_normalization_before_and_after": True, **RMS},
    "sandwich folded": {
        "use_normalization_before_and_after": True,
        "normalization_type": "RMSPre",
    },
    "norms of queries and keys": {"use_qk_norm": True},
    "unscaled": {"use_attn_scale": False},
    "scaled": {"attn_scale": 2.5},
    "by layer": {"scale_attn_by_inverse_layer_idx": True},
    "capped": {"attn_scores_soft_cap": 2.0, "output_logits_soft_cap": 3.0},
    "clipped": {"clip_qkv": 0.5},
    "normed embedding": {"post_embedding_ln": True, **ROTARY},
}


class Maker:
    """Random tensors under the names and in the shapes that `HookedTransformer` has."""

    def __init__(self, cfg: Config, seed: int) -> None:
        self.cfg, self.made = cfg, dict[str, Tensor]()
        self.dice = torch.Generator().manual_seed(seed)
        self.kind: str | None = cfg.get("normalization_type", "LN")
        self.width: int = cfg["d_model"]

    def new(self, name: str, *shape: int) -> None:
        noise = torch.randn(shape, generator=self.dice)
        self.made[name] = noise / shape[-2 if len(shape) > 1 else 0] ** 0.5

    def norm(self, name: str, size: int, kind: str | None) -> None:
        if kind in ("LN", "RMS"):
            self.new(f"{name}.w", size)
        if kind == "LN":
            self.new(f"{name}.b", size)

    def ends(self) -> None:
        cfg, out = self.cfg, self.cfg.get("d_vocab_out", self.cfg["d_vocab"])
        self.new("embed.W_E", cfg["d_vocab"], self.width)
        if cfg.get("post_embedding_ln"):
            self.norm("embed.ln", self.width, "LN")
        if cfg.get("positional_embedding_type") != "rotary":
            self.new("pos_embed.W_pos", cfg["n_ctx"], self.width)
        rms = cfg.get("final_rms") and self.kind in ("LN", "LNPre")
        last = {"LN": "RMS", "LNPre": None}[str(self.kind)] if rms else self.kind
        self.norm("ln_final", self.width, last)
        self.new("unembed.W_U", self.width, out)
        self.new("unembed.b_U", out)

    def attention(self, at: str) -> None:
        cfg, heads, each = self.cfg, self.cfg["n_heads"], self.cfg["d_head"]
        groups = cfg.get("n_key_value_heads")
        for name in "QKV":
            count, low = (heads, "") if groups is None or name == "Q" else (groups, "_")
            self.new(f"{at}.{low}W_{name}", count, self.width, each)
            self.new(f"{at}.{low}b_{name}", count, each)
        self.new(f"{at}.W_O", heads, each, self.width)
        self.new(f"{at}.b_O", self.width)
        self.made[f"{at}.mask"] = torch.ones(12, 12).tril().bool()
        self.made[f"{at}.IGNORE"] = torch.tensor(-torch.inf)
        if cfg.get("use_qk_norm"):
            self.norm(f"{at}.q_norm", each, "RMS")
            self.norm(f"{at}.k_norm", each, "RMS")
        if cfg.get("positional_embedding_type") == "rotary":
            self.made[f"{at}.rotary_sin"] = self.made[f"{at}.rotary_cos"] = torch.zeros(12, 6)

    def mlp(self, mlp: str) -> None:
        cfg, inner = self.cfg, self.cfg["d_mlp"]
        for name in ("W_in", "W_gate") if cfg.get("gated_mlp") else ("W_in",):
            self.new(f"{mlp}.{name}", self.width, inner)
        self.new(f"{mlp}.b_in", inner)
        self.new(f"{mlp}.W_out", inner, self.width)
        self.new(f"{mlp}.b_out", self.width)
        if cfg["act_fn"] == "solu_ln" and self.kind == "LN":
            self.norm(f"{mlp}.ln", inner, "LN")

    def norms(self, block: str, half: int) -> None:
        self.norm(f"{block}.ln{half}", self.width, self.kind)
        if self.cfg.get("use_normalization_before_and_after"):
            self.norm(f"{block}.ln{half}_post", self.width, "RMS")


def checkpoint(cfg: Config, seed: int = 0) -> Weights:
    """The state dict of a random model of this config."""
    maker = Maker(cfg, seed)
    maker.ends()
    for layer in range(cfg["n_layers"]):
        maker.attention(f"blocks.{layer}.attn")
        maker.norms(f"blocks.{layer}", 1)
        if not cfg.get("attn_only"):
            maker.mlp(f"blocks.{layer}.mlp")
            maker.norms(f"blocks.{layer}", 2)
    return maker.made


ACTS: dict[str | None, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_new": lambda x: (
        0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "relu": relu,
    "relu2": lambda x: relu(x) ** 2,
    "silu": silu,
    "solu": lambda x: x * x.softmax(-1),
    "solu_ln": lambda x: x * x.softmax(-1),
}


def normed(x: Tensor, w: Weights, name: str, kind: str | None) -> Tensor:
    """A norm of this kind, with the gain and bias that there are."""
    if kind is None:
        return x
    if kind.startswith("LN"):
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    x = x * w[f"{name}.w"] if f"{name}.w" in w else x
    return x + w[f"{name}.b"] if f"{name}.b" in w else x


def turned(x: Tensor, cfg: Config, local: bool) -> Tensor:
    """One head's queries or keys [pos d_head], turned pair by pair."""
    if cfg.get("positional_embedding_type") != "rotary":
        return x
    dim = cfg.get("rotary_dim") or cfg["d_head"]
    base = cfg.get("rotary_base_local") if local else None
    base = base or cfg.get("rotary_base", 10000)
    slower = 1.0 if local else cfg.get("rotary_scaling_factor", 1.0)
    out = x.clone()
    for j in range(dim // 2):
        near = cfg.get("rotary_adjacent_pairs", False)
        a, b = (2 * j, 2 * j + 1) if near else (j, j + dim // 2)
        angle = torch.arange(len(x)) / base ** (2 * j / dim) / slower
        out[:, a] = x[:, a] * angle.cos() - x[:, b] * angle.sin()
        out[:, b] = x[:, b] * angle.cos() + x[:, a] * angle.sin()
    return out


def attended(x: Tensor, w: Weights, cfg: Config, layer: int) -> Tensor:
    """What the heads of a layer add, one by one, for a normed stream [pos d_model]."""
    at, heads, n = f"blocks.{layer}.attn", cfg["n_heads"], len(x)
    groups = cfg.get("n_key_value_heads")
    local = bool(cfg.get("use_local_attn")) and cfg["attn_types"][layer] == "local"
    divisor = cfg.get("attn_scale", cfg["d_head"] ** 0.5) if cfg.get("use_attn_scale", True) else 1
    divisor *= layer + 1 if cfg.get("scale_attn_by_inverse_layer_idx") else 1
    total = w[f"{at}.b_O"].expand(n, -1)
    for head in range(heads):
        low, kv = ("", head) if groups is None else ("_", head // (heads // groups))
        q = x @ w[f"{at}.W_Q"][head] + w[f"{at}.b_Q"][head]
        k = x @ w[f"{at}.{low}W_K"][kv] + w[f"{at}.{low}b_K"][kv]
        v = x @ w[f"{at}.{low}W_V"][kv] + w[f"{at}.{low}b_V"][kv]
        if cfg.get("use_qk_norm"):
            q, k = normed(q, w, f"{at}.q_norm", "RMS"), normed(k, w, f"{at}.k_norm", "RMS")
        if cfg.get("clip_qkv"):
            q, k, v = (t.clamp(-cfg["clip_qkv"], cfg["clip_qkv"]) for t in (q, k, v))
        scores = turned(q, cfg, local) @ turned(k, cfg, local).T / divisor
        cap = cfg.get("attn_scores_soft_cap", -1.0)
        scores = cap * torch.tanh(scores / cap) if cap > 0 else scores
        ahead = torch.arange(n)[None] - torch.arange(n)[:, None]
        if cfg.get("positional_embedding_type") == "alibi":
            scores = scores + 2 ** (-8 * (head + 1) / heads) * ahead.clamp(max=0)
        if cfg.get("attention_dir", "causal") == "causal":
            scores = scores.masked_fill(ahead > 0, -torch.inf)
            if local:
                scores = scores.masked_fill(ahead <= -cfg["window_size"], -torch.inf)
        total = total + scores.softmax(-1) @ v @ w[f"{at}.W_O"][head]
    return total


def neurons(x: Tensor, w: Weights, cfg: Config, layer: int) -> Tensor:
    """What a layer's MLP adds, for a normed stream."""
    mlp, act = f"blocks.{layer}.mlp", ACTS[cfg["act_fn"]]
    if cfg.get("gated_mlp"):
        post = act(x @ w[f"{mlp}.W_gate"]) * (x @ w[f"{mlp}.W_in"]) + w[f"{mlp}.b_in"]
    else:
        post = act(x @ w[f"{mlp}.W_in"] + w[f"{mlp}.b_in"])
    if cfg["act_fn"] == "solu_ln":
        post = normed(post, w, f"{mlp}.ln", "LN")
    return post @ w[f"{mlp}.W_out"] + w[f"{mlp}.b_out"]


def logits_of(cfg: Config, w: Weights, row: Tensor) -> Tensor:
    """The logits [pos vocab] of one row of tokens."""
    kind, parallel = cfg.get("normalization_type", "LN"), cfg.get("parallel_attn_mlp")
    after = cfg.get("use_normalization_before_and_after")
    x = w["embed.W_E"][row]
    if cfg.get("post_embedding_ln"):
        x = normed(x, w, "embed.ln", "LN")
    if cfg.get("positional_embedding_type", "standard") == "standard":
        x = x + w["pos_embed.W_pos"][: len(row)]
    for layer in range(cfg["n_layers"]):
        block = f"blocks.{layer}"
        attn = attended(normed(x, w, f"{block}.ln1", kind), w, cfg, layer)
        attn = normed(attn, w, f"{block}.ln1_post", "RMS") if after else attn
        start, x = x, x + attn
        if cfg.get("attn_only"):
            continue
        mlp = neurons(normed(start if parallel else x, w, f"{block}.ln2", kind), w, cfg, layer)
        x = x + (normed(mlp, w, f"{block}.ln2_post", "RMS") if after else mlp)
    last = "RMS" if cfg.get("final_rms") and kind is not None else kind
    out = normed(x, w, "ln_final", last) @ w["unembed.W_U"] + w["unembed.b_U"]
    cap = cfg.get("output_logits_soft_cap", -1.0)
    return cap * torch.tanh(out / cap) if cap > 0 else out


def near(found: Tensor, wanted: Tensor) -> None:
    scale = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(found, wanted, atol=1e-5 * scale, rtol=0)


TOKENS = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_definition(name: str) -> None:
    cfg = SMALL | CASES[name]
    weights = checkpoint(cfg)
    model = mi.from_transformer_lens(weights, cfg)
    wanted = torch.stack([logits_of(cfg, weights, row) for row in TOKENS])
    near(model.forward(TOKENS).output, wanted)
    near(model.forward(TOKENS, attention="explicit").output, wanted)


@pytest.mark.parametrize("name", CASES)
def test_it_is_kept_whole(name: str, tmp_path: Any) -> None:
    """A model read from TransformerLens can be saved and is the same when it is loaded."""
    model = mi.from_transformer_lens(checkpoint(SMALL | CASES[name]), SMALL | CASES[name])
    again = mi.MIModel.from_pretrained(model.save(tmp_path / "model"), device="cpu")
    assert again.config == model.config
    assert torch.equal(again.forward(TOKENS).output, model.forward(TOKENS).output)


def test_hooks_have_the_values_of_the_definition() -> None:
    weights = checkpoint(SMALL)
    model = mi.from_transformer_lens(weights, SMALL)
    seen = model.run_with_cache(TOKENS)[1]
    x = weights["embed.W_E"][TOKENS[0]] + weights["pos_embed.W_pos"][:9]
    near(seen[HookPoint.ResidPre(0)][0], x)
    q = normed(x, weights, "blocks.0.ln1", "LN") @ weights["blocks.0.attn.W_Q"][3]
    near(seen["blocks.0.attn.hook_q"][0, :, 3], q + weights["blocks.0.attn.b_Q"][3])
    result = seen["blocks.1.attn.hook_z"][0, :, 2] @ weights["blocks.1.attn.W_O"][2]
    near(seen["blocks.1.attn.hook_result"][0, :, 2], result)


def test_weights_are_copied() -> None:
    weights = checkpoint(SMALL)
    model = mi.from_transformer_lens(weights, SMALL, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    model = mi.from_transformer_lens(weights, SMALL)
    before = model.forward(TOKENS).output
    for value in weights.values():
        value.zero_()
    assert torch.equal(model.forward(TOKENS).output, before)
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


def test_a_config_object_will_do() -> None:
    weights, numpy = checkpoint(SMALL), pytest.importorskip("numpy")
    cfg = SimpleNamespace(**SMALL, attn_scale=numpy.sqrt(numpy.float64(10.0)), dtype=torch.float32)
    found = mi.from_transformer_lens(weights, cfg)
    assert torch.equal(
        found.forward(TOKENS).output,
        mi.from_transformer_lens(weights, SMALL).forward(TOKENS).output,
    )


def test_the_config_says_what_it_computes() -> None:
    def read(**more: Any) -> mi.TransformerConfig:
        cfg = SMALL | more
        return mi.from_transformer_lens(checkpoint(cfg), cfg).config

    cfg = read()
    assert (cfg.norm_type, cfg.layout, cfg.activation) == (
        NormType.Layer, BlockLayout.Pre, Activation.Gelu,
    )  # fmt: skip
    assert cfg.embedding.learned is not None
    assert cfg.head.bias
    assert read(normalization_type="LNPre").norm_type is NormType.LayerBare
    assert read(final_rms=True).final_norm_type is NormType.Rms
    assert read(parallel_attn_mlp=True).layout is BlockLayout.ParallelTwo
    assert read(d_vocab_out=5).output_vocab_size == 5
    assert read(attn_only=True).attention_only
    assert read(attn_only=True, d_mlp=20).intermediate_size == 0
    assert read(**FAR).windows == (None, 3)


def said(cfg: Config, weights: Any = None) -> str:
    with pytest.raises(mi.MIError) as caught:
        mi.from_transformer_lens(checkpoint(SMALL) if weights is None else weights, SMALL | cfg)
    return str(caught.value)


@pytest.mark.parametrize(
    "cfg",
    [
        {"positional_embedding_type": "shortformer"},
        {"positional_embedding_type": "relative_positional_bias"},
        {"positional_embedding_type": "alibi", "n_heads": 3},
        {"positional_embedding_type": "alibi", "attention_dir": "bidirectional"},
        {"normalization_type": "BatchNorm"},
        {"act_fn": "xielu"},
        {"act_fn": "solu_ln", "gated_mlp": True},
        {"attention_dir": "sideways"},
        {"num_experts": 4},
        {"use_attention_sinks": True},
        {"use_yarn_rope": True},
        {"use_dynamic_ntk_rope": True},
        {"use_logn_attn": True},
        {"load_in_4bit": True},
        {"original_architecture": "Olmo2ForCausalLM"},
        {"use_normalization_before_and_after": True},
        {"use_normalization_before_and_after": True, "parallel_attn_mlp": True, **RMS},
        {"post_embedding_ln": True},
        {"use_local_attn": True, "attn_types": ["global"], "window_size": 3},
        {"use_local_attn": True, "attn_types": ["global", "far"], "window_size": 3},
        {"use_local_attn": True, "attn_types": ["global", "local"]},
        {"attn_scale": -2.0},
        {"n_heads": 2.5},
        {"n_heads": 0},
        {"use_rotary_backwards": True},
    ],
    ids=" ".join,
)
def test_what_is_not_modelled_is_refused(cfg: Config) -> None:
    assert any(key in said(cfg) for key in [*cfg, "attention heads", "window_size"])


def test_errors_name_the_thing() -> None:
    assert said({"use_qk_nrom": True}) == snapshot(
        "the TransformerLens config: HookedTransformer has no use for use_qk_nrom = True; "
        "did you mean 'use_qk_norm'?"
    )
    assert said({"positional_embedding_type": "shortformer"}) == snapshot(
        "the TransformerLens config has positional_embedding_type = 'shortformer'; "
        "modelled are standard, rotary, alibi"
    )
    weights = checkpoint(SMALL)
    del weights["blocks.1.attn.W_K"]
    assert said({}, weights) == snapshot(
        "the checkpoint lacks blocks.1.attn.W_K; "
        "it has blocks.1.attn.b_K, blocks.1.attn.W_V, blocks.1.attn.W_Q"
    )
    weights = checkpoint(SMALL) | {"blocks.0.attn.W_X": torch.zeros(2)}
    assert said({}, weights) == snapshot(
        "1 of the checkpoint's tensors have no place in this model: blocks.0.attn.W_X"
    )
    weights = checkpoint(SMALL) | {"blocks.0.attn.W_O": torch.zeros(4, 24, 10)}
    assert said({}, weights) == snapshot(
        "blocks.0.attn.W_O has shape [4, 24, 10] in the checkpoint; its config makes it [4, 10, 24]"
    )
    weights = checkpoint(SMALL) | {"unembed.b_U": None}
    assert said({}, weights) == snapshot("unembed.b_U is a NoneType, not a tensor")
    with pytest.raises(mi.ConfigError, match="HookedTransformerConfig or a dict, not a int"):
        mi.from_transformer_lens(checkpoint(SMALL), 3)


PEER = pytest.mark.skipif(
    not has_hooked_transformer(), reason="needs transformer-lens before 4, which had it"
)


@PEER
@pytest.mark.parametrize("fold", [False, True], ids=["as trained", "folded"])
@pytest.mark.parametrize("name", [name for name in CASES if "folded" not in name])
def test_transformer_lens_gives_the_same(name: str, fold: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformer_lens as lens  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - not everywhere

        cfg = lens.HookedTransformerConfig(**SMALL | CASES[name], device="cpu")
        theirs = lens.HookedTransformer(cfg)
        made = checkpoint(SMALL | CASES[name])
        buffers = ("mask", "IGNORE", "rotary_sin", "rotary_cos")
        weights = {key: value for key, value in made.items() if not key.endswith(buffers)}
        theirs.load_state_dict(weights, strict=False)
        foldable = cfg.normalization_type is not None and not cfg.post_embedding_ln
        foldable = foldable and cfg.act_fn != "solu"  # they look for a norm after it
        if fold and foldable:
            theirs.process_weights_(
                center_writing_weights=cfg.normalization_type == "LN" and not cfg.final_rms,
                center_unembed=False,
            )
            state = theirs.state_dict()
            theirs = lens.HookedTransformer(theirs.cfg)
            theirs.load_state_dict(state)
        ours = mi.from_transformer_lens(theirs.state_dict(), theirs.cfg)
        near(ours.forward(TOKENS).output, theirs(TOKENS).detach())
