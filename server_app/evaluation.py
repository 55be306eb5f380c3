"""Central evaluation on the task's test set."""

from __future__ import annotations

import torch
from torch import nn

from leansplit.tasks.task import Task


def evaluate(model: nn.Module, task: Task, batch_size: int) -> tuple[float, float]:
    """Return (accuracy in [0, 1], mean loss) of ``model`` on all test samples."""
    was_training = model.training
    model.eval()
    correct, loss_sum = 0.0, 0.0
    examples = task.test
    with torch.inference_mode():
        for first in range(0, len(examples), batch_size):
            inputs = examples.inputs[first : first + batch_size]
            labels = examples.labels[first : first + batch_size]
            outputs = model(inputs)
            correct += task.metric(outputs, labels) * len(labels)
            loss_sum += float(task.loss(outputs, labels)) * len(labels)
    model.train(was_training)
    return correct / len(examples), loss_sum / len(examples)
