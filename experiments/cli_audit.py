"""The command that attacks smashed data: audit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from leansplit.errors import UserError
from leansplit.experiments.command_line import (
    Settings,
    parse_names,
    parse_settings,
    say,
    stdout,
)

_SECTIONS = ("task_options", "model_options")
_KEYS = ("evaluate_on", "initial_weights")


def audit(
    task: Annotated[str, typer.Option(help="Task of images; see `leansplit tasks`.")] = "digits",
    model: Annotated[str | None, typer.Option(help="Model; the task's default.")] = None,
    cut: Annotated[
        list[str] | None, typer.Option(help="Last client-side layer; several, or with commas.")
    ] = None,
    noise: Annotated[str, typer.Option(help="Noise multipliers sigma, such as 0,0.1.")] = "0",
    clip: Annotated[
        float, typer.Option(help="Norm that noised smashed data are clipped to; 0 = their median.")
    ] = 0.0,
    samples: Annotated[int, typer.Option(help="Training images that are attacked.")] = 8,
    public: Annotated[int, typer.Option(help="Held-out images that the attacker has.")] = 2000,
    uploads: Annotated[int, typer.Option(help="Uploads of one image, for epsilon.")] = 1,
    delta: Annotated[float, typer.Option(help="delta, for epsilon.")] = 1e-5,
    weights: Annotated[
        Path | None,
        typer.Option(help="A run's folder, or a safetensors file of the whole model."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Root seed.")] = 0,
    set_: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder for picture, csv and json.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print audit.json.")] = False,
) -> None:
    """Rebuild images from the smashed data of a model, and say how well that works."""
    from leansplit.experiments.audit import AuditConfig, audit_values
    from leansplit.experiments.audit import audit as attack
    from leansplit.experiments.audit_report import audit_table, write_audit
    from leansplit.experiments.running import command_line
    from leansplit.models import MODELS
    from leansplit.server_app.outputs import MODEL_FILE
    from leansplit.server_app.results import results_folder, to_plain
    from leansplit.tasks import TASKS

    named: dict[str, Any] = {"task": task, "model": model, "seed": seed}
    if weights is not None:
        file = weights / MODEL_FILE if weights.is_dir() else weights
        named["initial_weights"] = str(file)
    given = parse_settings(set_)
    for key in given:
        if key.partition(".")[0] not in _SECTIONS and key not in _KEYS:
            allowed = ", ".join((*(f"{section}.…" for section in _SECTIONS), *_KEYS))
            raise UserError(f"audit does not use {key!r}: it trains nothing; --set takes {allowed}")
    settings = {key: value for key, value in named.items() if value is not None} | given
    cuts = [name for text in cut or [] for name in parse_names(text)]
    if not cuts and task in TASKS:
        named_model = model if model and model in MODELS else TASKS[task].default_model
        cuts = [MODELS[named_model].default_cut_layer]
    config = AuditConfig(
        cuts=tuple(dict.fromkeys(cuts)),
        noises=_numbers(noise),
        clip=clip,
        samples=samples,
        public=public,
        uploads=uploads,
        delta=delta,
    )
    folder = out or Path("runs") / f"audit-{task}-seed-{seed}"
    with results_folder(folder):
        found = attack(config, settings, say=say)
        files = write_audit(found, folder, command_line())
    if as_json:
        sys.stdout.write(json.dumps(to_plain(audit_values(found))) + "\n")
        return
    console = stdout()
    console.print(audit_table(found))
    for line in (
        f"weights: {found.weights}",
        f"epsilon at delta {delta:g}, of one image in {uploads} uploads; labels are not protected",
        "PSNR in dB; the last rows use no smashed data: an attack that is no better shows nothing",
        *files,
    ):
        console.print(str(line), markup=False, highlight=False, soft_wrap=True)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(dict.fromkeys(float(part) for part in parse_names(text)))
    except ValueError:
        raise UserError(f"--noise takes numbers such as 0,0.1, got {text!r}") from None
