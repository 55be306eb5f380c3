"""Checkpoints on disk: whole or not at all; whatever is wrong with one has a reason."""

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from leansplit.errors import UserError
from leansplit.server_app import checkpoint_files
from leansplit.server_app.checkpoint_files import (
    Checkpoint,
    CheckpointError,
    find_checkpoints,
    prune_checkpoints,
    read_checkpoint,
    remove_checkpoints,
    run_folder,
    write_checkpoint,
)


def checkpoint(round=3):
    return Checkpoint(
        round=round,
        about={"config_hash": "abc", "lr": 1e-05},
        tensors={"model/w": torch.arange(6.0).view(2, 3), "model/n": torch.tensor(7)},
        fields={"model": {}, "events": {"resyncs": 1}, "rate": 0.1},
        tables={"rounds": pd.DataFrame({"round": [1, 2], "loss": [0.5, None]})},
    )


@pytest.fixture
def written(tmp_path):
    """The path of a checkpoint on disk."""
    return write_checkpoint(tmp_path / "checkpoints", checkpoint())


def files(path):
    return sorted(file for file in path.iterdir())


def test_what_is_written_is_read(written):
    before, after = checkpoint(), read_checkpoint(written)
    assert (after.round, after.about, after.fields) == (before.round, before.about, before.fields)
    assert after.tensors.keys() == before.tensors.keys()
    assert all(torch.equal(after.tensors[name], before.tensors[name]) for name in before.tensors)
    assert after.tables["rounds"].equals(before.tables["rounds"])


def test_the_newest_comes_first_wherever_one_looks(tmp_path):
    folder = tmp_path / "checkpoints"
    paths = [write_checkpoint(folder, checkpoint(t)) for t in (9, 100, 20)]
    (folder / "round-x").mkdir()
    (folder / "round-00000777").write_text("a file")
    expected = [paths[1], paths[2], paths[0]]
    assert find_checkpoints(tmp_path) == find_checkpoints(folder) == expected
    assert find_checkpoints(paths[0]) == [paths[0]]
    assert run_folder(tmp_path) == run_folder(folder) == run_folder(paths[0]) == tmp_path
    assert find_checkpoints(tmp_path / "nothing") == []


def test_pruning_keeps_what_it_is_told_and_removes_what_was_left_staged(tmp_path):
    paths = [write_checkpoint(tmp_path, checkpoint(t)) for t in (1, 2, 3)]
    (tmp_path / ".staged-0123").mkdir()
    prune_checkpoints(tmp_path, keep={paths[1]})
    assert files(tmp_path) == [paths[1]]


def test_a_completed_run_leaves_none(tmp_path, written):
    (tmp_path / "result.json").write_text("{}")
    remove_checkpoints(tmp_path)
    assert files(tmp_path) == [tmp_path / "result.json"]


@pytest.mark.parametrize("seed", range(40))
def test_damage_anywhere_is_refused_with_the_file_and_the_reason(written, seed):
    draw = random.Random(seed)
    file = draw.choice(files(written))
    content = bytearray(file.read_bytes())
    kind = draw.choice(["cut", "flip", "lose", "noise", "longer"])
    if kind == "lose":
        file.unlink()
    elif kind == "cut":
        file.write_bytes(content[: draw.randrange(len(content))])
    elif kind == "noise":
        file.write_bytes(draw.randbytes(draw.randrange(200)))
    elif kind == "longer":
        file.write_bytes(content + draw.randbytes(1 + draw.randrange(9)))
    else:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot use the checkpoint file .+: ."):
        read_checkpoint(written)


def test_a_manifest_that_differs_in_any_one_bit_is_refused(written):
    """Also where the text would still say the same, as 1e-05 and 1E-05 do."""
    file = written / "manifest.json"
    content = file.read_bytes()
    assert b"1e-05" in content
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            file.write_bytes(changed)
            with pytest.raises(CheckpointError, match=r"cannot use the checkpoint file .+: ."):
                read_checkpoint(written)
    for same in (content + b"\n", json.dumps(json.loads(content)).encode()):
        file.write_bytes(same)
        with pytest.raises(CheckpointError, match="not what was written"):
            read_checkpoint(written)


def signed(manifest):
    """Return the bytes of a manifest whose digest is right, whatever it says."""
    unsigned = {key: value for key, value in manifest.items() if key != "blake2b"}
    text = json.dumps(unsigned, ensure_ascii=False, indent=1).encode()
    digest = hashlib.blake2b(text, digest_size=16).hexdigest()
    return json.dumps({**unsigned, "blake2b": digest}, ensure_ascii=False, indent=1).encode()


def replaced(value, draw):
    """Put something else in a random place of a JSON value."""
    strange = [None, True, -1, 1e300, "", "../../etc/passwd", [], {}, [[[]]], {"bytes": -1}]
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(sorted(value))
        return {**value, key: replaced(value[key], draw)}
    return draw.choice(strange)


@pytest.mark.parametrize("seed", range(60))
def test_no_manifest_crashes_the_reader(written, seed):
    draw = random.Random(seed)
    file = written / "manifest.json"
    manifest = json.loads(file.read_text())
    assert signed(manifest) == file.read_bytes()
    strange = replaced(manifest, draw)
    file.write_bytes(signed(strange) if isinstance(strange, dict) else json.dumps(strange).encode())
    try:
        read_checkpoint(written)
    except CheckpointError as error:
        assert str(error).strip()


def test_files_whose_digest_is_right_and_whose_content_is_not_are_refused(tmp_path):
    for name in ("state.safetensors", "state.json", "rounds.parquet"):
        path = write_checkpoint(tmp_path / name, checkpoint())
        for content in (b"", b"nonsense", b"[1]", b"\xff" * 40, b"{" * 100_000):
            (path / name).write_bytes(content)
            manifest = json.loads((path / "manifest.json").read_text())
            digest = hashlib.blake2b(content, digest_size=16).hexdigest()
            manifest["files"][name] = {"bytes": len(content), "blake2b": digest}
            (path / "manifest.json").write_bytes(signed(manifest))
            with pytest.raises(CheckpointError, match=name):
                read_checkpoint(path)


def test_another_schema_and_another_folder_are_refused(written):
    content = (written / "manifest.json").read_bytes()
    for version in (1, 99):  # 1 had no digest
        other = {**json.loads(content), "schema_version": version}
        (written / "manifest.json").write_text(json.dumps(other))
        with pytest.raises(CheckpointError, match=f"schema_version is {version}, .* wrote it"):
            read_checkpoint(written)
    (written / "manifest.json").write_bytes(content)
    elsewhere = written.with_name("round-00000004")
    shutil.copytree(written, elsewhere)
    with pytest.raises(CheckpointError, match="of round 3"):
        read_checkpoint(elsewhere)


class Killed(BaseException):
    """The process is gone; nothing it would have cleaned up is cleaned up."""


class HalfWritten:
    """A file that is open for writing in a process that may die at it."""

    def __init__(self, stream, step):
        self.stream, self.step = stream, step
        self.flush, self.fileno = stream.flush, stream.fileno

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stream.close()

    def write(self, content):
        try:
            self.step()
        except Killed:
            self.stream.write(content[: len(content) // 2])
            raise
        self.stream.write(content)


class Dying:
    """Counts what reaches the disk, and dies before the n-th time; files are cut in half."""

    def __init__(self, patch, nth):
        self.left, self.is_dead = nth, False
        real_open, real_remove = Path.open, shutil.rmtree

        def guarded(operation):
            def run(*arguments, **options):
                self.step()
                return operation(*arguments, **options)

            return run

        def open_dying(path, *arguments, **options):
            self.step()
            stream = real_open(path, *arguments, **options)
            return HalfWritten(stream, self.step)

        def remove(*arguments, **options):
            if not self.is_dead:
                self.step()
                real_remove(*arguments, **options)

        patch.setattr(Path, "open", open_dying)
        patch.setattr(Path, "mkdir", guarded(Path.mkdir))
        patch.setattr(Path, "rename", guarded(Path.rename))
        patch.setattr(os, "fsync", guarded(os.fsync))
        patch.setattr(shutil, "rmtree", remove)

    def step(self):
        if not self.left:
            self.is_dead = True
            raise Killed
        self.left -= 1


def test_dying_at_any_point_of_writing_or_pruning_leaves_whole_checkpoints(tmp_path):
    """Each operation on the disk once: the newest that is there is read, and is never old news."""
    num_points = 0
    while True:
        folder = tmp_path / str(num_points)
        for t in (1, 2):
            write_checkpoint(folder, checkpoint(t))
        with pytest.MonkeyPatch.context() as patch:
            Dying(patch, num_points)
            try:
                paths = {write_checkpoint(folder, checkpoint(t)) for t in (3, 2)}
                prune_checkpoints(folder, keep=paths)
                break
            except Killed:
                pass
        found = find_checkpoints(folder)
        assert found
        for path in found:
            read_checkpoint(path)
        write_checkpoint(folder, checkpoint(4))  # whatever is there, the next one is written
        assert read_checkpoint(find_checkpoints(folder)[0]).round == 4
        num_points += 1
    assert num_points > 20


def test_a_disk_that_refuses_is_a_reason(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write a checkpoint"):
        write_checkpoint(tmp_path / "file" / "folder", checkpoint())


@pytest.mark.parametrize("num_refused", [1, 2])
def test_a_disk_that_refuses_the_new_name_leaves_the_old_checkpoint(written, num_refused):
    """The second rename gives the new one its name; the third gives the old one its name back."""
    real, renames = Path.rename, []

    def refusing(path, target):
        renames.append(target)
        if 2 <= len(renames) < 2 + num_refused:
            raise OSError(28, "No space left on device")
        return real(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", refusing)
        with pytest.raises(UserError, match="No space left on device"):
            write_checkpoint(written.parent, checkpoint())
    left = files(written.parent)
    assert len(left) == 1
    if num_refused == 1:
        assert left == [written] and read_checkpoint(written).round == 3
    else:  # under another name, but not lost
        real(left[0], written)
        assert read_checkpoint(written).round == 3


def test_the_disk_is_told_of_the_folders_above_the_first_checkpoint(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(checkpoint_files, "_sync", told.append)
    folder = tmp_path / "run" / "checkpoints"
    for round in (1, 2):
        told.clear()
        write_checkpoint(folder, checkpoint(round))
        assert folder in told
        assert {tmp_path / "run", tmp_path} <= set(told) or round == 2
    assert tmp_path not in told
