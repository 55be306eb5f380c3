"""Configuration of HO-FL, whose clients train the whole model with two orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from leansplit.errors import UserError, require_choice, require_positive
from leansplit.federated.config import LocalStepsConfig
from leansplit.federated.dimension_sampling import sample_by_dimension
from leansplit.federated.optimizers import OptimizerConfig
from leansplit.noise import derive_seed, numpy_generator
from leansplit.zeroth_order import ZerothOrderConfig

BoundaryAssignment = Literal["cycle", "shuffled"]
BOUNDARY_ASSIGNMENTS: Final[tuple[str, ...]] = get_args(BoundaryAssignment)
DEFAULT_BOUNDARIES: Final = ("none", "cut")


@dataclass(frozen=True, kw_only=True)
class HOFLConfig(LocalStepsConfig):
    """HO-FL: every client trains the whole model, zeroth-order below its boundary."""

    local_steps: int = 5
    """E, batches that a client trains on in a round."""
    boundaries: tuple[str, ...] = ()
    """Where clients pass from zeroth to first order: names of layers that the model may be cut
    after, ``cut`` (the run's cut layer), ``none`` (first order throughout) or ``all`` (zeroth order
    throughout). Handed out in turn; empty: ``none`` and ``cut``. With ``memory_budgets_mb``, what
    clients may choose from; empty: everything that the model allows."""
    boundary_assignment: BoundaryAssignment = "cycle"
    """``cycle``: client i gets entry i of ``boundaries`` (or of ``memory_budgets_mb``), starting
    over at the end; ``shuffled``: the same numbers of each, in a random order."""
    memory_budgets_mb: tuple[float, ...] = ()
    """Memory of the clients' devices in MB (1e6 bytes), handed out in turn. A client gets the
    boundary with the smallest zeroth-order segment whose measured step fits."""
    dimension_preference: float = 0.75
    """beta of the sampling, in [0, 1): 0 = uniform; the nearer to 1, the more often the clients
    with the smallest zeroth-order segments take part."""
    zeroth_order: ZerothOrderConfig = ZerothOrderConfig(num_perturbations=2)
    """How clients probe below the boundary; the paper's q is P."""
    client_optimizer: OptimizerConfig = OptimizerConfig(lifetime="round")
    """One optimizer for both segments. ``round``: moments start from zero at every participation;
    ``run``: a client keeps them, and the server keeps those of its zeroth-order segment."""

    def __post_init__(self) -> None:
        """Refuse values that no round can be run with."""
        super().__post_init__()
        require_choice("boundary assignment", self.boundary_assignment, BOUNDARY_ASSIGNMENTS)
        if not 0 <= self.dimension_preference < 1:
            raise UserError(
                f"dimension_preference must be in [0, 1), got {self.dimension_preference}; at 1 "
                "most clients would never take part"
            )
        for budget in self.memory_budgets_mb:
            require_positive("memory_budgets_mb", budget)

    def sample_by_dimension(self, round: int, zeroth_elements: Mapping[int, int]) -> list[int]:
        """Return the clients that take part in ``round``, as :meth:`sample_cohort`.

        Args:
            round: 1-based.
            zeroth_elements: client id -> d_i; clients with small ones are preferred.
        """
        there = {m: zeroth_elements[m] for m in self.those_there(round, zeroth_elements)}
        size = min(self.cohort_size, len(there))
        beta = self.dimension_preference
        return sample_by_dimension(there, size, beta, self.root_seed, round) if there else []

    @property
    def num_boundaries(self) -> int:
        """Boundaries that are handed out in turn."""
        return len(self.boundaries or DEFAULT_BOUNDARIES)

    def boundaries_of(self, population: Sequence[int]) -> dict[int, str]:
        """Return client id -> its entry of ``boundaries``.

        Raises:
            UserError: if the boundaries depend on memory and have not been chosen yet.
        """
        if self.memory_budgets_mb:
            raise UserError(
                "memory_budgets_mb must be turned into boundaries first: use "
                "fit_boundaries(config, model, loss, inputs, labels)"
            )
        names = self.boundaries or DEFAULT_BOUNDARIES
        ordered = sorted(population)
        places = list(range(len(ordered)))
        if self.boundary_assignment == "shuffled":
            generator = numpy_generator(derive_seed(self.root_seed, "boundaries"))
            places = generator.permutation(len(ordered)).tolist()
        return {m: names[i % len(names)] for m, i in zip(ordered, places, strict=True)}
