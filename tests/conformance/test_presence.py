"""Clients that are not always there, or never can be: every method runs with those that are."""

import dataclasses

import pytest

from leansplit.server_app.methods import METHODS
from leansplit.server_app.outputs import run_result

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
