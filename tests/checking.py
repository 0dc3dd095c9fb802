# SPDX-License-Identifier: MIT OR Apache-2.0
"""What runs the annotations of every function of the package as checks, in the tests only."""

from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import partial, wraps
from itertools import count
from types import FunctionType
from typing import Any, Self, cast, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, FrozenDict, beartype

# Functions are checked one by one, where `Self` has no class to stand for.
check = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({Self: object})))

Function = Callable[..., Any]
jaxtyped = cast("Any", jaxtyping.jaxtyped)
ALWAYS, EVERY = 50, 25
"""Calls of a function that are all looked at, and the one in so many of those that follow."""


def dimensioned(hint: object) -> bool:
    """Whether an annotation names a dimension."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    parts = cast("tuple[object, ...]", hint) if isinstance(hint, list | tuple) else get_args(hint)
    return any(map(dimensioned, parts))


def checked(fn: Function | None = None, *, typechecker: Any = None) -> Any:
    """As `jaxtyping.jaxtyped`, at a hundredth of the time.

    That binds every call to its signature, twice, to word its errors. Here the checker sees the
    function itself; a function without dimensions has no scope of them, and one that has some is
    looked at in its first calls and in every so many later ones.
    """
    if fn is None:
        return partial(checked, typechecker=typechecker)
    if isinstance(fn, type) and is_dataclass(fn) and "__init__" in vars(fn):
        made = {x.name for x in fields(fn) if x.default_factory is not MISSING}
        begin = fn.__init__
        begin.__annotations__ = {k: v for k, v in begin.__annotations__.items() if k not in made}
        fn.__init__ = checked(begin, typechecker=typechecker)
        return fn
    if not isinstance(fn, FunctionType):
        return jaxtyped(fn, typechecker=typechecker)
    hints = {name: resolved(hint, fn) for name, hint in fn.__annotations__.items()}
    written, fn.__annotations__ = fn.__annotations__, hints
    typed: Function = typechecker(fn)
    fn.__annotations__ = written
    if not any(map(dimensioned, hints.values())):
        return typed

    calls = count()

    @wraps(fn)
    def scoped(*args: Any, **kwargs: Any) -> Any:
        call = next(calls)
        if call > ALWAYS and call % EVERY:
            return fn(*args, **kwargs)
        with jaxtyped("context"):
            return typed(*args, **kwargs)

    return scoped


def resolved(hint: object, fn: FunctionType) -> object:
    """An annotation without text in it; anything, where what that names is not imported."""

    def of(value: object) -> None:
        """What carries the annotation."""

    of.__annotations__ = {"value": hint}
    try:
        return get_type_hints(of, fn.__globals__, include_extras=True)["value"]
    except (NameError, TypeError):
        return object
