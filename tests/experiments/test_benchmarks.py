import pytest

from leansplit.errors import RunFailedError
from leansplit.experiments.benchmarks import catch_up
from leansplit.federated import Replica


def test_catch_up_prints_ratios_of_equal_work(capsys):
    catch_up.main(rounds=8, parameters=50, directions=2, pool=4, repeats=2)
    first, *lines = capsys.readouterr().out.splitlines()
    assert "torch" in first and "8 rounds missed, 50 parameters, 2 directions" in first
    assert lines[0] == "fresh seeds: to drawing 16 perturbations; bits are equal"
    assert lines[3] == "pool of 4: to drawing 4 perturbations; bits are equal"
    assert sum("min" in line and "median" in line for line in lines) == 4


def test_catch_up_fails_where_replicas_differ(monkeypatch):
    def wrong(self, updates):
        self.vector += 1

    monkeypatch.setattr(Replica, "catch_up_", wrong)
    with pytest.raises(RunFailedError, match="replicas differ"):
        catch_up.main(rounds=2, parameters=50, directions=2, pool=4, repeats=1)
