"""A few thousand damaged messages; `python -m leansplit.experiments.fuzz` takes any number."""

import pytest

from leansplit.errors import UserError
from leansplit.experiments import fuzz as fuzzer
from leansplit.experiments.fuzz import Report, fuzz
from leansplit.server_app.checkpoint_files import MANIFEST, read_checkpoint, write_checkpoint


def test_damaged_bytes_are_read_or_refused_with_a_reason():
    report = fuzz(3000)
    assert report.messages == 3000 == report.accepted + report.refused.total()
    assert not report.crashes and not report.hangs
    assert all(report.refused)  # every refusal says something
    assert {name.split(":")[0] for name in report.refused} >= {"encoding", "record", "shape"}
    assert report.largest_growth < 8
    assert 0 < report.most_traced < 8e6


@pytest.mark.parametrize("told", [fuzzer._costs_decoder, fuzzer._choices_decoder])
def test_what_no_result_can_hold_is_passed_over(told):
    blob, decoder = told()
    decoder(blob, Report())
    for number in (b"1" + b"0" * 5000, b"-1", b"NaN"):
        with pytest.raises(UserError, match="passed over"):
            decoder(blob.replace(b"4", number, 1), Report())


@pytest.mark.parametrize("name", [MANIFEST, "state.json", "state.safetensors", "rounds.parquet"])
def test_damage_is_looked_for_below_the_digests_too(name, tmp_path):
    path = write_checkpoint(tmp_path, fuzzer._checkpoint())
    whole = {file.name: file.read_bytes() for file in path.iterdir()}
    damaged = whole[name][:-1]
    with pytest.raises(UserError) as refused:
        fuzzer._checkpoint_decoder(path / name)(damaged, Report())
    assert name == MANIFEST or "digest" not in str(refused.value)
    (path / name).write_bytes(whole[name])
    assert {file.name: file.read_bytes() for file in path.iterdir()} == whole
    fuzzer._checkpoint_decoder(path / name)(whole[name], Report())
    assert read_checkpoint(path).round == 2
