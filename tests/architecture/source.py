# SPDX-License-Identifier: MIT OR Apache-2.0
"""The package's own source, parsed."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "torch_mi"

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, eq=False)
class File:
    """One source file."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        return self.path.relative_to(SRC).as_posix()

    def at(self, node: ast.expr | ast.stmt | ast.ExceptHandler) -> str:
        return f"{self.name}:{node.lineno}"


@cache
def files() -> tuple[File, ...]:
    paths = sorted(SRC.rglob("*.py"))
    return tuple(File(p, p.read_text(), ast.parse(p.read_text())) for p in paths)


def nodes() -> Iterator[tuple[File, ast.AST]]:
    return ((file, node) for file in files() for node in ast.walk(file.tree))


def without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    return body[1:] if is_text(body[0]) else body


def is_text(node: ast.stmt) -> bool:
    """A string that stands alone: a docstring, or one after a field."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
