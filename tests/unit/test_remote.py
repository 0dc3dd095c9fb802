# SPDX-License-Identifier: MIT OR Apache-2.0
"""A model on the Hub is judged by its config and headers; no weight is fetched."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from torch_mi import testing
from torch_mi.backends.transformer import parameter_shapes
from torch_mi.compatibility import check
from torch_mi.errors import DownloadError, FileError
from torch_mi.families import FAMILIES, read_config
from torch_mi.families.names import placement
from torch_mi.files import remote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """A repository of one weight file, of which the headers can be asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = ["config.json", "model.safetensors"]
        self.fetched: list[str] = []
        self.raw: dict[str, Any] = {
            "model_type": "qwen3",
            **testing.COMMON,
            **FAMILIES["qwen3"].tiny,
        }
        family, cfg = read_config(self.raw)
        self.shapes: dict[str, tuple[int, ...]] = {}
        for ours, shape in parameter_shapes(cfg).items():
            place = placement(ours, shape, cfg, family.sources)
            self.shapes |= dict.fromkeys(place.theirs, place.stored)
        self.kind = "BF16"

    def model_info(self, _model_id: str, **_: object) -> SimpleNamespace:
        siblings = [SimpleNamespace(rfilename=name) for name in self.files]
        return SimpleNamespace(siblings=siblings, sha=COMMIT)

    def get_safetensors_metadata(self, _model_id: str, **_: object) -> SimpleNamespace:
        tensors = {
            name: SimpleNamespace(shape=list(shape), dtype=self.kind)
            for name, shape in self.shapes.items()
        }
        return SimpleNamespace(
            files_metadata={"model.safetensors": SimpleNamespace(tensors=tensors)}
        )

    def download(self, _model_id: str, name: str, **_: object) -> str:
        self.fetched.append(name)
        path = self.folder / name
        path.write_text(json.dumps(self.raw))
        return str(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.download)
    return fake


def test_config_and_headers_are_all_that_is_read(hub: FakeHub) -> None:
    report = check("org/name")
    assert report.compatible, report.issues
    assert (report.model_id, report.revision, report.read_like) == ("org/name", COMMIT, "qwen3")
    assert hub.fetched == ["config.json"]
    seen = remote.look("org/name")
    with pytest.raises(FileError, match="of org/name only the headers were read"):
        seen.weights.tensor("lm_head.weight")


def test_what_is_in_the_way_is_seen_from_afar(hub: FakeHub) -> None:
    hub.shapes.pop("model.layers.2.mlp.up_proj.weight")
    assert check("org/name").issues == (
        "expected model.layers.2.mlp.up_proj.weight, which is not there",
    )
    hub.raw = {**hub.raw, "model_type": "bert"}
    assert "'bert' is an encoder" in check("org/name").issues[0]


def test_repositories_without_headers(hub: FakeHub) -> None:
    hub.files = ["config.json", "pytorch_model.bin"]
    with pytest.raises(DownloadError, match=r"no safetensors.*it has config\.json, pytorch_model"):
        check("org/name")
    hub.files = ["model.safetensors"]
    with pytest.raises(DownloadError, match=r"org/name has no config\.json"):
        check("org/name")
    hub.files, hub.kind = ["config.json", "model.safetensors"], "U3"
    with pytest.raises(FileError, match="stores tensors as U3"):
        check("org/name")
