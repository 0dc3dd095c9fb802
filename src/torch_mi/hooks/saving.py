# SPDX-License-Identifier: MIT OR Apache-2.0
"""Specs as JSON, with their tensors in a safetensors file beside it."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from torch_mi.errors import FileError, InterventionError, MIError
from torch_mi.hooks.coordinates import At, Place, Span, Token
from torch_mi.hooks.interventions import KINDS, Intervention
from torch_mi.hooks.spec import HookSpec, When
from torch_mi.hooks.states import StateKnockoutSpec, StateSteeringSpec
from torch_mi.storage import read_json, read_tensors, write_json, write_tensors

FORMAT = "torch-mi HookSpec 1"

Json = dict[str, object]


def spec_to_dict(spec: HookSpec) -> tuple[Json, dict[str, Tensor]]:
    """The spec as JSON values, and the tensors that they refer to by name."""
    tensors: dict[str, Tensor] = {}
    data: Json = {
        "format": FORMAT,
        "captures": {when: [str(p) for p in places] for when, places in spec.captures.items()},
        "limits": [
            {"when": when, "where": str(place), "at": _at_to_json(at)}
            for (when, place), at in spec.limits.items()
        ],
        "edits": [_edit_to_dict(str(place), edit, tensors) for place, edit in spec.edits],
        "state_knockout": asdict(spec.state_knockout) if spec.state_knockout else None,
        "state_steering": asdict(spec.state_steering) if spec.state_steering else None,
        "allow_unfired": spec.allow_unfired,
    }
    return data, tensors


def spec_from_dict(data: Mapping[str, object], tensors: Mapping[str, Tensor]) -> HookSpec:
    """The spec that `spec_to_dict` took apart."""
    if data.get("format") != FORMAT:
        raise FileError(f"this is not a {FORMAT}: its format is {data.get('format')!r}")
    spec = HookSpec()
    try:
        spec.allow_unfired = bool(data["allow_unfired"])
        for when, places in cast("dict[When, list[str]]", data["captures"]).items():
            limited = {
                str(item["where"]): _at_from_json(cast("Json", item["at"]))
                for item in cast("list[Json]", data.get("limits", []))
                if item["when"] == when
            }
            for place in places:
                spec.capture(place, when=when, at=limited.get(place))
        for edit in cast("list[Json]", data["edits"]):
            spec.intervene(cast("str", edit["where"]), _edit_from_dict(edit, tensors))
        if knockout := cast("Json | None", data["state_knockout"]):
            spec.set_state_knockout(StateKnockoutSpec(**cast("Any", _state(knockout))))
        if steering := cast("Json | None", data["state_steering"]):
            spec.set_state_steering(StateSteeringSpec(**cast("Any", _state(steering))))
    except (KeyError, TypeError, ValueError, AttributeError) as cause:
        raise FileError(f"a saved spec is incomplete or damaged: {cause!r}") from cause
    return spec


def save_spec(spec: HookSpec, path: str | Path) -> Path:
    """Write a spec to `path`, and its tensors to the same name with `.safetensors`."""
    path = Path(path)
    data, tensors = spec_to_dict(spec)
    if tensors:
        write_tensors(_beside(path), tensors)
        data["tensors"] = _beside(path).name
    return write_json(path, data)


def load_spec(path: str | Path) -> HookSpec:
    """Read what `save_spec` wrote."""
    path = Path(path)
    data = read_json(path)
    tensors = read_tensors(_beside(path)) if "tensors" in data else {}
    try:
        return spec_from_dict(data, tensors)
    except MIError as cause:
        raise FileError(f"{path}: {cause}") from cause


def _beside(path: Path) -> Path:
    return path.with_suffix(".safetensors")


def _edit_to_dict(where: str, edit: Intervention, tensors: dict[str, Tensor]) -> Json:
    kind = type(edit).__name__
    if KINDS.get(kind) is not type(edit):
        raise InterventionError(
            f"{edit!r} at {where} holds a function and cannot be saved; {', '.join(KINDS)} can"
        )
    out: Json = {"where": where, "kind": kind}
    for name, value in edit.values().items():
        if isinstance(value, Tensor):
            key = f"{len(tensors)}.{name}"
            tensors[key] = value
            out[name] = {"tensor": key}
        elif value is not None:
            out[name] = value
    if edit.at is not None:
        out["at"] = _at_to_json(edit.at)
    return out


def _edit_from_dict(data: Json, tensors: Mapping[str, Tensor]) -> Intervention:
    kind = KINDS[cast("str", data["kind"])]
    values: Json = {}
    for field in fields(kind):
        if field.name == "at" or field.name not in data:
            continue
        value = data[field.name]
        if isinstance(value, dict):
            value = tensors[cast("dict[str, str]", value)["tensor"]]
        values[field.name] = value
    places = cast("Json | None", data.get("at"))
    return kind(**values, at=None if places is None else _at_from_json(places))


def _at_to_json(at: At) -> Json:
    return {name: _place_to_json(place) for name, place in at.named().items()}


def _at_from_json(data: Json) -> At:
    chosen = {name: _place_from_json(place) for name, place in data.items()}
    return At(**cast("dict[str, Any]", chosen))


def _place_to_json(place: Place) -> object:
    match place:
        case slice():
            return {"slice": [place.start, place.stop, place.step]}
        case Token():
            return {"token": place.text, "nth": place.nth}
        case Span():
            return {"span": place.text, "nth": place.nth, "which": place.which}
        case int():
            return int(place)
        case _:
            return [int(i) for i in place]


def _place_from_json(value: object) -> Place:
    if not isinstance(value, dict):
        return cast("int | list[int]", value)
    data = cast("dict[str, object]", value)
    nth = cast("int | None", data.get("nth"))
    if "slice" in data:
        return slice(*cast("list[int | None]", data["slice"]))
    if "token" in data:
        return Token(cast("str", data["token"]), nth)
    return Span(cast("str", data["span"]), nth, cast("int | None", data["which"]))


def _state(data: Json) -> Json:
    """The fields of a state spec; lists are tuples, and what older files lack is as it was."""
    return {
        name: tuple(cast("list[int]", value)) if isinstance(value, list) else value
        for name, value in data.items()
    }
