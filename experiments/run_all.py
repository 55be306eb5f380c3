"""Run a list of planned runs: what is there is kept, and a run that fails does not end the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from leansplit.errors import RunFailedError
from leansplit.experiments.experiment import PlannedRun
from leansplit.experiments.preflight import check_run
from leansplit.experiments.resume import Say, ShowProgress, run_unless_done
from leansplit.server_app.results import Run, check_writable

Describe = Callable[[Run, list[Run]], str]
"""(a run, all runs so far) -> how far it came, in a few words."""


@dataclass(frozen=True)
class Done:
    """What a list of runs came to."""

    runs: list[Run]
    """Those that left a result, also one of failure."""
    num_failed: int
    is_interrupted: bool


def check_all(planned_runs: Sequence[PlannedRun], out_dir: Path) -> None:
    """Check every run, and that ``out_dir`` can be written.

    Raises:
        UserError: for the first thing that is wrong.
    """
    check_writable(out_dir)
    for planned in planned_runs:
        check_run(planned.config, None)


def run_all(
    planned_runs: Sequence[PlannedRun],
    out_dir: Path,
    *,
    show_progress: ShowProgress,
    say: Say,
    describe: Describe | None = None,
    on_new_run: Callable[[list[Run]], object] | None = None,
) -> Done:
    """Run what is not there yet, and keep going when a run fails.

    Args:
        planned_runs: what to run, in this order; see :func:`check_all`.
        out_dir: one folder below it for each run.
        show_progress: title -> a context that yields what a run reports its progress to.
        say: prints one line.
        describe: says how far a run came; its accuracy, by default.
        on_new_run: called with all runs so far after each that was not there before.

    Raises:
        RunFailedError: if no run left a result.
    """
    runs: list[Run] = []
    num_failed = 0
    is_interrupted = False
    for position, planned in enumerate(planned_runs, start=1):
        title = f"[{position}/{len(planned_runs)}] {planned.label}, seed {planned.config.seed}"
        attempt = run_unless_done(
            planned, out_dir, title=title, show_progress=show_progress, say=say
        )
        if attempt.run is not None:
            runs.append(attempt.run)
            if attempt.status != "done before" and on_new_run is not None:
                on_new_run(runs)
        if attempt.run is None or attempt.status == "failed":
            num_failed += 1
            say(f"{title}: FAILED: {attempt.error}")
        else:
            took = f" in {attempt.run.result.wall_time_s:.0f} s"
            before = "done before, " if attempt.status == "done before" else ""
            came_to = (describe or accuracy_text)(attempt.run, runs)
            say(f"{title}: {before}{came_to}{'' if before else took}")
        if attempt.status == "interrupted":
            is_interrupted = True
            break
    if not runs:
        raise RunFailedError("no run left a result; the messages above say why")
    return Done(runs, num_failed, is_interrupted)


def accuracy_text(run: Run, _runs: list[Run]) -> str:
    """Return a run's final accuracy in words."""
    final = run.result.final_accuracy
    return "no accuracy" if final is None else f"accuracy {100 * final:.1f} %"
