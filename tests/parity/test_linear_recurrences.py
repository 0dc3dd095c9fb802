# SPDX-License-Identifier: MIT OR Apache-2.0
"""Mamba, Mamba-2, GLA, RetNet, HGRN2 and DeltaNet against `transformers` and their equations."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

import torch_mi as mi
from tests.parity import linear_reference
from torch_mi.config.linear import Mamba2
from torch_mi.errors import ConfigError, ModelError
from torch_mi.families import RECURRENTS
from torch_mi.hooks.point import HookPoint

HERE = Path(__file__).resolve().parents[2]
CONFIGS = Path(os.environ.get("TORCH_MI_SHARED", HERE.parent / "shared")) / "data" / "configs"
VOCAB, LAYERS = 97, 3
SIZES = {"vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": LAYERS}
STATE_SPACES: Mapping[str, dict[str, Any]] = {
    "mamba": {"state_size": 5, "time_step_rank": 7, "use_bias": True},
    "mamba, no bias": {
        "state_size": 9,
        "conv_kernel": 3,
        "use_conv_bias": False,
        "tie_word_embeddings": False,
    },
    "mamba2": {"num_heads": 6, "head_dim": 8, "state_size": 5, "n_groups": 2, "use_bias": True},
    "mamba2, no bias": {
        "num_heads": 3,
        "head_dim": 16,
        "state_size": 9,
        "n_groups": 1,
        "use_conv_bias": False,
        "time_step_limit": (0.1, 0.6),
        "tie_word_embeddings": True,
    },
}
FLA: Mapping[str, dict[str, Any]] = {
    "gla": {"num_heads": 4, "num_kv_heads": 2, "clamp_min": -0.05},
    "gla, convolved": {
        "num_heads": 3,
        "expand_k": 1.5,
        "use_short_conv": True,
        "fuse_norm": False,
        "feature_map": "silu",
    },
    "gla, no gate": {"num_heads": 2, "use_output_gate": False},
    "retnet": {"num_heads": 4, "expand_k": 1.0, "expand_v": 1.5, "num_kv_heads": 2},
    "hgrn2": {"expand_ratio": 6},
    "hgrn2, convolved": {"expand_ratio": 8, "use_short_conv": True, "use_lower_bound": False},
    "delta_net": {"num_heads": 4, "expand_v": 1.5, "use_gate": True, "allow_neg_eigval": True},
    "delta_net, sums": {
        "num_heads": 3,
        "use_short_conv": False,
        "use_beta": False,
        "qk_norm": "sum",
        "qk_activation": "elu",
    },
    "delta_net, ReLU": {"num_heads": 2, "qk_activation": "relu", "conv_size": 3},
}
TOKENS = torch.randint(VOCAB, (2, 19), generator=torch.Generator().manual_seed(0))


def near(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Equality up to a share of the largest number."""
    size = max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(found.double(), wanted.double(), atol=tolerance * size, rtol=0)


def drawn(name: str, shape: tuple[int, ...], dice: torch.Generator) -> Tensor:
    """A tensor in which nothing is at its default."""
    noise = torch.randn(shape, generator=dice)
    if "embeddings" in name or "A_log" in name or "lower_bounds" in name:
        return noise
    if len(shape) > 1:
        return noise / shape[-1] ** 0.5
    return (1 if "norm" in name else 0) + 0.4 * noise


def state_space(case: str) -> Any:
    """A tiny model of `transformers`."""
    one = case.startswith("mamba2")
    settings: dict[str, Any] = {**SIZES, **STATE_SPACES[case]}
    model: Any = (
        Mamba2ForCausalLM(Mamba2Config(**settings, chunk_size=8))
        if one
        else MambaForCausalLM(MambaConfig(**settings))
    )
    dice = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(drawn(name, tuple(value.shape), dice))
    return model.eval()


@pytest.mark.parametrize("case", STATE_SPACES)
def test_state_spaces_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    theirs = state_space(case)
    with torch.no_grad():
        wanted = theirs(TOKENS, output_hidden_states=True)
    theirs.save_pretrained(tmp_path)
    spec = mi.HookSpec().capture(HookPoint.ResidPost, HookPoint.FinalNorm)
    for model in (mi.MIModel.from_hf(theirs), mi.MIModel.from_pretrained(tmp_path, device="cpu")):
        seen = model.forward(TOKENS, spec)
        near(seen.output, wanted.logits)
        for layer in range(LAYERS):
            near(seen[HookPoint.ResidPost(layer)], wanted.hidden_states[layer])
        near(seen[HookPoint.FinalNorm], wanted.hidden_states[LAYERS])
        near(model.forward(TOKENS, attention="explicit").output, wanted.logits)


def fla(case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of a tiny model, as flash-linear-attention names them."""
    kind, *_ = case.split(",")
    cfg = {"model_type": kind, **SIZES, "intermediate_size": 40, "norm_eps": 1e-4, **FLA[case]}
    shapes = fla_shapes(kind, cfg)
    dice = torch.Generator().manual_seed(2)
    tensors = {name: drawn(name, shape, dice) for name, shape in shapes.items()}
    return cfg, tensors


def fla_shapes(kind: str, cfg: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that flash-linear-attention's class has."""
    wide, inner, heads = 24, cfg["intermediate_size"], cfg.get("num_heads", 1)
    keys = int(wide * cfg.get("expand_k", 0.5 if kind == "gla" else 1.0))
    values = int(wide * cfg.get("expand_v", 2.0 if kind == "retnet" else 1.0))
    shared = heads // cfg.get("num_kv_heads", heads)
    convolved = cfg.get("use_short_conv", kind == "delta_net")
    sizes = {"q": keys, "k": keys // shared, "v": values // shared}
    if kind == "hgrn2":
        sizes = {"q": wide, "f": wide, "i": wide}
    shapes: dict[str, tuple[int, ...]] = {
        "model.embeddings.weight": (VOCAB, wide),
        "model.norm.weight": (wide,),
        "lm_head.weight": (VOCAB, wide),
    }
    if kind == "hgrn2" and cfg.get("use_lower_bound", True):
        shapes["model.lower_bounds"] = (LAYERS, wide)
    gated = cfg.get("use_output_gate", kind in ("gla", "retnet")) or cfg.get("use_gate", False)
    fused = kind in ("gla", "retnet") and gated and cfg.get("fuse_norm", True)
    norm = "g_norm_swish_gate" if fused else "o_norm" if kind == "delta_net" else "g_norm"
    for layer in range(LAYERS):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm": (wide,),
            "mlp_norm": (wide,),
            "mlp.gate_proj": (inner, wide),
            "mlp.up_proj": (inner, wide),
            "mlp.down_proj": (wide, inner),
            "attn.o_proj": (wide, values),
            f"attn.{norm}": (wide if kind == "hgrn2" else values // heads,),
            **{f"attn.{letter}_proj": (size, wide) for letter, size in sizes.items()},
        }
        if convolved:
            taps = cfg.get("conv_size", 4)
            block |= {f"attn.{letter}_conv1d": (size, 1, taps) for letter, size in sizes.items()}
        if gated:
            block["attn.g_proj"] = (values, wide)
        if kind == "delta_net" and cfg.get("use_beta", True):
            block["attn.b_proj"] = (heads, wide)
        if kind == "gla":
            block |= {"attn.gk_proj.0": (16, wide), "attn.gk_proj.1": (keys // shared, 16)}
            shapes[f"model.layers.{layer}.attn.gk_proj.1.bias"] = (keys // shared,)
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    return shapes


def stored(folder: Path, cfg: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    (folder / "config.json").write_text(json.dumps(cfg))
    save_file(dict(tensors), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("case", FLA)
def test_linear_attention_is_what_its_equations_say(case: str, tmp_path: Path) -> None:
    cfg, tensors = fla(case)
    model = mi.MIModel.from_pretrained(stored(tmp_path, cfg, tensors), device="cpu")
    spec = mi.HookSpec().capture(HookPoint.ResidPost)
    for attention in ("auto", "explicit"):
        seen = model.forward(TOKENS[:1], spec, attention=attention)
        stream, logits = linear_reference.run(tensors, cfg, TOKENS[0])
        for layer in range(LAYERS):
            near(seen[HookPoint.ResidPost(layer)][0], stream[layer])
        near(seen.output[0], logits)


def test_older_exports_keep_both_ways_into_the_mlp_in_one_matrix(tmp_path: Path) -> None:
    cfg, tensors = fla("gla")
    wanted = linear_reference.run(tensors, cfg, TOKENS[0])[1]
    for layer in range(LAYERS):
        gate, up = (f"model.layers.{layer}.mlp.{x}_proj.weight" for x in ("gate", "up"))
        tensors[gate] = torch.cat([tensors[gate], tensors.pop(up)])
    model = mi.MIModel.from_pretrained(stored(tmp_path, cfg, tensors), device="cpu")
    near(model.forward(TOKENS[:1]).output[0], wanted)


@pytest.mark.parametrize(
    ("case", "change", "said"),
    [
        ("gla", {"attn": {"layers": [1], "num_heads": 4}}, r"attn = .* only null is modelled"),
        ("gla", {"use_gv": True}, "use_gv"),
        ("gla", {"feature_map": "gelu"}, "feature_map 'gelu' is not modelled"),
        ("gla", {"num_heads": 5}, "heads"),
        ("gla", {"num_kv_heads": 3}, "4 heads cannot share the keys of 3 groups evenly"),
        ("retnet", {"hidden_act": "gelu"}, "hidden_act"),
        ("hgrn2", {"expand_ratio": 7}, "no whole number of heads of 7"),
        ("delta_net", {"qk_norm": "l1"}, "l1"),
        ("delta_net", {"unheard_of": 1}, "unheard_of"),
        ("delta_net", {"use_beta": False}, "b_proj"),
    ],
)
def test_what_is_not_modelled_is_refused(
    case: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    cfg, tensors = fla(case)
    folder = stored(tmp_path, {**cfg, **change}, tensors)
    with pytest.raises((ConfigError, ModelError), match=said):
        mi.MIModel.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("mamba", {"hidden_act": "gelu"}, "hidden_act"),
        ("mamba", {"time_step_rank": "all"}, "time_step_rank is neither"),
        ("mamba2", {"head_dim": 7}, "6 heads of 7 are not the 48 channels"),
        ("mamba2", {"n_groups": 4}, "cannot share"),
        ("mamba2", {"time_step_limit": [1.0]}, "no two bounds"),
    ],
)
def test_a_config_of_a_state_space_is_checked(kind: str, change: dict[str, Any], said: str) -> None:
    raw = {"model_type": kind, "vocab_size": VOCAB, **RECURRENTS[kind].tiny, **change}
    with pytest.raises(ConfigError, match=said):
        RECURRENTS[kind].config(raw)


def test_an_infinite_limit_of_step_sizes_is_no_limit() -> None:
    for limit in (float("inf"), {"__float__": "Infinity"}):
        raw = {**RECURRENTS["mamba2"].tiny, "vocab_size": VOCAB, "time_step_limit": [0.0, limit]}
        cfg = RECURRENTS["mamba2"].config({"model_type": "mamba2", **raw})
        assert isinstance(cfg.mixer, Mamba2)
        assert cfg.mixer.most_step is None


@pytest.mark.parametrize(
    ("path", "sizes"),
    [
        ("mamba/state-spaces__mamba-130m-hf.json", (768, 24, 1536, 16, 1)),
        ("mamba/state-spaces__mamba-2.8b-hf.json", (2560, 64, 5120, 16, 1)),
        ("mamba2/mamba2-780m-hf.json", (1536, 48, 48, 128, 64)),
    ],
)
def test_released_configs(path: str, sizes: tuple[int, ...]) -> None:
    """Width, layers, heads, and the sizes of a head's state, which no tensors tell here."""
    file = CONFIGS / path
    if not file.is_file():
        pytest.skip(f"no {file}")
    raw = json.loads(file.read_text(encoding="utf-8"))
    cfg = RECURRENTS[raw["model_type"]].config(raw)
    mixer = cfg.mixer
    found = (cfg.hidden_size, cfg.num_layers, mixer.heads, mixer.key_size, mixer.value_size)
    assert found == sizes
    assert cfg.tie_word_embeddings
