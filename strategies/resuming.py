"""How a run goes on after a round that another process has finished.

A strategy's :meth:`RunningStrategy.state` names every attribute that one round hands to the next.
What it holds beside those must be listed in ``not_state``: a checkpoint that forgets something
would be noticed too late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from leansplit.errors import UserError
from leansplit.federated import MethodConfig, NoisedConfig
from leansplit.models import SplitModel
from leansplit.state import State
from leansplit.strategies.deposits import Deposits
from leansplit.wire import Ledger, LedgerEntry


@dataclass(frozen=True)
class RunState:
    """All that a strategy needs to go on after ``round``.

    Attributes:
        round: the last round that is done.
        strategy: see :meth:`RunningStrategy.state`.
        deposits: what clients remembered; see :class:`leansplit.strategies.deposits.Deposits`.
        ledger: everything that had crossed.
        num_exchanges: round trips so far.
    """

    round: int
    strategy: State
    deposits: State
    ledger: Iterable[LedgerEntry]
    num_exchanges: int


@runtime_checkable
class RoundEndObserver(Protocol):
    """An observer that is also told when a round is over with its evaluation."""

    def on_round_end(self, round: int, *, is_stopped: bool) -> None:
        """Nothing of ``round`` is left to do; ``is_stopped``: no other round follows."""
        ...


class Continued(Strategy):
    """Flower's loop over the rounds that are left of a strategy's run.

    Args:
        strategy: whose rounds they are.
        done: rounds that are done; the loop's round 1 is the strategy's round ``done + 1``.
    """

    def __init__(self, strategy: Strategy, done: int) -> None:
        self._strategy = strategy
        self._done = done

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Open the strategy's round."""
        return self._strategy.configure_train(server_round + self._done, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Finish the strategy's round."""
        return self._strategy.aggregate_train(server_round + self._done, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask for evaluations as the strategy does."""
        return self._strategy.configure_evaluate(server_round + self._done, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate evaluations as the strategy does."""
        return self._strategy.aggregate_evaluate(server_round + self._done, replies)

    def summary(self) -> None:
        """Log the strategy's configuration."""
        self._strategy.summary()

    def shifted(
        self, evaluate: Callable[[int, ArrayRecord], MetricRecord | None]
    ) -> Callable[[int, ArrayRecord], MetricRecord | None]:
        """Return ``evaluate`` for the loop's rounds; the round that was done is not repeated."""
        return lambda round, arrays: evaluate(round + self._done, arrays) if round else None


class Resumable:
    """Mixed into every strategy: what it hands from one round to the next, and to another process.

    Strategies that hold more than their base add to :meth:`state`, :meth:`load_state_` and, if
    clients are expected to remember something, to :meth:`forget_clients`.
    """

    not_state: ClassVar[Sequence[str]] = (
        *("model", "config", "deployment", "evaluate_every", "observers", "ledger"),
        "expected",
        *("_grid", "_federation", "_deposits", "_num_rounds"),
    )
    """Attributes that no later round needs, or that are kept otherwise; each class lists its own.
    All others must be in :meth:`state`."""

    config: MethodConfig
    deployment: Any
    ledger: Ledger
    events: dict[str, int]
    repeated_uploads: dict[str, dict[int, int]]
    samples_seen: int
    rounds_completed: int
    last_counted_round: int
    has_lost_quorum: Any
    model: SplitModel
    federation: Any
    arrays: Any
    count: Any
    num_exchanges: Any
    _num_empty_rounds: int
    _deposits: Deposits

    @property
    def clients_keep_state(self) -> bool:
        """Whether clients hold, from round to round, what the server could not send them again."""
        return True

    def state(self) -> State:
        """Return everything that the next round needs, by the name of its attribute."""
        self.arrays()  # brings mirror or averages into the model
        return {
            "model_state": self.model.full_state_dict(),
            "events": self.events,
            "repeated_uploads": self.repeated_uploads,
            "samples_seen": self.samples_seen,
            "rounds_completed": self.rounds_completed,
            "last_counted_round": self.last_counted_round,
            "_num_empty_rounds": self._num_empty_rounds,
        }

    def load_state_(self, state: State) -> None:
        """Go on from :meth:`state`; the strategy has begun, and knows its clients."""
        self.model.load_full_state_dict(state["model_state"])
        self.events = dict(state["events"])
        self.repeated_uploads = {
            kind: {int(m): times for m, times in by_client.items()}
            for kind, by_client in state["repeated_uploads"].items()
        }
        self.samples_seen = state["samples_seen"]
        self.rounds_completed = state["rounds_completed"]
        self.last_counted_round = state["last_counted_round"]
        self._num_empty_rounds = state["_num_empty_rounds"]

    def forget_clients(self, client_ids: Iterable[int]) -> None:
        """Note that clients have lost their memory: they must be sent again what they need."""

    @property
    def resumes_after(self) -> int:
        """The last round that is done for a run that goes on from here.

        If the quorum is lost, the last that counted: those that came to nothing are taken again.
        """
        return self.last_counted_round if self.has_lost_quorum else self.rounds_completed

    def run_state(self) -> RunState:
        """Return all that another process needs to go on after :attr:`resumes_after`.

        What only clients know is asked for. To be called between rounds.

        Raises:
            UserError: if the strategy holds something that its state leaves out, or clients noise
                their uploads in secret.
        """
        if isinstance(self.config, NoisedConfig):
            self.config.privacy.require_repeatable()
        state = dict(self.state())
        self._require_complete(state)
        if self.has_lost_quorum:  # the run that goes on has all its patience again
            state |= {"rounds_completed": self.resumes_after, "_num_empty_rounds": 0}
        self._deposits.collect(self.federation, self.rounds_completed)
        return RunState(
            self.resumes_after,
            state,
            self._deposits.state(),
            self.ledger.copy(),
            self.num_exchanges,
        )

    def meet_clients(self, resume: RunState | None) -> None:
        """Set the clients up; with ``resume``, take the place of the process that left it."""
        self._deposits = Deposits(
            is_simulation=self.deployment.replica_storage == "worker",
            clients_keep_state=self.clients_keep_state,
        )
        federation = self.federation
        with self._deposits.unbooked(federation) if resume else nullcontext():
            federation.set_up()
        federation.grid.contacted.clear()
        if resume is None:
            return
        try:
            self.load_state_(resume.strategy)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"the checkpoint does not fit {type(self).__name__}: "
                f"{type(error).__name__}: {error}"
            ) from error
        self.ledger.add(resume.ledger)
        federation.grid.num_exchanges += resume.num_exchanges
        self._deposits.load_state_(resume.deposits)
        forgetful, num_lost = self._deposits.restore(federation, resume.round)
        self.forget_clients(forgetful)
        self.count("resumes")
        self.count("lost_client_memories", num_lost)

    def _require_complete(self, state: State) -> None:
        known = {name for kind in type(self).__mro__ for name in vars(kind).get("not_state", ())}
        if forgotten := sorted(vars(self).keys() - state.keys() - known):
            raise UserError(
                f"{type(self).__name__} cannot be checkpointed: its state() leaves out "
                f"{', '.join(forgotten)}; return it there and take it in load_state_(), or list in "
                "not_state what no later round needs (docs/resuming.md)"
            )
