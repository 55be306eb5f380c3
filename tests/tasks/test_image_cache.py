"""The folder of decoded images: exact, safe for several loaders at once, never in the way."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from leansplit.errors import UserError
from leansplit.tasks import image_cache
from leansplit.tasks.image_cache import DecodedImages, cache_key, load_or_decode


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEANSPLIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tiny(value: float = 1.0) -> DecodedImages:
    return DecodedImages(
        train_inputs=torch.full((2, 1, 3, 3), value),
        train_labels=torch.tensor([0, 1]),
        test_inputs=torch.zeros(1, 1, 3, 3),
        test_labels=torch.tensor([1]),
        class_names=("nul", "één"),
        jpeg_share=0.25,
    )


def refuse() -> DecodedImages:
    raise AssertionError("decoded again")


def test_everything_survives_the_cache(own_cache: Path) -> None:
    load_or_decode("k", tiny)
    loaded = load_or_decode("k", refuse)
    for name in ("train_inputs", "train_labels", "test_inputs", "test_labels"):
        assert torch.equal(getattr(loaded, name), getattr(tiny(), name))
    assert loaded.class_names == ("nul", "één")
    assert loaded.jpeg_share == 0.25
    assert not list(own_cache.glob("*.partial"))


def test_keys_differ_with_any_part() -> None:
    assert cache_key({"a": 1, "b": 2}) == cache_key({"b": 2, "a": 1})
    assert cache_key({"a": 1}) != cache_key({"a": "1"}) != cache_key({"a": None})


def test_a_damaged_file_is_replaced(own_cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_or_decode("k", tiny)
    (own_cache / "images-k.safetensors").write_bytes(b"half a file")
    assert float(load_or_decode("k", lambda: tiny(2.0)).train_inputs[0, 0, 0, 0]) == 2.0
    assert "ignoring the unreadable cache file" in caplog.text
    load_or_decode("k", refuse)


def test_an_unusable_cache_folder_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LEANSPLIT_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert load_or_decode("k", tiny).class_names == ("nul", "één")
    assert "cannot cache decoded images" in caplog.text


def test_a_failed_write_leaves_nothing_behind(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(image_cache, "save_file", full_disk)
    assert load_or_decode("k", tiny).jpeg_share == 0.25
    assert [path.name for path in own_cache.iterdir()] == ["images-k.lock"]


def test_errors_of_decoding_pass_through_and_cache_nothing(own_cache: Path) -> None:
    def fail() -> DecodedImages:
        raise UserError("bad data")

    with pytest.raises(UserError, match="bad data"):
        load_or_decode("k", fail)
    assert not list(own_cache.glob("*.safetensors"))
    assert load_or_decode("k", tiny).jpeg_share == 0.25


def test_loaders_at_the_same_time_decode_once() -> None:
    started, num_decodes = threading.Barrier(4), []

    def decode() -> DecodedImages:
        num_decodes.append(1)
        threading.Event().wait(0.1)
        return tiny()

    def load() -> None:
        started.wait()
        load_or_decode("k", decode)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(num_decodes) == 1


def test_a_second_process_waits_for_the_first(own_cache: Path) -> None:
    program = """
import time, torch
from leansplit.tasks.image_cache import DecodedImages, load_or_decode
def decode():
    print("decoding", flush=True)
    time.sleep(0.3)
    inputs, labels = torch.full((2, 1, 3, 3), 7.0), torch.tensor([0, 1])
    return DecodedImages(inputs, labels, inputs.clone(), labels.clone(), ("a", "b"), 0.0)
load_or_decode("k", decode)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "decoding\n"  # it holds the lock now
        loaded = load_or_decode("k", refuse)
    assert other.returncode == 0
    assert float(loaded.test_inputs[0, 0, 0, 0]) == 7.0
    assert not list(own_cache.glob("*.partial"))


def test_the_default_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEANSPLIT_CACHE")
    assert image_cache.cache_folder() == Path.home() / ".cache" / "leansplit"
