"""Batches of several clients in one pass: only where nothing but the time changes."""

import time

import pytest
import torch
from torch import nn

from leansplit.noise import torch_seeded
from leansplit.parameters import ParameterSpec, trainable_parameters
from leansplit.zeroth_order import (
    JointPasses,
    LossObjective,
    SurrogateObjective,
    ZerothOrderConfig,
    evaluate_jointly,
    forward_only,
    joint_passes,
    probe,
    probe_each,
    probe_smashed_data,
    probe_smashed_data_each,
)

BATCHES = [torch.arange(12.0).reshape(4, 3) + 100 * at for at in range(10)]


@pytest.fixture
def joined_is_faster(monkeypatch):
    """The more is joined, the less time it takes; whether it is equal is still found out."""
    measured = joint_passes._measured_speedup

    def speedup(forward, batches):
        return len(batches) if measured(forward, batches) else 0.0

    monkeypatch.setattr(joint_passes, "_measured_speedup", speedup)


def sizes_of(passes, forward, batches=BATCHES):
    """Run everything; return the samples of each pass, and every batch's outputs."""
    sizes = []

    def counted(inputs):
        sizes.append(len(inputs))
        return forward(inputs)

    list(passes.run(counted, batches))
    sizes.clear()
    outputs = list(passes.run(counted, batches))
    assert len(outputs) == len(batches)
    return sizes, outputs


def of_each_row(inputs):
    return inputs.square()


def of_all_rows(inputs):
    return inputs + len(inputs)


def test_equal_and_faster_passes_are_joined(joined_is_faster):
    passes = JointPasses()
    sizes, outputs = sizes_of(passes, of_each_row)
    assert sizes == [32, 8]  # samples: eight batches, then the other two
    assert all(torch.equal(z, of_each_row(x)) for z, x in zip(outputs, BATCHES, strict=True))
    told = [(choice.shape, choice.joined) for choice in passes.unreported]
    assert told == [((4, 3), 2), ((4, 3), 4), ((4, 3), 8)]


def test_passes_that_change_a_bit_stay_single(joined_is_faster):
    passes = JointPasses()
    sizes, outputs = sizes_of(passes, of_all_rows)
    assert sizes == [4] * 10 and not passes.unreported
    assert all(torch.equal(z, of_all_rows(x)) for z, x in zip(outputs, BATCHES, strict=True))


@pytest.mark.parametrize(
    ("speedups", "sizes"),
    [({2: 0.9, 4: 0.8, 8: 0.5}, [4] * 10), ({2: 1.5, 4: 2.0, 8: 1.9}, [16, 16, 8])],
)
def test_the_fastest_size_that_fits_is_taken(speedups, sizes, monkeypatch):
    monkeypatch.setattr(
        joint_passes, "_measured_speedup", lambda _, batches: speedups[len(batches)]
    )
    assert sizes_of(JointPasses(), of_each_row)[0] == sizes


def test_time_is_measured():
    def slow_start(inputs):
        time.sleep(0.01)
        return of_each_row(inputs)

    assert sizes_of(JointPasses(), slow_start)[0] == [32, 8]


def test_modes_need_no_measurement(monkeypatch):
    monkeypatch.setattr(joint_passes, "_measured_speedup", lambda *_: pytest.fail("why measure"))
    assert sizes_of(JointPasses("off"), of_each_row)[0] == [4] * 10
    assert sizes_of(JointPasses("on"), of_all_rows)[0] == [40]


def test_joined_passes_are_bounded():
    batches = [torch.zeros(400, 1)] * 5
    assert sizes_of(JointPasses("on"), of_each_row, batches)[0] == [800, 800, 400]
    assert sizes_of(JointPasses("on"), of_each_row, [torch.zeros(2000, 1)] * 2)[0] == [2000] * 2


def test_every_size_of_a_shape_is_tried_once(joined_is_faster):
    passes = JointPasses()
    for batches in (BATCHES, BATCHES[:3], BATCHES, [batch[:2] for batch in BATCHES]):
        list(passes.run(of_each_row, batches))
    assert [sorted(tried) for tried in passes.speedups.values()] == [[1, 2, 4, 8]] * 2
    assert len(passes.unreported) == 6


def test_what_a_joined_pass_puts_out_is_bounded(joined_is_faster, monkeypatch):
    monkeypatch.setattr(joint_passes, "_MAX_OUTPUT_BYTES", 5 * BATCHES[0].nbytes)
    assert sizes_of(JointPasses(), of_each_row)[0] == [16, 16, 8]
    monkeypatch.setattr(joint_passes, "_MAX_OUTPUT_BYTES", 1)
    assert sizes_of(JointPasses(), of_each_row)[0] == [4] * 10


def test_a_size_that_memory_does_not_hold_is_not_tried_again():
    tried = []

    def forward(inputs):
        if len(inputs) > 8:
            tried.append(len(inputs))
            raise torch.OutOfMemoryError("no memory for so many")
        time.sleep(0.005)
        return of_each_row(inputs)

    assert sizes_of(JointPasses(), forward)[0] == [8] * 5
    assert tried == [16, 32]


def lengths_tried(monkeypatch, speedups, is_equal=True):
    """Run texts of seven lengths; return size -> the lengths (timed, only compared)."""
    timed, compared = {2: [], 4: [], 8: []}, {2: [], 4: [], 8: []}

    def speedup(_, batches):
        timed[len(batches)].append(batches[0].shape[-1])
        return speedups[len(batches)][batches[0].shape[-1] - 1]

    def equal(_, batches):
        compared[len(batches)].append(batches[0].shape[-1])
        return is_equal

    monkeypatch.setattr(joint_passes, "_measured_speedup", speedup)
    monkeypatch.setattr(joint_passes, "_is_equal", equal)
    passes = JointPasses()
    for length in range(1, 8):
        list(passes.run(of_each_row, [torch.zeros(3, 2, length)] * 9))
    list(passes.run(of_each_row, [torch.zeros(2, 2, 1)] * 9))  # batches of another size
    assert all(lengths.pop() == 1 for lengths in timed.values())
    return {size: (timed[size], compared[size]) for size in timed}, passes


@pytest.mark.parametrize("is_equal", [True, False])
def test_of_texts_a_size_is_timed_in_a_few_lengths(monkeypatch, is_equal):
    gain = {2: [1.2, 1.3, 1.1, 1.4], 4: [1.3] * 4, 8: [1.5] * 4}
    tried, passes = lengths_tried(monkeypatch, gain, is_equal)
    assert set(map(str, tried.values())) == {"([1, 2, 3, 4], [5, 6, 7])"}
    measured = passes.speedups[(3, 2, 7), torch.float32]
    assert measured == {1: 1, 2: 1.25, 4: 1.3, 8: 1.5} if is_equal else {1: 1, 2: 0, 4: 0, 8: 0}


def test_of_texts_a_size_without_gain_is_given_up_after_a_few_lengths(monkeypatch):
    """One lucky measurement does not keep it; a larger one may gain more."""
    gain = {2: [1.2] * 4, 4: [1.05, 1.3, 1.05, 1.05], 8: [1.5] * 4}
    tried, _ = lengths_tried(monkeypatch, gain)
    assert tried == {
        2: ([1, 2, 3, 4], [5, 6, 7]),
        4: ([1, 2, 3, 4], []),
        8: ([1, 2, 3, 4], [5, 6, 7]),
    }


def test_passes_that_change_a_bit_stay_single_in_other_lengths_too(joined_is_faster):
    passes = JointPasses()

    def of_some_rows(inputs):  # lengths from 5 on depend on what stands beside them
        return inputs + (len(inputs) if inputs.shape[-1] > 4 else 0)

    for length in range(1, 6):
        batches = [torch.full((3, 2, length), float(at)) for at in range(5)]
        outputs = list(passes.run(of_some_rows, batches))
        assert all(map(torch.equal, outputs, map(of_some_rows, batches)))
    assert passes.speedups[(3, 2, 4), torch.float32][4] > 1
    assert passes.speedups[(3, 2, 5), torch.float32] == {1: 1, 2: 0, 4: 0}


@pytest.fixture
def model():
    with torch_seeded(0):
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten()).eval()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 1, 5, 5, generator=generator) for _ in range(5)]


@pytest.mark.parametrize("estimator", ["forward", "central"])
@pytest.mark.parametrize("has_anchors", [False, True])
def test_probes_of_many_are_those_of_each(model, batches, estimator, has_anchors):
    config = ZerothOrderConfig(num_perturbations=3, estimator=estimator)
    parameters = trainable_parameters(model)
    spec = ParameterSpec.of(parameters)
    vector, seeds = spec.flatten(parameters), [11, 12, 13]
    loss = nn.CrossEntropyLoss()
    surrogates = [SurrogateObjective(model, x, forward_only(model, parameters, x)) for x in batches]
    losses = [LossObjective(model, loss, x, torch.arange(4)) for x in batches]
    for objectives in (surrogates, losses):
        anchors = [objective.evaluate(parameters) for objective in objectives]
        together = probe_each(
            evaluate_jointly(JointPasses(), model, objectives),
            spec,
            vector,
            seeds,
            config,
            anchors=anchors if has_anchors else None,
        )
        for objective, anchor, differences in zip(objectives, anchors, together, strict=True):
            alone = probe(objective, spec, vector, seeds, config, anchor=anchor)
            assert torch.equal(differences, alone) and alone.any()


@pytest.mark.parametrize("estimator", ["forward", "central"])
def test_smashed_data_of_many_are_those_of_each(model, batches, estimator):
    config = ZerothOrderConfig(num_perturbations=3, estimator=estimator)
    parameters = trainable_parameters(model)
    spec = ParameterSpec.of(parameters)
    vector, seeds = spec.flatten(parameters), [11, 12, 13]
    passes = JointPasses()
    together = probe_smashed_data_each(
        lambda at: passes.run(lambda x: forward_only(model, at, x), batches),
        spec,
        vector,
        seeds,
        config,
        with_anchor=True,
    )
    for inputs, probed in zip(batches, together, strict=True):
        alone = probe_smashed_data(model, spec, vector, inputs, seeds, config, with_anchor=True)
        for name in ("anchor", "plus", "minus"):
            assert torch.equal(getattr(probed, name), getattr(alone, name))
