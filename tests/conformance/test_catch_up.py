"""However clients catch up, and wherever directions come from, replicas and ledger are exact."""

import pytest

from leansplit.errors import UserError
from leansplit.federated import CATCH_UPS, DeComFLConfig, FedZOConfig
from leansplit.server_app.config import run_config
from leansplit.server_app.results import config_hash
from leansplit.zeroth_order import ZerothOrderConfig


@pytest.mark.parametrize(
    ("method", "optimizer", "options"),
    [
        ("ho-sfl", "sgd", {"probe.seed_pool": 300}),
        ("ho-sfl", "momentum", {"probe.seed_pool": 8, "catch_up": "log", "probe_ahead": True}),
        (
            "hosl",
            "adamw",
            {"probe.seed_pool": 8, "catch_up": "snapshot", "replica_storage": "worker"},
        ),
        ("decomfl", "momentum", {"probe.seed_pool": 8}),
    ],
)
def test_pooled_directions_are_those_of_the_reference_loop(
    method, optimizer, options, configure, run_in_process, reference_checksum, check_ledger
):
    config = configure(method, optimizer, **options)
    outcome = run_in_process(config)
    assert outcome.status == "completed" and outcome.events == {}
    assert outcome.final_model_checksum == reference_checksum(config)
    check_ledger(config, outcome)


def test_all_ways_to_catch_up_end_in_the_same_bits(
    configure, run_in_process, reference_checksum, check_ledger
):
    """With many directions of a small model some clients miss more than a snapshot weighs."""
    absences = {"clients": 10, "cohort": 2, "rounds": 16, "probe.num_perturbations": 30}
    configs = {way: configure("ho-sfl", "sgd", **absences, catch_up=way) for way in CATCH_UPS}
    reference = reference_checksum(configs["log"])
    outcomes = {way: run_in_process(config) for way, config in configs.items()}
    for way, outcome in outcomes.items():
        assert outcome.events == {}
        assert outcome.final_model_checksum == reference
        check_ledger(configs[way], outcome)
    sent = {way: sum(outcome.ledger.total_bytes(kind=kind)
                     for kind in ("scalars", "catch_up", "weights"))
            for way, outcome in outcomes.items()}  # fmt: skip
    assert sent["auto"] < min(sent["log"], sent["snapshot"])
    assert outcomes["auto"].ledger.total_bytes(kind="catch_up") > 0  # some were sent the log
    assert outcomes["snapshot"].ledger.total_bytes(kind="catch_up") == 0


def test_a_pool_makes_another_run_and_none_leaves_the_hash_alone():
    plain, pooled = (run_config("ho-sfl", {"probe.seed_pool": size}) for size in (0, 64))
    assert plain.to_dict() == run_config("ho-sfl", {}).to_dict()
    assert "seed_pool" not in plain.to_dict()["probe"] and "catch_up" not in str(plain.to_dict())
    assert config_hash(plain.to_dict()) != config_hash(pooled.to_dict())


def test_settings_that_cannot_be_kept_are_refused():
    with pytest.raises(UserError, match="hold at least num_perturbations = 5"):
        ZerothOrderConfig(num_perturbations=5, seed_pool=4)
    with pytest.raises(UserError, match="at most 65536"):
        ZerothOrderConfig(seed_pool=65_537)
    with pytest.raises(UserError, match="method whose clients share directions"):
        FedZOConfig(cohort_size=1, zeroth_order=ZerothOrderConfig(seed_pool=8))
    with pytest.raises(UserError, match=r"fedzo does not use 'probe\.seed_pool'"):
        run_config("fedzo", {"probe.seed_pool": 8})
    with pytest.raises(UserError, match="catch_up"):
        DeComFLConfig(cohort_size=1, catch_up="often")
    with pytest.raises(UserError, match="frozen does not use 'catch_up'"):
        run_config("frozen", {"catch_up": "log"})
