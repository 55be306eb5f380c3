"""Language models from the hub, a local folder or a bare configuration, whole or in part.

The client's part is loaded as a model of the client's depth: the library then reads the tensors of
that model from the safetensors files and no other.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from leansplit.errors import UserError, require_choice
from leansplit.models.language.families import PRECISIONS, Family, Precision, family_of
from leansplit.models.language.halves import OUTPUTS, Outputs, shortened
from leansplit.models.language.sources import is_pretrained, resolved


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
    try:
        return AutoConfig.from_pretrained(place)  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"no model at {text!r}: {_first_line(error)}; give a folder that holds config.json and "
            "model.safetensors, or a name on the hub (which needs a connection)"
        ) from error


def load_whole(
    source: str,
    *,
    outputs: Outputs,
    num_classes: int,
    precision: Precision,
    num_blocks: int | None = None,
) -> tuple[Any, Family]:
    """Return an unsplit model with a head, and its family.

    What the source does not hold, such as a new classification head, is drawn from torch's
    generator. Tied input and output embeddings are untied: the halves train apart.

    Args:
        source: see :func:`load_config`.
        outputs: which head.
        num_classes: of a classification head.
        precision: of all weights.
        num_blocks: load so many of the lowest blocks only, below the head; None = all.

    Raises:
        UserError: for a source, architecture or option that does not exist.
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
    inner = _load(of_head, source, config, precision)
    _untie_(inner)
    return inner, family


def load_client_part(source: str, *, num_blocks: int, precision: Precision) -> tuple[Any, Family]:
    """Return the lowest blocks of a pretrained model with their embeddings, under its names.

    Raises:
        UserError: as :func:`load_whole`.
    """
    require_choice("precision", precision, PRECISIONS)
    config = load_config(source)
    family = family_of(config.model_type)
    config = shortened(config, slice(0, num_blocks))
    base = _load(AutoModel, source, config, precision)
    root: Any = nn.Module()
    root.config = base.config
    root.add_module(family.stack.partition(".")[0], base)
    return root, family


def _load(of_head: Any, source: str, config: PretrainedConfig, precision: Precision) -> Any:
    dtype = getattr(torch, precision)
    with quietly():
        if not is_pretrained(source):
            try:
                return of_head.from_config(config).to(dtype)
            except (ValueError, TypeError, RuntimeError, AssertionError) as error:
                raise UserError(
                    f"no model can be built from this configuration: {_first_line(error)}"
                ) from error
        try:
            model = of_head.from_pretrained(resolved(source), config=config, dtype=dtype)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            reason = _first_line(error)
            if "ignore_mismatched_sizes" in reason:  # the library says which ones in its log alone
                reason = "weights have other shapes than its config.json says"
            raise UserError(f"cannot load the model {source!r}: {reason}") from error
    return model


def _untie_(inner: Any) -> None:
    """Give the output embeddings a parameter of their own if they share that of the inputs."""
    embeddings = inner.get_input_embeddings()
    head = getattr(inner, "lm_head", None)
    if head is not None and head.weight is embeddings.weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        inner.config.tie_word_embeddings = False


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
