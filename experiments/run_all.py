"""Run a list of planned runs: what is there is kept, and a run that fails does not end the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from leansplit.errors import RunFailedError, UserError
from leansplit.experiments.experiment import PlannedRun
from leansplit.experiments.preflight import check_run
from leansplit.experiments.resume import Say, ShowProgress, attempt_all, require_jobs
from leansplit.server_app.plain_execution import require_watchable
from leansplit.server_app.results import Run

Describe = Callable[[Run, list[Run]], str]
"""(a run, all runs so far) -> how far it came, in a few words."""


@dataclass(frozen=True)
class Done:
    """What a list of runs came to."""

    runs: list[Run]
    """Those that left a result, also one of failure."""
    num_failed: int
    is_interrupted: bool


def check_all(planned_runs: Sequence[PlannedRun], jobs: int = 1) -> None:
    """Check every run, and how many go at a time.

    Raises:
        UserError: for the first thing that is wrong.
    """
    require_jobs(jobs, planned_runs)
    for planned in planned_runs:
        check_run(planned.config)
        if planned.runner.engine == "plain":
            require_watchable(planned.config.method)
            if planned.config.has_checkpoints:
                raise UserError(
                    "plain loops leave no checkpoints; add --set checkpoint_every=0 --set "
                    "checkpoint_seconds=0"
                )


def run_all(
    planned_runs: Sequence[PlannedRun],
    out_dir: Path,
    *,
    jobs: int = 1,
    stop: threading.Event | None = None,
    show_progress: ShowProgress,
    say: Say,
    describe: Describe | None = None,
    on_new_run: Callable[[list[Run]], object] | None = None,
) -> Done:
    """Run what is not there yet, and keep going when a run fails.

    Args:
        planned_runs: what to run, in this order; see :func:`check_all`.
        out_dir: one folder below it for each run.
        jobs: runs at a time.
        stop: once it is set, no run is started any more; Ctrl-C sets it during a run.
        show_progress: title -> a context that yields what a run reports its progress to.
        say: prints one line.
        describe: says how far a run came; its accuracy, by default.
        on_new_run: called with all runs so far after each that was not there before.

    Raises:
        RunFailedError: if no run left a result.
        KeyboardInterrupt: if Ctrl-C came before any run left one.
    """
    by_position: dict[int, Run] = {}
    runs: list[Run] = []  # as planned, not as they ended
    num_failed = 0
    is_interrupted = False
    titles = [
        f"[{position}/{len(planned_runs)}] {planned.label}, seed {planned.config.seed}"
        for position, planned in enumerate(planned_runs, start=1)
    ]
    for position, attempt in attempt_all(
        planned_runs,
        out_dir,
        titles=titles,
        jobs=jobs,
        stop=stop or threading.Event(),
        show_progress=show_progress,
        say=say,
    ):
        title = titles[position]
        is_interrupted |= attempt.status == "interrupted"
        if attempt.status == "interrupted" and attempt.run is None:
            continue
        if attempt.run is not None:
            by_position[position] = attempt.run
            runs = [by_position[each] for each in sorted(by_position)]
            if attempt.status != "done before" and on_new_run is not None:
                on_new_run(runs)
        if attempt.run is None or attempt.status == "failed":
            num_failed += 1
            say(f"{title}: FAILED: {attempt.error}")
        else:
            took = f" in {attempt.run.result.wall_time_s:.0f} s"
            before = "done before, " if attempt.status == "done before" else ""
            came_to = (describe or accuracy_text)(attempt.run, runs)
            cut = "interrupted, " if attempt.status == "interrupted" else ""
            say(f"{title}: {before}{cut}{came_to}{'' if before else took}")
    if is_interrupted:
        completed = sum(run.result.status == "completed" for run in runs)
        say(
            f"interrupted: {completed} of {len(planned_runs)} runs are complete; the same command "
            "goes on from here"
        )
        if not runs:
            raise KeyboardInterrupt
    if not runs:
        raise RunFailedError("no run left a result; the messages above say why")
    return Done(runs, num_failed, is_interrupted)


def accuracy_text(run: Run, _runs: list[Run]) -> str:
    """Return a run's final accuracy in words."""
    final = run.result.final_accuracy
    return "no accuracy" if final is None else f"accuracy {100 * final:.1f} %"
