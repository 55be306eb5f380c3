"""Tune every method of an experiment with the same effort, on held-out training data.

The settings are those of :mod:`leansplit.experiments.tuning_grid`, evaluated on a validation split
and on a seed that the comparison does not use. The best has the highest final accuracy, the lower
loss among equals. A setting that fails, non-finite for instance, has lost, and is named. The few
best of every method then run again on further seeds, and the mean over all seeds decides: one seed
and one validation split choose by luck.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from leansplit.errors import UserError
from leansplit.experiments.experiment import Experiment, PlannedRun, Row
from leansplit.experiments.inert_moments import ADVICE, has_inert_moments
from leansplit.experiments.preflight import check_run
from leansplit.experiments.resume import (
    Attempt,
    Say,
    ShowProgress,
    attempt_all,
    require_jobs,
)
from leansplit.experiments.tuning_config import ClientChoice, Tuning, has_zeroth_client
from leansplit.experiments.tuning_grid import Grid, Point, method_grid
from leansplit.server_app.interruption import stop_on_interrupt
from leansplit.server_app.key_values import flatten
from leansplit.server_app.methods import METHODS, is_used
from leansplit.server_app.methods.spec import SECTIONS
from leansplit.server_app.results import RunResult, results_folder

Score = tuple[float, float]
Attempts = Callable[..., Iterator[tuple[int, Attempt]]]
"""(planned runs, ``titles``) -> (position, what became of it); the rest of
:func:`leansplit.experiments.resume.attempt_all` is settled."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of one row, and what it came to."""

    settings: dict[str, Any]
    extension: int
    """0 = in the first grid."""
    result: RunResult | None
    error: str | None = None
    reruns: tuple[RunResult | None, ...] = ()
    """What it came to on the finalists' seeds; empty if it is no finalist."""

    @property
    def score(self) -> Score | None:
        """(final accuracy, minus final loss) on validation data; None if the setting failed."""
        return _score(self.result)

    @property
    def final_score(self) -> Score | None:
        """The mean score over all seeds; None if it is no finalist or failed on a seed."""
        scores = [_score(result) for result in (self.result, *self.reruns)]
        if not self.reruns or None in scores:
            return None
        known = [score for score in scores if score is not None]
        return statistics.fmean(a for a, _ in known), statistics.fmean(loss for _, loss in known)


def _score(result: RunResult | None) -> Score | None:
    if result is None or result.status != "completed" or result.final_accuracy is None:
        return None
    loss = math.inf if result.final_loss is None else float(result.final_loss)
    return result.final_accuracy, -loss if math.isfinite(loss) else -math.inf


@dataclass(kw_only=True)
class TunedRow:
    """One row of the experiment with everything that was tried for it."""

    row: Row
    grid: Grid
    trials: dict[Point, Trial] = field(default_factory=dict)
    num_extensions: int = 0

    @property
    def best_point(self) -> Point | None:
        """The best setting, the first among equals; None if none worked.

        Once finalists have run on their seeds, the best of them.
        """
        finals = {p: t.final_score for p, t in self.trials.items() if t.final_score is not None}
        untried = {p: score for p, score in self._scores.items() if not self.trials[p].reruns}
        scores = finals or untried  # a finalist that failed on one of its seeds has lost
        return max(scores, key=lambda point: scores[point]) if scores else None

    @property
    def _scores(self) -> dict[Point, Score]:
        return {p: trial.score for p, trial in self.trials.items() if trial.score is not None}

    def finalists(self, count: int) -> list[Point]:
        """Return the ``count`` best settings of the grid, the best first."""
        scores = self._scores
        return sorted(scores, key=lambda point: scores[point], reverse=True)[:count]

    @property
    def best(self) -> Trial | None:
        """What the best setting came to."""
        return None if self.best_point is None else self.trials[self.best_point]

    @property
    def missing_neighbours(self) -> list[Point]:
        """What has not been tried beside the best: where it lies at the edge."""
        if self.best_point is None:
            return []
        return [p for p in self.grid.neighbours(self.best_point) if p not in self.trials]


@dataclass(frozen=True, kw_only=True)
class TuningResult:
    """What tuning came to."""

    tuning: Tuning
    rows: list[TunedRow]
    is_interrupted: bool

    @property
    def chosen(self) -> dict[str, dict[str, Any]]:
        """Label -> the best settings, of the rows that have one."""
        return {r.row.label: r.best.settings for r in self.rows if r.best is not None}

    @property
    def warnings(self) -> list[str]:
        """What a reader must know before these settings are used."""
        lines = [line for row in self.rows for line in _warnings(row, self.is_interrupted)]
        return lines + [f"{row.row.label}: {ADVICE}." for row in self.rows if _is_inert(row)]


def tune(
    experiment: Experiment,
    out_dir: Path,
    *,
    jobs: int = 1,
    show_progress: ShowProgress,
    say: Say,
) -> TuningResult:
    """Run the grid of every row, and extend it where the best lies at its edge.

    Results that are there are used again, as in a comparison; ``jobs`` runs go at a time. The first
    Ctrl-C ends the run that goes on and starts no other; the second aborts.

    Raises:
        UserError: for anything wrong with any row, before the first run starts.
    """
    tuning = experiment.tuning
    has_finals = tuning.finalists > 1 and bool(tuning.finalist_seeds)
    tuning_seeds = {tuning.seed, *(tuning.finalist_seeds if has_finals else ())}
    if shared := tuning_seeds & set(experiment.seeds):
        raise UserError(
            f"the comparison uses seed {min(shared)}: settings must be chosen on other ones; "
            "change tuning.seed or tuning.finalist_seeds"
        )
    rows = [TunedRow(row=row, grid=row_grid(row)) for row in experiment.rows]
    require_jobs(jobs, [_plan(tuned, tuned.grid.points[0], tuning) for tuned in rows])
    stop = threading.Event()
    attempts = partial(
        attempt_all, out_dir=out_dir, jobs=jobs, stop=stop, show_progress=show_progress, say=say
    )
    is_interrupted = False
    with results_folder(out_dir):
        for tuned in rows:
            check_run(_plan(tuned, tuned.grid.points[0], tuning).config)
        with stop_on_interrupt(stop):
            # Side by side all rows at once: while one is extended, the others keep every job busy.
            for together in [rows] if jobs > 1 else [[tuned] for tuned in rows]:
                is_interrupted = _tune_rows(together, tuning, has_finals, attempts, say)
                if is_interrupted:
                    break
    return TuningResult(tuning=tuning, rows=rows, is_interrupted=is_interrupted)


def _tune_rows(
    rows: Sequence[TunedRow], tuning: Tuning, has_finals: bool, attempts: Attempts, say: Say
) -> bool:
    """Run rows' grids, their extensions and their finals; return whether Ctrl-C stopped them."""
    for tuned in rows:
        say(f"{tuned.row.label}: {describe(tuned.grid)}")
    points = [(tuned, tuned.grid.points) for tuned in rows]
    while points:
        if _try(points, tuning, attempts, say):
            return True
        points = [
            (tuned, beyond)
            for tuned in rows
            if tuned.num_extensions < tuning.max_extensions and (beyond := tuned.missing_neighbours)
        ]
        for tuned, _ in points:
            tuned.num_extensions += 1
    return has_finals and _run_finals(rows, tuning, attempts, say)


def row_grid(row: Row) -> Grid:
    """Return the settings that are tried for a row.

    Optimizers that its clients cannot take are left out; the others share all settings.

    Raises:
        UserError: if none is left, or the settings cannot be spread evenly.
    """
    if not has_zeroth_client(row.method):
        return method_grid(row.method, row.tuning, ())
    # Each choice says all that any choice says, so that what is chosen does not hang on the rest
    # of the file.
    default = METHODS[row.method].default(SECTIONS["client"])
    names = dict.fromkeys(key for choice in row.tuning.zeroth_client for key in choice.keys)
    unset = {key: getattr(default, key.partition(".")[2]) for key in names}
    possible: list[ClientChoice] = []
    refusals: list[str] = []
    for choice in row.tuning.zeroth_client:
        keys = {**unset, **choice.keys}
        try:
            row.with_settings({**keys, "client.lr": choice.rates[0]}).plan(row.tuning.seed)
        except UserError as error:
            refusals.append(str(error))
        else:
            possible.append(ClientChoice(keys=keys, rates=choice.rates))
    if not possible:
        raise UserError(f"no zeroth_client optimizer is left: {refusals[0]}")
    return method_grid(row.method, row.tuning, possible)


def describe(grid: Grid) -> str:
    """Return a grid in one line."""
    parts = []
    for block in grid.blocks:
        axes = [f"{axis.key} {', '.join(f'{v:g}' for v in axis.values)}" for axis in block.axes]
        fixed = [setting_text(block.fixed)] if block.fixed else []
        parts.append("; ".join([*fixed, *axes]) or "nothing to tune")
    return f"{len(grid.points)} settings: {' | '.join(parts)}"


def setting_text(settings: Mapping[str, Any]) -> str:
    """Return settings as they are typed, such as ``client.lr=0.1 server.lr=0.3``."""
    return " ".join(
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in settings.items()
    )


def _try(
    wanted: Sequence[tuple[TunedRow, Sequence[Point]]],
    tuning: Tuning,
    attempts: Attempts,
    say: Say,
) -> bool:
    """Run some settings of some rows; return whether Ctrl-C stopped it."""
    tried = [(tuned, point) for tuned, points in wanted for point in points]
    planned_runs = [_plan(tuned, point, tuning) for tuned, point in tried]
    numbers = [
        f"[{number}/{len(tuned.trials) + len(points)}]"
        for tuned, points in wanted
        for number in range(len(tuned.trials) + 1, len(tuned.trials) + len(points) + 1)
    ]
    titles = [
        f"{number} {planned.name}" for number, planned in zip(numbers, planned_runs, strict=True)
    ]
    is_interrupted = False
    trials: dict[int, Trial] = {}
    for position, attempt in attempts(planned_runs, titles=titles):
        if attempt.status == "interrupted":
            is_interrupted = True
            continue
        tuned, point = tried[position]
        trial = Trial(
            settings=tuned.grid.settings(point),
            extension=tuned.num_extensions,
            result=attempt.run.result if attempt.run else None,
            error=attempt.error,
        )
        trials[position] = trial
        say(f"{titles[position]}: {_outcome(trial, attempt)}")
    # In the order of the grids, not of their end: among equals the first is chosen.
    for position in sorted(trials):
        tuned, point = tried[position]
        tuned.trials[point] = trials[position]
    return is_interrupted


def _run_finals(rows: Sequence[TunedRow], tuning: Tuning, attempts: Attempts, say: Say) -> bool:
    """Run rows' best settings again on further seeds; return whether Ctrl-C stopped it."""
    seeds = tuning.finalist_seeds
    finals = [(tuned, point) for tuned in rows for point in tuned.finalists(tuning.finalists)]
    runs = [(tuned, point, seed) for tuned, point in finals for seed in seeds]
    planned_runs = [_plan(tuned, point, tuning, seed) for tuned, point, seed in runs]
    titles = [
        f"[final {number}/{len(runs)}] {planned.name}"
        for number, planned in enumerate(planned_runs, 1)
    ]
    results: dict[int, RunResult | None] = {}
    for position, attempt in attempts(planned_runs, titles=titles):
        if attempt.status == "interrupted":
            return True
        results[position] = attempt.run.result if attempt.run else None
        trial = Trial(settings={}, extension=0, result=results[position], error=attempt.error)
        say(f"{titles[position]}: {_outcome(trial, attempt)}")
    for number, (tuned, point) in enumerate(finals):
        first = number * len(seeds)
        reruns = tuple(results[first + offset] for offset in range(len(seeds)))
        tuned.trials[point] = replace(tuned.trials[point], reruns=reruns)
    return False


def _plan(tuned: TunedRow, point: Point, tuning: Tuning, seed: int | None = None) -> PlannedRun:
    row, settings = tuned.row, tuned.grid.settings(point)
    run = {key: value for key, value in tuning.run.items() if is_used(row.method, key)}
    always = {"evaluate_on": "validation", "target_accuracy": 0.0}
    planned = row.with_settings({**run, **settings, **always}).plan(
        tuning.seed if seed is None else seed
    )
    text = setting_text(settings) or "as it is"
    return replace(planned, setting=text if seed is None else f"{text}, seed {seed}")


def _outcome(trial: Trial, attempt: Attempt) -> str:
    if trial.score is None:
        return f"lost, it FAILED: {trial.error or 'no accuracy'}"
    before = "done before, " if attempt.status == "done before" else ""
    return f"{before}accuracy {100 * trial.score[0]:.1f} %"


def _warnings(tuned: TunedRow, is_interrupted: bool) -> list[str]:
    label, best = tuned.row.label, tuned.best
    failed = [t for t in tuned.trials.values() if t.score is None]
    lines = [
        f"{label}: {setting_text(t.settings)} failed, and so lost: {t.error or 'no accuracy'}"
        for t in failed
    ]
    if best is None:
        tried = "no setting worked" if tuned.trials else "not tuned: interrupted"
        return [*lines, f"{label}: {tried}."]
    if is_interrupted and len(tuned.trials) < len(tuned.grid.points):
        lines.append(f"{label}: interrupted after {len(tuned.trials)} settings.")
    elif beyond := tuned.missing_neighbours:
        settings = [tuned.grid.settings(point) for point in beyond]
        untried = "; ".join(
            setting_text({k: v for k, v in s.items() if v != best.settings[k]}) for s in settings
        )
        lines.append(
            f"{label}: the best setting lies at the edge after {_count(tuned.num_extensions)} "
            f"(not tried beside it: {untried}): it may not be the best there is. Raise "
            "tuning.max_extensions or widen its lists."
        )
    return lines


def _is_inert(tuned: TunedRow) -> bool:
    results = [trial.result for trial in tuned.trials.values() if trial.result is not None]
    return any(has_inert_moments(result.config) for result in results)


def _count(num_extensions: int) -> str:
    return "1 extension" if num_extensions == 1 else f"{num_extensions} extensions"


def settings_to_write(experiment: Experiment, result: TuningResult) -> dict[str, dict[str, Any]]:
    """Return label -> what an experiment file must be given so that its rows use the best settings.

    Rates and the optimizer's name are written even where they equal the defaults, which may change;
    nothing is written that the file says already.
    """
    to_write: dict[str, dict[str, Any]] = {}
    for row in experiment.rows:
        effective = flatten(row.plan(experiment.tuning.seed).config.to_dict())
        to_write[row.label] = {
            key: value
            for key, value in result.chosen.get(row.label, {}).items()
            if effective[key] != value
            or (key not in row.settings and key.endswith((".lr", ".name")))
        }
    return to_write
