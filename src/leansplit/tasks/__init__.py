"""Tasks: data, loss and metric behind one ``Task``, found by name in ``TASKS``."""

from leansplit.tasks.digits import build_digits_task
from leansplit.tasks.image_cache import CACHE_VARIABLE, cache_folder
from leansplit.tasks.images import DATA_VARIABLE, build_cifar10_task, build_images_task
from leansplit.tasks.registry import TASKS, TaskSpec, load_task, options_of, register_task
from leansplit.tasks.task import Examples, Task, accuracy, cross_entropy

__all__ = [
    "CACHE_VARIABLE",
    "DATA_VARIABLE",
    "TASKS",
    "Examples",
    "Task",
    "TaskSpec",
    "accuracy",
    "build_cifar10_task",
    "build_digits_task",
    "build_images_task",
    "cache_folder",
    "cross_entropy",
    "load_task",
    "options_of",
    "register_task",
]
