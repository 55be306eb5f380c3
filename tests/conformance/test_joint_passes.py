"""Packed clients compute together: the plain loop's bits, and passes that were joined."""

import pytest

from leansplit.zeroth_order import joint_passes

ROWS = [
    ("ho-sfl", {}),
    ("ho-sfl", {"probe_ahead": True}),
    ("ho-sfl", {"micro_batch": 2}),
    ("hosl", {}),
    ("frozen", {}),
]


@pytest.mark.parametrize("storage", ["worker", "context"])
@pytest.mark.parametrize(("method", "options"), ROWS)
def test_joined_passes_end_in_the_references_bits(
    method, options, storage, configure, run_in_process, reference_checksum, monkeypatch
):
    measured = joint_passes._measured_speedup
    monkeypatch.setattr(
        joint_passes,
        "_measured_speedup",
        lambda forward, batches: 2.0 if measured(forward, batches) else 0.0,
    )
    config = configure(method, clients_per_node=4, cohort=4, replica_storage=storage, **options)
    outcome = run_in_process(config, afresh=True)
    assert outcome.status == "completed", outcome.error
    assert outcome.final_model_checksum == reference_checksum(config)
    if "micro_batch" in options:
        assert not outcome.joint_passes  # a small device's passes are not made larger
    else:
        assert outcome.joint_passes
