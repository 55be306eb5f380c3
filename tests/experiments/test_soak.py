"""The soak: a run whose memory is flat passes, one that keeps something of every round does not."""

import pandas as pd
import psutil
import pytest

from leansplit.errors import RunFailedError
from leansplit.experiments.soak import GROUPS, Soak, configuration, main, soak
from leansplit.server_app.recording import Outcome, Progress


def rows(values):
    return [
        {"round": t, **dict.fromkeys(GROUPS, float("nan")), "driver": value}
        for t, value in enumerate(values, 1)
    ]


def test_growth_is_that_of_the_last_half():
    warm = [100.0 + 10 * t for t in range(50)]  # what a run takes at first is no leak
    assert Soak(1, rows(warm + [600.0] * 50)).growth("driver", 100) == pytest.approx(0, abs=1e-12)
    # 600 at the middle, 660 at the end, by a line: a tenth of 600
    grows = [600 + 60 * t / 50 for t in range(1, 51)]
    assert Soak(1, rows(warm + grows)).growth("driver", 100) == pytest.approx(0.1)
    with pytest.raises(RunFailedError, match="9 samples of the driver in the last half"):
        Soak(1, rows([1.0] * 59)).growth("driver", 100)


def test_a_short_run_with_faults(monkeypatch):
    # this process may have children of other tests, which come and go
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [])
    said = []
    config = configuration(rounds=40, workers=-1, clients=10, cohort=3)
    found = soak(config, 0.5, said.append)
    assert [row["round"] for row in found.rows] == list(range(1, 41))
    assert "40 rounds" in said[0] and "dropped_silent" in said[0] and "dropped_node" in said[0]
    assert said[1].startswith("driver: ") and len(said) == 2  # there are no workers


def test_an_engine_that_is_not_there_all_along_says_nothing(monkeypatch):
    monkeypatch.setattr(psutil.Process, "children", lambda self, recursive: [])
    config, said = configuration(rounds=40, workers=-1, clients=10, cohort=3), []

    def run(config, on_progress):
        for t in range(1, config.rounds + 1):
            on_progress(Progress(t, t, t, None, config.budget()))
            if t == 30:
                on_progress.__self__.rows[-1]["engine"] = 1e6
        return Outcome(config, config.method_config(), client_costs=None, rounds_completed=t)

    soak(config, 0.5, said.append, run=run)
    assert [line.split(":")[0] for line in said[1:]] == ["driver"]


def test_what_is_kept_of_every_round_is_found():
    config, kept = configuration(rounds=40, workers=-1, clients=10, cohort=3), []

    def leaky(config, on_progress):
        for t in range(1, config.rounds + 1):
            kept.append(bytearray(b"x" * 10_000_000))
            on_progress(Progress(t, t, t, None, config.budget()))
        return Outcome(config, config.method_config(), client_costs=None, rounds_completed=t)

    with pytest.raises(RunFailedError, match="the memory of driver grew by 5% or more"):
        soak(config, 0.05, lambda _: None, run=leaky)


def test_samples_of_a_run_that_raises_are_written(tmp_path):
    config = configuration(rounds=40, workers=-1, clients=10, cohort=3)

    def breaks(config, on_progress):
        on_progress(Progress(1, 1, 1, None, config.budget()))
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        soak(config, 0.05, lambda _: None, run=breaks, out=tmp_path / "samples.csv")
    written = pd.read_csv(tmp_path / "samples.csv")
    assert [*written] == ["round", *GROUPS] and written["round"].tolist() == [1]


def test_a_mistake_is_one_line(capsys):
    assert main(["--rounds", "5", "--clients", "2", "--cohort", "3"]) == 2
    assert "cohort" in capsys.readouterr().err
    assert main(["--faults", "hang=0.1"]) == 2
    assert "faults.hang" in capsys.readouterr().err


def test_faults_of_ones_own():
    faults = configuration(20, -1, 10, 3, "late=0.5").faults
    assert (faults.drop, faults.late, faults.die) == (0, 0.5, 0)
