"""What a run ran on: versions, commit and hardware, without host names or paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = ("leansplit", "torch", "flwr", "ray", "numpy", "flwr-datasets")


def collect_environment() -> tuple[dict[str, str], str | None, dict[str, Any]]:
    """Return (versions, commit, hardware) of this process; never raises.

    Host names and paths are left out on purpose: results are published.
    """
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except Exception:  # absent or broken metadata: the run matters more than this line
            versions[package] = "not installed"
    hardware: dict[str, Any] = dict.fromkeys(["cpu_model", "cores", "memory_gb", "gpu"])
    hardware["platform"] = f"{platform.system()} {platform.machine()}"
    for key, read in (("cpu_model", _cpu_model), ("cores", _cores), ("gpu", _gpu)):
        with suppress(Exception):
            hardware[key] = read()
    with suppress(Exception):
        hardware["memory_gb"] = round(psutil.virtual_memory().total / 1e9, 1)
    commit: str | None = None
    with suppress(Exception):
        commit = _git_commit(Path(__file__).resolve())
    return versions, commit, hardware


def _cpu_model() -> str | None:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None


def _cores() -> int | None:
    """Logical cores this process may use: fewer than the machine has under taskset or Slurm."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity else os.cpu_count()


def _gpu() -> str | None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a broken driver warns; it is then simply no GPU
        if not torch.cuda.is_available():
            return None
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def _git_commit(source: Path) -> str | None:
    """Commit of the checkout that tracks ``source``, None if there is none.

    It must be tracked: a package installed inside another project is not that project's commit.
    """
    environment = {key: v for key, v in os.environ.items() if not key.startswith("GIT_")}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=source.parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", source.name)
        head = git("rev-parse", "HEAD")
        # Only files that can change what runs: a results folder in the checkout is not "dirty".
        changed = git("status", "--porcelain", "--", ":/*.py", ":/*.toml")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}+dirty" if changed else head
