# SPDX-License-Identifier: MIT OR Apache-2.0
"""RWKV-4 to 7 against the published equations, and other implementations of them."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import torch_mi as mi
from tests.parity.rwkv import Plain, Ran, Sizes, checkpoint
from tests.parity.rwkv_names import as_fla6, as_fla7, as_hf
from torch_mi.config.recurrent import ChannelMix, Rwkv5, Rwkv6, Rwkv7
from torch_mi.errors import ConfigError, MIError
from torch_mi.families import RECURRENTS
from torch_mi.hooks.coordinates import At
from torch_mi.hooks.point import HookPoint as P

HERE = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("TORCH_MI_SHARED", HERE.parent / "shared")) / "data"
FILE = "model.blinkdl.safetensors"
SMALL = [
    Sizes("4", 10, 14, 1),
    Sizes("5.0", 10, 3, 5),
    Sizes("5.1", 8, 3, 4, logarithmic=True),
    Sizes("5.2", 10, 2, 7),
    Sizes("5.2", 9, 4, 3, layers=3, logarithmic=True),
    Sizes("6", 10, 3, 4),
    Sizes("6", 15, 2, 8, layers=3, inner=18, ranks=(2, 6)),
    Sizes("7", 12, 3, 4),
    Sizes("7", 15, 5, 3, layers=3, inner=18, ranks=(6, 2, 3, 4)),
]
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 12, 0]


def near(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    size = max(1.0, float(wanted.abs().max()))
    found = found.double()
    torch.testing.assert_close(found, wanted.double(), atol=tolerance * size, rtol=0)


def written(tensors: dict[str, Tensor], path: Path) -> Path:
    """Weights in a file alone, of either format."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    return path


def agrees(model: mi.MIModel, wanted: Ran, tokens: list[int], tolerance: float = 1e-5) -> None:
    """Logits, what enters and leaves layers, decays and last states."""
    spec = mi.HookSpec().capture(P.ResidPre, P.ResidPost, P.RwkvW)
    spec = spec.capture(P.RwkvState, at=At(pos=-1))
    for kind in ("auto", "explicit"):
        seen = model.forward(torch.tensor([tokens]), spec, attention=kind)
        near(seen.output[0], wanted.logits, tolerance)
        for layer, state in enumerate(wanted.states):
            near(seen[P.ResidPre(layer)][0], wanted.resid[layer], tolerance)
            near(seen[P.ResidPost(layer)][0], wanted.resid[layer + 1], tolerance)
            near(seen[P.RwkvW(layer)][0].flatten(1), wanted.decay[layer].flatten(1), tolerance)
            found = seen[P.RwkvState(layer)][0].double()
            if state.shape != found.shape:  # sums of RWKV-4, which we keep scaled
                found = (found[:, 0, :2] * found[:, 0, 2:].exp()).mT
            near(found, state, tolerance)


@pytest.mark.parametrize("sizes", SMALL, ids=str)
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_the_published_equations(sizes: Sizes, ending: str, tmp_path: Path) -> None:
    tensors = checkpoint(sizes, seed=len(ending))
    model = mi.MIModel.from_pretrained(written(tensors, tmp_path / f"model.{ending}"))
    eps = 64e-5 if sizes.version != "7" else 1e-5 * sizes.size
    agrees(model, Plain(tensors, sizes, eps).run(TOKENS), TOKENS)


def test_long_texts_of_the_usual_size(tmp_path: Path) -> None:
    """Chunks of many tokens, heads of 64, and states that outlast chunks."""
    dice = torch.Generator().manual_seed(0)
    tokens = torch.randint(13, (150,), generator=dice).tolist()
    for version in ("6", "7"):
        sizes = Sizes(version, 128, 2, 64, inner=64)
        tensors = checkpoint(sizes)
        model = mi.MIModel.from_pretrained(written(tensors, tmp_path / f"{version}.pth"))
        agrees(model, Plain(tensors, sizes).run(tokens), tokens, 3e-5)


def folder(path: Path, tensors: dict[str, Tensor], config: dict[str, object]) -> Path:
    written(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.mark.parametrize("sizes", SMALL[:7], ids=str)
@pytest.mark.parametrize("prefix", ["rwkv.", ""])
def test_hugging_faces_names(sizes: Sizes, prefix: str, tmp_path: Path) -> None:
    kind = {"4": "rwkv", "6": "rwkv6"}.get(sizes.version, "rwkv5")
    tensors = checkpoint(sizes)
    config: dict[str, object] = {
        "model_type": kind,
        "hidden_size": sizes.width,
        "attention_hidden_size": sizes.mixed,
        "num_hidden_layers": sizes.layers,
        "vocab_size": sizes.vocab,
        "intermediate_size": sizes.inner,
        "tie_word_embeddings": True,  # as released configs say, beside two matrices
        "rescale_every": 6,
    }
    if kind != "rwkv":
        config |= {"head_size_divisor": 8, "head_size": sizes.size}
        config["num_attention_heads"] = sizes.size
    model = mi.MIModel.from_pretrained(folder(tmp_path, as_hf(tensors, prefix), config))
    wanted = Plain(tensors, sizes).run(TOKENS)
    near(model.forward(torch.tensor([TOKENS])).output[0], wanted.logits)


def test_flas_names_of_rwkv_6(tmp_path: Path) -> None:
    """fla's heads: of 15 channels, 3 heads of 5."""
    sizes = Sizes("6", 15, 3, 5, ranks=(4, 6))
    tensors = checkpoint(sizes)
    config: dict[str, object] = {
        "model_type": "rwkv6",
        "hidden_size": 15,
        "num_heads": 3,
        "expand_k": 1.0,
        "expand_v": 1.0,
        "num_hidden_layers": 2,
        "proj_low_rank_dim": 4,
        "gate_low_rank_dim": 6,
        "hidden_act": "sqrelu",
        "hidden_ratio": 3.5,
        "intermediate_size": None,
        "norm_eps": 1e-5,
        "norm_first": True,
        "norm_bias": True,
        "vocab_size": 13,
    }
    model = mi.MIModel.from_pretrained(folder(tmp_path, as_fla6(tensors), config))
    wanted = Plain(tensors, sizes, 1e-5).run(TOKENS)
    near(model.forward(torch.tensor([TOKENS])).output[0], wanted.logits)


GOOSE: dict[str, object] = {
    "model_type": "rwkv7",
    "hidden_size": 15,
    "head_dim": 3,
    "num_hidden_layers": 3,
    "intermediate_size": 18,
    "vocab_size": 13,
    "decay_low_rank_dim": 6,
    "a_low_rank_dim": 2,
    "v_low_rank_dim": 3,
    "gate_low_rank_dim": 4,
    "attn": None,
    "value_dim": [15, 15, 15],
}


@pytest.mark.parametrize("stacked", [True, False])
def test_flas_names_of_rwkv_7(stacked: bool, tmp_path: Path) -> None:
    sizes = SMALL[-1]
    tensors = checkpoint(sizes)
    names = as_fla7(tensors, stacked=stacked)
    assert stacked == any(name.endswith("x_x") for name in names)
    model = mi.MIModel.from_pretrained(folder(tmp_path, names, GOOSE))
    wanted = Plain(tensors, sizes, 3e-5).run(TOKENS)
    near(model.forward(torch.tensor([TOKENS])).output[0], wanted.logits)


WRONG: list[tuple[dict[str, object], str]] = [
    ({"head_dim": 5}, "head_dim = 5, but the checkpoint's tensors make it 3"),
    ({"vocab_size": 14}, "vocab_size = 14, but the checkpoint's tensors make it 13"),
    ({"num_hidden_layers": 2}, "num_hidden_layers = 2, but the checkpoint's tensors make it 3"),
    ({"decay_low_rank_dim": 5}, "decay_low_rank_dim = 5, but the checkpoint's tensors make it 6"),
    ({"intermediate_size": 20}, "intermediate_size = 20, but the checkpoint's tensors make it 18"),
    ({"attn": {"layers": [1]}}, "attn = .*only null is modelled"),
    ({"value_dim": [15, 15, 30]}, "value_dim = 30.* is not hidden_size = 15"),
    ({"hidden_act": "relu"}, "hidden_act = 'relu'.*only 'sqrelu' is modelled"),
    ({"norm_first": False}, "norm_first = False"),
    ({"sliding_window": 3}, "has no use for sliding_window = 3"),
]


@pytest.mark.parametrize(("change", "said"), WRONG, ids=lambda x: str(x)[:24])
def test_configs_that_do_not_fit(change: dict[str, object], said: str, tmp_path: Path) -> None:
    folder(tmp_path, as_fla7(checkpoint(SMALL[-1]), stacked=False), {**GOOSE, **change})
    with pytest.raises(ConfigError, match=said):
        mi.MIModel.from_pretrained(tmp_path)


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    right = checkpoint(SMALL[-1])
    path = tmp_path / "model.safetensors"

    def refused(changes: dict[str, Tensor | None], said: str) -> None:
        made = {name: t for name, t in {**right, **changes}.items() if t is not None}
        with pytest.raises(MIError, match=said):
            mi.MIModel.from_pretrained(written(made, path))

    refused({"blocks.1.att.k_a": None}, r"blocks\.1\.att\.k_a")
    refused({"blocks.1.att.k_b": torch.zeros(3)}, r"blocks\.1\.att\.k_b")
    refused({"blocks.1.att.k_a": torch.zeros(1, 1, 14)}, r"blocks\.1\.att\.k_a.*14")
    refused({"blocks.1.att.g2": torch.zeros(15, 4)}, r"blocks\.1\.att\.g2")
    refused({"blocks.0.ffn.s_emb.weight": torch.zeros(13, 4)}, "DeepEmbed")
    mi.MIModel.from_pretrained(  # the first layer's, which no run reads
        written({**right, "blocks.0.att.v0": torch.zeros(1, 1, 15)}, path)
    )


def configs(name: str) -> dict[str, object]:
    path = SHARED / "configs" / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def test_released_configs() -> None:
    """Of the sizes that they are known for; without tensors, by what configs say."""
    cfg = RECURRENTS["rwkv5"].config(configs("rwkv5/rwkv5_3b.json"))
    assert (cfg.hidden_size, cfg.num_layers, cfg.intermediate_size) == (2560, 32, 8960)
    assert cfg.mixer == Rwkv5(
        heads=40, key_size=64, value_size=64, gated=True, by_channel=True, norm_eps=64e-5
    )
    cfg = RECURRENTS["rwkv6"].config(configs("rwkv6/rwkv__v6-finch-1b6-hf.json"))
    assert (cfg.hidden_size, cfg.num_layers, cfg.intermediate_size) == (2048, 24, 7168)
    assert cfg.mixer == Rwkv6(
        heads=32, key_size=64, value_size=64, mix_rank=32, decay_rank=64, norm_eps=64e-5
    )
    assert cfg.previous_first
    assert not cfg.tie_word_embeddings
    cfg = RECURRENTS["rwkv7"].config(configs("rwkv7/rwkv__rwkv7-goose-pile-168m-hf.json"))
    assert (cfg.hidden_size, cfg.num_layers, cfg.intermediate_size) == (768, 12, 3072)
    assert cfg.mixer == Rwkv7(
        heads=12,
        key_size=64,
        value_size=64,
        decay_rank=64,
        rate_rank=64,
        value_rank=32,
        gate_rank=128,
        norm_eps=64e-5,
    )
    assert cfg.channel_mix is ChannelMix.Plain
    assert cfg.vocab_size == 50304


REAL = {
    "rwkv4-tiny-660k": 1e-5,
    "rwkv5.2-tiny-730k": 1e-5,
    "rwkv6-tiny-3m-deq5_1": 0.08,  # its weights are rounded, what was published is not
    "rwkv7-tiny-834k": 1e-5,
}
"""Trained models, and how near their published logits are."""


def trained(name: str, tmp_path: Path, file: str = "") -> mi.MIModel:
    place = SHARED / "rwkv" / name
    if not place.is_dir():
        pytest.skip(f"no {place}")
    if name.startswith("rwkv5"):  # an early one, with the epsilon of early runtimes
        (tmp_path / "model.safetensors").symlink_to(place / "model.safetensors")
        (tmp_path / "config.json").write_text('{"group_norm_eps": 1e-5}', encoding="utf-8")
        return mi.MIModel.from_pretrained(tmp_path)
    return mi.MIModel.from_pretrained(place / file)


@pytest.mark.parametrize(("name", "file"), [*((n, "") for n in REAL), ("rwkv7-tiny-834k", FILE)])
def test_trained_models(name: str, file: str, tmp_path: Path) -> None:
    model = trained(name, tmp_path, file)
    published = json.loads((SHARED / "rwkv" / name / "expected_logits.json").read_text())
    last = model.forward(torch.tensor([published["token_ids"]])).output[0, -1]
    gap = (last - torch.tensor(published["expected_last_logits"])).abs().max()
    assert gap < REAL[name]
    ref = load_file(SHARED / "rwkv" / name / "reference.safetensors")
    for i in range(5):
        tokens, layers = ref[f"p{i}.input_ids"][None], range(model.num_layers)
        spec = mi.HookSpec().capture(P.ResidPre, P.ResidPost, P.RwkvW)
        seen = model.forward(tokens, spec.capture(P.RwkvState, at=At(pos=-1)))
        near(seen.output[0], ref[f"p{i}.logits"])
        stream = [seen[P.ResidPre(layer)][0] for layer in layers]
        stream.append(seen[P.ResidPost(layers[-1])][0])
        near(torch.stack(stream, 1), ref[f"p{i}.resid"])
        if f"p{i}.decay" in ref:  # of those whose decay depends on the text
            decays = torch.stack([seen[P.RwkvW(layer)][0] for layer in layers], 1)
            near(decays, ref[f"p{i}.decay"])
        if name.startswith("rwkv4"):
            continue
        states = torch.stack([seen[P.RwkvState(layer)][0] for layer in layers])
        theirs = ref[f"p{i}.final_state"]
        near(states, theirs.mT if name.startswith("rwkv7") else theirs)
