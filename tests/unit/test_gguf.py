# SPDX-License-Identifier: MIT OR Apache-2.0
"""GGUF files, written by the gguf package, read back as the models they were written from."""

import json
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.gguf_writer import ARCHITECTURES, build, write
from torch_mi.errors import (
    ConfigError,
    FileError,
    MIError,
    ModelError,
    TokenizerError,
)
from torch_mi.families import FAMILIES
from torch_mi.files.gguf import GgufFile
from torch_mi.model import MIModel
from torch_mi.tokens.gguf import read_tokenizer
from torch_mi.verification import verify

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TORCH_MI_SHARED", ROOT.parent / "shared")) / "data/tokenizers"
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"no tokenizers in {DATA}")

TOKENS = torch.randint(4, 97, (2, 20), generator=torch.Generator().manual_seed(1))
TEXTS = (
    "The quick brown fox jumps over 12345 lazy dogs; it's 3.50 o'clock!",
    " leading, and  two  spaces\n\n\tthen a tab\r\n",
    "naïve café ﬁ 日本語 🙂 I'LL x_y=3;",
    "",
    "a",
    "price: $1,000.50!!! (really?)  ",
)


def logits_of(model: Any, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits


def far(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_comes_back_as_it_was(name: str, tmp_path: Path):
    model = build(name)
    path = tmp_path / "model.gguf"
    write(path, model, name)
    stored = load_file(tmp_path / "model-hf/model.safetensors")
    with GgufFile(path) as weights:
        assert dict(weights.shapes()) == {n: tuple(t.shape) for n, t in stored.items()}
        assert set(weights.dtypes().values()) == {torch.float32}
        ours = {n: weights.tensor(n) for n in weights.shapes()}
        config = weights.config()
    # one is added to Gemma's gains and taken away again, which rounds
    assert max(far(ours[n], stored[n]) for n in stored) <= (2e-7 if "gemma" in name else 0)
    folder = tmp_path / "again"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(ours, folder / "model.safetensors", metadata={"format": "pt"})
    again = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    wanted = logits_of(model)
    assert far(logits_of(again), wanted) < 1e-5
    if ARCHITECTURES[name].model_type in FAMILIES:
        mine = MIModel.from_pretrained(path)
        assert far(mine.forward(TOKENS).output, wanted) < 1e-4
        assert mine.origin.eos_ids == (2,)
        assert mine.origin.model_id == "model"


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2", "gpt2", "qwen3", "phi3"])
def test_transformers_reads_the_same_model_from_the_same_file(name: str, tmp_path: Path):
    path = tmp_path / "model.gguf"
    # its reader takes no note of biases in llama, a window in phi3 and several sizes
    changes: dict[str, dict[str, Any]] = {
        "llama": {"attention_bias": False, "mlp_bias": False},
        "phi3": {"sliding_window": None},
        "gemma2": {"query_pre_attn_scalar": 256, "head_dim": 256},
        "qwen3": {"head_dim": 128},
        "gpt2": {"n_positions": 1024},
    }

    def vocabulary(w: Any) -> None:
        w.add_tokenizer_model("gpt2")
        w.add_token_list([f"t{i}" for i in range(97)])

    write(path, build(name, changes.get(name)), name, extra=vocabulary)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", attn_implementation="eager", dtype=torch.float32
    ).eval()
    mine = MIModel.from_pretrained(path)
    assert far(mine.forward(TOKENS).output, logits_of(theirs)) < 1e-4


def test_fused_queries_keys_and_values_are_put_together(tmp_path: Path):
    heads, groups, dim, width = 4, 2, 8, 32
    wqkv = torch.randn((heads + 2 * groups) * dim, width)
    per_group = wqkv.reshape(groups, heads // groups + 2, dim, width)
    q, k, v = per_group[:, :-2], per_group[:, -2], per_group[:, -1]

    def together(x: Tensor, count: int) -> Tensor:
        halves = x.reshape(count, 2, dim // 2, width)
        return torch.stack([halves[:, 0], halves[:, 1]], 2).reshape(-1, width)

    w = gguf.GGUFWriter(tmp_path / "m.gguf", "internlm2")
    w.add_head_count(heads)
    w.add_head_count_kv(groups)
    w.add_embedding_length(width)
    for name, x in {"q": together(q, heads), "k": together(k, groups), "v": v}.items():
        w.add_tensor(f"blk.0.attn_{name}.weight", x.reshape(-1, width).contiguous().numpy())
    finish(w)
    with GgufFile(tmp_path / "m.gguf") as weights:
        name = "model.layers.0.attention.wqkv.weight"
        assert list(weights.shapes()) == [name]
        assert torch.equal(weights.tensor(name), wqkv)


def finish(w: Any) -> None:
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


KINDS = gguf.GGMLQuantizationType
MADE = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""What the gguf package quantises to itself."""


@pytest.mark.parametrize("kind", MADE)
def test_a_quantised_model_is_the_model_of_its_dequantised_weights(kind: str, tmp_path: Path):
    model = build("llama")
    path = tmp_path / "model.gguf"
    write(path, model, "llama", KINDS[kind])
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                quantised = gguf.quantize(value.numpy(), KINDS[kind])
                value.copy_(torch.tensor(gguf.dequantize(quantised, KINDS[kind])))
            assert name
    mine = MIModel.from_pretrained(path)
    assert mine.dtype is torch.float32
    assert far(mine.forward(TOKENS).output, logits_of(model)) < 1e-4
    own = {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)
    assert MIModel.from_pretrained(path, dtype="auto").dtype is own


BLOCKS = (
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
    "IQ2_XXS",
    "IQ3_S",
    "IQ1_S",
    "TQ1_0",
)


@pytest.mark.parametrize("kind", BLOCKS)
def test_every_kind_of_block_is_dequantised_when_asked_for(kind: str, tmp_path: Path):
    values, size = gguf.GGML_QUANT_SIZES[KINDS[kind]]
    dice = np.random.default_rng(0)
    blocks = dice.integers(0, 60, (8, 512 // values * size), dtype=np.uint8)  # no scale is infinite
    w = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen2")
    w.add_head_count(4)
    w.add_embedding_length(512)
    w.add_tensor("token_embd.weight", blocks, raw_dtype=KINDS[kind])
    finish(w)
    with GgufFile(tmp_path / "m.gguf") as weights:
        assert weights.shapes() == {"model.embed_tokens.weight": (8, 512)}
        assert weights.num_bytes() == 8 * 512 * 4
        found = weights.tensor("model.embed_tokens.weight")
    wanted = torch.tensor(gguf.dequantize(blocks, KINDS[kind]))
    assert torch.equal(found, wanted)
    assert found.abs().max() > 0
    with pytest.raises(FileError, match="closed"):
        weights.tensor("model.embed_tokens.weight")


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def test_llama3_scaling_lies_in_a_tensor_of_factors(tmp_path: Path):
    model = build("llama", {"rope_parameters": LLAMA3})
    plain = 10_000.0 ** (-torch.arange(0, 16, 2) / 16)
    factors = plain / model.model.rotary_emb.inv_freq
    assert factors.max() > 4
    assert factors.min() == 1

    def extra(w: Any) -> None:
        w.add_tensor("rope_freqs.weight", factors.numpy())

    write(tmp_path / "m.gguf", model, "llama", extra=extra)
    mine = MIModel.from_pretrained(tmp_path / "m.gguf")
    assert far(mine.forward(TOKENS).output, logits_of(model)) < 1e-4


def test_phi3_scaling_lies_in_two_tensors_of_factors(tmp_path: Path):
    short, long = [1.0 + i / 10 for i in range(8)], [2.0 + i for i in range(8)]
    scaling = {"rope_type": "longrope", "short_factor": short, "long_factor": long}
    changes = {
        "rope_parameters": {**scaling, "rope_theta": 10_000.0},
        "max_position_embeddings": 64,
        "original_max_position_embeddings": 16,
    }
    model = build("phi3", changes)

    def extra(w: Any) -> None:
        w.add_tensor("rope_factors_short.weight", np.array(short, np.float32))
        w.add_tensor("rope_factors_long.weight", np.array(long, np.float32))

    write(tmp_path / "m.gguf", model, "phi3", extra=extra)
    mine = MIModel.from_pretrained(tmp_path / "m.gguf")
    for tokens in (TOKENS, TOKENS[:, :10]):
        assert far(mine.forward(tokens).output, logits_of(model, tokens)) < 1e-4


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaling_in_the_metadata(kind: str, tmp_path: Path):
    scaling = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = 16
    model = build("qwen2", {"rope_parameters": scaling})

    def extra(w: Any) -> None:
        w.add_rope_scaling_type(gguf.RopeScalingType(kind))
        w.add_rope_scaling_factor(4.0)
        w.add_rope_scaling_orig_ctx_len(16)

    write(tmp_path / "m.gguf", model, "qwen2", extra=extra)
    mine = MIModel.from_pretrained(tmp_path / "m.gguf")
    assert far(mine.forward(TOKENS).output, logits_of(model)) < 1e-4


def parts_of_a_model(folder: Path, count: int) -> list[Path]:
    """A model in several files, cut by the writer."""
    whole = folder / "whole.gguf"
    write(whole, build("qwen2"), "qwen2")
    source = gguf.GGUFReader(whole)
    per = -(-len(source.tensors) // count)
    names = [folder / f"m-{i + 1:05d}-of-{count:05d}.gguf" for i in range(count)]
    for i, path in enumerate(names):
        w = gguf.GGUFWriter(path, "qwen2")
        for field in source.fields.values():
            if (
                i == 0
                and not field.name.startswith("GGUF.")
                and field.name != "general.architecture"
            ):
                w.add_key_value(field.name, field.contents(), field.types[0])
        for tensor in source.tensors[i * per : (i + 1) * per]:
            w.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        finish(w)
    return names


def test_a_model_in_several_files_is_one_model(tmp_path: Path):
    names = parts_of_a_model(tmp_path, 3)
    wanted = MIModel.from_pretrained(tmp_path / "whole.gguf").fingerprint
    (tmp_path / "whole.gguf").unlink()
    shutil.rmtree(tmp_path / "whole-hf")
    assert MIModel.from_pretrained(names[0]).fingerprint == wanted
    assert MIModel.from_pretrained(tmp_path).fingerprint == wanted
    names[1].unlink()
    with pytest.raises(FileError, match=r"3 files; m-00002-of-00003\.gguf is absent"):
        MIModel.from_pretrained(names[0])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write(path, build("qwen2", {"num_hidden_layers": 1}), "qwen2")
    return path


def test_a_folder_with_one_file_is_that_file(tiny: Path, tmp_path: Path):
    shutil.copy(tiny, tmp_path / "a.gguf")
    (tmp_path / "README.md").write_text("hello")
    one = MIModel.from_pretrained(tmp_path)
    assert one.fingerprint == MIModel.from_pretrained(str(tiny)).fingerprint
    shutil.copy(tiny, tmp_path / "b.gguf")
    with pytest.raises(FileError, match=r"holds 2 GGUF files; give one of them: a\.gguf, b\.gguf"):
        MIModel.from_pretrained(tmp_path)
    assert MIModel.from_pretrained(tmp_path / "b.gguf").fingerprint == one.fingerprint
    with pytest.raises(FileError, match="there is no folder"):
        MIModel.from_pretrained(tmp_path / "c.gguf")


def test_a_file_cut_off_anywhere_is_one_clear_error(tiny: Path, tmp_path: Path):
    whole = tiny.read_bytes()
    path = tmp_path / "cut.gguf"
    dice = np.random.default_rng(0)
    cuts = [0, 3, 4, 7, 8, 20, 24, 40, *dice.integers(40, len(whole) - 1, 25).tolist()]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(FileError, match=r"truncated or damaged|not a GGUF file"):
            MIModel.from_pretrained(path)


def test_damaged_bytes_never_give_anything_but_our_errors(tiny: Path, tmp_path: Path):
    whole = tiny.read_bytes()
    header = whole.index(b"token_embd.weight") + 400
    path = tmp_path / "hurt.gguf"
    dice = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        hurt = bytearray(whole)
        hurt[int(dice.integers(4, header))] ^= int(dice.integers(1, 256))
        path.write_bytes(hurt)
        try:
            MIModel.from_pretrained(path)
        except MIError:
            refused += 1
    assert refused > 75


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(FileError, match="is not a GGUF file: it begins with"):
        GgufFile(path)
    path.write_bytes(b"GGUF" + struct.pack("<I", 1) + bytes(100))
    with pytest.raises(FileError, match="GGUF version 1;"):
        GgufFile(path)
    with pytest.raises(FileError, match="there is no file"):
        GgufFile(tmp_path / "absent.gguf")


def small(path: Path, arch: str, tensors: dict[str, Tensor], fill: Callable[[Any], None]) -> Path:
    w = gguf.GGUFWriter(path, arch)
    fill(w)
    for name, x in tensors.items():
        w.add_tensor(name, x.numpy())
    finish(w)
    return path


def test_what_cannot_be_read_is_named(tmp_path: Path):
    path = tmp_path / "m.gguf"
    embedding = {"token_embd.weight": torch.zeros(5, 8)}

    def heads(w: Any) -> None:
        w.add_head_count(2)

    with pytest.raises(ConfigError, match=r"architecture 'mamba', which is not read"):
        GgufFile(small(path, "mamba", embedding, heads))
    stray = {**embedding, "blk.0.attn_q_norm.weight": torch.zeros(8)}
    with pytest.raises(ModelError, match=r"blk\.0\.attn_q_norm\.weight.*gemma models do not have"):
        GgufFile(small(path, "gemma", stray, heads))
    with pytest.raises(ConfigError, match=r"lacks qwen2\.embedding_length"):
        GgufFile(small(path, "qwen2", embedding, heads)).config()
    odd = {**embedding, "blk.0.attn_q.weight": torch.zeros(9, 8)}
    with pytest.raises(ModelError, match=r"attn_q\.weight \[9, 8\] does not fit 2 heads"):
        GgufFile(small(path, "llama", odd, heads))

    def uneven(w: Any) -> None:
        w.add_head_count([2, 4])

    odd = {**embedding, "blk.0.attn_q.weight": torch.zeros(8, 8)}
    with pytest.raises(ConfigError, match="head_count differs from layer to layer"):
        GgufFile(small(path, "llama", odd, uneven))
    with pytest.raises(ModelError, match=r"no tensor 'model\.norm'.*"):
        GgufFile(small(path, "qwen2", embedding, heads)).tensor("model.norm")


def test_a_missing_tensor_is_named_as_transformers_calls_it(tiny: Path, tmp_path: Path):
    source = gguf.GGUFReader(tiny)
    w = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen2")
    for field in source.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            w.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in source.tensors:
        if tensor.name != "blk.0.ffn_up.weight":
            w.add_tensor(tensor.name, tensor.data)
    finish(w)
    with pytest.raises(ModelError, match=r"lacks model\.layers\.0\.mlp\.up_proj\.weight"):
        MIModel.from_pretrained(tmp_path / "m.gguf")


def test_a_quantisation_that_nobody_undoes_is_named(tmp_path: Path):
    w = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen2")
    w.add_head_count(2)
    kind = KINDS.Q8_1
    w.add_tensor(
        "token_embd.weight", np.zeros((2, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), raw_dtype=kind
    )
    finish(w)
    with pytest.raises(FileError, match=r"'token_embd\.weight' as Q8_1.*it can .*Q4_K.*Q8_0"):
        GgufFile(tmp_path / "m.gguf")


def test_without_the_package_the_error_says_how_to_get_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(FileError, match=r"pip install 'torch-mi\[gguf\]'"):
        MIModel.from_pretrained(tiny)


def trained() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|begin|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([*TEXTS, "the cat sat on the mat, the end"] * 4, trainer)
    return made


def byte_level(source: Tokenizer, pre: str, spec: dict[str, Any]) -> dict[str, Any]:
    """What a converter writes of a byte-level tokenizer."""
    count = source.get_vocab_size(with_added_tokens=True)
    added = {token["id"]: token for token in spec["added_tokens"]}
    kinds = [1] * count
    for i, token in added.items():
        kinds[i] = 3 if token["special"] else 4
    merges = spec["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [source.id_to_token(i) or f"[PAD{i}]" for i in range(count)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
        "tokenizer.ggml.eos_token_id": 0,
    }


def test_the_tokenizer_is_in_the_file(tmp_path: Path):
    source = trained()
    table = byte_level(source, "gpt-2", json.loads(source.to_str()))
    model = build("gpt2", {"vocab_size": len(table["tokenizer.ggml.tokens"])})

    def extra(w: Any) -> None:
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("gpt-2")
        w.add_token_list(table["tokenizer.ggml.tokens"])
        w.add_token_types(table["tokenizer.ggml.token_type"])
        w.add_token_merges(table["tokenizer.ggml.merges"])
        w.add_add_bos_token(True)
        w.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")

    write(tmp_path / "m.gguf", model, "gpt2", extra=extra)
    mine = MIModel.from_pretrained(tmp_path / "m.gguf")
    for text in TEXTS:
        ids = source.encode(text).ids
        assert mine.tokenizer.encode(text) == [1, *ids]
        assert mine.decode(ids) == text
    assert mine.tokenizer.bos_id == 1
    assert mine.tokenizer.eos_ids == (2,)
    assert mine.tokenizer.encode_raw("the<|end|>") == [*source.encode("the").ids, 0]
    assert mine.tokenizer.chat_template("hi") == "hi"
    assert mine.forward("the cat").output.shape[-1] == mine.vocab_size


@real
@pytest.mark.parametrize(("name", "pre"), [("gpt2", "gpt-2"), ("gpt-neox-20b", "olmo")])
def test_real_byte_level_tokenizers_cut_as_the_originals_do(name: str, pre: str):
    path = DATA / name / "tokenizer.json"
    source = Tokenizer.from_file(str(path))
    mine = read_tokenizer(byte_level(source, pre, json.loads(path.read_text())))
    for text in TEXTS:
        ids = source.encode(text, add_special_tokens=False).ids
        assert mine.encode_raw(text) == ids
        assert mine.decode(ids) == source.decode(ids, skip_special_tokens=False)


def pieces(path: Path) -> list[tuple[str, float, int]]:
    """Piece, score and kind of every entry of a SentencePiece model, a protocol buffer."""
    data, at, found = path.read_bytes(), 0, list[tuple[str, float, int]]()

    def number(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            shift += 7
            at += 1
            if data[at - 1] < 128:
                return value, at

    while at < len(data) and data[at] == 0x0A:
        size, at = number(at + 1)
        stop, piece, score, kind = at + size, "", 0.0, 1
        while at < stop:
            tag = data[at]
            if tag == 0x0A:
                length, at = number(at + 1)
                piece, at = data[at : at + length].decode(), at + length
            elif tag == 0x15:
                score, at = struct.unpack("<f", data[at + 1 : at + 5])[0], at + 5
            else:
                kind, at = number(at + 1)
        found.append((piece, score, kind))
    return found


@real
def test_a_real_sentencepiece_tokenizer_cuts_as_the_original_does():
    entries = pieces(DATA / "mistral-v3/tokenizer.model")
    source = Tokenizer.from_file(str(DATA / "mistral-v3/tokenizer.json"))
    mine = read_tokenizer(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [piece for piece, _, _ in entries],
            "tokenizer.ggml.scores": [score for _, score, _ in entries],
            "tokenizer.ggml.token_type": [kind for _, _, kind in entries],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
        }
    )
    for text in TEXTS:
        ids = source.encode(text).ids
        assert mine.encode(text) == ids
        assert mine.decode(ids) == source.decode(ids, skip_special_tokens=False)


def test_tokenizers_that_cannot_be_read_say_so():
    table = {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.merges": ["a b"]}
    with pytest.raises(TokenizerError, match="kind 'bert'"):
        read_tokenizer({**table, "tokenizer.ggml.model": "bert"})
    with pytest.raises(TokenizerError, match=r"no tokenizer$"):
        read_tokenizer({})
    gpt2 = {**table, "tokenizer.ggml.model": "gpt2"}
    with pytest.raises(TokenizerError, match="way called 'klingon'"):
        read_tokenizer({**gpt2, "tokenizer.ggml.pre": "klingon"})
    with pytest.raises(TokenizerError, match="merges 'a' with 'b'"):
        read_tokenizer({**gpt2, "tokenizer.ggml.pre": "gpt-2"})
    with pytest.raises(TokenizerError, match=r"no tokenizer\.ggml\.scores"):
        read_tokenizer({**table, "tokenizer.ggml.model": "llama"})
    with pytest.raises(TokenizerError, match="eos_token_id is 9; there are 2 tokens"):
        read_tokenizer(
            {
                **gpt2,
                "tokenizer.ggml.pre": "gpt-2",
                "tokenizer.ggml.merges": [],
                "tokenizer.ggml.eos_token_id": 9,
            }
        )


def test_a_model_whose_tokenizer_cannot_be_read_still_runs(tiny: Path):
    model = MIModel.from_pretrained(tiny)
    assert not model.has_tokenizer
    with pytest.raises(TokenizerError, match="has no tokenizer"):
        model.encode("hello")
    assert model.forward(TOKENS).output.shape == (2, 20, 97)
    with pytest.raises(ModelError, match="verify needs"):
        verify(model)
