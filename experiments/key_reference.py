"""Every configuration key with its default and meaning, read off the configuration itself."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Mapping, Set
from typing import Any

from leansplit.errors import require_choice
from leansplit.federated import OptimizerConfig, PrivacyConfig, RobustConfig
from leansplit.server_app.config import NO_KEYS, RUN_SECTIONS, RunConfig
from leansplit.server_app.methods import METHODS, is_used
from leansplit.server_app.methods.spec import SECTIONS
from leansplit.zeroth_order import ZerothOrderConfig

_SECTION_TYPES: dict[str, Any] = {
    "client": OptimizerConfig,
    "server": OptimizerConfig,
    "probe": ZerothOrderConfig,
    "robust": RobustConfig,
    "privacy": PrivacyConfig,
    **RUN_SECTIONS,
}


def key_rows(method: str | None = None) -> list[tuple[str, str, str]]:
    """Return (key, default, meaning) for all keys, or those that ``method`` takes.

    Without a method those of all runs come first, then methods' own, each with who has it.

    Raises:
        UserError: if there is no such method.
    """
    if method is None:
        shared = _shared_rows(_SECTION_TYPES)
        return [*shared, *_method_rows({key for key, _, _ in shared})]
    spec = METHODS[require_choice("method", method, METHODS)]
    used = {name: spec.default(SECTIONS[name]) for name in SECTIONS if is_used(method, name)}
    used |= RUN_SECTIONS
    rows = [row for row in _shared_rows(used) if is_used(method, row[0])]
    defaults = {name: spec.default(name) for name in spec.options}
    meanings = {k: v for base in spec.config_type.__mro__ for k, v in _field_docs(base).items()}
    for name, default in defaults.items():
        if dataclasses.is_dataclass(default):
            rows += [(f"{name}.{key}", d, doc) for key, d, doc in _fields(default)]
        else:
            rows.append((name, str(default), meanings.get(name, "")))
    return rows


def _method_rows(shared: Set[str]) -> list[tuple[str, str, str]]:
    """Return the keys that only some methods have."""
    defaults: dict[str, dict[str, str]] = {}
    meanings: dict[str, str] = {}
    for method in METHODS:
        for key, default, meaning in key_rows(method):
            if key not in shared:
                defaults.setdefault(key, {})[method] = default
                meanings.setdefault(key, meaning)
    return [
        (
            key,
            next(iter(of.values())) if len(set(of.values())) == 1 else "by method",
            f"{meanings[key]} [{', '.join(of)}]".lstrip(),
        )
        for key, of in defaults.items()
    ]


def _shared_rows(sections: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for name, default, meaning in _fields(RunConfig):
        if name in sections:
            rows += [(f"{name}.{key}", d, doc) for key, d, doc in _fields(sections[name])]
        elif name not in (*_SECTION_TYPES, *NO_KEYS):
            rows.append((name, default, meaning))
    return rows


def _fields(config: Any) -> list[tuple[str, str, str]]:
    """Return (field, default, meaning) of a dataclass or of one of its instances."""
    kind = config if isinstance(config, type) else type(config)
    meanings = _field_docs(kind)
    return [
        (
            field.name,
            _default(field) if kind is config else str(getattr(config, field.name)),
            meanings.get(field.name, ""),
        )
        for field in dataclasses.fields(config)
    ]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.name == "lifetime":
        return "by method"
    if field.name in ("model", "cut_layer"):
        return "by task"
    if field.default is dataclasses.MISSING or field.default == "":
        return "none"
    return str(field.default)


def _field_docs(config: type[Any]) -> dict[str, str]:
    """Return the sentence that stands under each field of a dataclass."""
    if not dataclasses.is_dataclass(config):
        return {}
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
