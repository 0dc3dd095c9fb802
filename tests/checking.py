# SPDX-License-Identifier: MIT OR Apache-2.0
"""What runs the annotations of every function of the package as checks, in the tests only."""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from types import FunctionType
from typing import Any, Self, cast, get_args

import jaxtyping
from beartype import BeartypeConf, FrozenDict, beartype

# Functions are checked one by one, where `Self` has no class to stand for.
check = beartype(conf=BeartypeConf(hint_overrides=FrozenDict({Self: object})))

Function = Callable[..., Any]
jaxtyped = cast("Any", jaxtyping.jaxtyped)


def dimensioned(hint: object) -> bool:
    """Whether an annotation names a dimension."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    parts = cast("tuple[object, ...]", hint) if isinstance(hint, list | tuple) else get_args(hint)
    return any(map(dimensioned, parts))


def checked(fn: Function | None = None, *, typechecker: Any = None) -> Any:
    """As `jaxtyping.jaxtyped`, at a tenth of the time.

    That binds every call to its signature, twice, to word its errors. Here the checker sees the
    function itself, and a function without dimensions has no scope of them.
    """
    if fn is None:
        return partial(checked, typechecker=typechecker)
    hints = inspect.get_annotations(fn).values()
    if not isinstance(fn, FunctionType) or any(isinstance(hint, str) for hint in hints):
        return jaxtyped(fn, typechecker=typechecker)  # of text it checks what is known by then
    typed: Function = typechecker(fn)
    if not any(map(dimensioned, hints)):
        return typed

    @wraps(fn)
    def scoped(*args: Any, **kwargs: Any) -> Any:
        with jaxtyped("context"):
            return typed(*args, **kwargs)

    return scoped
