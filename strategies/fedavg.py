"""FedAvg (McMahan et al., AISTATS 2017): Flower's own strategy, made repeatable.

The averaging is Flower's. Three things are done around it. Flower draws nodes from the global
random generator: the cohort comes from the root seed. Flower sums replies in the order of their
arrival: they are sorted by client id. Flower gives up a round in which one reply does not fit the
others, or fails in the middle of the sum: replies that it could not average never reach it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower

from leansplit.errors import UserError
from leansplit.federated import FedAvgConfig, aggregate, sample_weights
from leansplit.models import SplitModel
from leansplit.models.batch_statistics import refuse_batch_statistics
from leansplit.parameters import ParameterDict, load_parameters_
from leansplit.strategies.failures import Failure
from leansplit.strategies.flower_records import METRICS, NUM_SAMPLES, TRAIN_LOSS
from leansplit.strategies.running import RunningStrategy
from leansplit.wire import NON_FINITE_ADVICE, SPARE_TENSORS, DecodeError, forms_of, require_forms


class FedAvg(RunningStrategy, flower.FedAvg):
    """Flower's FedAvg over the whole model, trained by first-order clients.

    Args:
        model: the halves whose composition is the model; trained in place.
        config: the method's settings.
        options: see :class:`leansplit.strategies.running.RunningStrategy`.
    """

    method = "fedavg"
    is_whole_model = True
    not_state = ("_cohort", *vars(flower.FedAvg()))  # Flower's keeps settings only

    def __init__(self, model: SplitModel, config: FedAvgConfig, **options: Any) -> None:
        super().__init__(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=1,
            min_available_nodes=1,
            weighted_by_key=NUM_SAMPLES,
            **options,
        )
        if self.deployment.clients_per_node > 1:
            raise UserError(
                "fedavg averages one reply for each SuperNode, as Flower does; set "
                "clients_per_node to 1"
            )
        self.model = model
        self.config: FedAvgConfig = config

    @property
    def clients_keep_state(self) -> bool:
        """Whether clients keep the moments of their optimizers."""
        return self.config.client_optimizer.outlives_round

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model; of it, only trainable parameters travel.

        Raises:
            UserError: if a layer keeps running batch statistics.
        """
        refuse_batch_statistics(self.model.full_model, self.method)
        return super().begin(initial_arrays)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the cohort from the root seed and send it the model."""
        self._cohort = self.sample_cohort(server_round)
        config["server-round"] = server_round
        content = RecordDict(
            {
                self.arrayrecord_key: ArrayRecord(dict(self.client_weights())),
                self.configrecord_key: config,
            }
        )
        reachable = self.federation.reachable(self._cohort)
        node_ids = [self.federation.node_of(m) for m in reachable]
        messages = list(self._construct_messages(content, node_ids, MessageType.TRAIN))
        for message in messages:
            message.metadata.group_id = str(server_round)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Drop replies that do not fit, sort the others by client id, let Flower average them."""
        client_of = {self.federation.node_of(m): m for m in self._cohort}
        answered: dict[int, Message] = {}
        reasons: dict[int, Failure] = {}
        for reply in replies:
            m = client_of[self.federation.grid.sender_of(reply)]
            if reply.has_error():
                reasons[m] = Failure.of_node(str(reply.error.reason))
                continue
            try:
                self._require_form(m, reply.content)
            except DecodeError as error:
                reasons[m] = Failure.refused(error)
            else:
                answered[m] = reply
        missing = [m for m in self._cohort if m not in answered]
        failures = self.federation.failures(missing, reasons)
        answered, failures = self.quorum.of(answered, failures, len(self._cohort))
        ordered = [answered[m] for m in sorted(answered)]
        mean, metrics = super().aggregate_train(server_round, ordered)
        if mean is not None:
            state: ParameterDict = mean.to_torch_state_dict()
            if self.config.robust.rule != "mean":
                state = self._robust_mean(answered)
            load_parameters_(self.model.full_model, state)
        return self.finish_round(
            server_round,
            num_samples=sum(self._num_samples(m) for m in answered),
            train_loss=None if metrics is None else float(str(metrics[TRAIN_LOSS])),
            num_replied=len(ordered),
            failures=failures,
        )

    def _robust_mean(self, answered: Mapping[int, Message]) -> ParameterDict:
        """Return what the robust rule makes of the clients' weights."""
        clients = sorted(answered)
        arrays = [answered[m].content.array_records[self.arrayrecord_key] for m in clients]
        shares = sample_weights([self._num_samples(m) for m in clients])
        states = [array.to_torch_state_dict() for array in arrays]
        return aggregate(states, shares, self.client_weights(), self.config.robust)

    def _num_samples(self, client_id: int) -> int:
        """Return the samples that a client trains on in a round."""
        return self.config.local_steps * self.federation.batch_size(client_id)

    def _require_form(self, client_id: int, content: RecordDict) -> None:
        """Refuse what Flower could not average.

        Raises:
            DecodeError: saying what it is.
        """
        names = self.arrayrecord_key, METRICS
        if set(content) != set(names):
            raise DecodeError(f"its records are {sorted(content)}, not {sorted(names)}", "record")
        arrays, metrics = (content[name] for name in names)
        if not isinstance(arrays, ArrayRecord) or not isinstance(metrics, MetricRecord):
            raise DecodeError("its records are of other types than arrays and metrics", "record")
        self.federation.require_size(sum(len(array.data) for array in arrays.values()))
        wanted_forms = forms_of(self.client_weights())
        if len(arrays) > len(wanted_forms) + SPARE_TENSORS:
            raise DecodeError(f"it has {len(arrays)} arrays, not {len(wanted_forms)}", "size")
        try:
            tensors = arrays.to_torch_state_dict()
        except Exception as error:  # Flower and numpy raise what they like
            raise DecodeError(f"its arrays cannot be read: {error}") from error
        require_forms("ArrayRecord", tensors, wanted_forms)
        if metrics.keys() != {NUM_SAMPLES, TRAIN_LOSS}:
            raise DecodeError(f"its metrics are {sorted(metrics)}", "value")
        num_samples, loss = metrics[NUM_SAMPLES], metrics[TRAIN_LOSS]
        if num_samples != self._num_samples(client_id):
            wanted = self._num_samples(client_id)
            raise DecodeError(f"{NUM_SAMPLES} is {num_samples}, not {wanted}", "value")
        if not isinstance(loss, int | float):
            raise DecodeError(f"{TRAIN_LOSS} is {loss!r}, not a number", "value")
        if not math.isfinite(loss):
            raise DecodeError(
                f"non-finite {TRAIN_LOSS} ({loss}); {NON_FINITE_ADVICE}", "non_finite"
            )
