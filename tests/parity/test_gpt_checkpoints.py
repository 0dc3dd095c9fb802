# SPDX-License-Identifier: MIT OR Apache-2.0
"""GPT-2's kin: what is refused and in which words, and checkpoints under older names."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.parity import hf
from tests.parity.cases import gpt
from tests.parity.cases.case import Case
from torch_mi.errors import ConfigError
from torch_mi.families import read_config
from torch_mi.families.gpt import GPT2
from torch_mi.model import MIModel

HERE = Path(__file__).resolve().parents[2]
CONFIGS = Path(os.environ.get("TORCH_MI_SHARED", HERE.parent / "shared")) / "data" / "configs"

Raw = dict[str, Any]

REFUSED: dict[str, tuple[Raw, str]] = {
    "opt-350m": (
        {"model_type": "opt", **gpt.OPT, "do_layer_norm_before": False},
        r"do_layer_norm_before = False puts norms on the residual stream itself.*OPT-350m",
    ),
    "opt with narrow embeddings": (
        {"model_type": "opt", **gpt.OPT, "word_embed_proj_dim": 12},
        r"word_embed_proj_dim = 12 is not hidden_size = 36",
    ),
    "opt without its last norm": (
        {"model_type": "opt", **gpt.OPT, "_remove_final_layer_norm": True},
        r"_remove_final_layer_norm = True; in opt only False is modelled",
    ),
    "bloom around its norms": (
        {"model_type": "bloom", **gpt.BLOOM, "apply_residual_connection_post_layernorm": True},
        r"apply_residual_connection_post_layernorm = True; in bloom only False",
    ),
    "gpt2 with cross attention": (
        {"model_type": "gpt2", **gpt.GPT, "add_cross_attention": True},
        r"add_cross_attention = True; in gpt2 only False",
    ),
    "gpt2 in its own words": (
        {"model_type": "gpt2", **gpt.GPT, "n_embd": "wide"},
        r"config.json has n_embd = 'wide' where a whole number is needed",
    ),
    "gpt2 without layers": (
        {"model_type": "gpt2", **{k: v for k, v in gpt.GPT.items() if k != "n_layer"}},
        r"config.json lacks 'n_layer', a whole number",
    ),
    "gpt2 with a key of another family": (
        {"model_type": "gpt2", **gpt.GPT, "n_embed": 36},
        r"gpt2 has no use for n_embed = 36; did you mean 'n_embd'\?",
    ),
    "gpt2 of two widths": (
        {"model_type": "gpt2", **gpt.GPT, "hidden_size": 48},
        r"has n_embd = 36 and hidden_size = 48, which in gpt2 are the same",
    ),
    "gpt2 with narrow heads": (
        {"model_type": "gpt2", **gpt.GPT, "head_dim": 4},
        r"gpt2 has no use for head_dim = 4",
    ),
    "gpt2 with uneven heads": (
        {"model_type": "gpt2", **gpt.GPT, "n_head": 5},
        r"5 attention heads cannot share a width of 36 evenly",
    ),
    "gpt_neo with too many layers": (
        {"model_type": "gpt_neo", **gpt.NEO, "attention_types": [[["global"], 10**15]]},
        r"attention_types has more than 3 layers",
    ),
    "gpt_neo with too few layers": (
        {"model_type": "gpt_neo", **gpt.NEO, "attention_types": [[["global", "local"], 1]]},
        r"attention_types has 2 layers, not 3",
    ),
    "gpt_neo of two minds": (
        {"model_type": "gpt_neo", **gpt.NEO, "attention_layers": ["global"] * 3},
        r"attention_layers = .*but attention_types makes them",
    ),
    "gpt_neo with unknown layers": (
        {"model_type": "gpt_neo", **gpt.NEO, "attention_types": [[["sparse"], 3]]},
        r"layers of type 'sparse' are not modelled; known are global, local",
    ),
    "gpt_neo with a broken pattern": (
        {"model_type": "gpt_neo", **gpt.NEO, "attention_types": [["global", 3]]},
        r"attention_types has \['global', 3\] where a list of kinds",
    ),
    "gptj with another base": (
        {"model_type": "gptj", **gpt.GPT, "rotary_dim": 4, "rope_theta": 500},
        r"rope_theta = 500.0, but gptj always turns by 10000.0",
    ),
    "gptj that turns its whole width": (
        {"model_type": "gptj", **gpt.GPT},
        r"64 rotary dimensions do not fit heads of 6",
    ),
    "gpt_neox of two bases": (
        {"model_type": "gpt_neox", **gpt.SMALL["gpt_neox"], "rope_theta": 500},
        r"rope_theta = 500.0, but gpt_neox reads rotary_emb_base, which makes it 10000.0",
    ),
    "gpt_neox of two parts": (
        {"model_type": "gpt_neox", **gpt.SMALL["gpt_neox"], "partial_rotary_factor": 0.5},
        r"partial_rotary_factor = 0.5, but gpt_neox reads rotary_pct, by which 4 dimensions",
    ),
    "falcon, new but not parallel": (
        {
            "model_type": "falcon",
            **gpt.FALCON,
            "new_decoder_architecture": True,
            "parallel_attn": False,
        },
        r"parallel_attn = False does not go with new_decoder_architecture = True",
    ),
    "falcon, old with two norms": (
        {"model_type": "falcon", **gpt.FALCON, "num_ln_in_parallel_attn": 2},
        r"num_ln_in_parallel_attn = 2 does not go with new_decoder_architecture = False",
    ),
    "mpt without biases": (
        {"model_type": "mpt", **gpt.MPT, "attn_config": {"alibi": False}},
        r"attn_config has alibi = False; in mpt only True is modelled",
    ),
    "mpt with normed queries": (
        {"model_type": "mpt", **gpt.MPT, "attn_config": {"qk_ln": True}},
        r"attn_config has qk_ln = True; in mpt only False",
    ),
    "mpt with an unknown key": (
        {"model_type": "mpt", **gpt.MPT, "attn_config": {"softmax_scales": 1.0}},
        r"attn_config: mpt has no use for softmax_scales = 1.0; did you mean 'softmax_scale'\?",
    ),
    "mpt with scaled logits": (
        {"model_type": "mpt", **gpt.MPT, "logit_scale": "inv_sqrt_d_model"},
        r"logit_scale = 'inv_sqrt_d_model'; in mpt only null is modelled",
    ),
    "mpt with a wider MLP": (
        {"model_type": "mpt", **gpt.MPT, "expansion_ratio": 8},
        r"expansion_ratio = 8; in mpt only 4 is modelled",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_modelled_is_refused_in_words(name: str) -> None:
    raw, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        read_config(raw)


def test_a_config_may_spell_its_sizes_as_other_families_do() -> None:
    own = {"model_type": "gpt2", **gpt.GPT, "n_inner": None}
    common = dict(GPT2.respelt(own))
    assert set(common) & set(GPT2.aliases) == set()
    assert read_config(own)[1] == read_config(common)[1] == read_config({**own, **common})[1]


def saved(model: Any, folder: Path, names: Callable[[str], str], **more: torch.Tensor) -> MIModel:
    """A model loaded from a checkpoint whose tensors have other `names`, and some `more`."""
    model.config.save_pretrained(folder)
    tensors = {names(name): t.clone() for name, t in model.state_dict().items()}
    tensors |= {name: t.clone() for name, t in more.items()}
    save_file(tensors, folder / "model.safetensors")
    return MIModel.from_pretrained(folder)


TOKENS = torch.tensor([[3, 1, 41, 5, 9, 26, 5]])


def same_logits(ours: MIModel, theirs: Any, tokens: torch.Tensor = TOKENS) -> None:
    with torch.no_grad():
        wanted = theirs(tokens).logits
    torch.testing.assert_close(ours.forward(tokens).output, wanted, atol=1e-5, rtol=0)


CASE = {case.name: case for case in gpt.CASES}
MASK = torch.ones(1, 1, 64, 64).tril()


OLD: dict[str, tuple[str, str, dict[str, torch.Tensor]]] = {
    "gpt2": ("transformer.", "", {"h.0.attn.bias": MASK, "h.2.attn.masked_bias": MASK[0, 0, 0, 0]}),
    "bloom": ("transformer.", "", {}),
    "opt": ("model.", "", {}),
    "gpt_neo-windows": (
        "lm_head",
        "lm_head",
        {"transformer.h.1.attn.attention.bias": MASK},
    ),
    "gptj": (
        "lm_head",
        "lm_head",
        {"transformer.h.0.attn.bias": MASK, "transformer.h.0.attn.masked_bias": MASK[0, 0, 0]},
    ),
    "gpt_neox": (
        "lm_head",
        "embed_out",
        {
            "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(2),
            "gpt_neox.layers.0.attention.bias": MASK,
            "gpt_neox.layers.0.attention.masked_bias": MASK[0, 0, 0, 0],
        },
    ),
}
"""How older checkpoints call tensors: what is replaced, by what, and buffers beside them."""


@pytest.mark.parametrize("name", OLD)
def test_older_checkpoints_load(name: str, tmp_path: Path) -> None:
    theirs = hf.build(CASE[name])
    before, after, buffers = OLD[name]
    ours = saved(theirs, tmp_path, lambda key: key.replace(before, after), **buffers)
    same_logits(ours, theirs)


PHI_NAMES = {
    "model.embed_tokens": "transformer.embd.wte",
    "model.layers": "transformer.h",
    "input_layernorm": "ln",
    "self_attn.dense": "mixer.out_proj",
    "self_attn.q_proj": "mixer.Wqkv",
    "self_attn.k_proj": "mixer.Wqkv",
    "self_attn.v_proj": "mixer.Wqkv",
    "lm_head": "lm_head.linear",
    "model.final_layernorm": "lm_head.ln",
}
"""What transformers calls a tensor of Phi -> what its authors did."""


def old_phi(model: Any) -> tuple[Raw, dict[str, torch.Tensor]]:
    """A Phi as its authors first published it: their config keys, their names, one fused matrix."""
    config, parts = model.config, dict[str, list[torch.Tensor]]()
    for name, value in model.state_dict().items():
        for before, after in PHI_NAMES.items():
            name = name.replace(before, after)  # noqa: PLW2901 - one name after another
        parts.setdefault(name, []).append(value)
    tensors = {name: torch.cat(each) for name, each in parts.items()}
    raw = {
        "model_type": "phi-msft",
        "n_embd": config.hidden_size,
        "n_head": config.num_attention_heads,
        "n_head_kv": config.num_key_value_heads,
        "n_inner": config.intermediate_size,
        "n_layer": config.num_hidden_layers,
        "n_positions": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "rotary_dim": 4,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    return raw, tensors


@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("tied", [True, False])
def test_phi_as_first_published(heads: int, tied: bool, tmp_path: Path) -> None:
    turning = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.7}
    config = {"num_key_value_heads": heads, "tie_word_embeddings": tied, "rope_parameters": turning}
    case = Case("phi", "phi", config)
    theirs = hf.build(case)
    raw, tensors = old_phi(theirs)
    tensors["transformer.h.0.mixer.rotary_emb.inv_freq"] = torch.ones(2)
    if tied:
        del tensors["lm_head.linear.weight"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    save_file(tensors, tmp_path / "model.safetensors")
    ours = MIModel.from_pretrained(tmp_path)
    assert ours.origin.family == "phi-msft"
    same_logits(ours, theirs)


@pytest.mark.parametrize("name", ["falcon-rw", "falcon-alibi-multi-query"])
def test_falcons_biases_are_those_of_its_fused_attention(name: str) -> None:
    case = CASE[name]
    config = AutoConfig.for_model("falcon", **{**case.common, **case.config})
    fused = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    fused.load_state_dict(hf.build(case).state_dict())
    tokens = torch.arange(60)[None] % 83  # far enough for bfloat16 to round
    same_logits(MIModel.from_hf(fused), fused, tokens)
