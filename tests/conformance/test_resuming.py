"""Every method goes on from a checkpoint to the bits of the run that nobody stopped."""

import pytest

from leansplit.clients.app import app
from leansplit.server_app.checkpoints import Checkpoints, resumable
from leansplit.server_app.execution import execute
from leansplit.server_app.methods import METHODS
from leansplit.server_app.recording import Outcome
from leansplit.server_app.results import rounds_table
from leansplit.server_app.telemetry import telemetry_table
from leansplit.strategies.in_process_grid import InProcessGrid

ALL = list(METHODS)
OPTIMIZERS = "momentum", "adamw"
PAIRS = [(method, OPTIMIZERS[i % 2]) for i, method in enumerate(ALL)]
OTHER_PAIRS = [(method, OPTIMIZERS[(i + 1) % 2]) for i, method in enumerate(ALL)]
ROUNDS, STOP = 6, 2


class Killed(BaseException):
    """Ends a run where it stands, as a signal would; nothing may catch it."""


@pytest.fixture
def run(tmp_path):
    """Run a configuration with checkpoints; ``killed_in``: in the middle of that round."""

    def start(config, *, killed_in=None, resume=False, fault=None) -> Outcome | None:
        folder = tmp_path / "checkpoints"
        grid = InProcessGrid(app, -(-config.clients // config.clients_per_node), fault=fault)
        checkpoint = resumable(tmp_path, config) if resume else None

        def watch(progress):
            if progress.round == killed_in:
                raise Killed

        try:
            return execute(
                config, grid, on_progress=watch, checkpoints=Checkpoints(folder, checkpoint)
            )
        except Killed:
            return None

    return start


def rows(outcome, *, but=("wall_time_s",)):
    return rounds_table(outcome.rounds).drop(columns=list(but))


TRAFFIC = ("wall_time_s", "uplink_bytes", "downlink_bytes", "num_exchanges")


def options(method, **more):
    """Everything that can keep state from round to round."""
    spec = METHODS[method]
    kept = {"rounds": ROUNDS, "evaluate_every": 2, "checkpoint_every": 2, "checkpoint_keep": 1}
    if "client_optimizer" in spec.fields:
        kept["client.lifetime"] = "run"
    if "server_optimizer" in spec.fields:
        kept["server.lifetime"] = "run"
    if spec.reports_estimates:
        kept["telemetry_every"] = 3
    return kept | more


@pytest.mark.parametrize(("method", "optimizer"), PAIRS)
def test_a_killed_simulation_goes_on_as_if_nothing_had_happened(method, optimizer, configure, run):
    """Checksum, rows and ledger: one process simulates all clients, whose memories are kept."""
    config = configure(method, optimizer, **options(method, replica_storage="worker"))
    whole = run(config)
    assert whole.status == "completed", whole.error
    assert run(config, killed_in=STOP + 1) is None
    resumed = run(config, resume=True)
    assert resumed.status == "completed", resumed.error
    assert resumed.events.pop("resumes") == 1
    resumed.events.pop("worker_refills", None)
    assert resumed.events == whole.events == {}
    assert resumed.final_model_checksum == whole.final_model_checksum
    assert rows(resumed).equals(rows(whole))
    assert list(resumed.ledger) == list(whole.ledger)
    assert telemetry_table(resumed.telemetry).equals(telemetry_table(whole.telemetry))
    assert resumed.client_costs == whole.client_costs
    for name in ("samples_seen", "rounds_completed", "num_exchanges", "samples_forwarded"):
        assert getattr(resumed, name) == getattr(whole, name), name


def test_a_killed_run_that_probes_ahead_ends_with_the_bits_of_two_exchanges(configure, run):
    whole = run(configure("ho-sfl", "adamw", **options("ho-sfl")))
    config = configure("ho-sfl", "adamw", **options("ho-sfl", probe_ahead=True))
    assert run(config, killed_in=STOP + 1) is None
    resumed = run(config, resume=True)
    assert resumed.status == "completed", resumed.error
    assert resumed.events == {"resumes": 1}
    assert resumed.final_model_checksum == whole.final_model_checksum


def test_a_run_whose_log_is_bounded_goes_on_with_the_same_bits(configure, run):
    """What clients without a memory miss is gone from the log: they are sent the replica."""
    ways = {"catch_up": "snapshot", "probe.seed_pool": 9}
    config = configure("ho-sfl", "momentum", **options("ho-sfl", **ways))
    whole = run(config)
    assert run(config, killed_in=STOP + 1) is None
    resumed = run(config, resume=True)
    assert resumed.status == "completed" and resumed.events == {"resumes": 1}
    assert resumed.final_model_checksum == whole.final_model_checksum
    assert resumed.ledger.total_bytes(kind="catch_up") == 0


@pytest.mark.parametrize(("method", "optimizer"), OTHER_PAIRS)
def test_clients_that_lost_their_memory_are_sent_what_they_need(method, optimizer, configure, run):
    """The same bits of model; what is sent again is booked."""
    config = configure(method, optimizer, **options(method))
    whole = run(config)
    assert whole.status == "completed", whole.error
    assert run(config, killed_in=STOP + 1) is None
    resumed = run(config, resume=True)
    assert resumed.status == "completed", resumed.error
    assert resumed.events == {"resumes": 1}
    assert resumed.final_model_checksum == whole.final_model_checksum
    assert rows(resumed, but=TRAFFIC).equals(rows(whole, but=TRAFFIC))
    again = {
        kind
        for kind in resumed.ledger.by_kind()
        if resumed.ledger.total_bytes(kind=kind) != whole.ledger.total_bytes(kind=kind)
    }
    assert again <= {"weights", "catch_up", "checkpoint", "envelope", "seeds", "scalars"}
    assert resumed.ledger.total_bytes() > whole.ledger.total_bytes()
