"""What a run will cost, from shapes alone: same steps and formulas, tensors without values."""

from __future__ import annotations

import bisect
import json
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from leansplit.costs import SplitShape, StepCosts, Traffic
from leansplit.costs.hollow import HollowTensors
from leansplit.errors import UserError
from leansplit.federated import MethodConfig
from leansplit.first_order import Loss
from leansplit.models import MODELS, SplitModel, build_model, cut_layers, split_at
from leansplit.models.language.halves import OUTPUTS, WholeLanguageModel
from leansplit.server_app.budget import Budget
from leansplit.server_app.client_costs import measure
from leansplit.server_app.closed_form import split_sizes
from leansplit.server_app.config import RunConfig
from leansplit.server_app.methods import METHODS
from leansplit.server_app.taking_part import attending, measure_clients
from leansplit.tasks.task import Task, cross_entropy
from leansplit.tasks.text_metrics import Verbalizer, token_loss


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What clients train on, by its shape.

    Attributes:
        input_shape: (channels, height, width), or (2, S) for tokens and mask.
        num_classes: 0 where tokens are predicted.
        loss: mean loss.
        model_options: what the task asks of the model.
        num_train: training samples in all; 0 = enough for every batch.
    """

    input_shape: tuple[int, ...]
    num_classes: int
    loss: Loss = cross_entropy
    model_options: Mapping[str, Any] = field(default_factory=dict)
    num_train: int = 0

    @classmethod
    def of(cls, task: Task) -> Problem:
        """Return the shape of a task."""
        return cls(
            input_shape=task.input_shape,
            num_classes=task.num_classes,
            loss=task.loss,
            model_options=task.model_options,
            num_train=len(task.train),
        )

    @classmethod
    def of_texts(cls, length: int, outputs: str, num_classes: int) -> Problem:
        """Return texts of ``length`` tokens, none of them padding.

        Args:
            length: S.
            outputs: ``classes``, ``next_token`` or ``tokens``; what the model puts out.
            num_classes: unused for ``tokens``.

        Raises:
            UserError: if the model cannot put that out.
        """
        if length < 1:
            raise UserError(f"length must be at least 1, got {length}")
        if outputs not in OUTPUTS:
            raise UserError(f"outputs must be one of {', '.join(OUTPUTS)}, got {outputs!r}")
        if num_classes < 1 and outputs != "tokens":
            raise UserError(f"classes must be at least 1, got {num_classes}")
        losses: dict[str, Loss] = {
            "classes": cross_entropy,
            "next_token": Verbalizer(tuple(range(num_classes))).loss,
            "tokens": token_loss,
        }
        return cls(
            input_shape=(2, length),
            num_classes=0 if outputs == "tokens" else num_classes,
            loss=losses[outputs],
            model_options={"outputs": outputs},
        )

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of ``size`` samples, of any values."""
        if len(self.input_shape) != 2:
            return torch.zeros(size, *self.input_shape), torch.zeros(size, dtype=torch.int64)
        labels = (size,) if self.num_classes else (size, self.input_shape[1])
        return (
            torch.ones(size, *self.input_shape, dtype=torch.int64),
            torch.zeros(labels, dtype=torch.int64),
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one method costs at one cut.

    Attributes:
        step: one client step: FLOPs and memory.
        shape: sizes that traffic depends on.
        steps_per_round: local steps of a participation.
        rounds: of the run.
        num_left_out: clients whose memory is too small for a step, if the run has devices.
        participations: of all clients in all rounds.
        computed_steps: local steps of all clients in all rounds; where features are uploaded once,
            the batches that they are made of.
        is_sequential: whether the clients of a round work one after the other.
        traffic: of the run, without envelopes.
        client_traffic: of one more participation of a client that was there before.
        round_trips: of the run, set-up included.
        client_round_trips: of one more participation.
    """

    method: str
    title: str
    cut_layer: str
    step: StepCosts
    shape: SplitShape
    steps_per_round: int
    rounds: int
    num_left_out: int
    participations: int
    computed_steps: float
    is_sequential: bool
    traffic: Traffic
    client_traffic: Traffic
    round_trips: int
    client_round_trips: int

    def __str__(self) -> str:
        """Return the method, and where it is cut."""
        is_split = METHODS[self.method].is_split
        return f"{self.title} at cut {self.cut_layer}" if is_split else self.title


class Planner:
    """A model without values, and what runs on it would cost at any cut.

    Args:
        config: of any method; model, options and seed are read.
        problem: what clients train on.

    Raises:
        UserError: if there is no such model, or it cannot be followed without values.
    """

    def __init__(self, config: RunConfig, problem: Problem) -> None:
        self.problem = problem
        self._world = HollowTensors()
        self._smashed: dict[str, Tensor] = {}
        self._cohorts: dict[Hashable, list[set[int]]] = {}
        known = MODELS[config.model].options
        implied = {k: v for k, v in problem.model_options.items() if k in known}
        options = {**implied, **_without_weights(config.model_options)}
        with _followed():
            whole = build_model(
                config.model,
                input_shape=problem.input_shape,
                num_classes=problem.num_classes,
                seed=0,
                options=options,
                device="meta",
            )
            self.whole = self._world.emptied(whole)

    def cut_layers(self) -> list[str]:
        """Return the allowed cuts in forward order."""
        return cut_layers(self.whole)

    def step_costs(
        self,
        config: RunConfig,
        batch_shape: Sequence[int] | None = None,
        boundary: str | None = None,
    ) -> StepCosts:
        """Return what one client step costs.

        Args:
            config: of the run.
            batch_shape: of the inputs, if it is not that of the problem.
            boundary: of the client, where clients differ; None: the most demanding one.
        """
        size, *shape = batch_shape or (config.batch_size, *self.problem.input_shape)
        with _followed(), self._world.entered():
            model = split_at(self.whole, config.cut_layer)
            batch = replace(self.problem, input_shape=tuple(shape)).batch(size)
            settings = self._settled(config, model, batch)
            method = METHODS[config.method]
            if boundary is not None and method.boundary_step is not None:
                step = method.boundary_step(settings, model, self.problem.loss, *batch, boundary)
            else:
                step = method.client_step(settings, model, self.problem.loss, *batch)
            costs = measure(step)
        for parameter in self.whole.parameters():
            parameter.grad = None
        return costs

    def plan(self, config: RunConfig, step: StepCosts | None = None) -> Plan:
        """Return what a run costs.

        Args:
            config: method, cut and all else; the samples of every client fill its batches.
            step: costs of a step, if they are known.
        """
        method = METHODS[config.method]
        step = step or self.step_costs(config)
        with _followed(), self._world.entered():
            model = split_at(self.whole, config.cut_layer)
            batch = self.problem.batch(config.batch_size)
            settings = self._settled(config, model, batch)
            if config.fleet.profile:
                loss = self.problem.loss
                costs = measure_clients(config, settings, model, loss, batch, largest=step)
                settings = attending(config, settings, costs)
            shape = split_sizes(
                config,
                settings,
                model,
                self._smashed_sample(model),
                num_classes=self.problem.num_classes,
                num_samples=dict.fromkeys(
                    range(config.clients), self.problem.num_train // config.clients
                ),
            )
        if getattr(settings, "features_once", False) and not self.problem.num_train:
            raise UserError(
                "features_once needs to know how many samples clients hold: give --task"
            )
        steps: int = getattr(settings, "local_steps", 1)
        attendance = self._attendance(config, settings, shape, steps)
        traffic = partial(self._traffic, config, settings, shape)
        attendance = _within(config.budget(), attendance, traffic)
        if not any(attendance):
            raise UserError(
                "nobody takes part in any round; choose more rounds or more available devices"
            )
        computed = float(sum(map(len, attendance)) * steps)
        if getattr(settings, "features_once", False):
            held = [shape.client_samples[m] for m in set[int]().union(*attendance)]
            computed = sum(held) / config.batch_size
        again, before = [{0}] * 3, [{0}] * 2  # by then heads are aligned and weights are there
        spent, saved = traffic(again), traffic(before)
        return Plan(
            method=config.method,
            title=method.title,
            cut_layer=config.cut_layer,
            step=step,
            shape=shape,
            steps_per_round=steps,
            rounds=len(attendance),
            num_left_out=len(settings.presence.excluded),
            participations=sum(map(len, attendance)),
            computed_steps=computed,
            is_sequential=method.is_sequential(settings),
            traffic=traffic(attendance),
            client_traffic={
                key: left for key, size in spent.items() if (left := size - saved.get(key, 0))
            },
            round_trips=1 + method.round_trips(settings, [c for c in attendance if c]),
            client_round_trips=method.client_round_trips(settings),
        )

    def _attendance(
        self, config: RunConfig, settings: MethodConfig, shape: SplitShape, steps: int
    ) -> list[set[int]]:
        """Return the clients of each round; the same at every cut of a method, as a rule."""
        key = (config.method, settings, shape.zeroth_elements, config.clients, config.samples)
        attendance = self._cohorts.get((*key, config.rounds))
        if attendance is None:
            attendance, seen = [], 0
            while len(attendance) < config.rounds and (seen < config.samples or not config.samples):
                round, population = len(attendance) + 1, range(config.clients)
                cohort = METHODS[config.method].cohort(settings, shape, population, round)
                attendance.append(set(cohort))
                seen += len(cohort) * steps * config.batch_size
            self._cohorts[(*key, config.rounds)] = attendance
        return attendance

    def _traffic(
        self,
        config: RunConfig,
        settings: MethodConfig,
        shape: SplitShape,
        cohorts: Sequence[Set[int]],
    ) -> Traffic:
        """Return what crosses in a run with these cohorts."""
        steps = getattr(settings, "local_steps", 1)
        samples = sum(map(len, cohorts)) * steps * settings.batch_size
        sized = replace(shape, num_positions=self._positions(settings, shape, cohorts))
        return METHODS[config.method].traffic(settings, sized, cohorts, samples)

    def _smashed_sample(self, model: SplitModel) -> Tensor:
        """Return z of one sample; that of a language model has one shape wherever it is cut."""
        place = "" if isinstance(self.whole, WholeLanguageModel) else model.cut_layer
        if place not in self._smashed:
            with torch.inference_mode():
                self._smashed[place] = model.client_model.eval()(self.problem.batch(1)[0])
        return self._smashed[place]

    def _settled(
        self, config: RunConfig, model: SplitModel, batch: tuple[Tensor, Tensor]
    ) -> MethodConfig:
        return METHODS[config.method].settle(
            config.method_config(), model, self.problem.loss, *batch
        )

    def _positions(
        self, settings: MethodConfig, shape: SplitShape, attendance: Sequence[Set[int]]
    ) -> int:
        """Return the positions of all uploaded batches; 0 if inputs are no sequences."""
        if len(self.problem.input_shape) != 2:
            return 0
        length = self.problem.input_shape[1]
        if getattr(settings, "features_once", False):
            return length * sum(shape.client_samples[m] for m in set().union(*attendance))
        uploads = getattr(settings, "upload_steps", range(getattr(settings, "local_steps", 1)))
        return length * len(uploads) * settings.batch_size * sum(map(len, attendance))


def _within(
    budget: Budget,
    attendance: list[set[int]],
    traffic: Callable[[Sequence[Set[int]]], Traffic],
) -> list[set[int]]:
    """Return the rounds up to the one that spends a budget of bytes; envelopes do not count."""
    if not budget.num_bytes:
        return attendance

    def spent(num_rounds: int) -> int:
        return sum(traffic(attendance[:num_rounds]).values())

    last = bisect.bisect_left(range(1, len(attendance)), budget.num_bytes, key=spent)
    return attendance[: last + 1]


@contextmanager
def _followed() -> Iterator[None]:
    """Say which module a model failed in, whatever it failed with.

    Raises:
        UserError: if anything inside the block fails.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        modules = [frame.f_locals.get("self") for frame in frames]
        names = [type(m).__name__ for m in modules if isinstance(m, nn.Module)]
        place = f" in {names[-1]}" if names else ""
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"this model cannot be planned: without values it fails{place} "
            f"({type(error).__name__}: {reason}); measure a run instead, or write the model "
            "without that"
        ) from error


def _without_weights(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's options with its source replaced by the bare configuration found there."""
    source = str(options.get("source", "")).strip()
    if not source or source.startswith("{"):
        return dict(options)
    from leansplit.models.language.loading import load_config

    found = load_config(source).to_dict()
    return {**options, "source": json.dumps(found, default=str)}
