"""Every task by name, with its options: what a run's configuration may ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from leansplit.errors import UserError, did_you_mean, require_choice, require_kind
from leansplit.tasks.digits import build_digits_task
from leansplit.tasks.images import build_cifar10_task, build_images_task
from leansplit.tasks.known_texts import build_e2e_task, build_rte_task, build_sst2_task
from leansplit.tasks.task import Task
from leansplit.tasks.text import build_generation_task, build_text_task


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task that can be asked for by name."""

    name: str

    description: str
    """One line, for lists of tasks."""

    default_model: str
    """The model used where a run names none."""

    builder: Callable[..., Task]
    """Called with options as keyword arguments."""

    options: Mapping[str, object]
    """Every option with its default; ``options_of`` reads them off a builder."""


def options_of(builder: Callable[..., Task]) -> Mapping[str, object]:
    """Return the keyword-only arguments of ``builder`` with their defaults.

    Raises:
        UserError: if an argument has no default or can be given by position.
    """
    options: dict[str, object] = {}
    for name, parameter in inspect.signature(builder).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty:
            raise UserError(
                f"a task's builder takes keyword-only arguments with defaults; {name!r} of "
                f"{getattr(builder, '__name__', builder)!s} is not one"
            )
        options[name] = parameter.default
    return MappingProxyType(options)


def _built_in(
    name: str, description: str, builder: Callable[..., Task], default_model: str
) -> TaskSpec:
    return TaskSpec(
        name=name,
        description=description,
        default_model=default_model,
        builder=builder,
        options=options_of(builder),
    )


_TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        _built_in(
            "digits",
            "1,797 real handwritten digits of 8x8 pixels, 10 classes; no download",
            build_digits_task,
            "digits-cnn",
        ),
        _built_in(
            "cifar10",
            "CIFAR-10: 60,000 colour images of 32x32 pixels, 10 classes; local copy or hub",
            build_cifar10_task,
            "cifar-cnn",
        ),
        _built_in(
            "images",
            "any labelled images: local parquet, class-per-folder images, or a hub data set",
            build_images_task,
            "cifar-cnn",
        ),
        _built_in(
            "sst2",
            "SST-2: 67,349 phrases of film reviews, negative or positive; local copy or hub",
            build_sst2_task,
            "language",
        ),
        _built_in(
            "rte",
            "RTE: 2,490 pairs of sentences, entailed or not; local copy or hub",
            build_rte_task,
            "language",
        ),
        _built_in(
            "e2e",
            "E2E: 42,061 restaurant descriptions to write from attribute lists; local copy or hub",
            build_e2e_task,
            "language",
        ),
        _built_in(
            "text",
            "any labelled texts, classified by a head or by the next token; local files or hub",
            build_text_task,
            "language",
        ),
        _built_in(
            "generation",
            "any texts to continue, loss on the target only; local files or hub",
            build_generation_task,
            "language",
        ),
    )
}

TASKS: Mapping[str, TaskSpec] = MappingProxyType(_TASKS)
"""Name -> task, read-only; add to it with ``register_task``."""


def register_task(spec: TaskSpec) -> None:
    """Make a task available by name.

    Raises:
        UserError: if the name is taken.
    """
    if spec.name in _TASKS:
        raise UserError(f"a task named {spec.name!r} exists already; choose another name")
    _TASKS[spec.name] = spec


def load_task(name: str, **options: object) -> Task:
    """Build the task called ``name``.

    Args:
        name: a key of ``TASKS``.
        options: some of the task's options; the others take their defaults.

    Raises:
        UserError: if the task or an option does not exist, or the builder rejects a value.
    """
    spec = TASKS[require_choice("task", name, TASKS)]
    for option, value in options.items():
        if option not in spec.options:
            raise UserError(
                f"task {name!r} has no option {option!r}; {did_you_mean(option, spec.options)}"
            )
        require_kind(f"task_options.{option}", value, spec.options[option])
    try:
        return spec.builder(**{**spec.options, **options})
    except TypeError as error:
        raise UserError(f"task {name!r} cannot take {options}: {error}") from error
