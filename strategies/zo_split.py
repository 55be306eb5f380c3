"""The round that MU-SplitFed and ZO-SFL share: zeroth-order steps on both sides of the cut.

Clients upload smashed data at and around theta_c; the server steps its half by probes of its own
and answers with P loss differences, from which clients rebuild their estimate. How the server
steps, and what it compares, is the method's. Neither side ever differentiates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from leansplit.federated import ZOSplitConfig
from leansplit.noise import perturbation_seeds
from leansplit.parameters import load_parameters_, trainable_parameters
from leansplit.state import State
from leansplit.strategies.alternating import AlternatingStrategy
from leansplit.strategies.server_replicas import ServerReplicas
from leansplit.strategies.split import probed_form
from leansplit.wire import DifferencesRequest, Form, ProbedSmashedDataReply
from leansplit.zeroth_order import (
    EstimateReport,
    Half,
    ServerObjective,
    cut_objective,
)

Z = TypeVar("Z", bound=ZOSplitConfig)


class ZOSplitStrategy(AlternatingStrategy[Z, ProbedSmashedDataReply]):
    """Server replicas, and the messages of a zeroth-order client."""

    forward_action = "zo_split_forward"
    step_action = "zo_split_step"
    upload_type = ProbedSmashedDataReply
    replicas: ServerReplicas

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model and forget all replicas."""
        arrays = super().begin(initial_arrays)
        self.replicas = ServerReplicas(
            trainable_parameters(self.model.server_model),
            self.config.server_optimizer,
            self.config.server_mode,
            self.config.server_robust,
        )
        return arrays

    def arrays(self) -> ArrayRecord:
        """Return the global model: what the next round starts from."""
        load_parameters_(self.model.server_model, self.replicas.start)
        return super().arrays()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Start the server's replicas, then the clients."""
        self.replicas.begin_round()
        return super().configure_train(server_round, arrays, config, grid)

    @property
    def clients_keep_state(self) -> bool:
        """Whether clients keep the moments of their optimizers."""
        return self.config.client_optimizer.outlives_round

    def state(self) -> State:
        """Return also the server's half as the next round starts from it."""
        return {**super().state(), "replicas": self.replicas.state()}

    def load_state_(self, state: State) -> None:
        """Take also the server's half."""
        super().load_state_(state)
        self.replicas.load_state_(state["replicas"])

    def upload_form(self, client_id: int) -> Form:
        """Return what a client's probed smashed data must look like."""
        config = self.config
        return probed_form(
            super().upload_form(client_id), config.zeroth_order, with_anchor=config.sends_anchor
        )

    def answer(
        self, round: int, local_step: int, is_last: bool, tensor: Tensor
    ) -> DifferencesRequest:
        """Send P loss differences down."""
        return DifferencesRequest(
            round=round, local_step=local_step, is_last=is_last, scalars=tensor
        )

    def end_server_round(self, weights: Mapping[int, float]) -> None:
        """Average the replicas of the clients that finished."""
        self.replicas.end_round(weights)

    def objective(self, labels: Tensor, dropout_seed: int) -> ServerObjective:
        """Return F(theta_s, z) for one batch, in training mode whatever ran before."""
        server_model = self.model.server_model.train()
        return ServerObjective(server_model, self.loss, labels, dropout_seed)

    def report_half(
        self,
        part: Half,
        round: int,
        local_step: int,
        client_id: int,
        scalars: Tensor,
        objective: ServerObjective,
        server_seeds: Sequence[int] = (),
    ) -> None:
        """Let watchers see a client's estimate, or its replica's, where both halves stand now.

        The round's first step only: later the server does not know the client's half.

        Args:
            part: whose estimate it is.
            round: the current round.
            local_step: the clients' step.
            client_id: whose smashed data were probed.
            scalars: P loss differences.
            objective: what was probed, for its dropout mask.
            server_seeds: of the server's directions; a client's are rebuilt.
        """

        def build() -> EstimateReport:
            root, zo = self.config.root_seed, self.config.zeroth_order
            halves = self.round_weights, self.replicas.of(client_id).parameters
            probed, held = halves if part == "client" else halves[::-1]
            seeds = server_seeds or perturbation_seeds(
                root, zo.num_perturbations, round=round, client_id=client_id, local_step=local_step
            )
            loss_at = cut_objective(
                self.model.client_model,
                objective.server_model,
                self.loss,
                part=part,
                held=held,
                dropout_seed=objective.dropout_seed,
            )
            return EstimateReport.of_client(
                round, client_id, probed, seeds, scalars, loss_at, zo, part=part
            )

        if local_step == 0:
            self.report_estimate(round, build)
