"""Plugins: found by file or module name, inherited by other processes, clear when wrong."""

import os
import subprocess
import sys

import pytest

from leansplit.errors import UserError
from leansplit.plugins import VARIABLE, load_plugin, load_plugins


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("plugin_"):
            del sys.modules[name]


def test_a_file_is_imported_once_and_by_processes_started_later(tmp_path):
    (tmp_path / "plugin_a.py").write_text("print('loaded')\n")
    load_plugin(str(tmp_path / "plugin_a.py"))
    load_plugin(str(tmp_path / "plugin_a.py"))
    assert os.environ[VARIABLE] == str(tmp_path / "plugin_a.py")
    script = "import leansplit.plugins as p; p.load_plugins(); import plugin_a; print('found')"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["loaded", "found"]


def test_modules_are_loaded_by_name(tmp_path, monkeypatch):
    (tmp_path / "plugin_b.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(VARIABLE, "plugin_b")
    load_plugins()
    assert sys.modules["plugin_b"].value == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no plugin file"),
        ("import plugin_that_is_not_there", "needs the module 'plugin_that_is_not_there'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def (", "SyntaxError"),
    ],
)
def test_what_is_wrong_is_said(content, message, tmp_path):
    path = tmp_path / "plugin_c.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_plugin(str(path))


def test_a_file_may_not_hide_behind_a_loaded_module(tmp_path):
    (tmp_path / "json.py").write_text("")
    with pytest.raises(UserError, match="rename the file"):
        load_plugin(str(tmp_path / "json.py"))


def test_an_unknown_module_is_said():
    with pytest.raises(UserError, match="no plugin 'plugin_nowhere'"):
        load_plugin("plugin_nowhere")
