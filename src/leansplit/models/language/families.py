"""How the architectures of the transformers library are put together: one adapter for each family.

A family says where the blocks of its models are and what comes before and after them. The halves
run the library's own forward on a shortened stack of blocks, so masks, positions, rotary inputs
and sliding windows are computed by the code that the unsplit model uses, and nothing of the other
half is held or run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor, nn

from leansplit.errors import UserError, did_you_mean

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: Final[tuple[str, ...]] = get_args(Precision)
"""Of the weights that are not trained."""

StandIn = Callable[[], nn.Module | None]
"""Makes what stands in for a module that the other half holds."""


def absent() -> None:
    """Nothing stands in: the forward does without."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """The adapter of one architecture family.

    Paths are those of ``nn.Module.get_submodule``, as in ``model.decoder``.
    """

    name: str

    model_types: tuple[str, ...]
    """``config.model_type`` of the models it fits."""

    stack: str
    """Path from a model with a head to the module whose forward runs the blocks."""

    blocks: str
    """Path from the stack to the ``nn.ModuleList`` of blocks."""

    below: Mapping[str, StandIn]
    """Children of the stack that run before the blocks (embeddings, input projections) -> what
    stands in for each above the cut, where the stack is given the smashed data as embeddings."""

    above: Mapping[str, StandIn]
    """Children of the stack that run after the blocks (final norm, pooling) -> what stands in for
    each below the cut."""

    is_causal: bool
    """Whether tokens attend to earlier ones only."""

    lora_targets: tuple[str, ...]
    """Names of the query and value projections, which LoRA adapts unless told otherwise."""

    optional: tuple[str, ...] = ()
    """Children of the stack, of ``above``, that checkpoints may lack, such as a pooler; they are
    then drawn anew and trained like a classification head."""

    @property
    def path_to_blocks(self) -> str:
        """Path from a model with a head to the list of its blocks."""
        return f"{self.stack}.{self.blocks}"

    def blocks_of(self, inner: nn.Module) -> list[nn.Module]:
        """Return the blocks of a model with a head, the first one first."""
        return list(inner.get_submodule(self.path_to_blocks).children())


_families: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Make an architecture family known; see ``docs/extending.md``.

    Raises:
        UserError: if another family has one of its model types.
    """
    for model_type in family.model_types:
        if model_type in _families:
            raise UserError(
                f"model type {model_type!r} belongs to the family {_families[model_type].name!r}"
            )
    _families.update(dict.fromkeys(family.model_types, family))
    return family


def family_of(model_type: str) -> Family:
    """Return the adapter for ``config.model_type``.

    Raises:
        UserError: if there is none, naming the adapter to write.
    """
    if model_type not in _families:
        raise UserError(
            f"models of type {model_type!r} cannot be split: no family has this type; "
            f"{did_you_mean(model_type, _families)}; to add it, write a "
            f"leansplit.models.language.Family(model_types=({model_type!r},), ...) and call "
            "register_family (docs/extending.md)"
        )
    return _families[model_type]


def known_model_types() -> Iterator[str]:
    """Return the model types that can be split."""
    return iter(sorted(_families))


class NoPositions(nn.Module):
    """Stands in for a table of position embeddings above the cut: they were added below it."""

    def forward(self, *_args: Any, **_kwargs: Any) -> Tensor:
        """Return -0.0, which added to any number changes no bit of it."""
        return torch.tensor(-0.0)


class EmbeddedAlready(nn.Module):
    """Stands in for an embedding module that is given what it would have computed."""

    def forward(self, *, inputs_embeds: Tensor, **_kwargs: Any) -> Tensor:
        """Return ``inputs_embeds``."""
        return inputs_embeds


register_family(
    Family(
        name="GPT-2",
        model_types=("gpt2",),
        stack="transformer",
        blocks="h",
        below={"wte": absent, "wpe": NoPositions, "drop": nn.Identity},
        above={"ln_f": nn.Identity},
        is_causal=True,
        lora_targets=("c_attn",),
    )
)
register_family(
    Family(
        name="OPT",
        model_types=("opt",),
        stack="model.decoder",
        blocks="layers",
        below={"embed_tokens": absent, "embed_positions": NoPositions, "project_in": absent},
        above={"final_layer_norm": absent, "project_out": absent},
        is_causal=True,
        lora_targets=("q_proj", "v_proj"),
    )
)
register_family(
    Family(
        name="Llama",
        model_types=("llama", "mistral", "qwen2", "qwen3", "gemma3_text"),
        stack="model",
        blocks="layers",
        below={"embed_tokens": absent},
        above={"norm": nn.Identity},
        is_causal=True,
        lora_targets=("q_proj", "v_proj"),
    )
)
register_family(
    Family(
        name="BERT",
        model_types=("bert",),
        stack="bert",
        blocks="encoder.layer",
        below={"embeddings": EmbeddedAlready},
        above={"pooler": absent},
        is_causal=False,
        lora_targets=("query", "value"),
        optional=("pooler",),
    )
)
