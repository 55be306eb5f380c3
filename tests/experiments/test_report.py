"""The report page: whole, self-contained, escaped, the same twice, with full provenance."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from leansplit.errors import UserError
from leansplit.experiments.markdown_html import sections
from leansplit.experiments.provenance import ABSENT, compare_settings
from leansplit.experiments.report import Reading, reading_of, rebuild_report, write_report
from leansplit.experiments.summary_text import learning_rate_items
from leansplit.experiments.traffic_by_kind import kinds_of, traffic_by_kind, traffic_figure
from leansplit.server_app.results import Run
from leansplit.wire import LedgerEntry

MakeRun = Callable[..., Run]
RunCommand = Callable[..., tuple[int, str, str]]
VOID = {"meta", "wbr", "br", "link", "img", "input", "hr"}
NASTY = "<script>alert(\"x\")</script> & `code` | $m$ 'q'"


class Page(HTMLParser):
    """Reads a page strictly: every element is closed, in order, and names are its own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), tag
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def runs(make_run: MakeRun) -> list[Run]:
    return [
        make_run("ho-sfl", 0, accuracy=0.85, settings={"client.lr": 0.03}),
        make_run("ho-sfl", 1, accuracy=0.87, settings={"client.lr": 0.03}),
        make_run("sflv1", 0, accuracy=0.9, settings={"client.lr": 2.0}),
        make_run("sflv1", 1, accuracy=0.92, settings={"client.lr": 2.0}),
        make_run("frozen", 0, accuracy=0.7),
        make_run("frozen", 1, accuracy=0.7, status="failed", error="lost\n<b>everything</b>"),
    ]


def page_of(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_is_well_formed_accessible_and_self_contained(
    runs: list[Run], tmp_path: Path
) -> None:
    report = write_report(tmp_path / "out", runs, Reading(title="Small"))
    assert {path.name for path in report.files} == {
        "summary.md",
        "summary.csv",
        "accuracy_vs_samples.png",
        "accuracy_vs_samples.svg",
        "accuracy_vs_bytes.png",
        "accuracy_vs_bytes.svg",
        "partition.png",
        "report.html",
    }
    text = page_of(tmp_path / "out")
    page = Page(text)
    names = [a["id"] for _, a in page.elements if "id" in a]
    assert len(names) == len(set(names))
    for _, attributes in page.elements:
        assert "src" not in attributes and "srcset" not in attributes
        for key in ("href", "xlink:href"):
            target = attributes.get(key) or ""
            assert not target or target.startswith("data:image/png;base64,") or target[1:] in names
        for name in re.findall(r"url\(#([^)]+)\)", " ".join(v or "" for v in attributes.values())):
            assert name in names
    assert not re.search(r"https?://|@import|url\((?!#)|<script|<link|<iframe", text)
    drawings = page.all("svg")
    assert len(drawings) == 4  # samples, bytes, traffic, partition
    assert all(d["role"] == "img" and d["aria-labelledby"] in names for d in drawings)
    assert len(page.all("title")) == 1 + len(drawings)
    assert len(page.all("caption")) == len(page.all("table")) >= 6
    scopes = [cell.get("scope") for cell in page.all("th")]
    assert set(scopes) == {"col", "row"}
    [html] = page.all("html")
    assert html["lang"] == "en" and page.all("main") and page.all("meta")[1]["name"] == "viewport"
    assert "prefers-color-scheme: dark" in text and "var(--ink)" in text


def test_text_of_users_is_text(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("ho-sfl", label=NASTY, notes=[NASTY], command=["leansplit", NASTY])
    write_report(tmp_path, [run], Reading(title=NASTY, learning_rates=NASTY))
    text = page_of(tmp_path)
    assert "<script" not in text and "alert(&quot;x&quot;)" in text
    assert NASTY in "".join(Page(text).text)


def test_the_same_results_give_the_same_bytes(runs: list[Run], tmp_path: Path) -> None:
    first = write_report(tmp_path / "runs", runs, Reading())
    before = [path.read_bytes() for path in first.files]
    again = write_report(tmp_path / "runs", runs, Reading())
    assert before == [path.read_bytes() for path in again.files]


def test_rebuilding_reads_all_there_is_and_how_to_read_it(runs: list[Run], tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    (folder / "experiment.toml").write_text(
        'title = "My title"\ntarget_accuracy = 0.5\nlearning_rates = "Tuned."\n'
        '[[methods]]\nmethod = "frozen"\n[[methods]]\nmethod = "sflv1"\n'
        '[[methods]]\nmethod = "ho-sfl"\n[[methods]]\nmethod = "gone"\n'
    )
    (folder / "damaged").mkdir()
    (folder / "damaged" / "result.json").write_text("{")
    report = rebuild_report(folder)
    assert report.title == "My title"
    assert [row.method for row in report.summary.rows] == ["frozen", "sflv1", "ho-sfl"]
    assert report.summary.target_accuracy == 0.5
    assert len(report.left_out) == 1 and "damaged" in report.left_out[0]
    text = page_of(folder)
    assert "Learning rates: Tuned." in text and "There is no run of &#x27;gone&#x27;." in text
    for fact in (
        runs[0].result.config_hash,
        "torch 2.13.0",
        "c" * 40,
        "Some CPU",
        "leansplit compare --note &#x27;two words&#x27;",
        "2026-01-02 00:00:00",
        "resyncs: 3",
        "0123456789abcdef",
        "probe.num_perturbations = 5",
        "&lt;b&gt;everything&lt;/b&gt;",
    ):
        assert fact in text, fact
    assert str(tmp_path) not in text
    assert re.search(r"<code>ho-sfl-\w+/seed-0</code></td><td><code>[0-9a-f]{64}</code>", text)


def test_rows_that_the_experiment_no_longer_has_are_named_not_shown(
    runs: list[Run], tmp_path: Path
) -> None:
    folder = tmp_path / "runs"
    (folder / "experiment.toml").write_text(
        'title = "Mine"\n[[methods]]\nmethod = "sflv1"\n[overrides]\nsamples = 640\n'
        '"server.lr" = 0.1\n'
    )
    report = rebuild_report(folder)
    assert report.title == "Mine; with samples=640, server.lr=0.1"
    assert {row.method for row in report.summary.rows} == {"sflv1"}
    assert all("no row of experiment.toml any more" in said for said in report.left_out)
    assert len(report.left_out) == 2
    (folder / "experiment.toml").write_text('[[methods]]\nmethod = "hosl"\n')
    with pytest.raises(UserError, match="belongs to a row of its"):
        rebuild_report(folder)


def test_nothing_to_report_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        rebuild_report(tmp_path / "none")
    with pytest.raises(UserError, match="no results to report below"):
        rebuild_report(tmp_path)
    assert reading_of(tmp_path / "experiment.toml") == Reading()
    (tmp_path / "experiment.toml").write_text("[[methods]\n")
    assert reading_of(tmp_path / "experiment.toml") == Reading()


def test_runs_without_a_completed_one_are_reported_too(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("ho-sfl", status="failed", error="lost", partition={}, traffic={})
    report = write_report(tmp_path, [run], Reading())
    assert [path.name for path in report.files] == ["summary.md", "summary.csv", "report.html"]
    assert not Page(page_of(tmp_path)).all("svg")


def test_settings_are_said_once_and_differences_are_marked(runs: list[Run], tmp_path: Path) -> None:
    settings = compare_settings(runs)
    assert settings.labels == ("HO-SFL", "SFLV1", "FROZEN")
    assert settings.shared["clients"] == "100" and "clients" not in settings.users
    assert settings.users["probe.num_perturbations"] == ("HO-SFL",)
    assert "seed" not in settings.shared and "method" not in settings.shared
    rows = {difference.key: difference for difference in settings.differences}
    assert rows["client.lr"].values == ("0.03", "2", ABSENT)
    assert rows["client.lr"].common is None
    assert "server.lr" not in rows
    write_report(tmp_path, runs, Reading())
    assert "<td><mark>0.03</mark></td><td><mark>2</mark></td><td>–</td>" in page_of(tmp_path)


def test_only_what_most_rows_do_not_have_is_marked(make_run: MakeRun) -> None:
    runs = [
        make_run("ho-sfl", label=label, settings={"cohort": cohort})
        for label, cohort in (("a", 20), ("b", 20), ("c", 10))
    ]
    [difference] = compare_settings(runs).differences
    assert (difference.key, difference.common) == ("cohort", "20")


def test_traffic_is_the_mean_over_completed_runs(make_run: MakeRun) -> None:
    runs = [
        make_run("ho-sfl", 0, traffic={"mine": {"uplink_bytes": 2_000_000, "downlink_bytes": 0}}),
        make_run("ho-sfl", 1),
        make_run("ho-sfl", 2, status="failed"),
    ]
    [row] = rows = traffic_by_kind(runs)
    assert kinds_of(rows) == ["smashed_data", "weights", "mine"]
    assert row.mb["uplink"] == {"mine": 1.0, "smashed_data": 6.0}
    assert row.mb["downlink"] == {"weights": 2.0}
    figure = traffic_figure(rows)
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == [6, 2, 1]  # type: ignore[attr-defined]
    assert len({bar.get_hatch() for bar in bars}) == 3  # they stay apart without colour


def test_traffic_leaves_room_for_long_labels(make_run: MakeRun) -> None:
    for label in ("HO-SFL", "SFLV1 (recomputing, micro-batches of 4)"):
        figure = traffic_figure(traffic_by_kind([make_run("ho-sfl", label=label)]))
        figure.draw_without_rendering()
        below = figure.axes[0].xaxis.label.get_window_extent()
        assert figure.bbox.x0 <= below.x0 and below.x1 <= figure.bbox.x1


def test_lists_below_items_stay_below_them() -> None:
    rates = learning_rate_items("Best:\n- SFLV1: `a`\n- FedAvg: b\nThe rest: no.")
    assert rates == [
        "- Learning rates: Best:",
        "  - SFLV1: `a`",
        "  - FedAvg: b",
        "- The rest: no.",
    ]
    assert learning_rate_items(None) == []
    [section] = sections("# S\n\n" + "\n".join(rates))
    assert section.html().replace("\n", "") == (
        "<ul><li>Learning rates: Best:<ul><li>SFLV1: <code>a</code></li><li>FedAvg: b</li></ul>"
        "</li><li>The rest: no.</li></ul>"
    )


def test_markdown_of_ours_becomes_html() -> None:
    text = "# T\n\nWords `a<b`\nmore\n\n## S\n\n| A | B |\n| --- | ---: |\n| x\\|y | 1 |\n"
    first, second = sections(text + "\n- one\n- two\n")
    assert (first.heading, second.heading) == ("T", "S")
    assert first.html() == "<p>Words <code>a&lt;b</code> more</p>"
    assert '<th scope="row">x|y</th><td>1</td>' in second.html()
    assert second.html().endswith("<ul>\n<li>one</li>\n<li>two</li>\n</ul>")


def test_times_are_told_anew_on_other_devices(
    make_run: MakeRun, run_command: RunCommand, tmp_path: Path
) -> None:
    two = {"clients": 2, "cohort": 2}
    ledger = [
        LedgerEntry(round, client, "uplink", "weights", 375_000)  # 1 s at 3 Mbit/s
        for round in (1, 2, 3, 4)
        for client in (0, 1)
    ]
    for method in ("sflv1", "fedavg"):  # two round trips of 50 ms, and one
        run = make_run(method, settings=two, ledger=ledger, client_step_flops=1)
    assert run.path is not None
    before = (run.path / "result.json").read_bytes()
    code, out, _ = run_command("report", tmp_path / "runs", "--fleet", "mobile")
    assert code == 0 and "Simulated" in out
    table = pd.read_csv(tmp_path / "runs" / "on-mobile" / "summary.csv", index_col="method")
    times = table[["simulated_s", "client_s"]]
    assert times.loc["sflv1"].tolist() == pytest.approx([4 * 1.1, 8 * 1.1])
    assert times.loc["fedavg"].tolist() == pytest.approx([4 * 1.05, 8 * 1.05])
    names = {path.name for path in (tmp_path / "runs" / "on-mobile").iterdir()}
    assert {"accuracy_vs_simulated_time.png", "accuracy_vs_client_seconds.svg"} <= names
    assert (run.path / "result.json").read_bytes() == before

    for text, message in [("mobil", "none of datacentre"), ("mobile,stragler=1", "'fleet.stragl")]:
        code, _, err = run_command("report", tmp_path / "runs", "--fleet", text)
        assert code == 2 and message in err
