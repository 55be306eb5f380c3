"""The measuring commands measure."""

import sys

import pytest

from leansplit.experiments.benchmarks.turns import interleaved_ratios
from leansplit.experiments.memory import peak_memory_bytes


def test_peak_memory_sees_children_and_failures():
    hold = "import time; kept = bytearray(80_000_000); time.sleep(1.5)"
    nest = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}], check=True)"
    assert peak_memory_bytes([sys.executable, "-c", nest]) > 80_000_000
    with pytest.raises(RuntimeError, match="broken"):
        peak_memory_bytes([sys.executable, "-c", "raise SystemExit('broken')"])


def test_ratios_are_to_the_baseline(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def taking(seconds):
        def call():
            clock[0] += next(seconds)

        return call

    others = {"slow": taking(iter([6.0, 9.0, 1.0])), "quick": taking(iter([1.0, 1.0, 1.0]))}
    ratios = interleaved_ratios(taking(iter([2.0, 4.0, 0.5])), others, 3)
    assert ratios == {"slow": [3.0, 2.25, 2.0], "quick": [0.5, 0.25, 2.0]}
