"""A node's own files in place of a share of everybody's: checked against what the run expects."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from leansplit.errors import UserError
from leansplit.sequences import are_tokens
from leansplit.tasks.registry import TASKS
from leansplit.tasks.task import Examples, Task

_PATH_OPTION, _HUB_OPTIONS = "data_path", ("dataset", "dataset_config")


def takes_own_data(task: str) -> bool:
    """Say whether a task can read the files of a folder that it is given."""
    return task in TASKS and _PATH_OPTION in TASKS[task].options


def own_options(task: str, options: dict[str, Any], folder: str) -> dict[str, Any]:
    """Return a task's options that make it read ``folder`` in place of what they name.

    Raises:
        UserError: if the task reads no files, or there is no such absolute folder.
    """
    if not takes_own_data(task):
        able = ", ".join(name for name in sorted(TASKS) if takes_own_data(name))
        raise UserError(
            f"task {task!r} has no data_path, so a node cannot bring data of its own; tasks that "
            f"can: {able}"
        )
    path = Path(folder)
    if not path.is_absolute():
        raise UserError(f"the node's data must be an absolute path, got {folder!r}")
    if not path.exists():
        raise UserError(f"the node's data {folder!r} do not exist; check data=... in --node-config")
    return {k: v for k, v in options.items() if k not in _HUB_OPTIONS} | {_PATH_OPTION: folder}


def matched(task: Task, class_names: Sequence[str], input_shape: Sequence[int]) -> Task:
    """Return a node's task under the run's classes, matched by name; a node may lack some.

    Args:
        task: read from the node's files.
        class_names: of the run, in the order of its labels; none = the task has no classes.
        input_shape: of the run's inputs.

    Raises:
        UserError: if a class or the shape of inputs is another than the run's.
    """
    if not are_tokens(task.train.inputs) and task.input_shape != tuple(input_shape):
        raise UserError(
            f"the node's inputs have the shape {list(task.input_shape)}, those of the run "
            f"{list(input_shape)}; bring the files into that form"
        )
    if unknown := sorted(set(task.class_names) - set(class_names)):
        raise UserError(
            f"the node's classes {unknown} are none of the run, which has {list(class_names)}"
        )
    if not class_names:
        return task
    position = torch.tensor([list(class_names).index(name) for name in task.class_names])

    def relabelled(examples: Examples) -> Examples:
        return Examples(examples.inputs, position[examples.labels])

    return dataclasses.replace(
        task,
        num_classes=len(class_names),
        class_names=tuple(class_names),
        train=relabelled(task.train),
        test=relabelled(task.test),
    )
