# SPDX-License-Identifier: MIT OR Apache-2.0
"""From a folder or a Hub id to a folder, with the Hub played by a folder on disk."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from torch_mi.errors import DownloadError, FileError, MIError
from torch_mi.files.hub import Source, cached_models, download, locate, locate_adapter

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FULL = ("config.json", "tokenizer.json", "model.safetensors")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache and an empty working folder."""
    hub = tmp_path / "hf/hub"
    hub.mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return hub


def put(cache: Path, model_id: str, names: tuple[str, ...] = FULL, commit: str = COMMIT) -> Path:
    """A model in the cache, laid out as the Hub's client does."""
    repo = cache / f"models--{model_id.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs/main").write_text(commit)
    folder = repo / "snapshots" / commit
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("{}")
    return folder


class FakeHub:
    """What the Hub answers: the names of a repository's files, or an error."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.files = ["README.md", "config.json", "tokenizer.json", "model.safetensors"]
        self.refusal: Exception | None = None
        self.download_refusal: Exception | None = None
        self.fetched: list[str] = []
        self.asked: list[tuple[str, object, object]] = []

    def model_info(self, model_id: str, *, revision: object, token: object) -> SimpleNamespace:
        self.asked.append((model_id, revision, token))
        if self.refusal:
            raise self.refusal
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in self.files])

    def snapshot(self, original: Callable[..., str], model_id: str, **options: object) -> str:
        if options["local_files_only"]:
            return original(model_id, **options)
        if self.download_refusal:
            raise self.download_refusal
        wanted = options["allow_patterns"]
        assert isinstance(wanted, list)
        self.fetched = wanted
        return str(put(self.cache, model_id, tuple(self.fetched)))


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(cache)
    original = huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    played: Callable[..., str] = partial(fake.snapshot, original)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", played)
    return fake


def answer(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    """An error as the Hub's client raises it."""
    network = sys.modules[errors.HfHubHTTPError.__bases__[0].__module__.split(".")[0]]
    response = network.Response(status, request=network.Request("GET", "https://huggingface.co"))
    return kind("the Hub's own words", response=response)


def no_network() -> Exception:
    network = sys.modules[errors.HfHubHTTPError.__bases__[0].__module__.split(".")[0]]
    error = network.ConnectError("Name or service not known")
    assert isinstance(error, Exception)
    return error


# --- folders --------------------------------------------------------------------------------------


def test_a_folder_is_itself(tmp_path: Path):
    (tmp_path / "my-model").mkdir()
    for given in (tmp_path / "my-model", str(tmp_path / "my-model")):
        assert locate(given) == Source(tmp_path / "my-model", "my-model", None)


def test_a_relative_folder_is_a_folder_even_if_it_looks_like_an_id():
    Path("org/name").mkdir(parents=True)
    assert locate("org/name") == Source(Path("org/name"), "name", None)
    assert locate(".").model_id == "here"


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    assert locate("~/m").folder == tmp_path / "m"


def test_a_snapshot_in_the_cache_keeps_its_name(cache: Path):
    folder = put(cache, "org/name")
    assert locate(folder) == Source(folder, "org/name", COMMIT)


def test_a_folder_has_no_revisions(tmp_path: Path):
    with pytest.raises(FileError, match="is a folder, which has no revision 'v2'"):
        locate(tmp_path, revision="v2")


@pytest.mark.parametrize("given", ["./absent", "/absent/model", "~/absent-model", "a/b/c", "a\\b"])
def test_a_path_to_nothing_is_not_looked_for_on_the_hub(given: str, hub: FakeHub):
    with pytest.raises(FileError, match="there is no folder"):
        locate(given)
    with pytest.raises(FileError, match="there is no folder"):
        locate(Path("org/name"))
    assert hub.asked == []


def test_a_near_folder_is_suggested(tmp_path: Path):
    (tmp_path / "Llama-3.2-1B").mkdir()
    near = tmp_path / "Llama-3.2-1B"
    with pytest.raises(FileError, match=f"did you mean '{near}'"):
        locate(str(tmp_path / "llama-3.2-1b"))
    with pytest.raises(FileError, match=f"nor {tmp_path}/nowhere$"):
        locate(str(tmp_path / "nowhere/model"))


def test_a_file_is_no_model(tmp_path: Path):
    (tmp_path / "model.npz").write_text("x")
    with pytest.raises(FileError, match="give the folder that holds it"):
        locate(tmp_path / "model.npz")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth", "a.gguf"])
def test_a_file_of_weights_is_what_it_holds(tmp_path: Path, name: str):
    (tmp_path / name).write_text("x")
    assert locate(tmp_path / name) == Source(tmp_path, "a", None, tmp_path / name)


# --- the Hub --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", ["", "org//name", "org/na me", "org/name.git", "-x", "a--b", "a/b "]
)
def test_what_is_no_id_says_what_one_looks_like(given: str, hub: FakeHub):
    with pytest.raises(MIError, match=r"like 'org/name'|there is no folder"):
        locate(given)
    assert hub.asked == []


def test_an_id_is_downloaded(hub: FakeHub, cache: Path):
    found = locate("org/name", revision="v1", token="secret")
    assert found == Source(cache / "models--org--name/snapshots" / COMMIT, "org/name", COMMIT)
    assert hub.asked == [("org/name", "v1", "secret")]
    assert sorted(hub.fetched) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_download_gives_the_folder(hub: FakeHub, cache: Path):
    Path("org/name").mkdir(parents=True)  # a folder of that name is not what download means
    assert download("org/name") == cache / "models--org--name/snapshots" / COMMIT


@pytest.mark.parametrize(
    ("files", "weights"),
    [
        (["model.safetensors", "pytorch_model.bin", "tf_model.h5"], ["model.safetensors"]),
        (["pytorch_model.bin", "tf_model.h5", "x/pytorch_model.bin"], ["pytorch_model.bin"]),
        (
            [
                "model.safetensors.index.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "consolidated.safetensors",
                "original/model-00001-of-00001.safetensors",
                "pytorch_model-00001-of-00001.bin",
            ],
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ],
        ),
        (
            ["model.safetensors.index.json", "part-a.safetensors", "part-b.safetensors"],
            ["model.safetensors.index.json", "part-a.safetensors", "part-b.safetensors"],
        ),
        (
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "training.bin"],
            ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"],
        ),
    ],
    ids=["safetensors", "bin", "shards", "odd shards", "bin shards"],
)
def test_weights_are_downloaded_in_one_format(hub: FakeHub, files: list[str], weights: list[str]):
    hub.files = ["config.json", *files]
    locate("org/name")
    assert sorted(hub.fetched) == sorted(["config.json", *weights])


def test_every_file_a_tokenizer_needs_is_downloaded(hub: FakeHub):
    small = ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model"]
    small += ["special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "config.json"]
    hub.files = [*small, "model.safetensors", "README.md", "LICENSE", "onnx/model.onnx"]
    locate("org/name")
    assert sorted(hub.fetched) == sorted([*small, "model.safetensors"])


def test_repositories_that_hold_no_model_are_refused_before_anything_is_fetched(hub: FakeHub):
    hub.files = ["README.md", "model.onnx", "config.json"]
    with pytest.raises(DownloadError, match=r"no weights this can read.*it has .*model\.onnx"):
        locate("org/name")
    hub.files = ["model.safetensors"]
    with pytest.raises(DownloadError, match=r"no config\.json"):
        locate("org/name")
    assert hub.fetched == []


@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [
        (errors.RepositoryNotFoundError, 404, "no such model on the Hub"),
        (
            errors.RepositoryNotFoundError,
            401,
            "no such model on the Hub.*if it is private.*HF_TOKEN",
        ),
        (errors.RevisionNotFoundError, 404, "org/name has no revision 'v9' on the Hub"),
        (
            errors.GatedRepoError,
            403,
            "accept its terms at https://huggingface.co/org/name.*HF_TOKEN",
        ),
        (errors.HfHubHTTPError, 401, "set the environment variable HF_TOKEN"),
        (errors.HfHubHTTPError, 403, "set the environment variable HF_TOKEN"),
        (errors.HfHubHTTPError, 503, "the Hub answered 503 for org/name.*local_files_only=True"),
    ],
)
def test_what_the_hub_refuses_says_what_to_do(
    hub: FakeHub, kind: type[errors.HfHubHTTPError], status: int, message: str
):
    hub.refusal = answer(kind, status)
    with pytest.raises(DownloadError, match=message) as caught:
        locate("org/name", revision="v9")
    assert caught.value.__cause__ is hub.refusal


def test_what_the_hub_refuses_is_not_taken_from_the_cache(hub: FakeHub, cache: Path):
    put(cache, "org/name")
    hub.refusal = answer(errors.GatedRepoError, 403)
    with pytest.raises(DownloadError, match="accept its terms"):
        locate("org/name")


def test_a_misspelt_id_is_compared_with_the_cache(hub: FakeHub, cache: Path):
    put(cache, "org/llama-small")
    hub.refusal = answer(errors.RepositoryNotFoundError, 404)
    with pytest.raises(DownloadError, match="did you mean 'org/llama-small'"):
        locate("org/lama-small")


def test_a_full_disk_is_not_a_missing_network(hub: FakeHub):
    hub.download_refusal = OSError(28, "No space left on device")
    with pytest.raises(DownloadError, match=r"could not be downloaded: .*No space left"):
        locate("org/name")


def test_the_vocabulary_of_world_models_is_fetched(hub: FakeHub):
    names = ["config.json", "rwkv_vocab_v20230424.txt", "model.safetensors", "hf_rwkv_tokenizer.py"]
    hub.files = [*names, "old/rwkv_vocab_v20230422.txt", "tokenizer_note.json"]
    locate("org/name")
    assert sorted(hub.fetched) == sorted([*names[:3], "tokenizer_note.json"])


# --- without a network ----------------------------------------------------------------------------


def test_without_a_network_the_cache_serves(
    hub: FakeHub, cache: Path, caplog: pytest.LogCaptureFixture
):
    folder = put(cache, "org/name")
    hub.refusal = no_network()
    with caplog.at_level(logging.WARNING):
        assert locate("org/name") == Source(folder, "org/name", COMMIT)
    assert "the Hub cannot be reached" in caplog.text
    assert COMMIT in caplog.text


def test_a_network_that_breaks_halfway_leaves_the_cache(hub: FakeHub, cache: Path):
    hub.download_refusal = no_network()
    with pytest.raises(DownloadError, match=r"cannot be reached.*is not in the cache"):
        locate("org/name")
    folder = put(cache, "org/name")
    assert locate("org/name").folder == folder


def test_without_network_or_cache_it_says_what_to_do(hub: FakeHub):
    hub.refusal = no_network()
    with pytest.raises(DownloadError) as caught:
        locate("org/name")
    for part in ("cannot be reached", "org/name is not in the cache", "local_files_only", "folder"):
        assert part in str(caught.value)


def test_offline_mode_is_named(hub: FakeHub):
    hub.refusal = errors.OfflineModeIsEnabled("offline")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE forbids the network"):
        locate("org/name")


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (("config.json",), r"has no weights"),
        (("model.safetensors",), r"no config\.json"),
        (("config.json", "model.safetensors.index.json"), "lacks b.safetensors: 0 of the 1"),
    ],
)
def test_an_incomplete_model_in_the_cache_is_refused(
    hub: FakeHub, cache: Path, names: tuple[str, ...], missing: str
):
    folder = put(cache, "org/name", names)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        index.write_text(json.dumps({"weight_map": {"w": "b.safetensors"}}))
    hub.refusal = no_network()
    for local in (True, False):
        with pytest.raises(DownloadError, match=f"not complete in the cache: .*{missing}"):
            locate("org/name", local_files_only=local)


def test_local_files_only_never_asks_the_hub(hub: FakeHub, cache: Path):
    folder = put(cache, "org/name")
    assert locate("org/name", local_files_only=True) == Source(folder, "org/name", COMMIT)
    assert locate("org/name", revision=COMMIT, local_files_only=True).folder == folder
    with pytest.raises(
        DownloadError, match=r"org/other is not in the cache.*leave local_files_only"
    ):
        locate("org/other", local_files_only=True)
    with pytest.raises(DownloadError, match="org/name at revision v2 is not in the cache"):
        locate("org/name", revision="v2", local_files_only=True)
    assert hub.asked == []


# --- the cache ------------------------------------------------------------------------------------


def test_the_cache_lists_its_models(cache: Path):
    put(cache, "zoo/b")
    put(cache, "gpt2")
    newest = put(cache, "org/two", commit="f" * 40)
    put(cache, "org/two", commit="a" * 40)
    (cache / "models--org--two/refs/main").write_text("f" * 40 + "\n")
    put(cache, "org/no-config", ("model.safetensors",))
    (cache / "models--org--empty").mkdir()
    (cache / "datasets--org--data").mkdir()
    found = cached_models()
    assert [model.model_id for model in found] == ["gpt2", "org/two", "zoo/b"]
    assert found[1] == Source(newest, "org/two", "f" * 40)


def test_no_cache_has_no_models(cache: Path):
    cache.rmdir()
    assert cached_models() == []


def test_the_cache_is_where_hf_home_says(tmp_path: Path):
    folder = put(tmp_path / "elsewhere/hub", "org/name")
    code = (
        "from torch_mi.files.hub import cached_models, locate; "
        "print(cached_models()[0].folder, locate('org/name', local_files_only=True).folder)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "HF_HOME": str(tmp_path / "elsewhere"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.stdout.split() == [str(folder), str(folder)]


# --- GGUF files and adapters ----------------------------------------------------------------------


def test_a_gguf_file_is_a_model_by_itself(tmp_path: Path):
    path = tmp_path / "m-Q4_0.gguf"
    path.write_bytes(b"GGUF")
    assert locate(path) == Source(tmp_path, "m-Q4_0", None, path)
    assert locate(str(path)).file == path


def test_one_gguf_file_of_a_repository_is_fetched(hub: FakeHub):
    hub.files = ["README.md", "a.gguf", "b.gguf", "c-00001-of-00002.gguf", "c-00002-of-00002.gguf"]
    with pytest.raises(DownloadError, match=r"has 4 GGUF files; choose one, as 'org/name/a\.gguf'"):
        locate("org/name")
    found = locate("org/name/b.gguf")
    assert hub.fetched == ["b.gguf"]
    assert found == Source(found.folder, "org/name", COMMIT, found.folder / "b.gguf")
    with pytest.raises(DownloadError, match=r"no file bb\.gguf; did you mean 'b\.gguf'"):
        locate("org/name/bb.gguf")
    hub.files = ["config.json", "only.gguf"]
    locate("org/other")
    assert hub.fetched == ["only.gguf"]


def test_a_split_gguf_model_is_fetched_whole(hub: FakeHub):
    parts = ["c-00001-of-00002.gguf", "c-00002-of-00002.gguf"]
    hub.files = ["README.md", *parts]
    locate("org/name")
    assert hub.fetched == parts
    hub.files.append("d.gguf")
    assert locate("org/more/c-00001-of-00002.gguf").file is not None
    assert hub.fetched == parts


def test_a_gguf_file_in_the_cache_needs_no_network(cache: Path, hub: FakeHub):
    folder = put(cache, "org/name", ("m.gguf",))
    hub.refusal = no_network()
    assert locate("org/name/m.gguf", local_files_only=True).file == folder / "m.gguf"
    assert locate("org/name", local_files_only=True).folder == folder
    with pytest.raises(DownloadError, match=r"not complete in the cache: no n\.gguf"):
        locate("org/name/n.gguf", local_files_only=True)


def test_safetensors_come_before_gguf(hub: FakeHub):
    hub.files = [*FULL, "m.gguf"]
    locate("org/name")
    assert sorted(hub.fetched) == sorted(FULL)


def test_an_adapter_is_a_folder_or_a_repository(hub: FakeHub, cache: Path, tmp_path: Path):
    (tmp_path / "lora").mkdir()
    assert locate_adapter(tmp_path / "lora").folder == tmp_path / "lora"
    hub.files = ["README.md", "adapter_config.json", "adapter_model.safetensors", "x.bin"]
    found = locate_adapter("org/lora")
    assert hub.fetched == ["adapter_config.json", "adapter_model.safetensors"]
    assert found.model_id == "org/lora"
    assert locate_adapter("org/lora", local_files_only=True).folder == found.folder
    hub.files = [*FULL]
    with pytest.raises(DownloadError, match=r"no adapter_config\.json, so it is no adapter"):
        locate_adapter("org/model")
    with pytest.raises(FileError, match=r"there is no folder .* with an adapter"):
        locate_adapter(tmp_path / "absent")
    put(cache, "org/cached")
    with pytest.raises(DownloadError, match=r"not complete in the cache: no adapter_config\.json"):
        locate_adapter("org/cached", local_files_only=True)
