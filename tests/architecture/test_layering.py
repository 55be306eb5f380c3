"""Imports point downwards only, the core knows no Flower, and modules stay small."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Import package -> its folder; setuptools maps the five onto one package.
LAYERS = {
    "leansplit": ROOT / "src" / "leansplit",
    "leansplit.strategies": ROOT / "strategies",
    "leansplit.clients": ROOT / "clients",
    "leansplit.server_app": ROOT / "server_app",
    "leansplit.experiments": ROOT / "experiments",
}
UPPER = tuple(layer for layer in LAYERS if layer != "leansplit")
FORBIDDEN = {
    "leansplit": ("flwr", "ray", *UPPER),
    "leansplit.strategies": ("leansplit.clients", "leansplit.server_app", "leansplit.experiments"),
    "leansplit.clients": ("leansplit.server_app", "leansplit.experiments"),
    "leansplit.server_app": ("leansplit.experiments",),
    "leansplit.experiments": (),
}
MAX_LINES = 400


def modules():
    """Return (import name, file, layer) of every module."""
    found = []
    for layer, folder in LAYERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((layer, *(part for part in parts if part != "__init__")))
            found.append((name, path, layer))
    return found


MODULES = modules()
every_module = pytest.mark.parametrize(
    ("name", "path", "layer"), MODULES, ids=[name for name, *_ in MODULES]
)


def imported_names(source, package):
    """Return every dotted name that ``source``, a module of ``package``, imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join((above if node.level else []) + ([node.module] if node.module else []))
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in {"importlib.import_module", "import_module", "__import__"}
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            names.add(str(node.args[0].value))
    return names


def within(name, package):
    return name == package or name.startswith(f"{package}.")


@cache
def imports_of(path, name):
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    return imported_names(path.read_text(), package)


@every_module
def test_imports_point_downwards(name, path, layer):
    wrong = [
        imported
        for imported in imports_of(path, name)
        for forbidden in FORBIDDEN[layer]
        if within(imported, forbidden)
    ]
    assert not wrong, f"{name} must not import {sorted(set(wrong))}"


@every_module
def test_only_public_names_of_the_install_are_imported(name, path, layer):
    """``strategies`` and the rest are never installed under their folder's name."""
    folders = {folder.name for layer, folder in LAYERS.items() if layer != "leansplit"} | {"src"}
    wrong = {imported for imported in imports_of(path, name) if imported.split(".")[0] in folders}
    assert not wrong


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("import flwr.app", "leansplit.wire", "flwr.app"),
        ("def f():\n    from flwr import app", "leansplit.wire", "flwr.app"),
        ("from leansplit import clients", "leansplit.wire", "leansplit.clients"),
        ("from ..clients import app", "leansplit.strategies", "leansplit.clients.app"),
        ("from .. import clients", "leansplit.strategies", "leansplit.clients"),
        ("from . import clients", "leansplit", "leansplit.clients"),
        ("import importlib\nimportlib.import_module('ray')", "leansplit", "ray"),
    ],
)
def test_the_check_sees_every_form_of_import(source, package, expected):
    assert expected in imported_names(source, package)


def test_the_check_covers_the_tree():
    layers = [layer for _, _, layer in MODULES]
    assert {layer: layers.count(layer) > 0 for layer in LAYERS} == dict.fromkeys(LAYERS, True)
    assert "leansplit.federated.replica" in {name for name, *_ in MODULES}
    # Something in each upper layer does import Flower or a lower layer, so the check reads them.
    for upper, lower in (
        ("leansplit.strategies", "flwr"),
        ("leansplit.clients", "flwr"),
        ("leansplit.server_app", "leansplit.strategies"),
        ("leansplit.experiments", "leansplit.server_app"),
    ):
        assert any(
            within(imported, lower)
            for name, path, layer in MODULES
            if layer == upper
            for imported in imports_of(path, name)
        )


def test_the_core_imports_where_flower_and_ray_are_missing():
    core = [name for name, _, layer in MODULES if layer == "leansplit"]
    program = f"""
import sys
for blocked in ("flwr", "ray"):
    sys.modules[blocked] = None  # importing it raises ImportError
import importlib
for name in {core!r}:
    importlib.import_module(name)
assert not [m for m in sys.modules if m.startswith(("flwr.", "ray."))]
print(len({core!r}))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(core) > 30


def test_the_block_really_blocks():
    program = "import sys; sys.modules['flwr'] = None; import leansplit.strategies"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0 and "flwr" in done.stderr


@every_module
def test_modules_are_small_and_named_for_what_they_hold(name, path, layer):
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{name} has {lines} lines; split it"
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not vague & set(name.split(".")), f"{name} says nothing"


@every_module
def test_every_module_says_what_it_is_for(name, path, layer):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_architecture_page_lists_modules_once_and_none_that_are_gone():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for folder in ("src/leansplit", "strategies", "clients", "server_app", "experiments"):
        section = page.partition(f"`{folder}/`\n")[2] or page.partition(f"`{folder}`\n")[2]
        rows = [line.split("|")[1] for line in section.partition("\n###")[0].splitlines()
                if line.startswith("| `")]  # fmt: skip
        listed = [name for row in rows for name in row.split("`")[1::2]]
        assert listed, folder
        # A row may leave out the folder that its first module names.
        names = [name for name in listed if name.endswith(".py") and "*" not in name]
        assert len(names) == len(set(names)), folder
        known = {
            path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).rglob("*.py")
        }
        known |= {name.rpartition("/")[2] for name in known}
        assert set(names) <= known, folder
