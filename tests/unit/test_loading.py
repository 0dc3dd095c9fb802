# SPDX-License-Identifier: MIT OR Apache-2.0
"""From a folder to a model: every layout gives the same, every broken one says what is wrong."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from inline_snapshot import snapshot
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parity import hf
from tests.parity.cases.case import COMMON, Case
from torch_mi import memory
from torch_mi.errors import (
    ConfigError,
    DownloadError,
    FileError,
    MemoryForecastError,
    MIError,
    ModelError,
    TokenizerError,
)
from torch_mi.model import MIModel

CASES = {case.name: case for case in hf.CASES}
TOKENS = torch.arange(10)[None]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model folder; it stays as it is."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    hf.build(CASES["llama-gqa-biased"]).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    hf.build(CASES["llama-gqa-biased"]).save_pretrained(folder, max_shard_size="20KB")
    return folder


def load(folder: Path) -> MIModel:
    return MIModel.from_pretrained(folder)


def said(error: type[MIError], folder: Path, **more: Any) -> str:
    """What is said of a folder, without the part of its path that changes."""
    with pytest.raises(error) as caught:
        MIModel.from_pretrained(folder, **more)
    return str(caught.value).replace(str(folder.parent), "…")


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def reconfigure(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


class TestLayouts:
    def test_where_a_model_came_from(self, saved: Path) -> None:
        model = load(saved)
        assert (model.origin.model_id, model.origin.family) == ("model", "llama")
        assert (model.dtype, model.device.type) == (torch.float32, "cpu")
        assert str(load(saved)) == str(MIModel.from_pretrained(str(saved)))
        assert not model.backend.training  # pyright: ignore[reportAttributeAccessIssue]

    def test_shards_are_the_same_model(self, saved: Path, shards: Path) -> None:
        assert len(list(shards.glob("model-*.safetensors"))) > 2
        whole, parts = load(saved), load(shards)
        assert whole.fingerprint == parts.fingerprint
        assert torch.equal(whole.forward(TOKENS).output, parts.forward(TOKENS).output)

    def test_older_files_are_the_same_model(self, saved: Path, folder: Path) -> None:
        torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
        (folder / WEIGHTS).unlink()
        assert load(folder).fingerprint == load(saved).fingerprint

    def test_a_model_without_its_prefix_is_the_same_model(self, saved: Path, folder: Path) -> None:
        def shorten(tensors: dict[str, Tensor]) -> None:
            for name in list(tensors):
                tensors[name.removeprefix("model.")] = tensors.pop(name)

        rewrite(folder, shorten)
        assert load(folder).fingerprint == load(saved).fingerprint

    def test_stacked_and_separate_weights_are_the_same_model(self, tmp_path: Path) -> None:
        stacked = tmp_path / "stacked"
        hf.build(CASES["phi3-window"]).save_pretrained(stacked)
        separate = Path(shutil.copytree(stacked, tmp_path / "separate"))

        def split(tensors: dict[str, Tensor]) -> None:
            for name in list(tensors):
                parts: dict[str, int] = {}
                if "qkv_proj" in name:
                    parts = {"q_proj": 36, "k_proj": 18, "v_proj": 18}
                elif "gate_up_proj" in name:
                    parts = {"gate_proj": 44, "up_proj": 44}
                if parts:
                    stack = tensors.pop(name)
                    for part, rows in zip(parts, stack.split(list(parts.values())), strict=True):
                        room = name.split(".")[-2]
                        tensors[name.replace(room, part)] = rows.clone()

        rewrite(separate, split)
        reconfigure(separate, model_type="mistral", original_max_position_embeddings=None)
        config = json.loads((separate / "config.json").read_text())
        config["rope_parameters"].pop("partial_rotary_factor", None)
        (separate / "config.json").write_text(json.dumps(config))
        one, other = load(stacked), load(separate)
        assert one.fingerprint == other.fingerprint
        assert torch.equal(one.forward(TOKENS).output, other.forward(TOKENS).output)

    def test_either_copy_of_a_tied_matrix_will_do(self, tmp_path: Path) -> None:
        folder = tmp_path / "tied"
        hf.build(CASES["llama-mqa-tied"]).save_pretrained(folder)
        model = load(folder)
        assert model.backend.embedding.data_ptr() == model.backend.unembedding.data_ptr()
        rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 0}))
        assert load(folder).fingerprint == model.fingerprint
        rewrite(folder, lambda t: t.pop("model.embed_tokens.weight"))
        assert load(folder).fingerprint == model.fingerprint

    def test_dtypes(self, saved: Path) -> None:
        half = MIModel.from_pretrained(saved, dtype=torch.bfloat16)
        assert {p.dtype for _, p in half.backend.named_parameters()} == {torch.bfloat16}
        assert half.forward(TOKENS).output.dtype == torch.bfloat16
        wide = MIModel.from_pretrained(saved, dtype=torch.float64).forward(TOKENS).output
        torch.testing.assert_close(wide.float(), load(saved).forward(TOKENS).output)

    def test_end_tokens_of_both_files(self, folder: Path) -> None:
        reconfigure(folder, eos_token_id=7)
        (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
        assert load(folder).origin.eos_ids == (7, 8)
        (folder / "generation_config.json").write_text('{"eos_token_id": "stop"}')
        assert "generation_config.json: eos_token_id" in said(ConfigError, folder)


class TestFolders:
    def test_no_such_folder(self, folder: Path) -> None:
        assert said(FileError, folder.parent / "modle") == snapshot(
            "there is no folder …/modle; did you mean '…/model'?"
        )
        with pytest.raises(DownloadError, match="neither a folder here nor a Hub id"):
            MIModel.from_pretrained("not a model")

    def test_no_config(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        assert said(FileError, folder) == snapshot(
            "…/model has no config.json; it holds generation_config.json, model.safetensors"
        )

    def test_broken_json(self, folder: Path) -> None:
        (folder / "config.json").write_text('{"model_type": "llama",')
        assert said(FileError, folder).startswith("…/model/config.json is not valid JSON: ")

    def test_unknown_families(self, folder: Path) -> None:
        known = load(folder)
        reconfigure(folder, model_type="lama")
        inferred = load(folder)
        assert inferred.origin.assumed[0] == "it is read like llama"
        assert "(lama, inferred)" in repr(inferred)
        assert not known.origin.assumed
        assert torch.equal(inferred.forward(TOKENS).output, known.forward(TOKENS).output)
        reconfigure(folder, model_type="lama", wild=3)
        message = said(ConfigError, folder)
        assert message.startswith("model_type 'lama' is not compatible with the transformer here:")
        assert "\n- config.json has wild = 3, which has no meaning here" in message
        reconfigure(folder, model_type=None)
        assert said(ConfigError, folder) == "config.json is missing 'model_type'"

    def test_keys_that_nobody_reads(self, folder: Path) -> None:
        reconfigure(folder, attn_temperature=2.0)
        assert "llama has no use for attn_temperature = 2.0" in said(ConfigError, folder)

    def test_no_weights(self, folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        assert "has no weights: looked for model.safetensors" in said(FileError, folder)

    def test_no_tokenizer(self, saved: Path) -> None:
        model = load(saved)
        assert not model.has_tokenizer
        for use in (lambda: model.encode("a"), lambda: model.forward("a"), lambda: model.tokenizer):
            with pytest.raises(TokenizerError, match=r"has no tokenizer\.json; it holds config"):
                use()
        assert model.forward(TOKENS).output.shape == (1, 10, 83)


class TestTensors:
    def test_a_missing_tensor(self, folder: Path) -> None:
        rewrite(folder, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
        assert said(ModelError, folder) == snapshot(
            "the checkpoint lacks model.layers.1.mlp.up_proj.weight; it has "
            "model.layers.2.mlp.up_proj.weight, model.layers.0.mlp.up_proj.weight, "
            "model.layers.1.mlp.gate_proj.weight"
        )

    def test_extra_tensors(self, folder: Path) -> None:
        extra = {f"model.layers.{i}.adapter.weight": torch.zeros(2) for i in range(7)}
        rewrite(folder, lambda t: t.update(extra))
        assert said(ModelError, folder) == snapshot(
            "7 of the checkpoint's tensors have no place in this model: "
            "model.layers.0.adapter.weight, model.layers.1.adapter.weight, "
            "model.layers.2.adapter.weight, model.layers.3.adapter.weight, "
            "model.layers.4.adapter.weight and 2 more"
        )

    def test_more_layers_than_the_config_says(self, folder: Path) -> None:
        reconfigure(folder, num_hidden_layers=2)
        assert "tensors have no place in this model: model.layers.2." in said(ModelError, folder)

    def test_another_shape(self, folder: Path) -> None:
        reconfigure(folder, intermediate_size=40)
        assert said(ModelError, folder) == snapshot(
            "model.layers.0.mlp.gate_proj.weight has shape [44, 36] in the checkpoint; "
            "config.json makes it [40, 36]"
        )

    def test_a_stack_of_another_height(self, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        hf.build(CASES["phi3-window"]).save_pretrained(folder)
        reconfigure(folder, num_key_value_heads=6)
        assert said(ModelError, folder) == snapshot(
            "model.layers.0.self_attn.qkv_proj.weight has shape [72, 36] in the checkpoint; "
            "config.json makes it [108, 36]"
        )

    def test_tied_matrices_that_differ(self, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        hf.build(CASES["llama-mqa-tied"]).save_pretrained(folder)
        rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 2}))
        assert said(ModelError, folder) == snapshot(
            "config.json ties the unembedding to the embedding, but the checkpoint's "
            "lm_head.weight differs from it; set tie_word_embeddings to false to use both"
        )

    def test_a_missing_shard(self, shards: Path) -> None:
        names = sorted(path.name for path in shards.glob("model-*"))
        (shards / names[1]).unlink()
        message = said(FileError, shards)
        assert message.startswith(
            f"…/shards lacks {names[1]}: {len(names) - 1} of the {len(names)}"
        )

    def test_a_truncated_file(self, folder: Path) -> None:
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
        message = said(FileError, folder)
        assert f"it is truncated: {len(content) // 2} bytes" in message
        assert f"of {len(content)} " in message
        assert "fetch it again" in message

    def test_an_index_that_leads_out_of_the_folder(self, shards: Path) -> None:
        index = shards / "model.safetensors.index.json"
        table = json.loads(index.read_text())
        table["weight_map"]["lm_head.weight"] = "../elsewhere.safetensors"
        index.write_text(json.dumps(table))
        message = said(FileError, shards)
        assert (
            "'lm_head.weight' in '../elsewhere.safetensors', which is not a file in its" in message
        )


class TestRequests:
    def test_memory_is_foreseen(self, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def available(_: object) -> int:
            return 100_000

        monkeypatch.setattr(memory, "available_bytes", available)
        monkeypatch.setattr("torch_mi.files.checkpoint.Checkpoint.tensor", None)
        assert said(MemoryForecastError, saved) == snapshot(
            "loading model needs 150.6 KB on cpu, and 97.7 KB are free (52.9 KB short); "
            "dtype=torch.bfloat16 needs 75.3 KB, which fits"
        )
        message = said(MemoryForecastError, saved, dtype=torch.float64)
        assert message.endswith("dtype=torch.bfloat16 needs 75.3 KB, which fits")

    def test_devices(self, saved: Path) -> None:
        assert said(ModelError, saved, device="gpu") == snapshot(
            "device='gpu' is no device; use 'cpu', 'cuda' or 'mps'"
        )
        gpus = torch.cuda.device_count()
        message = said(ModelError, saved, device=f"cuda:{gpus}")
        assert message == (
            f"device='cuda:{gpus}', but torch sees {gpus or 'no'} GPU here; use device='cpu'"
        )

    @pytest.mark.parametrize("dtype", [torch.int64, torch.float8_e4m3fn, torch.complex64])
    def test_dtypes(self, saved: Path, dtype: torch.dtype) -> None:
        assert f"dtype={dtype} cannot hold a model; use one of" in said(
            ModelError, saved, dtype=dtype
        )

    def test_a_folder_has_no_revisions(self, saved: Path) -> None:
        assert said(FileError, saved, revision="main").endswith("has no revision 'main'")

    def test_from_hf_takes_models_only(self) -> None:
        with pytest.raises(ModelError, match="takes a transformers model, not a dict"):
            MIModel.from_hf({})


MEASURE = """
import sys, torch
from torch_mi.model import MIModel
import torch_mi.loading, torch_mi.tokens.tokenizer

def private() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

before = private()
model = MIModel.from_pretrained(sys.argv[1])
print(private() - before, sum(p.numel() * 4 for _, p in model.backend.named_parameters()) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux to measure memory")
def test_weights_are_mapped_not_copied(folder: Path) -> None:
    """The file's pages are shared with it; the process has nothing of its own to pay for."""
    config: dict[str, Any] = {**COMMON, "vocab_size": 60_000, "hidden_size": 96}
    large = hf.build(Case("large", "llama", config))
    large.save_pretrained(folder)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    private, weights = map(int, run.stdout.split())
    assert weights > 40_000
    assert private < weights / 4
