"""What `flwr run` passes on: Flower's flat table, empty values and the rest in `set`."""

import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from leansplit.errors import UserError
from leansplit.server_app import app as module
from leansplit.server_app.config import KEYS, option_keys, run_config
from leansplit.server_app.key_values import flatten
from leansplit.server_app.methods import METHODS

TABLE = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["flwr"]
DEFAULTS = flatten(TABLE["app"]["config"])


@pytest.fixture(autouse=True)
def _nodes_that_are_all_there(monkeypatch):
    """Do not wait for more of them."""
    monkeypatch.setattr("leansplit.strategies.roster._SETTLED_S", 0.0)


class ThreeNodes:
    def get_node_ids(self):
        return [30, 10, 20]


def configure(**changes):
    context = SimpleNamespace(run_config=DEFAULTS | changes)
    return module._from_flower(context, ThreeNodes())


@pytest.mark.parametrize("method", METHODS)
def test_untouched_the_table_means_the_method_s_own_defaults(method):
    general = {"cohort": 2, "rounds": 50, "clients": 3}
    assert configure(method=method) == run_config(method, general)


def test_listed_keys_and_set_are_passed_on():
    config = configure(
        method="heron-sfl",
        **{"client.lr": 0.5, "local_steps": 3, "set": "upload_period=2; auxiliary.kind=copy"},
    )
    assert config.client.lr == 0.5
    settings = config.method_config()
    assert (settings.local_steps, settings.upload_period) == (3, 2)
    assert settings.auxiliary.kind == "copy"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tau", "key=value"),
        ("tua=3", "did you mean 'tau'"),
        ("upload_period=2", "does not use 'upload_period'"),
    ],
)
def test_mistakes_in_set_are_named(text, message):
    with pytest.raises(UserError, match=message):
        configure(method="mu-splitfed", set=text)


def test_the_table_lists_only_keys_that_exist():
    options = {key for method in METHODS for key in option_keys(method)}
    assert DEFAULTS.keys() - {"method", "set", "resume", "resume_previous"} <= KEYS.keys() | options
