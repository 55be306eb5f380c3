"""Every configuration key with its default and meaning, read off the configuration itself."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any

from leansplit.federated import OptimizerConfig
from leansplit.server_app.config import RunConfig
from leansplit.zeroth_order import ZerothOrderConfig

_SECTIONS: dict[str, type[Any]] = {
    "client": OptimizerConfig,
    "server": OptimizerConfig,
    "probe": ZerothOrderConfig,
}


def key_rows() -> list[tuple[str, str, str]]:
    """Return (key, default, meaning) for every key of a run."""
    rows: list[tuple[str, str, str]] = []
    for name, default, meaning in _fields(RunConfig):
        if name in _SECTIONS:
            rows += [(f"{name}.{key}", d, doc) for key, d, doc in _fields(_SECTIONS[name])]
        elif name != "method":
            rows.append((name, default, meaning))
    return rows


def _fields(config: type[Any]) -> list[tuple[str, str, str]]:
    meanings = _field_docs(config)
    return [
        (field.name, _default(field), meanings.get(field.name, ""))
        for field in dataclasses.fields(config)
    ]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.name == "lifetime":
        return "by method"
    if field.default is dataclasses.MISSING:
        return "none"
    return str(field.default) if field.default != "" else "by task"


def _field_docs(config: type[Any]) -> dict[str, str]:
    """Return the sentence that stands under each field of a dataclass."""
    [tree] = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(tree, ast.ClassDef)
    docs: dict[str, str] = {}
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        is_field = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if (
            is_field
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            assert isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs
