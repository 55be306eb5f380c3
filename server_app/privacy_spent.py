"""What a run's uploads tell of one sample at most: epsilon, and what it does not cover."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from leansplit.costs.privacy import can_account, epsilon_spent
from leansplit.federated import MethodConfig, NoisedConfig, batch_indices

Repeated = Mapping[str, Mapping[int, int]]
"""Kind -> client id -> how often."""


def most_uploads(
    config: NoisedConfig,
    num_samples: Mapping[int, int],
    num_rounds: int,
    repeated: Repeated = MappingProxyType({}),
) -> tuple[int, int]:
    """Return how often one sample's smashed data, and one client's scalars, were asked for at most.

    Counted over the schedule, which follows from the root seed. Smashed data around the client's
    weights count like those at them. Which batch a client had to upload again is not known here: as
    if all of them held the one sample of that client that has most uploads.

    Args:
        config: of the method, settled.
        num_samples: client id -> samples that it holds.
        num_rounds: rounds of the run.
        repeated: see :func:`privacy_spent`.
    """
    steps = getattr(config, "upload_steps", range(getattr(config, "local_steps", 1)))
    if not config.uploads_smashed_data:
        steps = range(0)
    is_once = getattr(config, "features_once", False)
    samples: dict[int, npt.NDArray[np.int64]] = {}  # of clients that took part
    rounds = dict.fromkeys(num_samples, 0)
    for t in range(1, num_rounds + 1):
        for m in config.sample_cohort(t, num_samples):
            rounds[m] += 1
            if m not in samples:
                samples[m] = np.zeros(num_samples[m], np.int64)
            if is_once:
                samples[m][:] = 1
                continue
            for h in steps:
                batch = batch_indices(
                    config.root_seed,
                    t,
                    m,
                    h,
                    num_samples=num_samples[m],
                    batch_size=config.batch_size,
                )
                samples[m][batch] += config.releases
    for m, times in repeated.get("smashed_data", {}).items():
        samples[m] += times * config.releases
    for m, times in repeated.get("scalars", {}).items():
        rounds[m] += times
    most = max((int(counts.max(initial=0)) for counts in samples.values()), default=0)
    return most, max(rounds.values(), default=0)


def privacy_spent(
    config: MethodConfig | None,
    num_samples: Mapping[int, int],
    num_rounds: int,
    *,
    averages_weights: bool,
    repeated: Repeated = MappingProxyType({}),
    events: Mapping[str, int] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the section ``privacy`` of a result; empty if nothing was clipped or noised.

    Epsilons are None where the accounting library is missing.

    Args:
        config: of the method, settled.
        num_samples: client id -> samples that it holds.
        num_rounds: rounds of the run.
        averages_weights: whether clients upload weights.
        repeated: kind -> client id -> uploads that the client was asked for once more, because its
            replica differed.
        events: of the run; with ``features_once`` dropped clients are asked again in a later round,
            and all of that is added to the one sample that has most.
    """
    if not isinstance(config, NoisedConfig) or not config.privacy.is_on:
        return {}
    given = config.privacy
    of_sample, of_client = most_uploads(config, num_samples, num_rounds, repeated)
    if getattr(config, "features_once", False):  # asked until the answer counts
        of_sample += events.get("dropped_clients", 0) * config.releases

    def epsilon(*releases: tuple[float, int]) -> float | None:
        return epsilon_spent(releases, given.delta) if can_account() else None

    tells_weights = averages_weights and config.weights_tell_more
    sent_as_they_are = {
        "labels": config.uploads_smashed_data,
        "trained weights": tells_weights,
        "scalars": config.uploads_scalars and not given.scalar_noise,
        "smashed data": config.uploads_smashed_data and not given.noise,
    }
    spent: dict[str, Any] = {
        "delta": given.delta,
        "is_secret": not given.reproducible,
        "unprotected": [name for name, is_sent in sent_as_they_are.items() if is_sent],
    }
    if given.clip:
        spent["smashed_data"] = {
            "uploads": of_sample,
            "epsilon": epsilon((given.noise, of_sample)),
        }
    if given.scalar_clip:
        spent["scalars"] = {
            "uploads": of_client,
            "epsilon": epsilon((given.scalar_noise, of_client)),
        }
    if given.noise and given.scalar_noise:
        both = epsilon((given.noise, of_sample), (given.scalar_noise, of_sample))
        spent["one_sample"] = {"uploads": of_sample, "epsilon": both}
    return spent
