"""What the commands share: how their values are read, what they print, how they end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from typer.core import TyperGroup

from leansplit.errors import RunFailedError, UserError

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of every run."),
]
_WIDE = 240  # characters

Faults = Annotated[
    str | None,
    typer.Option("--faults", metavar="RATES", help="Inject faults: drop=0.1,late=0.05,die=0.01."),
]
Seeds = Annotated[str | None, typer.Option(help="Seeds, such as 0,1,2.")]
Methods = Annotated[
    str | None,
    typer.Option("--methods", help="Only these methods or labels, such as ho-sfl,frozen."),
]
Jobs = Annotated[
    int, typer.Option(help="Runs at a time, each in a process of its own; needs workers=-1.")
]


def stdout() -> Console:
    """Return where tables go; into a pipe or a file they are as wide as they need."""
    console = Console()
    return console if console.is_terminal or os.environ.get("COLUMNS") else Console(width=_WIDE)


def say(line: object) -> None:
    """Print a line as it is on standard error."""
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)


def parse_settings(assignments: list[str] | None) -> dict[str, Any]:
    """Read ``key=value`` settings."""
    settings: dict[str, Any] = {}
    for assignment in assignments or []:
        key, separator, value = assignment.partition("=")
        if not separator or not key.strip():
            raise UserError(f"--set takes key=value, got {assignment!r}; try --set client.lr=0.1")
        if key.strip() == "out":
            raise UserError("the folder for results is given with --out, not with --set out=")
        settings[key.strip()] = value.strip()
    return settings


def parse_faults(text: str | None) -> dict[str, Any]:
    """Read rates of injected faults, such as ``drop=0.1,late=0.05``, as settings."""
    given = parse_names(text)
    if wrong := next((part for part in given if "=" not in part), None):
        raise UserError(f"--faults takes rates such as drop=0.1,late=0.05, got {wrong!r}")
    return parse_settings([f"faults.{part}" for part in given])


def parse_names(text: str | None) -> list[str]:
    """Read names separated by commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def parse_seeds(text: str | None) -> list[int]:
    """Read whole numbers separated by commas."""
    if text is None:
        return []
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds takes whole numbers such as 0,1,2, got {text!r}") from None


@contextmanager
def exit_on_errors() -> Iterator[None]:
    """End the process at an error; a user's mistake is one line on standard error, no traceback."""
    try:
        yield
    except UserError as error:
        _fail(error, EXIT_USER_ERROR)
    except RunFailedError as error:
        _fail(error, EXIT_FAILED)
    except KeyboardInterrupt:
        sys.stderr.write("leansplit: aborted\n")
        raise SystemExit(EXIT_INTERRUPTED) from None


class Commands(TyperGroup):
    """A group of commands that end as :func:`exit_on_errors` says.

    From outside it would see no Ctrl-C: typer takes it, and ends without a word.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        with exit_on_errors():
            return super().invoke(ctx)


def _fail(error: Exception, code: int) -> None:
    sys.stderr.write(f"leansplit: error: {' '.join(str(error).split())}\n")
    raise SystemExit(code) from None
