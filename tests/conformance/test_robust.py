"""Every robust rule, in the methods that average scalars, weights or both: equal to the loops."""

import pytest
import torch

from leansplit.parameters import checksum

CASES = [
    ("ho-sfl", "clipping"),
    ("decomfl", "median"),
    ("sflv1", "krum"),
    ("mu-splitfed", "trimmed_mean"),
    ("cse-fsl", "median"),
    ("ho-fl", "clipping"),
    ("fedavg", "trimmed_mean"),
]


@pytest.mark.parametrize(("method", "rule"), CASES)
def test_a_rule_equals_the_reference_loop(
    method, rule, configure, run_in_process, reference_checksum
):
    keys = {"robust.rule": rule, "robust.hostile": 0.25, "robust.keep": 2, "cohort": 5, "rounds": 3}
    config = configure(method, **keys)
    outcome = run_in_process(config)
    assert outcome.events == {}
    assert outcome.final_model_checksum == reference_checksum(config)
    plain = configure(method, cohort=5, rounds=3)
    assert outcome.final_model_checksum != run_in_process(plain).final_model_checksum


@pytest.mark.parametrize("method", ["zo-sfl", "mu-splitfed"])
def test_a_server_model_that_all_clients_share_follows_no_rule(
    method, configure, run_in_process, reference_checksum
):
    keys = {"server_mode": "sequential", "cohort": 5, "rounds": 1}
    clipped = configure(method, **keys, **{"robust.rule": "clipping", "robust.max_norm": 1e-6})
    ends = [run_in_process(config).final_state for config in (clipped, configure(method, **keys))]
    apart = {name for name, value in ends[0].items() if not torch.equal(value, ends[1][name])}
    assert apart and apart < ends[0].keys()  # the client's half alone
    assert checksum(ends[0]) == reference_checksum(clipped)
