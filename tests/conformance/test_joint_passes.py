"""Packed clients compute together: the plain loop's bits, and passes that were joined."""

import pytest
import torch

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


def test_switched_off_each_is_run_alone_and_switched_on_all_are_to_rounding(
    configure, run_in_process, reference_checksum, monkeypatch
):
    joined = []
    together = joint_passes._together

    def noted(forward, batches):
        joined.append(len(batches))
        return together(forward, batches)

    monkeypatch.setattr(joint_passes, "_together", noted)
    ends = {}
    for mode in joint_passes.JOINT_PASSES_MODES:
        config = configure("ho-sfl", clients_per_node=8, cohort=6, joint_passes=mode)
        outcome = run_in_process(config, afresh=True)
        assert outcome.status == "completed", outcome.error
        assert any(size > 1 for size in joined) == (mode != "off")
        ends[mode] = outcome
        joined.clear()
    assert not ends["off"].joint_passes and not ends["on"].joint_passes  # nothing was measured
    reference = reference_checksum(configure("ho-sfl", cohort=6))
    assert [ends[mode].final_model_checksum for mode in ("off", "auto")] == [reference] * 2
    assert list(ends["on"].ledger) == list(ends["off"].ledger)
    for name, value in ends["off"].final_state.items():
        torch.testing.assert_close(ends["on"].final_state[name], value, rtol=1e-4, atol=1e-6)
