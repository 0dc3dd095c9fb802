# SPDX-License-Identifier: MIT OR Apache-2.0
"""A model on the Hub, looked at from afar: its config, and the headers of its weight files.

A few kilobytes are fetched of each file, never a weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from torch_mi.errors import DownloadError, FileError
from torch_mi.files.checkpoint import DTYPES, INDEX, SINGLE
from torch_mi.files.hub import hub_errors
from torch_mi.files.weights import Weights
from torch_mi.storage import read_json


@dataclass(frozen=True)
class Headers(Weights):
    """What the headers of weight files say; the weights themselves are not here."""

    where: str
    _shapes: Mapping[str, tuple[int, ...]]
    _dtypes: Mapping[str, torch.dtype]

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return MappingProxyType(dict(self._shapes))

    def dtypes(self) -> Mapping[str, torch.dtype]:
        return MappingProxyType(dict(self._dtypes))

    def tensor(self, name: str) -> Tensor:
        raise FileError(f"of {self.where} only the headers were read, not {name!r}")

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class Remote:
    """A repository's config and headers."""

    model_id: str
    revision: str | None
    """Its commit."""
    config: Mapping[str, object]
    weights: Headers


def is_remote(source: str) -> bool:
    """Whether this can only be the id of a model on the Hub."""
    pathlike = source.startswith((".", "/", "~")) or "\\" in source or source.count("/") > 1
    return bool(source.strip()) and not pathlike and not Path(source).exists()


def look(model_id: str, *, revision: str | None = None, token: str | None = None) -> Remote:
    """The config and the headers of a model on the Hub."""
    from huggingface_hub import (  # noqa: PLC0415
        HfApi,
        hf_hub_download,  # pyright: ignore[reportUnknownVariableType]
    )
    from huggingface_hub.errors import (  # noqa: PLC0415
        NotASafetensorsRepoError,
        SafetensorsParsingError,
    )

    with hub_errors(model_id, revision):
        api = HfApi()
        info = api.model_info(model_id, revision=revision, token=token)
        files = [file.rfilename for file in info.siblings or []]
        config = {}
        if "config.json" in files:
            path = hf_hub_download(model_id, "config.json", revision=info.sha, token=token)
            config = read_json(Path(path))
        if not {INDEX, SINGLE} & set(files):
            raise DownloadError(
                f"{model_id} has no safetensors whose headers could be read; it has "
                f"{', '.join(sorted(files)[:12]) or 'no files'}; torch-mi download fetches "
                "weights of other formats"
            )
        try:
            found = api.get_safetensors_metadata(model_id, revision=info.sha, token=token)
        except (NotASafetensorsRepoError, SafetensorsParsingError) as cause:
            raise FileError(f"the headers of {model_id} cannot be read: {cause}") from cause
    if not config:
        raise DownloadError(f"{model_id} has no config.json, so it is not a model this can load")
    tensors = {n: t for file in found.files_metadata.values() for n, t in file.tensors.items()}
    unknown = sorted({t.dtype for t in tensors.values()} - set(DTYPES))
    if unknown:
        raise FileError(f"{model_id} stores tensors as {unknown[0]}, which cannot be read here")
    headers = Headers(
        model_id,
        {name: tuple(t.shape) for name, t in tensors.items()},
        {name: DTYPES[t.dtype] for name, t in tensors.items()},
    )
    return Remote(model_id, info.sha, config, headers)
