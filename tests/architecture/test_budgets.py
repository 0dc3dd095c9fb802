# SPDX-License-Identifier: MIT OR Apache-2.0
"""Small enough to hold: sizes, names and habits, tested like behaviour."""

import ast
import dataclasses
import re
import typing

import torch_mi
from tests.architecture import source
from torch_mi.config.transformer import TransformerConfig
from torch_mi.families import FAMILIES

FILE, FUNCTION, ARGUMENTS, PUBLIC, METHODS, FIELDS = 400, 40, 6, 60, 16, 30


def test_files_are_short() -> None:
    long = [f"{f.name}: {n}" for f in source.files() if (n := f.text.count("\n")) > FILE]
    assert not long


def test_functions_are_short() -> None:
    """The body counts; signature and docstring are for the reader."""
    long = list[str]()
    for file, node in source.nodes():
        if isinstance(node, source.Function) and (body := source.without_docstring(node.body)):
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1
            long += [f"{file.at(node)} {node.name}: {lines}"] if lines > FUNCTION else []
    assert not long


def test_classes_have_few_methods() -> None:
    """Properties are data; what a class can do is counted."""
    large = list[str]()
    for file, node in source.nodes():
        if isinstance(node, ast.ClassDef):
            names = [
                item.name
                for item in node.body
                if isinstance(item, source.Function)
                and not item.name.startswith("_")
                and not {"property", "cached_property"}
                & {ast.unparse(d) for d in item.decorator_list}
            ]
            large += [f"{file.at(node)} {node.name}: {names}"] if len(names) > METHODS else []
    assert not large


def test_public_names_are_few() -> None:
    assert len(torch_mi.__all__) <= PUBLIC


def test_the_public_face_is_what_it_says() -> None:
    assert sorted(torch_mi.__all__) == sorted(set(torch_mi.__all__))
    for name in torch_mi.__all__:
        assert getattr(torch_mi, name) is not None
    init = next(f for f in source.files() if f.name == "__init__.py")
    block = next(
        node
        for node in init.tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    shown = {
        alias.asname or alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert shown == set(torch_mi.__all__) - {"__version__"}
    homes = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    where = typing.cast("dict[str, str]", vars(torch_mi)["_WHERE"])
    assert homes == where


def test_the_config_has_few_fields_and_every_one_is_used() -> None:
    fields = {field.name for field in dataclasses.fields(TransformerConfig)}
    assert len(fields) <= FIELDS
    rules = set[str]().union(*(family.rules for family in FAMILIES.values()))
    assert rules <= fields
    by_hand = {"causal"}  # no checkpoint of a family looks ahead; configs written by hand do
    assert fields - rules == by_hand


def test_no_name_decides_arithmetic() -> None:
    """`families/` is the only place where a family is named, but for the tiny models of each."""
    found = list[str]()
    named = re.compile(rf"\b({'|'.join(FAMILIES)})(?![a-z])", re.IGNORECASE)
    for file in source.files():
        if file.name.startswith("families/") or file.name == "testing.py":
            continue
        texts = {id(n.value) for n in ast.walk(file.tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(file.tree):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in texts
                and named.search(node.value)
            ):
                found.append(f"{file.at(node)}: {node.value!r}")
    assert not found


def test_no_object_is_asked_what_it_is() -> None:
    found = [
        f"{file.at(node)}: {ast.unparse(node)}"
        for file, node in source.nodes()
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and (
            node.func.id == "hasattr"
            or (
                node.func.id in {"getattr", "setattr", "delattr"}
                and isinstance(node.args[1], ast.Constant)
            )
        )
    ]
    assert not found


UNSEEN = (
    "(q @ k.mT).mul_(self.scale)",
    "scores.masked_fill_(~visible, -torch.inf)",
)
"""What is written in place before anyone could have been handed it."""


def test_the_forward_pass_writes_nothing_in_place() -> None:
    """No tensor method that ends in `_`, no augmented assignment to an index, no `out=`."""
    found = list[str]()
    for file, node in source.nodes():
        if not file.name.startswith(("nn/", "backends/")):
            continue
        writes = (
            (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and re.search(r"[a-z0-9]_$", node.func.attr) is not None
            )
            or (isinstance(node, ast.keyword) and node.arg in {"out", "inplace"})
            or (
                isinstance(node, ast.Assign | ast.AugAssign)
                and any(
                    isinstance(target, ast.Subscript) and "masks" not in ast.unparse(target)
                    for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
                )
                and "_on[" not in ast.unparse(node)
            )
        )
        if writes and ast.unparse(node) not in UNSEEN:
            found.append(f"{file.name}: {ast.unparse(node)}")
    assert not found


def test_there_is_one_loop_over_layers() -> None:
    callers = {
        file.name
        for file, node in source.nodes()
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "block"
    }
    assert callers <= {"model.py", "sweeps/execute.py"}
    assert "model.py" in callers


def test_every_file_states_its_licence_and_what_it_is() -> None:
    for file in source.files():
        assert file.text.startswith("# SPDX-License-Identifier: MIT OR Apache-2.0\n"), file.name
        assert ast.get_docstring(file.tree), f"{file.name} has no docstring"
        assert "from __future__ import annotations" not in file.text, file.name


def test_no_broad_excepts_but_where_a_library_raises_nothing_narrower() -> None:
    found = [
        file.at(node)
        for file, node in source.nodes()
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})
        and "from cause" not in ast.unparse(node)
        and not file.name.startswith("cli/")
    ]
    assert not found
