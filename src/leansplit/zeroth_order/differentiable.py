"""Objectives that watchers differentiate: what clients only probe, once more and with a graph.

One for each kind of probe: HO-SFL's surrogate, the loss of a whole model, the loss through an
auxiliary head, the loss of two halves of which one is asked about. Nothing here is part of any
method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Literal

from torch import Tensor, nn
from torch.func import functional_call

from leansplit.noise.torch_rng import torch_seeded
from leansplit.parameters import ParameterDict

DifferentiableObjective = Callable[[int, ParameterDict, Tensor, Tensor], Tensor]
"""(client id, parameters, inputs, labels) -> that client's objective, a scalar with a graph. It
reads the modules that it runs and leaves them as they were."""

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""(outputs, labels) -> mean loss."""

Half = Literal["client", "server"]


def surrogate_objective(
    client_model: nn.Module, smashed_gradients: Mapping[int, Tensor]
) -> DifferentiableObjective:
    """Return F_m(theta) = <lambda_m, f_c(x_m; theta)> of HO-SFL's clients, in evaluation mode.

    Its gradient is the one that a first-order client gets by back-propagating lambda_m.
    """

    def value(client_id: int, parameters: ParameterDict, inputs: Tensor, _: Tensor) -> Tensor:
        with evaluation_mode(client_model):
            smashed: Tensor = functional_call(client_model, parameters, (inputs,))
        return (smashed * smashed_gradients[client_id]).sum()

    return value


def loss_objective(model: nn.Module, loss: LossFunction) -> DifferentiableObjective:
    """Return F_m(theta) = loss(f(x_m; theta), y_m) of one model, in evaluation mode.

    ``parameters`` may be some of the model's; the others stay at what the model holds.
    """

    def value(_: int, parameters: ParameterDict, inputs: Tensor, labels: Tensor) -> Tensor:
        with evaluation_mode(model):
            outputs: Tensor = functional_call(model, parameters, (inputs,))
        return loss(outputs, labels)

    return value


def local_loss_objective(model: nn.Module, loss: LossFunction) -> DifferentiableObjective:
    """Return HERON-SFL's F_m(theta_l) = loss(a(f_c(x_m; theta_c); theta_a), y_m), evaluation mode.

    As :class:`leansplit.zeroth_order.LocalLossObjective`, ``model`` maps inputs to (z, outputs),
    and the loss is taken in float64.
    """

    def value(_: int, parameters: ParameterDict, inputs: Tensor, labels: Tensor) -> Tensor:
        with evaluation_mode(model):
            _, outputs = functional_call(model, parameters, (inputs,))
        return loss(outputs.double(), labels)

    return value


def cut_objective(
    client_model: nn.Module,
    server_model: nn.Module,
    loss: LossFunction,
    *,
    part: Half = "client",
    held: Mapping[str, Tensor] | None = None,
    dropout_seed: int | None = None,
) -> DifferentiableObjective:
    """Return F_m = loss(f_s(f_c(x_m; theta_c); theta_s), y_m) as a function of one half.

    Args:
        client_model: f_c, run in evaluation mode.
        server_model: f_s.
        loss: mean loss.
        part: the half that ``parameters`` are of.
        held: the other half's parameters; None = what it holds when it is differentiated.
        dropout_seed: of the server's random layers, run in training mode; None = evaluation mode.
    """
    other = dict(held or {})

    def value(_: int, parameters: ParameterDict, inputs: Tensor, labels: Tensor) -> Tensor:
        theta_c, theta_s = (parameters, other) if part == "client" else (other, parameters)
        with ExitStack() as modes:
            modes.enter_context(evaluation_mode(client_model))
            modes.enter_context(_mode(server_model, dropout_seed is not None))
            smashed: Tensor = functional_call(client_model, theta_c, (inputs,))
            if dropout_seed is not None:
                modes.enter_context(torch_seeded(dropout_seed))
            outputs: Tensor = functional_call(server_model, theta_s, (smashed,))
        return loss(outputs, labels)

    return value


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode inside the block; every module's mode is restored."""
    with _mode(model, is_training=False):
        yield


@contextmanager
def _mode(model: nn.Module, is_training: bool) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.train(is_training)
    try:
        yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training
