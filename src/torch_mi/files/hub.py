# SPDX-License-Identifier: MIT OR Apache-2.0
"""From a folder or a Hub id to a local folder that holds a complete model."""

import difflib
import fnmatch
import logging
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch_mi.errors import DownloadError, FileError, did_you_mean
from torch_mi.families.world import NOTE, VOCABULARIES
from torch_mi.files import adapters
from torch_mi.files.checkpoint import (
    BIN_INDEX,
    BIN_SINGLE,
    INDEX,
    PICKLES,
    SINGLE,
    find_weights,
    has_weights,
)

if TYPE_CHECKING:
    import huggingface_hub.errors

SMALL_FILES = [
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("tokenizer.model", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *(VOCABULARIES, NOTE),
]
"""Everything wanted of a repository besides its weights."""

GGUF, SAFE = ".gguf", ".safetensors"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A model on this machine, and where it came from (`revision` is the Hub's commit)."""

    folder: Path
    model_id: str
    revision: str | None = None
    file: Path | None = None
    """The one file that holds all weights, where it was named itself (GGUF, `.pth`)."""


def locate(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    kind: "Kind | None" = None,
) -> Source:
    """The model folder that `source` names: a folder as it is, a Hub id downloaded or cached."""
    if not str(source).strip():
        raise FileError("an empty name names no model; give a folder or a Hub id like 'org/name'")
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise FileError(f"{folder} is a folder, which has no revision {revision!r}")
        return _local(folder)
    if folder.is_file() and folder.suffix in (GGUF, SAFE, *PICKLES):
        return Source(folder.parent, folder.stem, None, folder)
    if folder.is_file():
        raise FileError(f"{folder} is a file; give the folder that holds it")
    if isinstance(source, str) and _is_hub_file(source):
        model_id, _, name = source.rpartition("/")
        found = _from_hub(model_id, _one_file(name), revision, token, local_files_only)
        return replace(found, file=found.folder / name)
    if isinstance(source, Path) or _looks_like_a_path(source):
        raise FileError(f"there is no folder {folder}{_near_folder(folder)}")
    return _from_hub(source, kind or MODEL, revision, token, local_files_only)


def locate_adapter(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> Source:
    """The folder of an adapter: as it is, or a Hub id downloaded or cached."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _local(folder)
    if isinstance(source, Path) or _looks_like_a_path(source) or not source.strip():
        raise FileError(f"there is no folder {folder} with an adapter{_near_folder(folder)}")
    return _from_hub(source, ADAPTER, revision, token, local_files_only)


def download(model_id: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of a Hub model's files, fetched if they are not here yet."""
    return _from_hub(model_id, MODEL, revision, token).folder


def cached_models() -> list[Source]:
    """The models in the Hugging Face cache (the newest `main` of each), by id."""
    from huggingface_hub import constants  # noqa: PLC0415

    found: list[Source] = []
    for repo in sorted(Path(constants.HF_HUB_CACHE).expanduser().glob("models--*")):
        ref = repo / "refs" / "main"
        if not ref.is_file():
            continue
        commit = ref.read_text(encoding="utf-8").strip()
        folder = repo / "snapshots" / commit
        if (folder / "config.json").is_file():
            found.append(Source(folder, _id_of(repo), commit))
    return sorted(found, key=lambda model: model.model_id)


def _id_of(repo: Path) -> str:
    return repo.name.removeprefix("models--").replace("--", "/")


def _local(folder: Path) -> Source:
    """A folder as a source; a snapshot in the Hub's cache keeps its id and commit."""
    whole = folder.resolve()
    repo = whole.parent.parent
    if whole.parent.name == "snapshots" and repo.name.startswith("models--"):
        return Source(folder, _id_of(repo), whole.name)
    return Source(folder, whole.name)


def _looks_like_a_path(source: str) -> bool:
    separators = source.count("/") + (source.count(os.sep) if os.sep != "/" else 0)
    return source.startswith((".", "/", "~")) or "\\" in source or separators > 1


def _near_folder(folder: Path) -> str:
    """`; did you mean ...?` for the nearest folder beside the one that is absent."""
    parent = folder.parent
    if not parent.is_dir():
        return f", nor {parent}"
    names = {p.name.lower(): p.name for p in parent.iterdir() if p.is_dir()}
    near = difflib.get_close_matches(folder.name.lower(), list(names), n=1)
    return did_you_mean(str(folder), [str(parent / names[near[0]])]) if near else ""


def _check_id(model_id: str) -> None:
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415
    from huggingface_hub.utils import validate_repo_id  # noqa: PLC0415

    try:
        validate_repo_id(model_id)
    except HFValidationError as cause:
        raise DownloadError(
            f"{model_id!r} is neither a folder here nor a Hub id; a Hub id looks like 'org/name'"
        ) from cause


def _is_hub_file(source: str) -> bool:
    """Whether this names one file of a repository, as `org/name/file.gguf` or `….pth`."""
    return source.endswith((GGUF, *PICKLES)) and source.count("/") == 2 and source[0] not in "./~"  # noqa: PLR2004


@dataclass(frozen=True)
class Kind:
    """What is fetched of a repository, and how it is found to be complete."""

    wanted: Callable[[str, Sequence[str]], list[str]]
    check: Callable[[Path], object]


def _from_hub(
    model_id: str,
    kind: Kind,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,  # noqa: FBT001, FBT002 - private
) -> Source:
    """A Hub repository, brought here; what is complete in the cache serves without a network."""
    from huggingface_hub import HfApi  # noqa: PLC0415

    _check_id(model_id)
    if local_files_only:
        return _cached(model_id, kind, revision)
    try:
        with hub_errors(model_id, revision):
            info = HfApi().model_info(model_id, revision=revision, token=token)
            files = [file.rfilename for file in info.siblings or []]
            folder = _snapshot(model_id, revision, kind.wanted(model_id, files), token)
    except UnreachableError as cause:
        return _cached(model_id, kind, revision, cause)
    return Source(folder, model_id, folder.name)


def _snapshot(
    model_id: str,
    revision: str | None,
    wanted: list[str],
    token: str | None = None,
    *,
    local: bool = False,
) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415 # pyright: ignore[reportUnknownVariableType]

    return Path(
        snapshot_download(
            model_id,
            revision=revision,
            token=token,
            allow_patterns=wanted,
            local_files_only=local,
        )
    )


class UnreachableError(DownloadError):
    """The Hub did not answer at all."""


def _cached(
    model_id: str, kind: Kind, revision: str | None, why: UnreachableError | None = None
) -> Source:
    """A complete repository from the cache, without any network."""
    from huggingface_hub.errors import LocalEntryNotFoundError  # noqa: PLC0415

    name = model_id if revision is None else f"{model_id} at revision {revision}"
    reason = f"{why}, and " if why else ""
    try:
        folder = _snapshot(model_id, revision, ["config.json"], local=True)
        kind.check(folder)
    except LocalEntryNotFoundError as cause:
        raise DownloadError(
            f"{reason}{name} is not in the cache{_near_cached(model_id)}; {_remedy(why)}"
        ) from cause
    except FileError as cause:
        raise DownloadError(f"{reason}{name} is not complete in the cache: {cause}") from cause
    if why:
        log.warning("%s; using the copy in the cache (%s)", why, folder.name)
    return Source(folder, model_id, folder.name)


def _near_cached(model_id: str) -> str:
    return did_you_mean(model_id, [model.model_id for model in cached_models()])


def _remedy(why: UnreachableError | None) -> str:
    if why is None:
        return "leave local_files_only out to download it, or give a folder"
    return (
        "download it where there is a network (torch-mi download), then give its folder here, "
        "or copy the cache and use local_files_only=True"
    )


def _wanted(model_id: str, files: Sequence[str]) -> list[str]:
    """The files of a repository that a model is built from, weights in one format only."""
    whole = [name for name in _top(files) if name.endswith(GGUF)]
    if whole and not {INDEX, SINGLE, BIN_INDEX, BIN_SINGLE} & set(files):
        return _one_gguf(model_id, whole)
    if "config.json" not in files:
        raise DownloadError(f"{model_id} has no config.json, so it is not a model this can load")
    small = [name for wanted in SMALL_FILES for name in fnmatch.filter(_top(files), wanted)]
    if INDEX in files:
        shards = fnmatch.filter(files, "*-of-*.safetensors") or fnmatch.filter(
            files, "*.safetensors"
        )
        return [*small, INDEX, *_top(shards)]
    if SINGLE in files:
        return [*small, SINGLE]
    if BIN_INDEX in files:
        return [*small, BIN_INDEX, *_top(fnmatch.filter(files, "pytorch_model*.bin"))]
    if BIN_SINGLE in files:
        return [*small, BIN_SINGLE]
    raise DownloadError(
        f"{model_id} has no weights this can read ({SINGLE} or {BIN_SINGLE}); "
        f"it has {', '.join(sorted(files)[:12])}"
    )


def _one_gguf(model_id: str, files: list[str]) -> list[str]:
    """The only GGUF file, or all the parts of the only split one."""
    stems = {name.partition("-00")[0] if "-of-" in name else name for name in files}
    if len(stems) > 1:
        raise DownloadError(
            f"{model_id} has {len(files)} GGUF files; choose one, as '{model_id}/{files[0]}': "
            f"{', '.join(sorted(files))}"
        )
    return files


def _adapter_files(model_id: str, files: Sequence[str]) -> list[str]:
    """The files of an adapter's repository."""
    if adapters.SETTINGS not in files:
        raise DownloadError(f"{model_id} has no {adapters.SETTINGS}, so it is no adapter")
    weights = [name for name in (adapters.SINGLE, adapters.BIN) if name in files][:1]
    return [adapters.SETTINGS, *weights]


def _one_file(name: str) -> "Kind":
    """One file of a repository, and the other parts of it if it was split."""
    stem = name.partition("-00001-of-")[0] if "-00001-of-" in name else name

    def wanted(model_id: str, files: Sequence[str]) -> list[str]:
        found = [each for each in files if each == name or each.startswith(f"{stem}-0")]
        if name not in found:
            near = did_you_mean(name, [each for each in files if each.endswith(GGUF)])
            raise DownloadError(f"{model_id} has no file {name}{near}")
        return found

    return Kind(wanted, lambda folder: _existing(folder / name))


def _existing(path: Path) -> None:
    if not path.is_file():
        raise FileError(f"no {path.name}")


def _check_model(folder: Path) -> None:
    """Whether a cached folder holds a whole model."""
    if any(folder.glob(f"*{GGUF}")) and not has_weights(folder):
        return
    _existing(folder / "config.json")
    find_weights(folder)


def _config_alone(*_: object) -> list[str]:
    """No weights."""
    return ["config.json"]


MODEL = Kind(_wanted, _check_model)
CONFIG = Kind(_config_alone, lambda folder: _existing(folder / "config.json"))
ADAPTER = Kind(_adapter_files, lambda folder: _existing(folder / adapters.SETTINGS))


def _top(names: Sequence[str]) -> list[str]:
    """The names that lie in no subfolder."""
    return [name for name in names if "/" not in name]


@contextmanager
def hub_errors(model_id: str, revision: str | None) -> Generator[None]:
    """What the Hub's client raises, as errors that say what to do."""
    from huggingface_hub.errors import (  # noqa: PLC0415
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    # the root error of whichever HTTP library this version of the client is built on
    transport = cast("type[Exception]", HfHubHTTPError.__bases__[0])
    try:
        yield
    except HfHubHTTPError as cause:
        raise DownloadError(_refusal(cause, model_id, revision)) from cause
    except OfflineModeIsEnabled as cause:
        raise UnreachableError("HF_HUB_OFFLINE forbids the network") from cause
    except (transport, LocalEntryNotFoundError, ConnectionError) as cause:
        raise UnreachableError(f"the Hub cannot be reached ({cause})") from cause
    except OSError as cause:
        if cause.errno is None:  # how older clients say that there is no network
            raise UnreachableError(f"the Hub cannot be reached ({cause})") from cause
        raise DownloadError(f"{model_id} could not be downloaded: {cause}") from cause


def _refusal(
    cause: "huggingface_hub.errors.HfHubHTTPError", model_id: str, revision: str | None
) -> str:
    """What an answer of the Hub other than "here you are" means."""
    from huggingface_hub import errors  # noqa: PLC0415

    status = cause.response.status_code
    if isinstance(cause, errors.RevisionNotFoundError):
        return f"{model_id} has no revision {revision!r} on the Hub"
    if isinstance(cause, errors.GatedRepoError) or status == HTTPStatus.FORBIDDEN:
        return _gated(model_id)
    if isinstance(cause, errors.RepositoryNotFoundError):
        return (
            f"there is no folder {model_id!r} here, and no such model on the Hub"
            f"{_near_cached(model_id)} (if it is private, set HF_TOKEN to a token that may read it)"
        )
    if status == HTTPStatus.UNAUTHORIZED:
        return _gated(model_id)
    return (
        f"the Hub answered {int(status)} for {model_id}: {cause}; what is in the cache can be had "
        "with local_files_only=True"
    )


def _gated(model_id: str) -> str:
    return (
        f"the Hub does not let you have {model_id}: accept its terms at "
        f"https://huggingface.co/{model_id}, make a token at "
        "https://huggingface.co/settings/tokens, and set the environment variable HF_TOKEN to it "
        "(or pass token=...)"
    )
