"""Sampling that prefers clients whose zeroth-order segment is small (HO-FL).

A zeroth-order estimate over d parameters with q directions has variance that grows as d / q, so
rounds go more often to the clients with the smallest d_i / q:

    p_i = (1 - beta) / N + beta r_i,   r uniform over the K clients with the smallest d_i / q

and the cohort is drawn by dependent rounding of K p, exactly K clients. No K p_i exceeds 1, since
K p_i <= (1 - beta) K / N + beta.
"""

from __future__ import annotations

from collections.abc import Mapping

from leansplit.federated.dependent_rounding import dependent_rounding
from leansplit.federated.sampling import require_cohort
from leansplit.noise import derive_seed, numpy_generator


def inclusion_probabilities(
    zeroth_elements: Mapping[int, int], cohort_size: int, beta: float, root_seed: int
) -> dict[int, float]:
    """Return client id -> K p_i, the chance that it takes part in a round; they sum to K.

    Args:
        zeroth_elements: client id -> d_i, trainable parameters of its zeroth-order segment. All
            clients draw the same number q of directions, so d_i / q orders them as d_i does.
        cohort_size: K.
        beta: 0 = uniform; the nearer to 1, the more rounds go to small segments.
        root_seed: clients of equal d_i stand in one random order for the whole run.

    Raises:
        UserError: if the cohort is empty or larger than the population.
    """
    num_clients = len(zeroth_elements)
    require_cohort(cohort_size, num_clients)
    ordered = sorted(zeroth_elements)
    generator = numpy_generator(derive_seed(root_seed, "dimension-ties"))
    rank = dict(zip(ordered, generator.permutation(num_clients).tolist(), strict=True))
    by_size = sorted(ordered, key=lambda m: (zeroth_elements[m], rank[m]))
    preferred = set(by_size[:cohort_size])
    share = cohort_size * (1 - beta) / num_clients
    return {m: min(1.0, share + (beta if m in preferred else 0.0)) for m in ordered}


def sample_by_dimension(
    zeroth_elements: Mapping[int, int], cohort_size: int, beta: float, root_seed: int, round: int
) -> list[int]:
    """Draw the cohort of ``round``; arguments as in :func:`inclusion_probabilities`.

    Any round's cohort can be drawn without drawing the earlier ones.

    Returns:
        Exactly ``cohort_size`` client ids, ascending.
    """
    chances = inclusion_probabilities(zeroth_elements, cohort_size, beta, root_seed)
    generator = numpy_generator(derive_seed(root_seed, "dimension-cohort", round=round))
    population = list(chances)
    return [population[index] for index in dependent_rounding(list(chances.values()), generator)]
