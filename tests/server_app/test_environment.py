"""What a run says of where it ran: versions and hardware, neither host nor paths."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest

from leansplit.server_app import environment
from leansplit.server_app.environment import collect_environment


def test_environment_names_versions_but_neither_host_nor_paths() -> None:
    versions, commit, hardware = collect_environment()
    assert set(versions) == {"python", *environment._PACKAGES}
    assert versions["python"] == platform.python_version()
    assert set(hardware) == {"cpu_model", "cores", "memory_gb", "gpu", "platform"}
    assert commit is None or len(commit.removesuffix("+dirty")) == 40
    text = json.dumps([versions, commit, hardware])
    assert str(Path.home()) + "/" not in text
    assert str(Path(environment.__file__).parent) not in text
    if len(platform.node()) > 3:
        assert platform.node() not in text


def test_environment_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("broken")

    for name in ("_cpu_model", "_cores", "_gpu", "_git_commit"):
        monkeypatch.setattr(environment, name, broken)
    monkeypatch.setattr("psutil.virtual_memory", broken)
    monkeypatch.setattr("importlib.metadata.version", broken)
    versions, commit, hardware = collect_environment()
    assert versions["torch"] == "not installed"
    assert commit is None
    assert hardware["cpu_model"] is hardware["memory_gb"] is None


def test_commit_of_a_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
        subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    source = tmp_path / "module.py"
    source.write_text("x = 1\n")
    assert environment._git_commit(source) is None  # no checkout
    git("init")
    assert environment._git_commit(source) is None  # a checkout, but not of this file
    git("add", "module.py")
    git("commit", "-m", "first", "--no-gpg-sign")
    commit = environment._git_commit(source)
    assert commit is not None and len(commit) == 40
    (tmp_path / "summary.csv").write_text("")  # results do not make a checkout dirty
    assert environment._git_commit(source) == commit
    source.write_text("x = 2\n")
    assert environment._git_commit(source) == commit + "+dirty"
