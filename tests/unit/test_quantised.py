# SPDX-License-Identifier: MIT OR Apache-2.0
"""Quantised checkpoints, packed here number by number, against the weights that they stand for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.gguf_writer import build
from torch_mi.errors import ConfigError, MIError, ModelError
from torch_mi.files.checkpoint import Checkpoint
from torch_mi.files.quantised import dequantised
from torch_mi.model import MIModel

TOKENS = torch.randint(4, 97, (2, 12), generator=torch.Generator().manual_seed(1))
DICE = np.random.default_rng(0)
Tensors = dict[str, Tensor]
Pack = Callable[[tuple[int, int]], tuple[Tensors, Tensor]]


def words(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned numbers along the last axis, `32 // bits` to an int32, the first one lowest."""
    per = 32 // bits
    padded = np.zeros((*numbers.shape[:-1], -(-numbers.shape[-1] // per) * per), np.uint64)
    padded[..., : numbers.shape[-1]] = numbers
    packed = np.zeros((*padded.shape[:-1], padded.shape[-1] // per), np.uint64)
    for i in range(per):
        packed |= padded[..., i::per] << np.uint64(bits * i)
    return packed.astype(np.uint32).view(np.int32)


def gptq(
    shape: tuple[int, int], bits: int, size: int, *, offset: int = 1, shuffled: bool = False
) -> tuple[Tensors, Tensor]:
    """What a GPTQ module stores, and its weight [out in]."""
    out, width = shape
    groups = 1 if size == -1 else -(-width // size)
    top = 2**bits
    q = DICE.integers(0, top, (width, out))
    zeros = DICE.integers(0, top, (groups, out))
    scales = DICE.uniform(0.01, 0.1, (groups, out)).astype(np.float16)
    group = np.arange(width) // (width if size == -1 else size)
    if shuffled:
        group = DICE.permutation(group)
    weight = np.empty((out, width), np.float32)
    for o in range(out):
        for i in range(width):
            step = np.float32(scales[group[i], o])
            weight[o, i] = np.float32(q[i, o] - zeros[group[i], o]) * step
    stored = {
        "qweight": torch.tensor(words(q.T, bits).T.copy()),
        "qzeros": torch.tensor(words((zeros - offset) % top, bits)),
        "scales": torch.tensor(scales),
        "g_idx": torch.tensor(group, dtype=torch.int32),
    }
    return stored, torch.tensor(weight)


AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column, of each eight, that AWQ's GEMM layout puts in each nibble of a word, lowest first."""


def awq(shape: tuple[int, int], size: int) -> tuple[Tensors, Tensor]:
    """What an AWQ module stores, and its weight [out in]."""
    out, width = shape
    q = DICE.integers(0, 16, (width, out))
    zeros = DICE.integers(0, 16, (width // size, out))
    scales = DICE.uniform(0.01, 0.1, (width // size, out)).astype(np.float16)
    weight = np.empty((out, width), np.float32)
    for o in range(out):
        for i in range(width):
            weight[o, i] = np.float32(q[i, o] - zeros[i // size, o]) * np.float32(
                scales[i // size, o]
            )

    def pack(numbers: np.ndarray) -> Tensor:
        columns = numbers.reshape(len(numbers), -1, 8)[..., AWQ_COLUMNS].reshape(len(numbers), -1)
        return torch.tensor(words(columns, 4))

    return {
        "qweight": pack(q),
        "qzeros": pack(zeros),
        "scales": torch.tensor(scales),
    }, torch.tensor(weight)


def fp8(shape: tuple[int, int], block: tuple[int, int]) -> tuple[Tensors, Tensor]:
    """What an fp8 module with scales by block stores, and its weight."""
    stored = torch.randn(shape).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1])) + 0.5
    weight = stored.float()
    for i in range(shape[0]):
        for j in range(shape[1]):
            weight[i, j] *= scales[i // block[0], j // block[1]]
    return {"weight": stored, "weight_scale_inv": scales}, weight


def quantise(folder: Path, settings: dict[str, Any], pack: Pack, **config: Any) -> Any:
    """A llama whose layers' matrices are replaced by what `pack` makes, and its checkpoint."""
    model = build("qwen2", {"num_hidden_layers": 2, "tie_word_embeddings": False})
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            stored, weight = pack((module.out_features, module.in_features))
            del tensors[f"{name}.weight"]
            tensors |= {f"{name}.{leaf}": value for leaf, value in stored.items()}
            with torch.no_grad():
                module.weight.copy_(weight)
    save_file(tensors, folder / "model.safetensors")
    path = folder / "config.json"
    raw = {**json.loads(path.read_text()), "quantization_config": settings, **config}
    path.write_text(json.dumps(raw))
    return model


def agree(folder: Path, model: Any) -> None:
    """Ours of the checkpoint gives the logits of the model of the same weights."""
    mine = MIModel.from_pretrained(folder)
    with torch.no_grad():
        wanted = model(TOKENS).logits
    assert (mine.forward(TOKENS).output - wanted).abs().max() < 1e-4
    assert mine.origin.folder is None


def one(folder: Path, tensors: Tensors, settings: dict[str, Any]) -> Tensor:
    """The weight of a single module `x`."""
    save_file(
        {f"x.{leaf}": t.contiguous() for leaf, t in tensors.items()}, folder / "model.safetensors"
    )
    with dequantised(Checkpoint(folder), {"quantization_config": settings}) as weights:
        assert list(weights.shapes()) == ["x.weight"]
        assert weights.dtypes() == {"x.weight": torch.float32}
        found = weights.tensor("x.weight")
        assert tuple(found.shape) == weights.shapes()["x.weight"]
        assert weights.num_bytes() == found.numel() * 4
        with pytest.raises(ModelError, match=r"no tensor 'x\.qweight'"):
            weights.tensor("x.qweight")
    return found


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("size", [8, -1])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_gptq_is_exact(bits: int, size: int, version: str, shuffled: bool, tmp_path: Path):
    stored, weight = gptq((24, 32), bits, size, offset=int(version == "gptq"), shuffled=shuffled)
    settings = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": size,
        "desc_act": shuffled,
        "sym": False,
        "checkpoint_format": version,
    }
    assert torch.equal(one(tmp_path, stored, settings), weight)
    if not shuffled:
        del stored["g_idx"]
        assert torch.equal(one(tmp_path, stored, settings), weight)


@pytest.mark.parametrize("size", [8, 32])
def test_awq_is_exact(size: int, tmp_path: Path):
    stored, weight = awq((24, 32), size)
    settings = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True}
    assert torch.equal(one(tmp_path, stored, settings), weight)
    settings["version"] = "GEMM"
    assert torch.equal(one(tmp_path, stored, settings), weight)


@pytest.mark.parametrize("shape", [(32, 48), (20, 35)])
def test_fp8_is_exact(shape: tuple[int, int], tmp_path: Path):
    stored, weight = fp8(shape, (16, 16))
    settings = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    assert torch.equal(one(tmp_path, stored, settings), weight)
    whole = {"weight": stored["weight"], "weight_scale_inv": torch.tensor(0.5)}
    whole["activation_scale"] = torch.tensor(0.25)
    found = one(tmp_path, whole, {"quant_method": "fp8", "activation_scheme": "static"})
    assert torch.equal(found, stored["weight"].float() * 0.5)


def test_models_in_every_format_compute_what_their_weights_say(tmp_path: Path):
    gptq4 = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": True}
    agree(tmp_path / "a", quantise(tmp_path / "a", gptq4, lambda s: gptq(s, 4, 16, shuffled=True)))
    awq4 = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}
    agree(tmp_path / "b", quantise(tmp_path / "b", awq4, lambda s: awq(s, 16)))
    blocks = {"quant_method": "fp8", "weight_block_size": [16, 32]}
    agree(tmp_path / "c", quantise(tmp_path / "c", blocks, lambda s: fp8(s, (16, 32))))


def test_what_is_not_quantised_passes_through(tmp_path: Path):
    stored, _ = awq((24, 32), 8)
    plain = torch.randn(5, dtype=torch.bfloat16)
    tensors = {f"x.{leaf}": t for leaf, t in stored.items()} | {
        "x.bias": plain,
        "y.weight": plain + 1,
    }
    save_file(tensors, tmp_path / "model.safetensors")
    settings = {"quant_method": "awq", "bits": 4, "group_size": 8}
    with dequantised(Checkpoint(tmp_path), {"quantization_config": settings}) as weights:
        assert set(weights.shapes()) == {"x.weight", "x.bias", "y.weight"}
        assert weights.dtypes()["x.bias"] is torch.bfloat16
        assert torch.equal(weights.tensor("y.weight"), plain + 1)
    with Checkpoint(tmp_path) as untouched:
        assert dequantised(untouched, {}) is untouched


def test_dtype_auto_is_what_the_config_says(tmp_path: Path):
    settings = {"quant_method": "awq", "bits": 4, "group_size": 16}
    quantise(tmp_path, settings, lambda s: awq(s, 16), dtype="float16")
    assert MIModel.from_pretrained(tmp_path, dtype="auto").dtype is torch.float16
    assert MIModel.from_pretrained(tmp_path).dtype is torch.float32
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "dtype": None, "torch_dtype": "bfloat16"}))
    assert MIModel.from_pretrained(tmp_path, dtype="auto").dtype is torch.bfloat16


def test_dtype_auto_is_that_of_most_weights_where_the_config_is_silent(tmp_path: Path):
    model = build("qwen2", {"num_hidden_layers": 1})
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    del raw["dtype"]
    path.write_text(json.dumps(raw))
    assert MIModel.from_pretrained(tmp_path, dtype="auto").dtype is torch.bfloat16


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 8}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 8}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "hqq"}, r"quantised by 'hqq'.*gptq, awq, fp8"),
        ({"quant_method": "gptk"}, r"did you mean 'gptq'"),
        ({"bits": 4}, "without a quant_method"),
        ({**GPTQ, "bits": 3}, "GPTQ of 3 bits is not read"),
        ({**GPTQ, "bits": "4"}, "bits = '4' where a whole number"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "'marlin' is not"),
        ({**GPTQ, "group_size": 0}, "group_size = 0"),
        ({**AWQ, "version": "gemv"}, "'gemv' layout is not read"),
        ({"quant_method": "fp8", "weight_block_size": [1]}, "is not two sizes"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "'marlin-24' format"),
    ],
)
def test_settings_that_are_not_read_here(settings: dict[str, Any], message: str, tmp_path: Path):
    stored, _ = gptq((24, 32), 4, 8)
    save_file({f"x.{leaf}": t for leaf, t in stored.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=message):
        dequantised(Checkpoint(tmp_path), {"quantization_config": settings})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qzeros": None}, r"has x\.qweight but lacks x\.qzeros"),
        ({"g_idx": None}, r"lacks x\.g_idx, which desc_act needs"),
        ({"scales": torch.ones(5, 24)}, r"x\.scales has shape \[5, 24\] where \[4, 24\]"),
        ({"qzeros": torch.ones(4, 4, dtype=torch.int32)}, r"x\.qzeros has shape \[4, 4\]"),
        ({"g_idx": torch.full((32,), 4, dtype=torch.int32)}, r"x\.g_idx does not give each"),
        ({"g_idx": torch.zeros(31, dtype=torch.int32)}, r"x\.g_idx does not give each of 32"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: dict[str, Tensor | None], message: str, tmp_path: Path
):
    stored, _ = gptq((24, 32), 4, 8)
    changed = {leaf: t for leaf, t in {**stored, **change}.items() if t is not None}
    with pytest.raises(ModelError, match=message):
        one(tmp_path, changed, {**GPTQ, "desc_act": True})


def test_a_config_that_promises_what_is_not_there(tmp_path: Path):
    build("qwen2", {"num_hidden_layers": 1}).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "quantization_config": GPTQ}))
    with pytest.raises(ModelError, match="quantised by gptq, and none of its tensors is"):
        MIModel.from_pretrained(tmp_path)
    path.write_text(json.dumps({**raw, "quantization_config": {"quant_method": "higgs"}}))
    with pytest.raises(ConfigError, match="'higgs'"):
        MIModel.from_pretrained(tmp_path)
    for odd in ("awq", 3, [1], {"quant_method": 4}, {"quant_method": "awq"}):
        path.write_text(json.dumps({**raw, "quantization_config": odd}))
        with pytest.raises(MIError):
            MIModel.from_pretrained(tmp_path)


def nf4(folder: Path, kind: str, *, nested: bool, dtype: torch.dtype) -> tuple[Tensors, Tensor]:
    """A 4-bit module as bitsandbytes stores it, and what the library makes of it."""
    library = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    functional = library.functional
    weight = torch.randn(48, 64, dtype=dtype)
    packed, state = functional.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
    stored = {"weight": packed}
    stored |= {f"weight.{leaf}": t for leaf, t in state.as_dict(packed=True).items()}
    return stored, functional.dequantize_4bit(packed, state)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_four_bits_are_what_the_library_makes_of_them(
    kind: str, nested: bool, tmp_path: Path
):
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    stored, wanted = nf4(tmp_path, kind, nested=nested, dtype=torch.float32)
    found = one(tmp_path, stored, settings)
    assert (found - wanted).abs().max() < 1e-6
    stored, wanted = nf4(tmp_path, kind, nested=nested, dtype=torch.bfloat16)
    found = one(tmp_path, stored, settings)
    assert (found.bfloat16() == wanted).float().mean() > 0.99  # it rounds on the way
    assert (found - wanted.float()).abs().max() < 2e-2


def test_bitsandbytes_eight_bits_are_what_the_library_makes_of_them(tmp_path: Path):
    library = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    weight = torch.randn(48, 64)
    packed, largest, _ = library.functional.int8_vectorwise_quant(weight.half())
    stored = {"weight": packed, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    found = one(tmp_path, stored, {"load_in_8bit": True, "quant_method": "bitsandbytes"})
    wanted = library.functional.int8_vectorwise_dequant(packed, largest)
    assert (found - wanted).abs().max() < 1e-6
    assert (found - weight).abs().max() < 0.03


def test_bitsandbytes_by_definition(tmp_path: Path):
    table = torch.linspace(-1, 1, 16)
    q = DICE.integers(0, 16, 4 * 64)
    scales = torch.rand(4)
    weight = torch.tensor([float(table[n]) * float(scales[i // 64]) for i, n in enumerate(q)])
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "shape": [4, 64], "dtype": "float32"})
    stored = {
        "weight": torch.tensor((q[0::2] << 4 | q[1::2]).astype(np.uint8)).view(-1, 1),
        "weight.absmax": scales,
        "weight.quant_map": table,
        "weight.quant_state.bitsandbytes__nf4": torch.tensor(
            list(state.encode()), dtype=torch.uint8
        ),
    }
    settings = {"load_in_4bit": True}
    assert torch.equal(one(tmp_path, stored, settings), weight.view(4, 64))
    del stored["weight.absmax"]
    with pytest.raises(ModelError, match=r"lacks x\.weight\.absmax"):
        one(tmp_path, stored, settings)
    stored["weight.quant_state.bitsandbytes__nf4"] = torch.zeros(3, dtype=torch.uint8)
    with pytest.raises(ModelError, match="does not describe a 4-bit weight"):
        one(tmp_path, stored, settings)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("even", [True, False])
def test_compressed_tensors_packed(bits: int, even: bool, tmp_path: Path):
    out, width, size, middle = 24, 32, 8, 2 ** (bits - 1)
    q = DICE.integers(-middle, middle, (out, width))
    zeros = (
        np.zeros((out, width // size), int)
        if even
        else DICE.integers(-middle, middle, (out, width // size))
    )
    scales = DICE.uniform(0.01, 0.1, (out, width // size)).astype(np.float32)
    weight = (q - zeros.repeat(size, 1)).astype(np.float32) * scales.repeat(size, 1)
    stored = {
        "weight_packed": torch.tensor(words(q + middle, bits)),
        "weight_scale": torch.tensor(scales),
        "weight_shape": torch.tensor([out, width]),
    }
    if not even:
        stored["weight_zero_point"] = torch.tensor(words((zeros + middle).T, bits).T.copy())
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    assert torch.equal(one(tmp_path, stored, settings), torch.tensor(weight))


def test_compressed_tensors_with_a_scale_for_each_row(tmp_path: Path):
    stored = torch.randint(-127, 128, (24, 32), dtype=torch.int8)
    scales = torch.rand(24, 1)
    settings = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    found = one(tmp_path, {"weight": stored, "weight_scale": scales}, settings)
    assert torch.equal(found, stored.float() * scales)
    with pytest.raises(ModelError, match=r"of shape \[23, 1\] does not scale \[24, 32\]"):
        one(tmp_path, {"weight": stored, "weight_scale": scales[1:]}, settings)
