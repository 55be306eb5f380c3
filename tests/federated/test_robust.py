"""The robust rules against Flower's own, and against a hostile minority."""

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, RecordDict
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.serverapp.strategy.multikrum import select_multikrum

from leansplit.errors import UserError
from leansplit.federated import RULES, HOSFLConfig, RobustConfig, aggregate, aggregate_scalars

START = {"w": torch.linspace(-1, 1, 6).reshape(2, 3), "b": torch.zeros(2)}


def answers(count):
    generator = torch.Generator().manual_seed(count)
    return [
        {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in START.items()}
        for _ in range(count)
    ]


def close(found, expected):
    for name, value in expected.items():
        assert torch.allclose(found[name], torch.as_tensor(value), atol=1e-6), name


@pytest.mark.parametrize("count", [5, 8])
def test_median_and_trimmed_mean_are_flowers(count):
    states, shares = answers(count), [1 / count] * count
    stacked = {k: np.stack([s[k].numpy() for s in states]) for k in START}
    median = aggregate(states, shares, START, RobustConfig(rule="median"))
    close(median, {k: np.median(v, axis=0) for k, v in stacked.items()})
    trimmed = aggregate(states, shares, START, RobustConfig(rule="trimmed_mean", hostile=0.25))
    close(trimmed, {k: trim_mean(v, 0.25).astype(np.float32) for k, v in stacked.items()})


@pytest.mark.parametrize("keep", [1, 3])
def test_krum_is_flowers(keep):
    states = answers(8)
    contents = [RecordDict({"arrays": ArrayRecord(state)}) for state in states]
    chosen = select_multikrum(contents, num_malicious_nodes=2, num_nodes_to_select=keep)
    kept = [c["arrays"].to_torch_state_dict() for c in chosen]
    expected = {k: torch.stack([state[k] for state in kept]).mean(0) for k in START}
    config = RobustConfig(rule="krum", hostile=0.25, keep=keep)
    close(aggregate(states, [1 / 8] * 8, START, config), expected)


def test_clipping_cuts_long_answers_and_leaves_short_ones():
    scalars = [torch.tensor([3.0, 4.0]), torch.tensor([0.6, 0.8]), torch.zeros(2)]
    config = RobustConfig(rule="clipping", max_norm=2.5)
    found = aggregate_scalars(scalars, [0.5, 0.25, 0.25], config)
    assert found == pytest.approx([0.5 * 1.5 + 0.25 * 0.6, 0.5 * 2.0 + 0.25 * 0.8])


@pytest.mark.parametrize("rule", RULES)
def test_what_two_of_ten_can_do(rule):
    honest, shares = answers(10), [0.1] * 10
    hostile = [{k: v * -1e3 for k, v in state.items()} for state in honest[:2]]
    config = RobustConfig(rule=rule)
    found = aggregate([*hostile, *honest[2:]], shares, START, config)
    off = max(float((found[k] - START[k]).abs().max()) for k in START)
    assert off > 50 if rule == "mean" else off < 0.5


def test_a_share_is_trimmed_to_the_client():
    """0.29 of 100 is 29, and in floats a little less."""
    rows = [torch.tensor([float(i**2)]) for i in range(100)]
    found = aggregate_scalars(rows, [0.01] * 100, RobustConfig(rule="trimmed_mean", hostile=0.29))
    assert found == pytest.approx([sum(i**2 for i in range(29, 71)) / 42])


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "clipping", "krum"])
@pytest.mark.parametrize("count", [3, 4, 5, 7, 10])
@pytest.mark.parametrize("hostile", [0.05, 0.2, 0.4])
def test_one_liar_does_not_move_a_rule_that_has_enough_answers(rule, count, hostile):
    config = RobustConfig(rule=rule, hostile=hostile, keep=100)
    scalars = [torch.tensor([1.0 + m / 100]) for m in range(count - 1)] + [torch.tensor([1e9])]
    [found] = aggregate_scalars(scalars, [1 / count] * count, config)
    if config.is_enough(count):
        assert 0 < found < 2
        assert config.num_hostile(count) >= 1
    else:
        assert rule == "krum" and count < 2 * config.num_hostile(count) + 3
        assert torch.tensor(found).isfinite()


@pytest.mark.parametrize("rule", RULES)
def test_one_and_two_answers_make_something_too(rule):
    config = RobustConfig(rule=rule)
    assert aggregate_scalars([torch.tensor([4.0])], [1.0], config) == (4.0,)
    [found] = aggregate_scalars([torch.tensor([4.0]), torch.tensor([5.0])], [0.5, 0.5], config)
    assert found == {"krum": 4.0, "clipping": 4.25}.get(rule, 4.5)


@pytest.mark.parametrize(
    ("settings", "cohort", "message"),
    [
        ({"rule": "median"}, 2, r"median needs 3 answers, and cohort is 2; enlarge cohort"),
        ({"rule": "trimmed_mean"}, 2, "trimmed_mean needs 3 answers"),
        ({"rule": "clipping"}, 1, "clipping needs 3 answers"),
        ({"rule": "krum"}, 4, "krum needs 5 answers with 1 of them hostile.*robust.hostile"),
        ({"rule": "krum", "hostile": 0.4}, 10, "krum needs 11 answers with 4 of them hostile"),
        ({"rule": "krum", "keep": 9}, 10, "robust.keep must be at most 8, got 9"),
    ],
)
def test_a_rule_that_the_cohort_is_too_small_for_is_refused(settings, cohort, message):
    with pytest.raises(UserError, match=message):
        HOSFLConfig(cohort_size=cohort, robust=RobustConfig(**settings))
    fine = {"hostile": 0.2, "keep": 1}
    HOSFLConfig(cohort_size=5, robust=RobustConfig(**settings | fine))
    HOSFLConfig(cohort_size=1, robust=RobustConfig(rule="clipping", max_norm=1.0))


@pytest.mark.parametrize(
    "wrong", [{"rule": "mode"}, {"hostile": 0.5}, {"keep": 0}, {"max_norm": -1.0}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UserError):
        RobustConfig(**wrong)
