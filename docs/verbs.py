# SPDX-License-Identifier: MIT OR Apache-2.0
"""The command line's verbs and options, read off the command line itself."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol, cast, runtime_checkable

import typer.main

from torch_mi.cli.main import app

SHARED = 3
"""An option of this many verbs is described once, above them."""


class Parameter(Protocol):
    """What is read of an argument or an option."""

    name: str
    opts: list[str]
    param_type_name: str
    required: bool
    default: object
    help: str | None


class Verb(Protocol):
    """What is read of a verb."""

    hidden: bool
    help: str | None
    params: Sequence[Parameter]


@runtime_checkable
class Group(Protocol):
    """What is read of the whole command, and of a verb that has verbs of its own."""

    commands: "Mapping[str, Verb | Group]"


def verbs() -> Mapping[str, Verb]:
    """Every verb, by name; those of a group by both names."""
    found: dict[str, Verb] = {}
    for name, verb in cast("Group", typer.main.get_command(app)).commands.items():
        inner = {name: verb}
        if isinstance(verb, Group):
            each = cast("Mapping[str, Verb]", verb.commands)
            inner = {f"{name} {part}": each[part] for part in each}
        found |= {name: v for name, v in cast("Mapping[str, Verb]", inner).items() if not v.hidden}
    return found


def plain(text: str | None) -> str:
    """Help without its colours, on one line."""
    return re.sub(r"\[/?\w*\]", "", " ".join((text or "").split()))


def example(verb: Verb) -> str:
    """The command that a verb's help shows."""
    found = re.search(r"\[bold\](torch-mi .*?)\[/\]", verb.help or "", re.DOTALL)
    return "" if found is None else " ".join(found[1].split())


def meaning(verb: Verb) -> str:
    """What a verb does: its help, up to the example."""
    return plain((verb.help or "").split("[bold]torch-mi")[0])


def options(verb: Verb) -> dict[str, Parameter]:
    """A verb's options by their long spelling."""
    return {p.opts[0]: p for p in verb.params if p.param_type_name == "option"}


def shared() -> dict[str, Parameter]:
    """The options that several verbs have, with one meaning."""
    every = [each for verb in verbs().values() for each in options(verb).items()]
    counts = Counter((name, p.help) for name, p in every)
    return {name: p for name, p in every if counts[name, p.help] >= SHARED}


def described(p: Parameter) -> str:
    """An option's row of a list: spellings, help, default."""
    said = re.sub(r"\\\[default: (.*?)\]", r"Default: `\1`.", plain(p.help))
    default = "" if p.default in (None, False) else f" Default: `{p.default}`."
    return f"- {', '.join(f'`{opt}`' for opt in p.opts)}: {said}{default}"


def common() -> str:
    """The options of many verbs."""
    return "\n".join(described(p) for _, p in sorted(shared().items()))


def section(name: str, verb: Verb) -> str:
    """One verb."""
    arguments = [p for p in verb.params if p.param_type_name == "argument"]
    many = shared()
    own = {opt: p for opt, p in options(verb).items() if opt not in many}
    also = [opt for opt in options(verb) if opt in many]
    usage = " ".join(p.name.upper() if p.required else f"[{p.name.upper()}]" for p in arguments)
    parts = [f"### `{name}`", meaning(verb)]
    if example(verb):
        parts.append(f"```console\n$ {example(verb)}\n```")
    lines = [f"- `{p.name.upper()}`: {plain(p.help)}" for p in arguments]
    lines += [described(p) for p in own.values()]
    if lines:
        parts.append("\n".join(lines))
    parts.append(f"`torch-mi {name} {usage}`".replace(" `", "`") + f" also takes {joined(also)}.")
    return "\n\n".join(parts)


def joined(names: Sequence[str]) -> str:
    """Options in a sentence."""
    quoted = [f"`{name}`" for name in names]
    return ", ".join(quoted[:-1]) + f" and {quoted[-1]}" if quoted[1:] else "".join(quoted)


def reference() -> str:
    """Every verb."""
    return "\n\n".join(section(name, verb) for name, verb in verbs().items())
