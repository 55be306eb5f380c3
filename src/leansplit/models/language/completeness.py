"""Whether a source holds the weights that its configuration promises.

The transformers library draws at random what it does not find, and says so in its log. Here only
heads may be drawn: a model of which more is random has learned nothing, and nobody would notice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from torch import nn

from leansplit.errors import UserError
from leansplit.models.language.families import Family

HEADS: Final = ("score", "classifier")
"""Modules that a classification model adds to a pretrained one: always trained, never adapted."""


def replaceable_modules(inner: nn.Module, family: Family) -> list[str]:
    """Return the full names of what a checkpoint may lack: the head, and what its family says."""
    paths = [*HEADS, *(f"{family.stack}.{name}" for name in family.optional)]
    present = {name for name, _ in inner.named_modules()}
    return [path for path in paths if path in present]


def drawn_modules(
    found: Mapping[str, Any], source: str, *, replaceable: Collection[str], num_weights: int
) -> tuple[str, ...]:
    """Return the full names of modules that were drawn at random, all of which may be.

    Args:
        found: ``missing_keys`` and ``mismatched_keys`` (name, shape in the file, shape of the
            model), as the transformers library reports them.
        source: where the model was loaded from.
        replaceable: full names of the modules that may be.
        num_weights: of the model, all in all.

    Raises:
        UserError: if other weights are missing, or have another shape than the model's.
    """

    def owner(name: str) -> str | None:
        return next((path for path in replaceable if name.startswith(f"{path}.")), None)

    wrong = sorted(entry for entry in found["mismatched_keys"] if owner(entry[0]) is None)
    if wrong:
        name, in_file, in_model = wrong[0]
        raise UserError(
            f"cannot load the model {source!r}: weights have other shapes than its config.json "
            f"says: {name} is {tuple(in_file)}, not {tuple(in_model)}"
        )
    if lost := sorted(name for name in found["missing_keys"] if owner(name) is None):
        raise UserError(_about_missing(lost, num_weights, source))
    names = [*found["missing_keys"], *(entry[0] for entry in found["mismatched_keys"])]
    return tuple(path for path in replaceable if path in {owner(name) for name in names})


def _about_missing(names: Sequence[str], num_weights: int, source: str) -> str:
    if names == ["lm_head.weight"]:
        return (
            f"the model {source!r} holds no lm_head.weight, without which it predicts no tokens; "
            "use classification by a head, or give a checkpoint of the whole causal model"
        )
    listed = ", ".join(names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"cannot load the model {source!r}: its files hold only {num_weights - len(names)} of "
        f"{num_weights} weights that its config.json asks for, and lack {listed}{more}; give a "
        "folder whose weights belong to its config.json"
    )
