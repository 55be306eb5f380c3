"""Every robust rule, in the methods that average scalars, weights or both: equal to the loops."""

import pytest

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
