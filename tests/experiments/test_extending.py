"""docs/extending.md, word for word: a method in a user's file, with no change to leansplit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from leansplit.experiments.running import run_and_write
from leansplit.server_app.config import run_config

pytestmark = pytest.mark.timeout(600)  # whole commands, side by side with other tests
ROOT = Path(__file__).parents[2]
SHARED = {
    "task_options.max_train": 240,
    "task_options.max_test": 60,
    "clients": 6,
    "cohort": 3,
    "clients_per_node": 3,
    "rounds": 3,
    "evaluate_every": 3,
}
EXPERIMENT = "\n".join(
    [
        'plugins = ["q_frozen.py"]',
        *("[shared]", 'task = "digits"', "workers = 1"),
        *(f"{key} = {value}" for key, value in SHARED.items()),
        *("[[methods]]", 'method = "q-frozen"', "levels = 7"),
    ]
)


@pytest.fixture
def plugin(tmp_path):
    page = (ROOT / "docs" / "extending.md").read_text()
    code = re.search(r"<!-- q_frozen.py -->\n```python\n(.*?)```", page, re.DOTALL).group(1)
    path = tmp_path / "q_frozen.py"
    path.write_text(code)
    return path


def run(*command, **environment):
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment},
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def leansplit(*arguments):
    start = "from leansplit.experiments.cli import main; main()"
    return run(sys.executable, "-c", start, *map(str, arguments))


def test_it_is_known_with_its_keys(plugin):
    keys = leansplit("--plugin", plugin, "keys", "q-frozen")
    assert "levels" in keys and "Steps from zero to the largest magnitude" in keys


@pytest.mark.ray
def test_it_takes_part_in_a_comparison_on_ray(plugin, tmp_path):
    (tmp_path / "mine.toml").write_text(EXPERIMENT)
    out = tmp_path / "out"
    leansplit("compare", tmp_path / "mine.toml", "--out", out)
    quantised = json.loads((out / "q-frozen" / "seed-0" / "result.json").read_text())
    assert quantised["status"] == "completed" and quantised["rounds_completed"] == 3
    assert quantised["config"]["options"] == {"levels": 7}
    plain = run_and_write(run_config("frozen", SHARED | {"workers": -1}), tmp_path / "plain")
    smashed = [
        traffic["smashed_data"]["uplink_bytes"] for traffic in (plain.traffic, quantised["traffic"])
    ]
    assert smashed[0] == 4 * smashed[1] > 0


def test_it_passes_the_conformance_suite(plugin):
    folder = ROOT / "tests" / "conformance"
    suite = [*map(str, sorted(folder.glob("test_m*.py")))]
    suite += [str(folder / f"test_{name}.py") for name in ("passes", "client_device")]
    output = run(
        *(sys.executable, "-m", "pytest", *suite, "-k", "q-frozen", "-q", "-p", "no:xdist"),
        LEANSPLIT_PLUGINS=str(plugin),
    )
    assert re.search(r"\.{15}", output) and "failed" not in output


def test_a_setting_out_of_range_is_one_line(plugin):
    start = "from leansplit.experiments.cli import main; main()"
    done = subprocess.run(
        (
            *(sys.executable, "-c", start, "--plugin", str(plugin)),
            *("run", "q-frozen", "--set", "levels=500"),
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "leansplit: error: levels must be from 1 to 127, got 500\n"
