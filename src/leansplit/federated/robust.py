"""What the server makes of its clients' answers when some of them may be hostile.

The mean follows any single client as far as it likes. The other rules bound what a minority can do,
and pay for it: a median of honest clients is not their mean. Rows below are scalars (methods with
shared directions), or differences of weights from where the round began.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor

from leansplit.errors import UserError, require_choice
from leansplit.federated.averaging import mean_scalars, moved_towards_mean, weighted_mean
from leansplit.shares import at_most

Rule = Literal["mean", "median", "trimmed_mean", "clipping", "krum"]
RULES: Final[tuple[str, ...]] = get_args(Rule)

_FEWEST = 3
"""Answers of which one can be told from the others."""


@dataclass(frozen=True, kw_only=True)
class RobustConfig:
    """How the clients' answers become one."""

    rule: Rule = "mean"
    """``mean``: weighted by samples. ``median``: of each coordinate. ``trimmed_mean``: of each
    coordinate, without the share ``hostile`` at either end. ``clipping``: the weighted mean of
    answers cut back to a common norm. ``krum``: the mean of the ``keep`` answers with the nearest
    neighbours (Blanchard et al., NeurIPS 2017). All but ``mean`` and ``clipping`` count every
    client alike."""
    hostile: float = 0.2
    """Share of those that answer who may be hostile, below one half; for ``trimmed_mean`` and
    ``krum``. Rounded down, but of three or more answers above 0 it is one at least."""
    keep: int = 1
    """Answers that ``krum`` averages; more than one is Multi-Krum. At most those that are not
    hostile."""
    max_norm: float = 0.0
    """Norm that ``clipping`` allows; 0 = the median of the clients' norms."""

    def __post_init__(self) -> None:
        """Refuse values that no answer can be made with."""
        require_choice("rule", self.rule, RULES)
        if not 0 <= self.hostile < 0.5:
            raise UserError(f"hostile must be in [0, 0.5), got {self.hostile}")
        if self.keep < 1:
            raise UserError(f"keep must be at least 1, got {self.keep}")
        if not self.max_norm >= 0:
            raise UserError(f"max_norm must be at least 0, got {self.max_norm}")

    def num_hostile(self, count: int) -> int:
        """Return f: how many of ``count`` answers may be hostile, below half of them."""
        fewest = 1 if self.hostile and count >= _FEWEST else 0
        return max(fewest, at_most(self.hostile, count))

    def is_enough(self, count: int) -> bool:
        """Say whether the rule is more than a mean or a choice at random of ``count`` answers.

        Median, trimmed mean and clipping at the median norm take three; Krum 2 f + 3, so that most
        of a row's nearest neighbours are honest.
        """
        if self.rule == "krum":
            return count >= 2 * self.num_hostile(count) + _FEWEST
        takes_any = self.rule == "mean" or (self.rule == "clipping" and self.max_norm > 0)
        return takes_any or count >= _FEWEST

    def require_enough(self, cohort_size: int) -> None:
        """Refuse a rule that cannot work although everybody answers.

        Raises:
            UserError: if the cohort is too small for it, or ``keep`` too large for the cohort.
        """
        hostile = self.num_hostile(cohort_size)
        if not self.is_enough(cohort_size):
            needed = 2 * hostile + _FEWEST if self.rule == "krum" else _FEWEST
            of_them = f" with {hostile} of them hostile" if self.rule == "krum" else ""
            raise UserError(
                f"robust.rule = {self.rule} needs {needed} answers{of_them}, and cohort is "
                f"{cohort_size}; enlarge cohort"
                + (", or lower robust.hostile" if self.rule == "krum" else "")
                + ", or take another rule"
            )
        if self.rule == "krum" and self.keep > cohort_size - hostile:
            raise UserError(
                f"robust.keep must be at most {cohort_size - hostile}, got {self.keep}: of cohort "
                f"= {cohort_size} answers {hostile} may be hostile "
                f"(robust.hostile = {self.hostile})"
            )


def aggregate_scalars(
    scalars: Sequence[Tensor], weights: Sequence[float], config: RobustConfig
) -> tuple[float, ...]:
    """Return what the clients' directional differences come to.

    Args:
        scalars: v_m for each client in ascending order of ids, shape [P].
        weights: each client's share; the shares sum to 1.
        config: the rule.

    Returns:
        P numbers, computed in float64 and rounded to float32, as they cross the wire.
    """
    if config.rule == "mean":
        return mean_scalars(scalars, weights)
    rows = torch.stack([v.double() for v in scalars])
    return tuple(_combined(rows, weights, config).float().tolist())


def aggregate(
    states: Sequence[Mapping[str, Tensor]],
    weights: Sequence[float],
    start: Mapping[str, Tensor],
    config: RobustConfig,
    global_lr: float = 1.0,
) -> dict[str, Tensor]:
    """Return the weights that the next round starts from.

    Args:
        states: the clients' trained weights, in ascending order of ids.
        weights: each client's share; the shares sum to 1.
        start: what they were sent.
        config: the rule.
        global_lr: how far to go from ``start``; 1 = all the way.
    """
    if config.rule == "mean":
        if global_lr == 1:
            return weighted_mean(states, weights)
        return moved_towards_mean({k: start[k] for k in states[0]}, states, weights, global_lr)
    names = [name for name in start if name in states[0]]  # one order whoever answers first
    rows = torch.stack(
        [
            torch.cat([(s[k].double() - start[k].double()).reshape(-1) for k in names])
            for s in states
        ]
    )
    sizes = [start[name].numel() for name in names]
    step = torch.split(_combined(rows, weights, config), sizes)
    return {
        name: (start[name].double() + global_lr * part.reshape(start[name].shape)).to(
            start[name].dtype
        )
        for name, part in zip(names, step, strict=True)
    }


def _combined(rows: Tensor, weights: Sequence[float], config: RobustConfig) -> Tensor:
    """Return one row [D] for K of them [K, D], float64."""
    count = len(rows)
    if config.rule == "krum":
        return rows[_nearest(rows, config)].mean(0)
    if config.rule == "clipping":
        norms = rows.norm(dim=1)
        limit = config.max_norm or float(_middle(norms.sort().values))
        total = torch.zeros_like(rows[0])
        for row, weight, norm in zip(rows, weights, norms.tolist(), strict=True):
            total += weight * min(1.0, limit / norm if norm else 1.0) * row
        return total
    ordered = rows.sort(dim=0).values
    if config.rule == "median":
        return _middle(ordered)
    cut = config.num_hostile(count)
    return ordered[cut : count - cut].mean(0)


def _middle(ordered: Tensor) -> Tensor:
    """Return the median along the first dimension: of an even number, between the middle two."""
    count = len(ordered)
    return ordered[(count - 1) // 2 : count // 2 + 1].mean(0)


def _nearest(rows: Tensor, config: RobustConfig) -> list[int]:
    """Return Krum's choice: the rows with the smallest summed squared distance to their nearest.

    Of K rows, f of them hostile, the K - f - 2 nearest others count, at least one; no more than
    K - f are kept.
    """
    num_honest = len(rows) - config.num_hostile(len(rows))
    num_near = max(1, num_honest - 2)
    distances = torch.stack([(rows - row).square().sum(1) for row in rows])
    scores = distances.sort(dim=1).values[:, 1 : num_near + 1].sum(1)
    best: list[int] = torch.sort(scores, stable=True).indices.tolist()
    return sorted(best[: min(config.keep, num_honest)])
