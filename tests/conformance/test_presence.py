"""Clients that are not always there, or never can be: every method runs with those that are."""

import dataclasses

import pandas as pd
import pytest

from leansplit.costs.fleet import FleetConfig
from leansplit.errors import UserError
from leansplit.experiments.preflight import check_run
from leansplit.server_app.execution import attending_config
from leansplit.server_app.methods import METHODS
from leansplit.server_app.outputs import run_result, write_outcome
from leansplit.server_app.results import read_run
from leansplit.server_app.simulated_time import timed

TOO_SMALL = {2, 5}


@pytest.fixture
def devices(tmp_path):
    """A table of eight clients, seldom there; two have no memory for any step."""
    rows = [f"8Mbit,8Mbit,10ms,1G,0.2,{'1kB' if m in TOO_SMALL else '1GiB'}" for m in range(8)]
    table = tmp_path / "devices.csv"
    table.write_text("\n".join(["uplink,downlink,latency,flops,availability,memory", *rows]))
    return str(table)


@pytest.mark.parametrize("method", METHODS)
def test_the_federation_follows_the_plain_loop_with_whoever_is_there(
    method, devices, configure, run_in_process, reference_checksum, expected
):
    config = configure(method, rounds=5, seed=2, **{"fleet.profile": devices})
    run = expected(config)
    sizes = [len(cohort) for cohort in run.attendance]
    assert 0 in sizes and config.cohort in sizes and not TOO_SMALL & set().union(*run.attendance)

    outcome = run_in_process(config)
    assert outcome.status == "completed"
    assert outcome.events == {"empty_rounds": sizes.count(0)}
    assert outcome.final_model_checksum == reference_checksum(config)
    attended = [cohort for cohort in run.attendance if cohort]
    trips = METHODS[method].round_trips(run.settings, attended)
    assert outcome.num_exchanges == 1 + trips
    shape = dataclasses.replace(run.shape, client_samples=outcome.num_samples)
    predicted = METHODS[method].traffic(run.settings, shape, run.attendance, outcome.samples_seen)
    for (direction, kind), num_bytes in predicted.items():
        assert outcome.ledger.total_bytes(direction, kind) == num_bytes
    result = run_result(outcome, command=[], started_at="")
    assert result.excluded_clients == sorted(TOO_SMALL)


def test_telling_time_changes_no_bit(configure, run_in_process, tmp_path):
    """Devices on which all can always take part only add times, which results alone tell again."""
    fleet = FleetConfig(profile="mobile", spread=0.5, stragglers=0.25)
    keys = {"fleet.profile": "mobile", "fleet.spread": 0.5, "fleet.stragglers": 0.25}
    told, plain = (configure("ho-sfl", rounds=4, **more) for more in (keys, {}))
    assert "fleet" not in plain.to_dict()
    for name, config in (("told", told), ("plain", plain)):
        outcome = run_in_process(config)
        write_outcome(tmp_path / name, outcome, command=[], started_at="2026-01-01")
    told, plain = read_run(tmp_path / "told"), read_run(tmp_path / "plain")
    assert told.result.final_model_checksum == plain.result.final_model_checksum
    pd.testing.assert_frame_equal(told.ledger, plain.ledger)
    shared = plain.rounds.columns.drop("wall_time_s")
    pd.testing.assert_frame_equal(told.rounds[shared], plain.rounds[shared])
    assert told.rounds["simulated_s"].is_monotonic_increasing
    again = timed(plain, fleet)
    assert again.rounds["simulated_s"].tolist() == told.rounds["simulated_s"].tolist()
    assert again.result.client_s == told.result.client_s > told.result.simulated_s > 0


def test_a_run_that_fits_nobody_is_refused_before_it_starts(configure):
    config = configure("ho-sfl", **{"fleet.profile": "mobile", "fleet.memory": "1kB"})
    with pytest.raises(UserError, match=r"no client has the memory for a step of HO-SFL: it needs"):
        check_run(config)


def test_clients_are_judged_at_their_own_boundary(configure):
    config = configure("ho-fl")
    task = config.workload().load_task()
    model = config.workload().build_model(task)
    settings, costs = attending_config(config, task, model)
    peaks = costs.peaks(config.clients)
    memory = f"{min(peaks)}B"
    small = configure("ho-fl", **{"fleet.profile": "mobile", "fleet.memory": memory})
    excluded = attending_config(small, task, model)[0].presence.excluded
    boundaries = settings.boundaries_of(range(config.clients))
    assert {boundaries[m] for m in excluded} == {"none"}
    assert len(excluded) == config.clients // 2
