# SPDX-License-Identifier: MIT OR Apache-2.0
"""Weights and configurations in a folder, whole and broken."""

import json
import math
import os
import pickle  # noqa: TID251 - to make a file that must be refused
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from torch_mi.errors import FileError, ModelError
from torch_mi.files.checkpoint import Checkpoint, find_weights, read_config, read_generation_config

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TORCH_MI_SHARED", ROOT.parent / "shared")) / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"no test data in {DATA}")

A = torch.arange(12, dtype=torch.float32).reshape(4, 3)
B = torch.arange(5, dtype=torch.bfloat16)
C = torch.tensor(7, dtype=torch.int64)
SHARDS = {
    "model-00001-of-00002.safetensors": {"a": A},
    "model-00002-of-00002.safetensors": {"b": B, "c": C},
}


FIRST, SECOND = SHARDS


def write_index(folder: Path, placed: dict[str, str], name: str = "model.safetensors") -> None:
    table = {"metadata": {"total_size": 1}, "weight_map": placed}
    (folder / f"{name}.index.json").write_text(json.dumps(table))


@pytest.fixture
def single(tmp_path: Path) -> Path:
    save_file({"a": A, "b": B, "c": C}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    for name, tensors in SHARDS.items():
        save_file(tensors, tmp_path / name)
    write_index(tmp_path, {t: name for name, tensors in SHARDS.items() for t in tensors})
    return tmp_path


@pytest.fixture
def binary(tmp_path: Path) -> Path:
    torch.save({"a": A, "b": B, "c": C}, tmp_path / "pytorch_model.bin")
    return tmp_path


@pytest.fixture
def binary_shards(tmp_path: Path) -> Path:
    torch.save({"a": A}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": B, "c": C}, tmp_path / "pytorch_model-00002-of-00002.bin")
    first, second = (f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2))
    write_index(tmp_path, {"a": first, "b": second, "c": second}, "pytorch_model.bin")
    return tmp_path


@pytest.mark.parametrize("kind", ["single", "sharded", "binary", "binary_shards"])
def test_every_layout_gives_the_same_tensors(kind: str, request: pytest.FixtureRequest):
    folder: Path = request.getfixturevalue(kind)
    with Checkpoint(folder) as weights:
        assert dict(weights.shapes()) == {"a": (4, 3), "b": (5,), "c": ()}
        assert dict(weights.dtypes()) == {"a": torch.float32, "b": torch.bfloat16, "c": torch.int64}
        assert weights.num_bytes() == 12 * 4 + 5 * 2 + 8
        for name, value in (("a", A), ("b", B), ("c", C)):
            assert torch.equal(weights.tensor(name), value)
            assert weights.tensor(name).dtype == value.dtype


@real
@pytest.mark.parametrize(
    "name", ["models/stories260K", "models/gpt-nano-sort", "rwkv/rwkv7-tiny-834k"]
)
def test_real_models_read_as_safetensors_reads_them(name: str):
    folder = DATA / name
    expected = load_file(folder / "model.safetensors")
    with Checkpoint(folder) as weights:
        assert dict(weights.shapes()) == {n: tuple(t.shape) for n, t in expected.items()}
        for tensor, value in expected.items():
            assert torch.equal(weights.tensor(tensor), value)
    assert read_config(folder)["model_type"]


def test_tensors_outlive_the_checkpoint(single: Path):
    with Checkpoint(single) as weights:
        kept = weights.tensor("a")
    assert torch.equal(kept, A)
    with pytest.raises(FileError, match="have been closed"):
        weights.tensor("a")


def test_writing_into_a_tensor_leaves_the_file_alone(single: Path):
    with Checkpoint(single) as weights:
        weights.tensor("a").zero_()
    with Checkpoint(single) as weights:
        assert torch.equal(weights.tensor("a"), A)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_small_tensor_of_a_large_file_costs_little(tmp_path: Path, name: str):
    large = {"large": torch.zeros(32 * 2**20), "small": torch.ones(3)}  # 128 MB
    if name == "model.safetensors":
        save_file(large, tmp_path / name)
    else:
        torch.save(large, tmp_path / name)
    del large
    code = f"""
import resource
from torch_mi.files.checkpoint import Checkpoint
with Checkpoint({str(tmp_path)!r}) as weights:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weights.shapes(), weights.num_bytes()
    assert weights.tensor("small").sum() == 3
    assert weights.tensor("large")[:1000].sum() == 0
    weights.tensor("large")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) < 30 * 1024  # kilobytes


def test_safetensors_go_before_older_files(single: Path):
    torch.save({"other": A}, single / "pytorch_model.bin")
    assert find_weights(single).names == ("model.safetensors",)
    with Checkpoint(single) as weights:
        assert "other" not in weights.shapes()


def test_tensors_that_the_index_forgot_are_still_there(sharded: Path):
    write_index(sharded, {"a": FIRST, "b": SECOND})
    with Checkpoint(sharded) as weights:
        assert weights.tensor("c") == 7


def test_no_such_tensor(single: Path):
    save_file({"lm_head.weight": A}, single / "model.safetensors")
    with Checkpoint(single) as weights:
        with pytest.raises(ModelError, match=r"did you mean 'lm_head.weight'"):
            weights.tensor("lm_head.wieght")
        with pytest.raises(ModelError, match="no tensor 'zzz'"):
            weights.tensor("zzz")


# --- folders that are wrong -----------------------------------------------------------------------


def test_no_such_folder(tmp_path: Path):
    with pytest.raises(FileError, match=r"there is no folder .*absent"):
        Checkpoint(tmp_path / "absent")


def test_a_file_is_no_folder(single: Path):
    with pytest.raises(FileError, match="is a file; give the folder that holds it"):
        Checkpoint(single / "model.safetensors")


def test_a_folder_without_weights_says_what_it_holds(tmp_path: Path):
    with pytest.raises(FileError, match="it is empty"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "sub").mkdir()
    with pytest.raises(FileError) as caught:
        Checkpoint(tmp_path)
    for part in ("model.safetensors,", "pytorch_model.bin", "it holds config.json, sub/"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("model-Q4.gguf", "model-Q4.gguf is GGUF"),
        ("params.npz", "NumPy arrays"),
        ("consolidated.00.pth", "is damaged, or holds more than tensors"),
        ("adapter_model.safetensors", "an adapter .LoRA.: load its base model with adapter="),
        ("flax_model.msgpack", "Flax weights"),
        ("weights.safetensors", "if weights.safetensors holds the model's weights, name it"),
    ],
)
def test_other_formats_say_what_to_do(tmp_path: Path, name: str, advice: str):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FileError, match=advice):
        Checkpoint(tmp_path)


def test_one_pickle_of_several_is_to_be_named(tmp_path: Path):
    for name in ("consolidated.00.pth", "consolidated.01.pth"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(FileError, match="a PyTorch pickle, one of several: give the path"):
        Checkpoint(tmp_path)


def test_missing_shards_are_named_and_counted(sharded: Path):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        FileError, match=r"lacks model-00002-of-00002.safetensors: 1 of the 2 weight files"
    ):
        Checkpoint(sharded)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "sub/../../x", "..\\x", "C:\\x", "\\\\host\\x", ""]
)
def test_an_index_cannot_lead_out_of_its_folder(sharded: Path, name: str):
    shutil.copy(sharded / "model-00001-of-00002.safetensors", sharded.parent / "x.safetensors")
    write_index(sharded, {"a": name})
    with pytest.raises(FileError, match="which is not a file in its folder"):
        Checkpoint(sharded)


def test_an_index_may_name_a_folder_inside(sharded: Path):
    (sharded / "parts").mkdir()
    first = "model-00001-of-00002.safetensors"
    (sharded / first).rename(sharded / "parts" / first)
    write_index(sharded, {"a": f"parts/{first}"})
    with Checkpoint(sharded) as weights:
        assert list(weights.shapes()) == ["a"]


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_without_a_map_is_refused(sharded: Path, text: str):
    (sharded / "model.safetensors.index.json").write_text(text)
    with pytest.raises(FileError, match="has no weight_map"):
        Checkpoint(sharded)


def test_an_index_that_names_no_file_is_refused(sharded: Path):
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {"a": 3}}')
    with pytest.raises(FileError, match="places 'a' in 3"):
        Checkpoint(sharded)


def test_a_tensor_absent_from_its_shard_is_named(sharded: Path):
    write_index(sharded, {"a": FIRST, "bb": SECOND})
    with pytest.raises(
        FileError, match=r"'bb' is in model-00002.* and it is not; did you mean 'b'"
    ):
        Checkpoint(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path):
    save_file({"a": A, "b": B, "c": C}, sharded / "model-00002-of-00002.safetensors")
    with pytest.raises(FileError, match=r"has 'a' twice, in model-00001.* and in model-00002"):
        Checkpoint(sharded)


def test_broken_json_in_the_index_says_where(sharded: Path):
    (sharded / "model.safetensors.index.json").write_text('{"weight_map":\n {,}}')
    with pytest.raises(FileError, match=r"index\.json is not valid JSON.*line 2 column 3"):
        Checkpoint(sharded)


def test_a_truncated_file_says_so(single: Path):
    path = single / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(FileError, match=rf"truncated: {len(whole) - 10} bytes .* of {len(whole)}"):
        Checkpoint(single)
    path.write_bytes(whole[:40])
    with pytest.raises(FileError, match="truncated: 40 bytes, less than its header"):
        Checkpoint(single)


def headed(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"123",
        b"this was never a weight file at all",
        b"\x00" * 64,
        headed("not json at all"),
        headed('{"a": 3}'),
        headed('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}') + b"0000",
        headed('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}') + b"0000" + b"more",
    ],
    ids=range(8),
)
def test_garbage_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(FileError, match=r"cannot read .*model\.safetensors.*(not a saf|damaged)"):
        Checkpoint(tmp_path)


def test_numbers_that_cannot_be_read_are_named(tmp_path: Path):
    text = '{"a":{"dtype":"F8_E8M0","shape":[4],"data_offsets":[0,4]}}'
    (tmp_path / "model.safetensors").write_bytes(headed(text) + b"0000")
    with pytest.raises(FileError, match="stores 'a' as F8_E8M0, which cannot be read here"):
        Checkpoint(tmp_path)


class Harm:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return (os.mkdir, ("harmed",))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_weight_file_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, zipped: bool
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": A, "b": Harm()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(FileError, match="holds more than tensors; nothing else is ever run"):
        Checkpoint(tmp_path)
    path.write_bytes(pickle.dumps(Harm(), protocol=2))
    with pytest.raises(FileError):
        Checkpoint(tmp_path)
    assert not (tmp_path / "harmed").exists()


def test_files_older_than_zip_are_read(tmp_path: Path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": A}, path, _use_new_zipfile_serialization=False)
    with Checkpoint(tmp_path) as weights:
        assert torch.equal(weights.tensor("a"), A)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([A], "holds a list, not named tensors"),
        ({"state_dict": {"a": A}}, "holds a dict under 'state_dict'"),
        ({"a": A, "step": 3}, "holds a int under 'step'"),
        ({1: A}, "under 1"),
    ],
)
def test_weights_must_be_named_tensors(tmp_path: Path, value: object, message: str):
    torch.save(value, tmp_path / "pytorch_model.bin")
    with pytest.raises(FileError, match=message):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 not really"])
def test_garbage_in_an_older_file_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(FileError, match=r"pytorch_model\.bin is"):
        Checkpoint(tmp_path)


def test_a_truncated_older_file_is_refused(binary: Path):
    path = binary / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(FileError, match=r"pytorch_model\.bin is"):
        Checkpoint(binary)


def test_configurations_are_read(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "big": Infinity}')
    assert read_config(tmp_path) == {"model_type": "llama", "big": math.inf}
    assert read_generation_config(tmp_path) is None
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    assert read_generation_config(tmp_path) == {"eos_token_id": [1, 2]}


def test_a_folder_without_a_configuration_says_what_it_holds(single: Path):
    with pytest.raises(FileError, match=r"no config\.json; it holds model\.safetensors"):
        read_config(single)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n "b" 2}', "line 2 column 6"),
        (b"", "line 1 column 1"),
        (b"[1]", "holds a JSON list"),
        (b'{"a": "\xff"}', "not valid JSON"),
    ],
)
def test_a_broken_configuration_says_where(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(FileError, match=message):
        read_config(tmp_path)
