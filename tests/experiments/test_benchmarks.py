import re

import pytest
import torch

from leansplit.errors import RunFailedError
from leansplit.experiments.benchmarks import catch_up, messages, noise, vectorised
from leansplit.federated import Replica
from leansplit.wire import decode, encode


def test_catch_up_prints_ratios_of_equal_work(capsys):
    catch_up.main(rounds=8, parameters=50, directions=2, pool=4, repeats=2)
    first, *lines = capsys.readouterr().out.splitlines()
    assert "torch" in first and "8 rounds missed, 50 parameters, 2 directions" in first
    assert lines[0] == "fresh seeds: to drawing 16 perturbations; bits are equal"
    assert lines[3] == "pool of 4: to drawing 4 perturbations; bits are equal"
    assert sum("min" in line and "median" in line for line in lines) == 4


def test_catch_up_fails_where_replicas_differ(monkeypatch):
    def wrong(self, updates):
        self.vector += 1

    monkeypatch.setattr(Replica, "catch_up_", wrong)
    with pytest.raises(RunFailedError, match="replicas differ"):
        catch_up.main(rounds=2, parameters=50, directions=2, pool=4, repeats=1)


def test_noise_is_compared_with_randn_and_its_uses_with_drawing_it(capsys):
    noise.main(elements=64, parameters=100, repeats=1)
    _, drawn, *lines = capsys.readouterr().out.splitlines()
    assert drawn == "64 elements, to torch.randn of as many"
    assert lines[2] == "100 parameters, one Gaussian direction, to drawing it"
    named = [line.strip().rpartition(":")[0] for line in lines if "median" in line]
    assert named == [
        *("gaussian", "rademacher", "draw in parts", "perturb"),
        *(f"update, {optimizer}" for optimizer in ("plain SGD", "SGD with momentum", "AdamW")),
        "AdamW's step alone",
    ]


def test_on_a_device_perturbing_is_compared_with_a_copy(capsys):
    noise._print_beside_a_copy(torch.device("cpu"), 1000, repeats=2)
    _, how, what, *lines = capsys.readouterr().out.splitlines()
    assert how == "perturbing in operations of torch"
    assert what == "1,000 parameters: share of the bandwidth of a copy"
    assert [line.partition(":")[0] for line in lines] == [
        "  perturb, gaussian",
        "  perturb, rademacher",
    ]


def test_a_device_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        noise.main(device="cuda:93", repeats=1)
    assert "device 'cuda:93' cannot be used here" in capsys.readouterr().err


def test_messages_are_whole_ones_and_larger_than_what_they_carry(capsys):
    messages.main(batch=2, values=3, parameters=40, directions=2, repeats=2)
    _, _, *lines = capsys.readouterr().out.splitlines()
    sent = messages.messages(2, 3, 40, 2)
    assert len(lines) == len(sent)
    for line, (name, record) in zip(lines, sent.items(), strict=True):
        blob = encode(record)
        assert encode(decode(blob)) == blob
        assert line.startswith(f"  {name}: {len(blob):,} bytes, ") and "quartiles" in line


def test_vectorised_passes_are_those_one_after_the_other(capsys):
    threads = torch.get_num_threads()
    vectorised.main(only=["digits"], clients=3, directions=2, repeats=2)
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    for kind in ("directions", "clients", "gradients"):
        assert re.search(rf"  {kind}: min .*; (equal bits|apart by \de-0[5-9])", printed)


def test_what_vmap_does_not_run_is_said():
    def refuses():
        raise RuntimeError("no batching rule\nand more")

    line = vectorised.report("directions", (lambda: torch.ones(1), refuses), repeats=2)
    assert line == "  directions: vmap does not run this: no batching rule"
