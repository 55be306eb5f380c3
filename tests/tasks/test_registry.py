"""Tasks by name: what is there, how options reach the builders, what is said about typos."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from leansplit.errors import UserError
from leansplit.tasks import TASKS, Task, TaskSpec, load_task, options_of, register_task, registry
from leansplit.tasks.digits import build_digits_task


@pytest.fixture
def own_registry() -> Iterator[None]:
    """Let a test register tasks without others seeing them."""
    before = dict(registry._TASKS)
    yield
    registry._TASKS.clear()
    registry._TASKS.update(before)


def test_built_in_tasks() -> None:
    assert {"digits", "cifar10", "images", "sst2", "rte", "e2e", "text"} <= set(TASKS)
    for name, spec in TASKS.items():
        assert spec.name == name
        assert spec.description
        assert spec.default_model in ("digits-cnn", "cifar-cnn", "language")


def test_options_are_the_builders_arguments_with_defaults() -> None:
    assert TASKS["digits"].options == {"max_train": None, "max_test": None, "copies": 1}
    assert set(TASKS["cifar10"].options) == {"data_path", "image_size", "max_train", "max_test"}
    assert {"data_path", "dataset", "image_column", "test_split"} <= set(TASKS["images"].options)


def test_options_reach_the_builder() -> None:
    assert len(load_task("digits", max_train=30).train) == 30


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown task 'cifar'; did you mean 'cifar10'\?"):
        load_task("cifar")


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'digits' has no option 'max_trian'; did you mean 'max_t"):
        load_task("digits", max_trian=3)


def test_images_needs_a_source() -> None:
    with pytest.raises(UserError, match="needs either data_path"):
        load_task("images")
    with pytest.raises(UserError, match="got both"):
        load_task("images", data_path="somewhere", dataset="owner/name")


def test_register_a_task(own_registry: None) -> None:
    def build(*, max_train: int = 40) -> Task:
        return build_digits_task(max_train=max_train)

    spec = TaskSpec(
        name="few-digits",
        description="forty digits",
        default_model="small-cnn",
        builder=build,
        options=options_of(build),
    )
    register_task(spec)
    assert TASKS["few-digits"] is spec
    assert len(load_task("few-digits").train) == 40
    with pytest.raises(UserError, match="exists already"):
        register_task(spec)


def test_the_mapping_is_read_only() -> None:
    with pytest.raises(TypeError):
        TASKS["mine"] = TASKS["digits"]  # type: ignore[index]


def test_builders_take_keyword_options_with_defaults() -> None:
    def by_position(limit: int = 3) -> None: ...

    def without_default(*, limit: int) -> None: ...

    for builder in (by_position, without_default):
        with pytest.raises(UserError, match="'limit' of"):
            options_of(builder)  # type: ignore[arg-type]
