# SPDX-License-Identifier: MIT OR Apache-2.0
"""The authors' checkpoints of RWKV in the names and layouts of Hugging Face and fla, by hand."""

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def as_hf(tensors: Tensors, prefix: str = "rwkv.") -> Tensors:
    """The names of Hugging Face for RWKV-4 to 6, by hand."""
    long = {"time_mix_k": "time_mix_key", "time_mix_v": "time_mix_value"}
    long |= {"time_mix_r": "time_mix_receptance", "time_mix_g": "time_mix_gate"}
    found: Tensors = {}
    for name, tensor in tensors.items():
        new = name.replace(".att.", ".attention.").replace(".ffn.", ".feed_forward.")
        new = new.replace("emb.weight", "embeddings.weight").replace(".ln0.", ".pre_ln.")
        stem, _, leaf = new.rpartition(".")
        new = f"{stem}.{long.get(leaf, leaf)}"
        found[new if new.startswith("head") else prefix + new] = tensor
    return found


def outside(tensors: Tensors) -> Tensors:
    """What fla calls the tensors outside the layers, and the norm before the first."""
    return {
        "model.embeddings.weight": tensors["emb.weight"],
        "lm_head.weight": tensors["head.weight"],
        "model.norm.weight": tensors["ln_out.weight"],
        "model.norm.bias": tensors["ln_out.bias"],
        "model.layers.0.pre_norm.weight": tensors["blocks.0.ln0.weight"],
        "model.layers.0.pre_norm.bias": tensors["blocks.0.ln0.bias"],
    }


def inside(tensors: Tensors, layer: int, part: str) -> Tensors:
    """One part of a layer, without the name of either."""
    place = f"blocks.{layer}.{part}."
    return {name.removeprefix(place): t for name, t in tensors.items() if name.startswith(place)}


def norms(tensors: Tensors, layer: int) -> Tensors:
    """A layer's norms as fla calls them."""
    names = {"ln1": "attn_norm", "ln2": "ffn_norm", "att.ln_x": "attn.g_norm"}
    return {
        f"{theirs}.{leaf}": tensors[f"blocks.{layer}.{ours}.{leaf}"]
        for ours, theirs in names.items()
        for leaf in ("weight", "bias")
    }


def as_fla6(tensors: Tensors) -> Tensors:
    """RWKV-6 as fla keeps it."""
    found = outside(tensors)
    for i in range(sum(name.endswith(".time_faaaa") for name in tensors)):
        att, ffn, new = inside(tensors, i, "att"), inside(tensors, i, "ffn"), norms(tensors, i)
        for theirs, ours in zip("rkvg", ("receptance", "key", "value", "gate"), strict=True):
            new[f"attn.{theirs}_proj.linear.weight"] = att[f"{ours}.weight"]
        new["attn.o_proj.weight"] = att["output.weight"]
        new["attn.x_proj.0.mu"] = att["time_maa_x"].flatten()
        order = ["wkvrg".index(letter) for letter in "rwkvg"]
        down = att["time_maa_w1"].unflatten(1, (5, -1))[:, order]  # [width, 5, rank]
        new["attn.x_proj.0.linear.weight"] = down.flatten(1).T
        up = att["time_maa_w2"][order]  # [5, rank, width]
        new["attn.x_proj.2.weight"] = up.flatten(0, 1).T
        new["attn.x_bias"] = torch.stack([att[f"time_maa_{x}"].flatten() for x in "rwkvg"])
        new["attn.w_proj.linear.lora.0.weight"] = att["time_decay_w1"].T
        new["attn.w_proj.linear.lora.2.weight"] = att["time_decay_w2"].T
        new["attn.w_proj.linear.lora.2.bias"] = att["time_decay"].flatten()
        new["attn.bonus"] = att["time_faaaa"]
        for name, letter in (("key", "k"), ("receptance", "r")):
            new[f"ffn.{name}.linear.weight"] = ffn[f"{name}.weight"]
            new[f"ffn.{name}.mu"] = ffn[f"time_maa_{letter}"].flatten()
        new["ffn.value.weight"] = ffn["value.weight"]
        found |= {f"model.layers.{i}.{name}": tensor for name, tensor in new.items()}
    return found


def as_fla7(tensors: Tensors, *, stacked: bool) -> Tensors:
    """RWKV-7 as fla keeps it; older exports stack the mixing coefficients."""
    found = outside(tensors)
    for i in range(sum(name.endswith(".r_k") for name in tensors)):
        att, ffn, new = inside(tensors, i, "att"), inside(tensors, i, "ffn"), norms(tensors, i)
        for theirs, ours in zip("rkvo", ("receptance", "key", "value", "output"), strict=True):
            new[f"attn.{theirs}_proj.weight"] = att[f"{ours}.weight"]
        for letter in "wavg" if i else "wag":
            lora = f"attn.{letter}_lora.lora"
            new[f"{lora}.0.weight"] = att[f"{letter}1"].T
            new[f"{lora}.2.weight"] = att[f"{letter}2"].T
            if letter != "g":
                new[f"{lora}.2.bias"] = att[f"{letter}0"].flatten()
        if stacked:
            new["attn.x_x"] = torch.stack([att[f"x_{letter}"].flatten() for letter in "rwkvag"])
        else:
            new |= {f"attn.x_{letter}": att[f"x_{letter}"] for letter in "rwkvag"}
        new |= {f"attn.{name}": att[name].flatten() for name in ("k_k", "k_a")}
        new["attn.r_k"] = att["r_k"]
        new["ffn.x_k"] = ffn["x_k"].flatten()
        new |= {f"ffn.{name}.weight": ffn[f"{name}.weight"] for name in ("key", "value")}
        found |= {f"model.layers.{i}.{name}": tensor for name, tensor in new.items()}
    return found
