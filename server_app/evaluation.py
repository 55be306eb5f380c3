"""Central evaluation on the task's test set."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from leansplit.models.language.halves import WholeLanguageModel
from leansplit.sequences import are_tokens, trim
from leansplit.tasks.task import Examples, Task
from leansplit.tasks.text_metrics import token_loss

_LARGEST_EXPONENT = 700.0  # beyond it float64 overflows


@dataclass(frozen=True)
class Evaluation:
    """What a model reaches on the test set.

    Attributes:
        accuracy: in [0, 1]: of samples, or of the tokens that a text task asks for.
        loss: mean over the same, in nats.
        measures: the task's other metrics by name; ``perplexity`` = exp(loss) where tokens count.
    """

    accuracy: float
    loss: float
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """All of them by name."""
        return {"accuracy": self.accuracy, "loss": self.loss, **self.measures}


def _by_length(examples: Examples) -> Examples:
    """Return texts with the shortest first; other examples as they are."""
    if not are_tokens(examples.inputs):
        return examples
    return examples.select(examples.inputs[:, 1].sum(1).argsort(stable=True))


@contextlib.contextmanager
def _chunked(model: nn.Module, task: Task) -> Iterator[None]:
    """Let a language model put out what logits are computed from, if the task's loss takes that."""
    if not isinstance(model, WholeLanguageModel) or task.loss is not token_loss:
        yield
        return
    before, model.is_chunked = model.is_chunked, True
    try:
        yield
    finally:
        model.is_chunked = before


def evaluate(model: nn.Module, task: Task, batch_size: int) -> Evaluation:
    """Evaluate ``model`` on all test samples; texts in order of their lengths, to pad them less.

    Of texts to continue the logits of all positions of a batch are never held at once.
    """
    was_training = model.training
    model.eval()
    correct, loss_sum, total = 0.0, 0.0, 0
    predictions: list[Tensor] = []
    examples = _by_length(task.test)
    with _chunked(model, task), torch.inference_mode():
        for first in range(0, len(examples), batch_size):
            rows = slice(first, first + batch_size)
            inputs, labels = trim(examples.inputs[rows], examples.labels[rows])
            outputs = model(inputs)
            count = task.count(labels)
            total += count
            correct += task.metric(outputs, labels) * count
            loss_sum += float(task.loss(outputs, labels)) * count
            if task.measures is not None:
                predictions.append(task.predict(outputs).cpu())
    model.train(was_training)
    accuracy, loss = correct / total, loss_sum / total
    measures: dict[str, float] = {}
    if task.measures is not None:
        measures |= task.measures(torch.cat(predictions), examples.labels.cpu())
    if task.num_classes == 0:
        measures["perplexity"] = math.exp(min(loss, _LARGEST_EXPONENT))
    return Evaluation(accuracy, loss, measures)
