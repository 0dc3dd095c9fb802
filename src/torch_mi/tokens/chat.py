# SPDX-License-Identifier: MIT OR Apache-2.0
"""Chat templates: conversations as the text a chat model was trained on.

Templates come with models, so they run in jinja2's immutable sandbox and see plain data only.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Never

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from torch_mi.errors import TokenizerError


class _Generation(Extension):
    """`{% generation %}`, which marks the assistant's part for training and prints it as it is."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> Never:
    raise TemplateError(message)


def _to_json(value: object, indent: int | None = None, *, ensure_ascii: bool = False) -> str:
    """JSON without HTML escapes, unlike jinja2's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


FUNCTIONS = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
"""What a template may call besides jinja2's own."""


def render(
    template: str,
    messages: Sequence[Mapping[str, object]],
    special_tokens: Mapping[str, str],
    *,
    add_generation_prompt: bool,
) -> str:
    """The text of a conversation under `template`."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    plain: list[dict[str, object]] = json.loads(_to_json([dict(m) for m in messages]))
    try:
        return environment.from_string(template, globals=FUNCTIONS).render(
            special_tokens,
            messages=plain,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
        )
    except TemplateError as cause:
        raise TokenizerError(f"the chat template refuses this conversation: {cause}") from cause
    except (TypeError, ValueError, KeyError, ArithmeticError) as cause:
        raise TokenizerError(f"the chat template fails on this conversation: {cause}") from cause


def conversation(
    messages: str | Sequence[Mapping[str, object]], system_prompt: str | None
) -> list[Mapping[str, object]]:
    """A prompt or a list of messages as messages, with the system's first."""
    turns: list[Mapping[str, object]] = (
        [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    )
    for index, turn in enumerate(turns):
        if "role" not in turn or "content" not in turn:
            raise TokenizerError(
                f"message {index} needs the keys 'role' and 'content', not {sorted(turn)}"
            )
    if system_prompt is None:
        return turns
    if turns and turns[0]["role"] == "system":
        raise TokenizerError("the messages begin with a system message; system_prompt= is another")
    return [{"role": "system", "content": system_prompt}, *turns]
