"""A SuperLink and SuperNodes on this machine, as processes that end with a block."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import psutil

from leansplit.errors import RunFailedError, UserError
from leansplit.experiments.credentials import LOOPBACK, Authority, make_node_key
from leansplit.server_app.interruption import finish_first

SUPERLINK, CONNECTION = "superlink", "loopback"
_HOST = "127.0.0.1"
_INSECURE = ["--insecure"]
_MARK = "LEANSPLIT_LOOPBACK"
_START_S, _STOP_S, _RESTART_S, _LOOK_S = 120.0, 10.0, 3.0, 0.2
_TASK_POLL_S = "0.25"  # every helper asks so often, and each time costs two processes some ms
_COMMANDS = ("flwr", "flower-superlink", "flower-supernode", "flower-superexec")
_REFUSED = "Failed to activate SuperNode"


class Loopback:
    """Start a SuperLink with its block, SuperNodes when asked; stop every process at its end.

    Each process passes a mark on in its environment, so that whatever it starts is stopped with
    it; its output is in ``<folder>/logs``.

    Args:
        folder: absolute; created, and must be empty.
        tls: encrypted connections and authenticated SuperNodes, by keys in ``<folder>/keys``.
    """

    def __init__(self, folder: Path, *, tls: bool) -> None:
        """Prepare the folder.

        Raises:
            UserError: if it cannot be used, or Flower's commands are not installed here.
        """
        self.folder = _new_folder(folder)
        self._commands = _find_commands()
        self._authority = Authority.make(folder / "keys") if tls else None
        self._tls = self._authority.certify(SUPERLINK, LOOPBACK) if self._authority else None
        self._port = free_port()
        self._id = uuid4().hex
        self._environment = self._write_environment()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._nodes: dict[str, list[str]] = {}

    def __enter__(self) -> Loopback:
        """Start the SuperLink and wait until it takes connections."""
        try:
            self._start(
                SUPERLINK,
                *(self._commands["flower-superlink"], "--host", _HOST, "--port", str(self._port)),
                "--disable-runtime-dependency-installation",
                *([*self._tls.arguments(), "--enable-supernode-auth"] if self._tls else _INSECURE),
            )
            self._wait_for_superlink()
        except BaseException:
            self._stop_all()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop everything."""
        self._stop_all()

    def add_node(
        self, name: str, config: Mapping[str, int | str], *, registered: bool = True
    ) -> None:
        """Start a SuperNode; under TLS with a key, which the SuperLink need not know."""
        if self._authority is None:
            security = _INSECURE
        else:
            key = make_node_key(self.folder / "keys", name)
            if registered:
                self.flwr("supernode", "register", str(key.public), CONNECTION)
            tls = self._authority.certify(name, LOOPBACK)
            security = [
                *("--root-certificates", str(tls.ca)),
                *("--auth-supernode-private-key", str(key.private)),
                *tls.arguments(),
            ]
        written = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        self._nodes[name] = [
            self._commands["flower-supernode"],
            *("--superlink", f"{_HOST}:{self._port}", "--node-config", written),
            *security,
        ]
        self.start_node(name)

    def start_node(self, name: str) -> None:
        """Start a SuperNode that was added, again if it has ended.

        One that ends by itself leaves a helper process, which is stopped first.
        """
        if name in self._processes:
            self.end_node(name, signal.SIGTERM)
        self._start(name, *self._nodes[name], "--port", str(free_port()))

    def end_node(self, name: str, how: signal.Signals) -> None:
        """Send a signal to a SuperNode and all that it started, and wait for their end."""
        self._stop(self._mark(name), how)

    def end_process(self, name: str, command: str, how: signal.Signals, patience_s: float) -> None:
        """Send a signal to what a SuperLink or SuperNode runs as ``command``, and wait for its end.

        Raises:
            RunFailedError: if there is no such process, or it does not end in ``patience_s``.
        """
        found = [p for p in _marked(self._mark(name)) if command in _command(p)]
        if not found:
            raise RunFailedError(f"no process of {name} runs {command}")
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(how)
        deadline = time.monotonic() + patience_s
        while not all(map(_has_ended, found)):
            if time.monotonic() > deadline:
                raise RunFailedError(f"{command} does not end after {how.name}")
            time.sleep(_LOOK_S)

    def keep_node(self, name: str) -> None:
        """Start a SuperNode again if it has ended, as a service manager does."""
        if self._processes[name].poll() is not None:
            time.sleep(_RESTART_S)
            self.start_node(name)

    def is_refused(self, name: str) -> bool:
        """Say whether a SuperNode has ended because the SuperLink does not know it."""
        return bool(self._processes[name].poll()) and _REFUSED in self.log_of(name)

    def log_of(self, name: str) -> str:
        """Return what a process has written so far."""
        return self._log_path(name).read_text(errors="replace")

    def require_alive(self) -> None:
        """Raise ``RunFailedError`` if the SuperLink has ended."""
        if self._processes[SUPERLINK].poll() is not None:
            last = self.log_of(SUPERLINK).strip().splitlines()[-1:]
            raise RunFailedError(f"the SuperLink has ended: {' '.join(last)}")

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """Run a ``flwr`` command and return its answer.

        Raises:
            RunFailedError: if it fails, with what it said.
        """
        done = subprocess.run(
            [self._commands["flwr"], *arguments, "--format", "json"],
            env=self._environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except json.JSONDecodeError:
            answer = {}
        if done.returncode or not answer.get("success"):
            said = answer.get("error-message") or (done.stderr or done.stdout).strip()
            raise RunFailedError(f"flwr {' '.join(arguments[:2])} failed: {said}")
        return answer

    def _write_environment(self) -> dict[str, str]:
        """Give ``flwr`` a home of its own that knows this SuperLink; return the environment."""
        home = self.folder / "flwr"
        home.mkdir()
        lines = [f"[superlink.{CONNECTION}]", f'address = "{_HOST}:{self._port}"']
        ca = json.dumps(str(self._tls.ca)) if self._tls else ""
        lines += [f"root-certificates = {ca}" if ca else "insecure = true"]
        (home / "config.toml").write_text("\n".join([*lines, ""]))
        (self.folder / "logs").mkdir()
        beside = str(Path(self._commands["flwr"]).parent)  # SuperNodes look their helpers up there
        return {
            **os.environ,
            "PATH": os.pathsep.join([beside, os.environ.get("PATH", "")]),
            "FLWR_HOME": str(home),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": _TASK_POLL_S,
            "PYTHONUNBUFFERED": "1",
        }

    def _log_path(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _start(self, name: str, *command: str) -> None:
        with self._log_path(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**self._environment, _MARK: self._mark(name)},
                cwd=self.folder,
                start_new_session=True,  # a terminal's Ctrl-C is for us: we stop them
            )

    def _wait_for_superlink(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            self.require_alive()
            try:
                socket.create_connection((_HOST, self._port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise RunFailedError("the SuperLink does not take connections") from None
                time.sleep(_LOOK_S)

    def _stop_all(self) -> None:
        with finish_first():  # a second Ctrl-C must not leave half of them behind
            self._stop(self._id, signal.SIGTERM)

    def _stop(self, mark: str, how: signal.Signals) -> None:
        """Send a signal to all that was started under a mark; after a while, kill the rest."""
        found = _marked(mark)
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(how)
        psutil.wait_procs(found, timeout=_STOP_S)
        while left := _marked(mark):  # one may have started another just now
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=_STOP_S)
        for started in self._processes.values():
            started.poll()  # whoever has ended is no zombie any more

    def _mark(self, name: str) -> str:
        return f"{self._id}/{name}/"


def _marked(mark: str) -> list[psutil.Process]:
    """Return the processes whose mark begins so.

    Neither descent nor process groups would find all: the SuperLink starts its helper in a session
    of its own, and helpers outlive their parents.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_MARK, "").startswith(mark):
                found.append(process)
    return found


def _has_ended(process: psutil.Process) -> bool:
    """Say whether a process does nothing any more; whoever started it may never ask for it."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _command(process: psutil.Process) -> set[str]:
    """Return the names of the programs that a process runs; none if it has ended."""
    with suppress(psutil.Error):
        return {Path(part).name for part in process.cmdline()}
    return set()


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _find_commands() -> dict[str, str]:
    beside = str(Path(sys.executable).parent)
    found = {name: shutil.which(name, path=beside) or shutil.which(name) for name in _COMMANDS}
    if missing := [name for name, path in found.items() if path is None]:
        raise UserError(f"{missing[0]} is not installed beside {sys.executable}; install flwr")
    return {name: path for name, path in found.items() if path is not None}


def _new_folder(folder: Path) -> Path:
    if not folder.is_absolute():
        raise UserError(f"the folder must be an absolute path, got {str(folder)!r}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already and is not overwritten; name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
