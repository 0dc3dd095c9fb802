# SPDX-License-Identifier: MIT OR Apache-2.0
"""Whether a model can be loaded here, found out from its config and the headers of its weights."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from torch_mi.errors import ConfigError, MIError
from torch_mi.families.report import complaint, diagnose
from torch_mi.files import hub, remote
from torch_mi.files.opening import open_files
from torch_mi.files.quantised import KEY, dequantised
from torch_mi.loading import PACKAGED, Request, believable_shapes, locate
from torch_mi.results import Result

FORM = "torch-mi compatibility 1"


@dataclass(frozen=True, repr=False)
class CompatibilityReport(Result):
    """What a checkpoint is here, or everything that is in the way."""

    form = FORM

    model_id: str
    revision: str | None
    model_type: str
    read_like: str
    """The family whose rules read it; empty if there is none."""
    inferred: bool
    """Whether `model_type` is unknown here, and the model was made out from keys and names."""
    naming: str
    """The family whose names its tensors have."""
    parameters: int
    """Numbers in the checkpoint's tensors, as far as they were seen."""
    issues: tuple[str, ...]
    assumptions: tuple[str, ...]
    """What shows in neither keys nor tensors, and how it was decided."""

    @property
    def compatible(self) -> bool:
        """Whether the model would load."""
        return not self.issues

    def into_result(self) -> None:
        """Nothing if the model would load, else an error that lists every issue."""
        if self.issues:
            raise ConfigError(complaint(self.model_type, self.issues))

    def to_dict(self) -> dict[str, object]:
        lists = {"issues": list(self.issues), "assumptions": list(self.assumptions)}
        return {"format": FORM, "compatible": self.compatible, **asdict(self), **lists}

    @classmethod
    def _build(cls, data: dict[str, Any]) -> Self:
        names = [name for name in cls.__dataclass_fields__ if name not in ("issues", "assumptions")]
        return cls(
            **{name: data[name] for name in names},
            issues=tuple(data["issues"]),
            assumptions=tuple(data["assumptions"]),
        )


def check(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> CompatibilityReport:
    """Whether a folder, a GGUF file or a model on the Hub can be loaded; no weights are fetched."""
    request = Request(revision, token, local_files_only)
    if (
        isinstance(source, str)
        and not local_files_only
        and source not in PACKAGED
        and remote.is_remote(source)
    ):
        return _afar(source, request)
    return _here(locate(source, request))


def _here(found: hub.Source) -> CompatibilityReport:
    """The report on a model on this machine."""
    files = open_files(found)
    shapes, problem = dict[str, tuple[int, ...]](), ""
    try:
        with files.open() as weights:
            shapes = dict(weights.shapes())
    except MIError as error:
        problem = str(error)
    return _report(found.model_id, found.revision, files.config, shapes, problem)


def _afar(model_id: str, request: Request) -> CompatibilityReport:
    """The report on a model on the Hub, or on its copy in the cache if the Hub is away."""
    try:
        seen = remote.look(model_id, revision=request.revision, token=request.token)
    except hub.UnreachableError:
        return _here(locate(model_id, replace(request, local_files_only=True)))
    shapes, problem = dict[str, tuple[int, ...]](), ""
    try:
        shapes = dict(dequantised(seen.weights, seen.config).shapes())
    except MIError as error:
        problem = str(error)
    config = {key: value for key, value in seen.config.items() if key != KEY}
    return _report(model_id, seen.revision, config, shapes, problem)


def _report(
    model_id: str,
    revision: str | None,
    config: Mapping[str, object],
    shapes: Mapping[str, tuple[int, ...]],
    problem: str,
) -> CompatibilityReport:
    found = diagnose(config, shapes, _nothing if problem else believable_shapes)
    return CompatibilityReport(
        model_id,
        revision,
        found.model_type,
        found.read_like,
        found.inferred,
        found.naming,
        sum(math.prod(shape) for shape in shapes.values()),
        tuple(dict.fromkeys([*([problem] if problem else []), *found.issues])),
        found.assumptions if not found.issues else (),
    )


def _nothing(_config: object, _shapes: object) -> Mapping[str, tuple[int, ...]]:
    """No parameters: of a checkpoint that cannot be read, the config alone is judged."""
    return {}
