"""A few thousand damaged messages; `python -m leansplit.experiments.fuzz` takes any number."""

from leansplit.experiments.fuzz import fuzz


def test_damaged_bytes_are_read_or_refused_with_a_reason():
    report = fuzz(3000)
    assert report.messages == 3000 == report.accepted + report.refused.total()
    assert not report.crashes and not report.hangs
    assert all(report.refused)  # every refusal says something
    assert {name.split(":")[0] for name in report.refused} >= {"encoding", "record", "shape"}
    assert report.largest_growth < 8
    assert 0 < report.most_traced < 8e6
