"""HO-FL: hybrid-order federated learning, zeroth-order bottom and first-order top on the device.

There is no server model. Client i trains the layers below its boundary b_i by zeroth-order steps
against delta = dl/dz, and those above it by backpropagation that ends at z. It uploads scalars in
place of the lower layers; the server rebuilds them from the seeds.

Symbols: t ``server_round``; K ``cohort_size``; b_i ``boundary``; d_i ``num_zeroth_elements``; E
``local_steps``; q ``num_perturbations``; beta ``dimension_preference``; w ``client_weights``; s
``scalars`` (here not divided by mu).

One round takes one exchange: (w, E q seeds down), (E q scalars, weights above b_i up). Differs from
FedAvg in what goes up and in the cohort, which prefers small d_i; from HO-SFL in that no smashed
data cross. Differs from the paper: the mean is weighted by samples (the paper's 1/K for equal
batches), and a checksum tells whether the server rebuilt what the client had.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from torch import Tensor

from leansplit.federated import (
    HOFLConfig,
    Replica,
    aggregate,
    sample_weights,
)
from leansplit.first_order import Loss
from leansplit.hybrid_order import Segments, replay, segments_at
from leansplit.models import SplitModel
from leansplit.models.batch_statistics import refuse_batch_statistics
from leansplit.noise import client_dropout_seed, perturbation_seeds
from leansplit.parameters import ParameterDict, load_parameters_, trainable_parameters
from leansplit.state import State
from leansplit.strategies.failures import Failure
from leansplit.strategies.running import RunningStrategy, log
from leansplit.strategies.split import mean_loss
from leansplit.strategies.wanted import Wanted
from leansplit.wire import Form, HybridTrainReply, HybridTrainRequest, TensorForm, forms_of
from leansplit.zeroth_order import EstimateReport, cut_objective, loss_objective


class HOFL(RunningStrategy):
    """Every client trains the whole model, zeroth-order below a boundary of its own.

    Args:
        model: the halves whose composition is the model; trained in place.
        loss: (outputs, labels) -> mean loss; only clients evaluate it.
        config: the method's settings; ``memory_budgets_mb`` must have been turned into boundaries
            by :func:`leansplit.hybrid_order.fit_boundaries`.
        options: see :class:`leansplit.strategies.running.RunningStrategy`.

    Raises:
        UserError: if the model cannot be cut at one of the boundaries.
    """

    method = "ho-fl"
    is_whole_model = True
    not_state = (
        *("loss", "_segments", "_num_elements", "_boundaries", "_dimensions"),
        *("_cohort", "_anchor", "_seeds"),
    )

    def __init__(self, model: SplitModel, loss: Loss, config: HOFLConfig, **options: Any) -> None:
        super().__init__(**options)
        self.model = model
        self.loss = loss
        self.config: HOFLConfig = config
        names = set(config.boundaries_of(range(config.num_boundaries)).values())
        self._segments = {name: segments_at(model, name) for name in sorted(names)}
        self._num_elements = {b: cut.num_zeroth_elements for b, cut in self._segments.items()}

    def summary(self) -> None:
        """Log the configuration."""
        log.info("%s: %s", type(self).__name__, self.config)

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model and forget all moments.

        Raises:
            UserError: if a layer keeps running batch statistics.
        """
        refuse_batch_statistics(self.model.full_model, self.method)
        self._boundaries: dict[int, str] = {}
        self._dimensions: dict[int, int] = {}
        self._moments: dict[int, tuple[int, dict[str, Tensor]]] = {}
        return super().begin(initial_arrays)

    @property
    def clients_keep_state(self) -> bool:
        """Whether clients keep moments; the server knows those of their lower halves only."""
        return self.config.client_optimizer.outlives_round

    def state(self) -> State:
        """Return also the moments of the clients' lower halves."""
        kept = {m: {"round": t, "moments": held} for m, (t, held) in self._moments.items()}
        return {**super().state(), "_moments": kept}

    def load_state_(self, state: State) -> None:
        """Take also the moments."""
        super().load_state_(state)
        kept = state["_moments"].items()
        self._moments = {int(m): (held["round"], dict(held["moments"])) for m, held in kept}

    def forget_clients(self, client_ids: Iterable[int]) -> None:
        """Both sides start from zero moments with clients that have lost theirs."""
        for m in client_ids:
            self._moments.pop(m, None)

    def boundary(self, client_id: int) -> str:
        """Return b_i of a client."""
        if not self._boundaries:
            self._boundaries = self.config.boundaries_of(self.federation.population)
        return self._boundaries[client_id]

    def segments(self, client_id: int) -> Segments:
        """Return the global model's segments at a client's boundary."""
        return self._segments[self.boundary(client_id)]

    def sample_cohort(self, round: int) -> list[int]:
        """Steps 1 and 2: prefer small zeroth-order segments; exactly K clients."""
        if not self._dimensions:
            population = self.federation.population
            self._dimensions = {m: self._num_elements[self.boundary(m)] for m in population}
        return self.config.sample_by_dimension(round, self._dimensions)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Step 3: the whole model and independent seeds down."""
        self._cohort = self.sample_cohort(server_round)
        self._anchor = {name: value.clone() for name, value in self.client_weights().items()}
        self._seeds = {m: self._seeds_of(server_round, m) for m in self._cohort}
        requests = {
            m: HybridTrainRequest(
                round=server_round,
                boundary=self.boundary(m),
                weights=self._anchor,
                seeds=self._seeds[m],
                moments_round=self._moments[m][0] if m in self._moments else -1,
            )
            for m in self._cohort
        }
        return self.federation.messages(requests, "ho_fl_train", server_round)

    def _seeds_of(self, round: int, client_id: int) -> Tensor:
        """Return the seeds [E, q] of a client's local steps; [0, 0] if it needs none."""
        if self.segments(client_id).zeroth is None:
            return torch.empty(0, 0, dtype=torch.uint32)
        seeds = [
            perturbation_seeds(
                self.config.root_seed,
                self.config.zeroth_order.num_perturbations,
                round=round,
                client_id=client_id,
                local_step=h,
            )
            for h in range(self.config.local_steps)
        ]
        return torch.tensor(seeds, dtype=torch.uint32)

    def reply_form(self, client_id: int) -> Form:
        """Return what a client's answer must look like, at its boundary."""
        return {
            "weights": forms_of(self.segments(client_id).first_parameters),
            "scalars": TensorForm(tuple(self._seeds[client_id].shape)),
            "num_samples": self.config.local_steps * self.federation.batch_size(client_id),
        }

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Step 6: rebuild every client's lower layers, join at b_i, average."""
        wanted = Wanted(HybridTrainReply, self.reply_form)
        answered = self.federation.collect(replies, self._cohort, wanted.read)
        records, failures = answered.records, dict(answered.failures)
        trained: dict[int, ParameterDict] = {}
        for m, reply in records.items():
            lower = self._rebuild(m, reply)
            if lower is not None and lower.checksum != reply.checksum:
                why = Failure("the server could not rebuild its zeroth-order segment", "replica")
                failures |= self.federation.failures([m], {m: why})
                self.count("checksum_mismatches")
                continue
            self._report_lower(server_round, m, reply)
            trained[m] = {**reply.weights, **(lower.parameters if lower is not None else {})}
            if self.config.client_optimizer.outlives_round:
                self._moments[m] = server_round, lower.moments() if lower is not None else {}
        trained, failures = self.quorum.of(trained, failures, len(self._cohort))
        sizes = [records[m].num_samples for m in trained]
        shares = sample_weights(sizes)
        if trained:
            states = list(trained.values())
            mean = aggregate(states, shares, self._anchor, self.config.robust)
            load_parameters_(self.model.full_model, mean)
        losses = {m: records[m].loss for m in trained}
        return self.finish_round(
            server_round,
            num_samples=sum(sizes),
            train_loss=mean_loss(losses, shares) if trained else None,
            num_replied=len(trained),
            failures=failures,
        )

    def _rebuild(self, client_id: int, reply: HybridTrainReply) -> Replica | None:
        """Replay a client's zeroth-order steps from the weights and moments it started from."""
        segments = self.segments(client_id)
        if segments.zeroth is None:
            return None
        lower = {name: self._anchor[name] for name in segments.zeroth_parameters}
        held_round, held = self._moments.get(client_id, (-1, {}))
        moments = held if reply.moments_round == held_round else {}
        return replay(lower, self._seeds[client_id], reply.scalars, self.config, moments)

    def _report_lower(self, round: int, client_id: int, reply: HybridTrainReply) -> None:
        """Let watchers see the estimate of a client's first step, at the weights of the round."""
        zeroth, first = self.segments(client_id).zeroth, self.segments(client_id).first
        if zeroth is None:
            return

        def build() -> EstimateReport:
            mask = client_dropout_seed(self.config.root_seed, round, client_id, local_step=0)
            return EstimateReport.of_client(
                round,
                client_id,
                trainable_parameters(zeroth),
                self._seeds[client_id][0].tolist(),
                reply.scalars[0],
                loss_objective(zeroth, self.loss)
                if first is None
                else cut_objective(zeroth, first, self.loss, dropout_seed=mask),
                self.config.zeroth_order,
            )

        self.report_estimate(round, build)
