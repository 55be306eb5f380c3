"""Methods of your own: modules that register what they add when they are imported.

A plugin is named by its file or module name, in one of three ways: ``--plugin`` or an experiment
file's ``plugins``; the environment variable ``LEANSPLIT_PLUGINS`` (separated by ``os.pathsep``);
or an entry point of the group ``leansplit.plugins`` of an installed distribution. Worker
processes inherit the environment, and so load the same plugins.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path

from leansplit.errors import UserError

VARIABLE = "LEANSPLIT_PLUGINS"
GROUP = "leansplit.plugins"


def load_plugin(name: str) -> None:
    """Import a plugin, here and in every process that this one starts.

    Args:
        name: a Python file, or the name of an importable module. The folder of a file is added
            to the import path, so that other processes find it under the file's own name.

    Raises:
        UserError: if there is no such plugin, its name is taken by another module, or importing
            it fails.
    """
    _import(name)
    known = [part for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    absolute = str(Path(name).resolve()) if name.endswith(".py") else name
    if absolute not in known:
        os.environ[VARIABLE] = os.pathsep.join([*known, absolute])


def load_plugins() -> None:
    """Import the plugins of the environment and of installed distributions.

    Raises:
        UserError: as :func:`load_plugin`.
    """
    for name in os.environ.get(VARIABLE, "").split(os.pathsep):
        if name:
            _import(name)
    for point in entry_points(group=GROUP):
        _import(point.value)


def _import(name: str) -> None:
    module = name
    if name.endswith(".py"):
        path = Path(name).resolve()
        if not path.is_file():
            raise UserError(f"there is no plugin file {name!r}; give the path of a Python file")
        module = path.stem
        loaded = sys.modules.get(module)
        if loaded is not None and getattr(loaded, "__file__", None) != str(path):
            raise UserError(
                f"a module named {module!r} is loaded already, so {name!r} cannot be imported "
                "under its own name; rename the file"
            )
        _add_to_import_path(str(path.parent))
    try:
        importlib.import_module(module)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        if error.name != module:
            raise UserError(
                f"plugin {name!r} needs the module {error.name!r}: install it"
            ) from None
        raise UserError(
            f"there is no plugin {name!r}; give a Python file (ending in .py) or the name of an "
            "installed module"
        ) from None
    except Exception as error:
        raise UserError(f"plugin {name!r} failed: {type(error).__name__}: {error}") from error


def _add_to_import_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([*(p for p in inherited if p), folder])
