"""The provenance part of a report page: settings, runs, environments, sources."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from leansplit.experiments.markdown_html import bullets, table
from leansplit.experiments.provenance import (
    ABSENT,
    Difference,
    Settings,
    compare_settings,
    environment_of,
    settings_of,
    source_of,
    value_text,
)
from leansplit.experiments.summary import group_runs
from leansplit.server_app.results import Run, RunResult


def provenance_html(runs: Sequence[Run], root: Path, order: Sequence[str] = ()) -> str:
    """Return settings (shared, then what differs), runs, configurations, environments, sources."""
    groups = group_runs(runs, order)
    ordered = [run for group in groups.values() for run in group]
    environments = list(dict.fromkeys(environment_of(run.result) for run in ordered))
    parts = [
        '<h2 id="settings">Settings</h2>',
        *_settings(runs, order),
        '<h2 id="runs">Runs</h2>',
        _runs_table(ordered, environments),
        _sources_table(ordered, root),
        *(_configuration(label, group) for label, group in groups.items()),
        '<h2 id="environments">Environments</h2>',
        *(_environment(index, facts) for index, facts in enumerate(environments, start=1)),
    ]
    notes = list(dict.fromkeys(note for run in ordered for note in run.result.notes))
    if notes:
        parts += ["<h3>Notes</h3>", bullets(notes)]
    return "\n".join(parts)


def _settings(runs: Sequence[Run], order: Sequence[str]) -> list[str]:
    settings = compare_settings(runs, order)
    parts = []
    if settings.differences:
        header = ["Key", *settings.labels]
        rows = [[_key(d.key), *_marked(d)] for d in settings.differences]
        caption = (
            "Settings that differ; marked: not what most rows have; "
            f"{ABSENT}: the method has no such key"
        )
        parts.append(table(caption, header, rows, is_numeric=False))
    shared = [
        [_key(key), escape(value), escape(_users(settings, key))]
        for key, value in settings.shared.items()
    ]
    if shared:
        caption = "Settings that are the same in all rows that use them"
        parts.append(table(caption, ["Key", "Value", "Used by"], shared, is_numeric=False))
    return parts or ["<p>No settings are recorded.</p>"]


def _users(settings: Settings, key: str) -> str:
    """Return the rows that use a key, or those that do not where they are fewer."""
    users = settings.users.get(key, settings.labels)
    others = [label for label in settings.labels if label not in users]
    if not others:
        return "all"
    if len(others) < len(users):
        return f"all but {', '.join(others)}"
    return ", ".join(users)


def _key(key: str) -> str:
    """Return a key that may break after its dots and underscores."""
    breakable = re.sub(r"([._])", r"\1<wbr>", escape(key))
    return f"<code>{breakable}</code>"


def _marked(difference: Difference) -> list[str]:
    return [
        escape(value) if value in (ABSENT, difference.common) else f"<mark>{escape(value)}</mark>"
        for value in difference.values
    ]


def _runs_table(runs: Sequence[Run], environments: list[tuple[tuple[str, str], ...]]) -> str:
    header = ["Row", "Seed", "Status", "Rounds", "Started (UTC)", "Wall time (s)"]
    header += ["Configuration", "Model checksum", "Events", "Environment"]
    rows = []
    for result in (run.result for run in runs):
        cells = (
            result.label,
            str(result.root_seed),
            result.status,
            f"{result.rounds_completed:,}",
            result.started_at.removesuffix("+00:00").replace("T", " "),
            f"{result.wall_time_s:,.1f}",
        )
        codes = (result.config_hash, result.final_model_checksum or ABSENT)
        number = environments.index(environment_of(result)) + 1
        rows.append(
            [
                *map(escape, cells),
                *(f"<code>{escape(code)}</code>" for code in codes),
                escape(_events(result)),
                f'<a href="#environment-{number}">{number}</a>',
            ]
        )
    return table("Every run", header, rows)


def _events(result: RunResult) -> str:
    events = [f"{name.replace('_', ' ')}: {count}" for name, count in result.events.items()]
    return ", ".join(events) or "none"


def _sources_table(runs: Sequence[Run], root: Path) -> str:
    rows = []
    for run in runs:
        folder, digest = source_of(run, root)
        rows.append(
            [
                escape(f"{run.result.label}, seed {run.result.root_seed}"),
                f"<code>{escape(folder)}</code>",
                f"<code>{escape(digest)}</code>",
            ]
        )
    return table("Made from", ["Run", "Folder", "SHA-256 of result.json"], rows, is_numeric=False)


def _configuration(label: str, group: Sequence[Run]) -> str:
    """Return each distinct configuration of a label as --set and experiment files take it."""
    seeds: dict[str, list[int]] = {}
    for run in group:
        lines = [f"method = {run.result.method}"]
        settings = settings_of(run.result.config)
        lines += [f"{key} = {value_text(value)}" for key, value in settings.items()]
        seeds.setdefault("\n".join(lines), []).append(run.result.root_seed)
    parts = [f"<details><summary>Configuration of {escape(label)}</summary>"]
    for text, numbers in seeds.items():
        parts.append(f"<p>Seeds {', '.join(map(str, numbers))}</p>\n<pre>{escape(text)}</pre>")
    for run in group:
        if run.result.error:
            seed = run.result.root_seed
            parts.append(f"<p>Error, seed {seed}:</p>\n<pre>{escape(run.result.error)}</pre>")
    return "\n".join([*parts, "</details>"])


def _environment(number: int, facts: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return f'<h3 id="environment-{number}">Environment {number}</h3>\n<dl>{items}</dl>'
