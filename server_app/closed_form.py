"""What a run comes to by closed formula: who took part, samples, traffic.

Plain loops exchange nothing, so this is their account; a federated run's ledger is held to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Set

import torch
from flwr.app import ArrayRecord

from leansplit.costs import SplitShape, Traffic
from leansplit.federated import ClientData, MethodConfig, take_batch
from leansplit.models import SplitModel
from leansplit.parameters import num_trainable
from leansplit.server_app.config import RunConfig
from leansplit.server_app.methods import METHODS
from leansplit.strategies.running import RoundReport
from leansplit.tasks.task import Task
from leansplit.wire import Ledger

ALL_CLIENTS = -1
"""Stands for a client id in the ledger: a closed formula is about all of them together."""


class ClosedForm:
    """What a run has come to, counted from outside.

    Args:
        config: of the run.
        settings: of its method, settled.
        task: what clients train on.
        model: on the CPU.
        num_samples: client id -> samples that it holds.
        client_data: client id -> its samples; asked for where their lengths decide what crosses.

    Attributes:
        samples_seen: that clients processed so far.
        num_exchanges: 0: nothing was exchanged.
    """

    num_exchanges = 0

    def __init__(
        self,
        config: RunConfig,
        settings: MethodConfig,
        task: Task,
        model: SplitModel,
        num_samples: Mapping[int, int],
        client_data: Callable[[int], ClientData],
    ) -> None:
        self._client_data = client_data
        self.samples_seen = 0
        self._method = METHODS[config.method]
        self._settings = settings
        self._model = model
        self._num_samples = num_samples
        self._shape = split_shape(config, settings, task, model, num_samples)
        self._attendance: list[Set[int]] = []
        self._ledger = Ledger()

    def attend(self, round: int) -> int:
        """Count a round that has ended; return the clients that took part."""
        population = sorted(self._num_samples)
        cohort = self._method.cohort(self._settings, self._shape, population, round)
        self._attendance.append(set(cohort))
        size, steps = self._settings.batch_size, getattr(self._settings, "local_steps", 1)
        self.samples_seen += sum(steps * min(size, self._num_samples[m]) for m in cohort)
        if self._model.has_mask:
            earlier = set().union(*self._attendance[:-1])
            positions = uploaded_positions(
                self._client_data, self._settings, round, cohort, earlier
            )
            total = self._shape.num_positions + positions
            self._shape = dataclasses.replace(self._shape, num_positions=total)
        return len(cohort)

    def finish(self, round: int) -> RoundReport:
        """Count a round that has ended, and book all traffic so far under it."""
        num_replied = self.attend(round)
        self._ledger = Ledger()
        for (direction, kind), num_bytes in self.traffic().items():
            self._ledger.record(round, ALL_CLIENTS, direction, {kind: num_bytes})
        return RoundReport(round, self.samples_seen, None, num_replied, {})

    def traffic(self) -> Traffic:
        """Return what crossed, without envelopes, if the run ends here."""
        return self._method.traffic(
            self._settings, self._shape, self._attendance, self.samples_seen
        )

    @property
    def num_empty_rounds(self) -> int:
        """Rounds in which nobody was there."""
        return sum(not cohort for cohort in self._attendance)

    @property
    def samples_forwarded(self) -> int:
        """Samples that a client's forward and backward passes are counted for."""
        return self._method.samples_forwarded(
            self._settings, self._shape, self._attendance, self.samples_seen
        )

    @property
    def ledger(self) -> Ledger:
        """What the closed formula says of the rounds so far."""
        return self._ledger

    def arrays(self) -> ArrayRecord:
        """Return the model as the last round left it."""
        return ArrayRecord(self._model.full_state_dict())


def split_shape(
    config: RunConfig,
    settings: MethodConfig,
    task: Task,
    model: SplitModel,
    num_samples: Mapping[int, int],
) -> SplitShape:
    """Return the sizes that a run's traffic depends on; ``model`` and ``task`` on the CPU."""
    with torch.inference_mode():
        smashed = model.client_model.eval()(task.train.inputs[:1])
    classes = task.num_classes
    return split_sizes(
        config, settings, model, smashed, num_classes=classes, num_samples=num_samples
    )


def split_sizes(
    config: RunConfig,
    settings: MethodConfig,
    model: SplitModel,
    smashed: torch.Tensor,
    *,
    num_classes: int,
    num_samples: Mapping[int, int],
) -> SplitShape:
    """Return the sizes that a run's traffic depends on.

    Args:
        config: of the run.
        settings: of its method, settled.
        model: the model at its cut, on the CPU.
        smashed: z of one sample [1, ...].
        num_classes: 0 where tokens are predicted.
        num_samples: client id -> samples that it holds.
    """
    method = METHODS[config.method]
    is_classes = num_classes > 0
    return SplitShape(
        smashed_elements=smashed.shape[-1] - 1 if model.has_mask else smashed.numel(),
        smashed_bytes=smashed.element_size(),
        labels_per_sample=1 if is_classes else 0,
        auxiliary_elements=method.auxiliary_elements(settings, model, smashed),
        client_elements=num_trainable(model.client_model),
        full_elements=num_trainable(model.full_model),
        client_samples=num_samples,
        zeroth_elements=method.zeroth_elements(settings, model, config.clients),
    )


def uploaded_positions(
    client_data: Callable[[int], ClientData],
    config: MethodConfig,
    round: int,
    cohort: Iterable[int],
    earlier: Set[int],
) -> int:
    """Return the positions of all batches of sequences that go up in a round, padding included.

    Args:
        client_data: client id -> its samples.
        config: of the method.
        round: the round.
        cohort: the clients that take part.
        earlier: those that took part before.
    """
    if getattr(config, "features_once", False):
        new = [client_data(m).inputs for m in cohort if m not in earlier]
        return sum(inputs.shape[0] * inputs.shape[2] for inputs in new)
    steps = getattr(config, "upload_steps", range(getattr(config, "local_steps", 1)))
    seed, size = config.root_seed, config.batch_size
    batches = [
        take_batch(data, seed, round, m, h, batch_size=size)
        for m, data in ((m, client_data(m)) for m in cohort)
        for h in steps
    ]
    return sum(inputs.shape[0] * inputs.shape[2] for inputs, _ in batches)
