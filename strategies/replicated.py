"""Strategies whose clients all hold the same model without ever being sent it again.

The server keeps a mirror of the replica that every client holds, knows which version each client
has reached, and mends replicas that are behind or differ.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from leansplit.federated import (
    NEVER,
    Attendance,
    MethodConfig,
    OptimizerConfig,
    Replica,
    ReplicatedConfig,
    Update,
    aggregate_scalars,
    sample_weights,
)
from leansplit.first_order import ServerStep, server_step
from leansplit.noise import server_dropout_seed
from leansplit.parameters import load_parameters_
from leansplit.state import State
from leansplit.strategies.failures import Failure
from leansplit.strategies.federation import Replies
from leansplit.strategies.finite_losses import finite_step, refused_losses
from leansplit.strategies.split import SplitStrategy, require_finite
from leansplit.strategies.wanted import Wanted
from leansplit.wire import (
    BehindReply,
    ForwardRequest,
    ProbedForwardRequest,
    Record,
    SyncReply,
    SyncRequest,
    kinds_of,
)
from leansplit.zeroth_order import (
    DifferentiableObjective,
    EstimateReport,
    ProbedDirections,
    ZerothOrderConfig,
)

C = TypeVar("C", bound=MethodConfig)
R = TypeVar("R", bound=Record)

log = logging.getLogger("leansplit")

_MAX_RESYNCS = 3


class ReplicatedStrategy(SplitStrategy[C]):
    """Mirror, attendance and resynchronisation.

    Attributes:
        mirror: the replica as every up-to-date client holds it.
        attendance: versions of all clients, and the log that brings them up to date.
    """

    not_state = ("_cohort",)

    @property
    @abstractmethod
    def forward_action(self) -> str:
        """Action of the request that opens a round."""

    def new_mirror(self) -> Replica:
        """Return the replica that the server keeps in step with the clients'."""
        return Replica(self.client_weights(), *self._replica_configs())

    def _replica_configs(self) -> tuple[OptimizerConfig, ZerothOrderConfig]:
        if isinstance(self.config, ReplicatedConfig):
            return self.config.client_optimizer, self.config.zeroth_order
        return OptimizerConfig(), ZerothOrderConfig()

    def begin(self, initial_arrays: ArrayRecord) -> ArrayRecord:
        """Load the initial model; clients receive their half with their first request."""
        arrays = super().begin(initial_arrays)
        self.mirror = self.new_mirror()
        config = self.config
        if isinstance(config, ReplicatedConfig):
            pool = config.zeroth_order.pool(config.root_seed)
            self.attendance = Attendance(self.mirror, config.catch_up, pool)
        else:
            self.attendance = Attendance(self.mirror)
        return arrays

    def arrays(self) -> ArrayRecord:
        """Return the current global model, the mirror's parameters included."""
        load_parameters_(self.trained_module, self.mirror.parameters)
        return super().arrays()

    @property
    def clients_keep_state(self) -> bool:
        """No: whatever a client holds, the mirror and the log can give it again."""
        return False

    def state(self) -> State:
        """Return also the mirror, and what is known of every client's replica."""
        return {
            **super().state(),
            "mirror": {"version": self.mirror.version, "tensors": self.mirror.state()},
            "attendance": self.attendance.state(),
        }

    def load_state_(self, state: State) -> None:
        """Take also the mirror and the log."""
        super().load_state_(state)
        mirror = state["mirror"]
        self.mirror = Replica.from_state(
            mirror["tensors"], *self._replica_configs(), version=mirror["version"]
        )
        self.attendance.load_state_(state["attendance"])

    def forget_clients(self, client_ids: Iterable[int]) -> None:
        """Clients without a memory get the initial weights and the log, as newcomers do."""
        for m in client_ids:
            self.attendance.forget(m)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample the cohort, bring it up to date, and ask for what opens the round."""
        self._cohort = self.asked_clients(server_round)
        requests = {
            m: self.open_round(m, server_round, self.attendance.catch_up(m, self.mirror))
            for m in self._cohort
        }
        return self.federation.messages(requests, self.forward_action, server_round)

    def asked_clients(self, round: int) -> list[int]:
        """Return the clients that get a request in this round, ascending: the cohort."""
        return self.sample_cohort(round)

    def open_round(self, client_id: int, round: int, catch_up: dict[str, Any]) -> Record:
        """Return the request that opens a client's round."""
        return ForwardRequest(round=round, **catch_up)

    def round_seeds(self, round: int) -> tuple[int, ...]:
        """Return the seeds of the P directions that all clients share in a round."""
        _, zeroth_order = self._replica_configs()
        return zeroth_order.shared_seeds(self.config.root_seed, round=round)

    def probed_forward_request(self, round: int, catch_up: dict[str, Any]) -> ProbedForwardRequest:
        """Return the request for smashed data of every probe and of the model itself."""
        seeds = torch.tensor(self.round_seeds(round), dtype=torch.uint32)
        return ProbedForwardRequest(round=round, seeds=seeds, **catch_up)

    def opened(self, replies: Iterable[Message], round: int, wanted: Wanted[R]) -> Replies[R]:
        """Return the settled answers to :meth:`open_round`; who answered is up to date.

        Who did not may have done the work all the same, and keep this round's seeds for those of
        the last round that it answered.
        """
        settled = self.settle(
            self.federation.collect(replies, self._cohort, wanted.read_or_behind),
            lambda m, catch_up: self.open_round(m, round, catch_up),
            self.forward_action,
            round,
            wanted,
        )
        for m in settled.records:
            self.attendance.confirm(m)
        for m in settled.failures:
            self.attendance.doubt_seeds(m)
        return Replies(*self.quorum.of(settled.records, settled.failures, len(self._cohort)))

    def dropped(self, refused: dict[int, Failure]) -> dict[int, Failure]:
        """Log who answered and does not count; whoever did may hold this round's seeds."""
        for m in refused:
            self.attendance.doubt_seeds(m)
        return self.federation.failures(refused, refused)

    def joint_step(
        self, round: int, batches: Mapping[int, tuple[Tensor, Tensor]], config: OptimizerConfig
    ) -> tuple[list[int], ServerStep, dict[int, Failure]]:
        """Take one server step on the mean loss of the clients whose losses are finite.

        Args:
            round: the current round.
            batches: client id -> (z, y).
            config: of the server's optimizer.

        Returns:
            Who they are, the step, and why others do not count.

        Raises:
            RunFailedError: if nobody's loss is finite.
        """

        def step(heard: dict[int, tuple[Tensor, Tensor]]) -> ServerStep:
            return server_step(
                self.model.server_model,
                self.loss,
                self.server_optimizer(config, round),
                [z for z, _ in heard.values()],
                [y for _, y in heard.values()],
                sample_weights([len(y) for _, y in heard.values()]),
                dropout_seed=server_dropout_seed(self.config.root_seed, round),
            )

        heard, taken, losses = finite_step(round, batches, step)
        return list(heard), taken, self.dropped(refused_losses(losses))

    def share_update(
        self,
        round: int,
        seeds: Sequence[int],
        scalars: Mapping[int, Tensor],
        num_samples: Mapping[int, int],
        objective: DifferentiableObjective | None = None,
    ) -> None:
        """Average the clients' scalars and take the update that every replica takes.

        The mirror takes it now, clients with the next request that they are sent.

        Args:
            round: the current round.
            seeds: of the directions that the clients probed; they remember them.
            scalars: client id -> v, one for each seed, of those that answered.
            num_samples: client id -> samples that its scalars stand for.
            objective: what each client probed, for watchers; None if they cannot know.

        Raises:
            RunFailedError: if a scalar is not finite.
        """
        require_finite("scalar", round, {m: float(v.abs().sum()) for m, v in scalars.items()})
        shares = sample_weights([num_samples[m] for m in scalars])
        update = Update(round, tuple(seeds), self._combined(scalars, shares))
        if objective is not None:
            self.report_update(update, dict(zip(scalars, shares, strict=True)), objective)
        self.mirror.apply_(update)
        num_away = len(self.config.presence.excluded)
        self.attendance.append(update, len(self.federation.population) - num_away)
        for m in scalars:
            self.attendance.confirm_seeds(m, round)

    def _combined(
        self, scalars: Mapping[int, Tensor], shares: Sequence[float]
    ) -> tuple[float, ...]:
        config = self.config
        assert isinstance(config, ReplicatedConfig)
        return aggregate_scalars(list(scalars.values()), shares, config.robust)

    def report_update(
        self, update: Update, weights: Mapping[int, float], objective: DifferentiableObjective
    ) -> None:
        """Report the estimate that ``update`` stands for, before the mirror takes it.

        Of several local steps (DeComFL) the first: later ones are measured where each client has
        gone by itself.

        Args:
            update: directions that all clients share, and the mean of their scalars.
            weights: client id -> share of the mean.
            objective: what each client probed.
        """
        config = self.config
        assert isinstance(config, ReplicatedConfig)
        zeroth_order = config.zeroth_order
        first = slice(zeroth_order.num_perturbations)
        self.report_estimate(
            update.round,
            lambda: EstimateReport(
                round=update.round,
                spec=self.mirror.spec,
                vector=self.mirror.vector.detach().clone(),
                config=zeroth_order,
                probed=[ProbedDirections(update.seeds[first], update.scalars[first])],
                weights=weights,
                objective=objective,
            ),
        )

    def end(self) -> None:
        """Bring everyone who ever took part up to date and compare checksums."""
        if not self.attendance.log.latest_version:
            return
        round = self.rounds_completed + 1

        def sync_request(m: int, catch_up: dict[str, Any]) -> SyncRequest:
            return SyncRequest(round=round, **catch_up)

        requests = {
            m: sync_request(m, self.attendance.catch_up(m, self.mirror))
            for m in self.attendance.participants
        }
        wanted = Wanted(SyncReply, lambda _: {})
        replies = self.ask(requests, sync_request, "synchronise", round, wanted)
        self.count("unsynchronised_clients", len(replies.failures))
        for m in replies.records:
            self.attendance.confirm(m)

    def ask(
        self,
        requests: Mapping[int, Record],
        build: Callable[[int, dict[str, Any]], Record],
        action: str,
        round: int,
        wanted: Wanted[R],
    ) -> Replies[R]:
        """Return the settled answers to ``requests``; the rest as in :meth:`settle`."""
        replies = self.federation.exchange(requests, action, round, wanted.read_or_behind)
        return self.settle(replies, build, action, round, wanted)

    def settle(
        self,
        replies: Replies[Any],
        build: Callable[[int, dict[str, Any]], Record],
        action: str,
        round: int,
        wanted: Wanted[R],
    ) -> Replies[R]:
        """Resynchronise clients whose replica is behind or differs, and ask them again.

        A worker process of a simulation that lags behind the client it stands in for is refilled
        without a price for the refill; anything else is counted as ``resyncs``, logged and priced.
        Where clients keep replicas of their own no worker can lag, whatever a client says.

        Args:
            replies: what came back at first.
            build: (client id, catch-up fields) -> the request, to be sent again.
            action: the request's action.
            round: the current round.
            wanted: what a settled client answers with.

        Returns:
            The settled answers; a client that is behind or differs even after all that is dropped
            from the step.
        """
        records: dict[int, Record] = dict(replies.records)
        failures = dict(replies.failures)
        has_workers = self.deployment.replica_storage == "worker"
        for attempt in range(_MAX_RESYNCS):
            refills: dict[int, Record] = {}
            resyncs: dict[int, Record] = {}
            for m, reply in records.items():
                if m in failures:
                    continue  # it was asked again and did not answer
                if isinstance(reply, BehindReply):
                    # Another worker may answer the second time: then send the whole log.
                    version = reply.version if attempt == 0 else NEVER
                    target = refills if has_workers and reply.is_worker_gap else resyncs
                    target[m] = build(m, self.attendance.replay_from(version, self.mirror))
                elif self._differs(reply):
                    resyncs[m] = build(m, self.attendance.snapshot(self.mirror, is_resync=True))
                    self._count_again(m, reply)
            if not refills and not resyncs:
                break
            self.count("worker_refills", len(refills))
            self.count("resyncs", len(resyncs))
            if resyncs:
                log.warning("round %d: resynchronising clients %s", round, sorted(resyncs))
            read = wanted.read_or_behind
            with self.federation.grid.unpriced_requests():
                again = [self.federation.exchange(refills, action, round, read)]
            again.append(self.federation.exchange(resyncs, action, round, read))
            for part in again:
                records |= part.records
                failures |= part.failures
        settled: dict[int, R] = {}
        lost: dict[int, Failure] = {}
        for m, reply in sorted(records.items()):
            if m in failures:
                continue
            if isinstance(reply, BehindReply):
                lost[m] = Failure("its replica could not be brought up to date", "replica")
            elif self._differs(reply):
                self.count("checksum_mismatches")
                lost[m] = Failure(
                    "its replica differs from the server's mirror even after a full resync; its "
                    "device rounds differently from the server's",
                    "replica",
                )
            else:
                assert isinstance(reply, wanted.record_type)
                settled[m] = reply
        failures |= self.federation.failures(lost, lost)
        return Replies(settled, dict(sorted(failures.items())))

    def _count_again(self, client_id: int, reply: Record) -> None:
        """Note that what a client uploaded is asked for once more: noise is drawn afresh for it."""
        for kind in kinds_of(reply):
            of_client = self.repeated_uploads.setdefault(kind, {})
            of_client[client_id] = of_client.get(client_id, 0) + 1

    def _differs(self, reply: Record) -> bool:
        """Say whether a reply's checksum, if its kind has one, is not the mirror's."""
        return getattr(reply, "checksum", self.mirror.checksum) != self.mirror.checksum
