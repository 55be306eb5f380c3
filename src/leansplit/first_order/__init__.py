"""First-order steps: backpropagation at the server, and at clients that can afford it."""

from leansplit.first_order.alignment import align_
from leansplit.first_order.auxiliary_step import imitated_step, local_loss_step
from leansplit.first_order.client_step import backward_step, local_step, train_forward
from leansplit.first_order.recompute import (
    recompute_forward,
    recompute_gradients,
    recompute_step,
    replayed_forwards,
)
from leansplit.first_order.server_step import Loss, NonFiniteLossError, ServerStep, server_step

__all__ = [
    "Loss",
    "NonFiniteLossError",
    "ServerStep",
    "align_",
    "backward_step",
    "imitated_step",
    "local_loss_step",
    "local_step",
    "recompute_forward",
    "recompute_gradients",
    "recompute_step",
    "replayed_forwards",
    "server_step",
    "train_forward",
]
