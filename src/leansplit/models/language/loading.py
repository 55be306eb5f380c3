"""Language models from the hub, a local folder or a bare configuration, whole or in part.

The client's part is loaded as a model of the client's depth: the library then reads the tensors of
that model from the safetensors files and no other.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from leansplit.errors import UserError, require_choice
from leansplit.models.language.completeness import drawn_modules, replaceable_modules
from leansplit.models.language.families import PRECISIONS, Family, Precision, family_of
from leansplit.models.language.halves import OUTPUTS, Outputs, shortened
from leansplit.models.language.sources import is_pretrained, resolved

_DRAWN_AS_ASKED: Final[Mapping[str, Any]] = {"missing_keys": (), "mismatched_keys": ()}
_IS_AN_ADAPTER: Final = (
    "holds an adapter; give a whole model, such as leansplit export writes with the adapter merged"
)


@dataclass(frozen=True)
class Loaded:
    """A model of the transformers library, or the client's part of one.

    Attributes:
        inner: the library's own model.
        family: how its architecture is put together.
        drawn: full names of modules that a pretrained source has no weights of, so that they were
            drawn anew: a classification head, an encoder's pooler.
    """

    inner: Any
    family: Family
    drawn: tuple[str, ...] = ()


def load_config(source: str) -> PretrainedConfig:
    """Return the configuration of a model.

    Args:
        source: a name on the hub, a folder with ``config.json``, or that file's content, which
            means a model with random weights.

    Raises:
        UserError: if there is no such model, or its architecture is unknown to the library.
    """
    text = source.strip()
    if text.startswith("{"):
        try:
            values = json.loads(text)
            model_type = values.pop("model_type")
            return AutoConfig.for_model(model_type, **values)
        except Exception as error:  # the library checks sizes with exceptions of many types
            raise UserError(
                f"the model configuration {_shortened(text)} cannot be read "
                f"({_first_line(error)}); give the content of a config.json, with a model_type"
            ) from error
    if not text:
        raise UserError(
            "model 'language' needs model_options.source: a name on the hub, a local folder, or "
            "the content of a config.json"
        )
    place = resolved(text)
    if (Path(place) / "adapter_config.json").is_file():  # the library would load what it is for
        raise UserError(f"{text!r} {_IS_AN_ADAPTER}")
    try:
        config = AutoConfig.from_pretrained(place)
    except Exception as error:  # as above
        raise UserError(
            f"no model at {text!r}: {_first_line(error)}; give a folder that holds config.json and "
            "model.safetensors, or a name on the hub (which needs a connection)"
        ) from error
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"the weights of {text!r} are quantised, and leansplit takes plain ones; give the "
            "checkpoint that was quantised, with model_options.precision=bfloat16 to halve it"
        )
    return config  # type: ignore[no-any-return]


def load_whole(
    source: str,
    *,
    outputs: Outputs,
    num_classes: int,
    precision: Precision,
    num_blocks: int | None = None,
) -> Loaded:
    """Return an unsplit model with a head.

    A new classification head is drawn from torch's generator, and so is a head for another number
    of classes than the source has; all else must be in the source.

    Args:
        source: see :func:`load_config`.
        outputs: which head.
        num_classes: of a classification head.
        precision: of all weights.
        num_blocks: load so many of the lowest blocks only, below the head; None = all.

    Raises:
        UserError: for a source, architecture or option that does not exist, or weights that are
            not all there.
    """
    require_choice("precision", precision, PRECISIONS)
    require_choice("outputs", outputs, OUTPUTS)
    config = load_config(source)
    family = family_of(config.model_type)
    if not family.is_causal and outputs != "classes":
        raise UserError(
            f"{family.name} models predict no next token; use a classification task, or a decoder"
        )
    if outputs == "classes":
        config.num_labels = num_classes
    if num_blocks is not None:
        config = shortened(config, slice(0, num_blocks))
    of_head: Any = (
        transformers.AutoModelForSequenceClassification
        if outputs == "classes"
        else transformers.AutoModelForCausalLM
    )
    inner, found = _load(of_head, source, config, precision)
    drawn = drawn_modules(
        found,
        source,
        replaceable=replaceable_modules(inner, family),
        num_weights=len(inner.state_dict()),
    )
    return Loaded(inner, family, drawn)


def load_client_part(source: str, *, num_blocks: int, precision: Precision) -> Loaded:
    """Return the lowest blocks of a pretrained model with their embeddings, under its names.

    Raises:
        UserError: as :func:`load_whole`.
    """
    require_choice("precision", precision, PRECISIONS)
    config = load_config(source)
    family = family_of(config.model_type)
    config = shortened(config, slice(0, num_blocks))
    base, found = _load(AutoModel, source, config, precision)
    head, _, path = family.stack.partition(".")
    # What follows the last block is the server's, whatever became of it here.
    above = [f"{path}.{name}".lstrip(".") for name in family.above]
    drawn_modules(found, source, replaceable=above, num_weights=len(base.state_dict()))
    root: Any = nn.Module()
    root.config = base.config
    root.add_module(head, base)
    return Loaded(root, family)


def _load(
    of_head: Any, source: str, config: PretrainedConfig, precision: Precision
) -> tuple[Any, Mapping[str, Any]]:
    """Return a model, and what the library says of the weights that it found."""
    dtype = getattr(torch, precision)
    with quietly():
        if not is_pretrained(source):
            try:
                return of_head.from_config(config).to(dtype), _DRAWN_AS_ASKED
            except (ValueError, TypeError, RuntimeError, AssertionError) as error:
                raise UserError(
                    f"no model can be built from this configuration: {_first_line(error)}"
                ) from error
        try:
            # Sizes are compared below: the library would name those that differ in its log alone.
            model, found = of_head.from_pretrained(
                resolved(source),
                config=config,
                dtype=dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except Exception as error:  # damaged files, missing packages: no common base
            raise UserError(f"cannot load the model {source!r}: {_first_line(error)}") from error
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(f"{source!r} {_IS_AN_ADAPTER}")
    return model, found


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Silence what the library says about weights that are meant to be new, or left out."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    said: Any = transformers.utils.logging
    bars = said.is_progress_bar_enabled()
    said.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            said.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return _shortened((str(error).strip() or type(error).__name__).splitlines()[0], 200)


def _shortened(text: str, at_most: int = 60) -> str:
    return text if len(text) <= at_most else f"{text[:at_most]}..."
