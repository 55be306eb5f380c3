from dataclasses import dataclass

import pytest

from leansplit.errors import (
    RunFailedError,
    UserError,
    did_you_mean,
    require_choice,
    require_positive,
    section_named,
)

METHODS = ["ho-sfl", "fedavg", "sflv1", "sflv2"]


def test_did_you_mean_names_the_nearest_then_all():
    assert did_you_mean("ho-sf", ["ho-sfl", "fedavg"]) == (
        "did you mean 'ho-sfl'? allowed: fedavg, ho-sfl"
    )
    assert did_you_mean("fedavgg", METHODS).startswith("did you mean 'fedavg'? allowed: ")
    two = did_you_mean("sflv", METHODS)
    assert " or " in two and "'sflv1'" in two and "'sflv2'" in two
    assert did_you_mean("zzz", METHODS) == "allowed: fedavg, ho-sfl, sflv1, sflv2"
    assert did_you_mean("x", []) == "allowed: none"
    assert did_you_mean("ho-sf", ["ho-sfl", "ho-sfl"]).count("ho-sfl") == 2  # once each


def test_did_you_mean_shortens_long_lists():
    names = [f"layer{i:02}" for i in range(19)]
    listed = did_you_mean("zzz", names)
    assert listed.endswith("layer15, … (3 more)")
    assert "layer16" not in listed
    assert "more" not in did_you_mean("zzz", names[:16])


def test_require_choice():
    assert require_choice("method", "fedavg", METHODS) == "fedavg"
    assert require_choice("method", "fedavg", iter(METHODS)) == "fedavg"
    with pytest.raises(UserError, match=r"^unknown method 'fedav'; did you mean 'fedavg'\?"):
        require_choice("method", "fedav", METHODS)
    with pytest.raises(UserError, match="allowed: fedavg"):
        require_choice("method", "FedAvg!", iter(["fedavg"]))


@pytest.mark.parametrize("value", [1e-300, 1, 2.5, 10**400])
def test_require_positive_returns_what_it_was_given(value):
    assert require_positive("lr", value) is value


@pytest.mark.parametrize("value", [0, -0.0, -1, float("inf"), float("-inf"), float("nan")])
def test_require_positive_refuses(value):
    with pytest.raises(UserError, match=f"^lr must be .*, got {value!r}$"):
        require_positive("lr", value)


def test_kinds_of_errors():
    assert issubclass(UserError, ValueError)  # `except ValueError` at the edge catches it
    assert issubclass(RunFailedError, RuntimeError)
    assert not issubclass(RunFailedError, ValueError)


@dataclass
class Settings:
    lr: float = 0.1


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("lr must be above 0", "client.lr must be above 0"),
        ("adamw has no momentum", "client: adamw has no momentum"),
        ("lrs must be above 0", "client: lrs must be above 0"),
    ],
)
def test_errors_of_a_section_name_it(said, expected):
    with pytest.raises(UserError, match=f"^{expected}$"), section_named("client", Settings):
        raise UserError(said)
    with pytest.raises(RuntimeError, match=f"^{said}$"), section_named("client", Settings):
        raise RuntimeError(said)
