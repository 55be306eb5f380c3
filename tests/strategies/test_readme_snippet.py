"""The README's plug-in snippet runs as it stands, on Flower's own simulation engine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def plug_in_snippet() -> str:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    [snippet] = [block for block in blocks if "split_client_app" in block]
    return snippet


def test_snippet_is_about_twenty_lines():
    lines = [line for line in plug_in_snippet().splitlines() if line.strip()]
    assert len(lines) <= 36


@pytest.mark.ray
def test_snippet_runs(tmp_path):
    script = tmp_path / "my_app.py"
    script.write_text(plug_in_snippet())
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # spinning threads starve a busy machine
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "accuracy by round: {0:" in done.stdout and "30:" in done.stdout
