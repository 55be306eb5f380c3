import pytest
import torch

from leansplit.federated import OptimizerConfig, TrainedVector, build_optimizer

OPTIMIZERS = {
    "sgd": OptimizerConfig(lr=0.1, weight_decay=0.01),
    "momentum": OptimizerConfig(lr=0.1, momentum=0.9),
    "adamw": OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.1),
}
START = {"b": torch.tensor([1.0, -2.0]), "a": torch.tensor([[3.0]])}
GRADIENTS = [torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 0.0, -0.25])]
every_optimizer = pytest.mark.parametrize("config", OPTIMIZERS.values(), ids=OPTIMIZERS)


@every_optimizer
def test_steps_are_torchs_and_the_start_is_copied(config):
    trained = TrainedVector(START, config)
    plain = torch.tensor([3.0, 1.0, -2.0])  # sorted by name
    optimizer = build_optimizer(config, [plain])
    for gradient in GRADIENTS:
        trained.step_(gradient)
        plain.grad = gradient.clone()
        optimizer.step()
    assert torch.equal(trained.vector, plain)
    assert torch.equal(trained.parameters["b"], plain[1:])
    assert START["a"].item() == 3.0 and START["b"].tolist() == [1.0, -2.0]


@every_optimizer
def test_moments_carry_over(config):
    whole, first = TrainedVector(START, config), TrainedVector(START, config)
    for gradient in GRADIENTS:
        whole.step_(gradient)
    first.step_(GRADIENTS[0])
    second = TrainedVector(first.parameters, config, first.moments)
    second.step_(GRADIENTS[1])
    assert torch.equal(second.vector, whole.vector)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_lifetime_batch_starts_every_step_afresh(name):
    values = vars(OPTIMIZERS[name]) | {"lifetime": "batch"}
    trained = TrainedVector(START, OptimizerConfig(**values))
    for gradient in GRADIENTS:
        fresh = TrainedVector(trained.parameters, OPTIMIZERS[name])
        fresh.step_(gradient)
        trained.step_(gradient)
        assert torch.equal(trained.vector, fresh.vector)


@every_optimizer
def test_no_parameters_are_no_trouble(config):
    nothing = TrainedVector({}, config)
    nothing.step_(torch.zeros(0))
    assert nothing.parameters == {} and nothing.moments == {}
