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


def test_ratios_are_to_the_baseline():
    ratios = interleaved_ratios(
        lambda: sum(range(20_000)), {"twice": lambda: sum(range(400_000))}, 5
    )
    assert len(ratios["twice"]) == 5 and min(ratios["twice"]) > 2
