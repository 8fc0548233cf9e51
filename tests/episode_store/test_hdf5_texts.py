"""Texts of variable length of damaged HDF5 files neither hang nor crash the readers of Minari and robomimic."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from episode_store.errors import CorruptionError, UserError
from episode_store.formats import folders, hdf5_texts
from episode_store.formats import format as formats
from episode_store.store import EpisodeStore
from episode_store.testing import StoreContract


def write_file(path: Path) -> None:
    """A small robomimic file with texts of variable length, as attributes and as a column."""
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift"})
        data.attrs["total"] = 6
        for number in range(2):
            demo = data.create_group(f"demo_{number}")
            demo.attrs["num_samples"], demo.attrs["model_file"] = 3, "<xml>" * 20
            demo["actions"], demo["dones"] = np.zeros((3, 2), np.float32), np.array([0, 0, 1])
            demo["obs/state"] = np.zeros((3, 4), np.float32)
            demo.create_dataset("mission", data=["go", "to", "it"], dtype=h5py.string_dtype())


def read_all(path: Path) -> int:
    """Episodes that an import would bring; 0 when the file is refused."""
    try:
        importer = formats.open_importer("robomimic", path, task_id=None, options={})
        return len(list(importer.episodes()))
    except UserError:
        return 0


def test_whole_files_pass(tmp_path: Path) -> None:
    """Texts of variable length are no fault by themselves."""
    write_file(tmp_path / "set.hdf5")
    hdf5_texts.check_texts(tmp_path / "set.hdf5")
    assert read_all(tmp_path / "set.hdf5") == 2


@pytest.mark.parametrize(
    ("what", "problem"),
    [
        (lambda: time.sleep(60), "reading the text there does not end"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "reading the text there breaks the HDF5 library"),
        (lambda: bytearray(1 << 40), "reading the text there breaks the HDF5 library"),
    ],
)
def test_a_text_that_does_not_end_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: Callable[[], Any], problem: str
) -> None:
    """What libhdf5 does with some damaged files: runs for ever, crashes, takes all memory."""
    write_file(tmp_path / "set.hdf5")
    monkeypatch.setattr(hdf5_texts, "SECONDS", 0.5)
    monkeypatch.setattr(hdf5_texts, "_read_rows", lambda dataset, start: what())
    with pytest.raises(CorruptionError, match=rf"set.hdf5: /data/demo_0/mission from 0: {problem}.*copy it again"):
        formats.open_importer("robomimic", tmp_path / "set.hdf5", task_id=None, options={})
    findings = formats.load_module("robomimic").doctor(tmp_path / "set.hdf5")
    assert problem in findings[0].what


def flipped(tmp_path: Path, count: int) -> None:
    """Flips bits, and runs of bytes, in the second half of the file, where the texts are; nothing hangs or crashes."""
    chance = random.Random(0)
    write_file(tmp_path / "whole.hdf5")
    content = (tmp_path / "whole.hdf5").read_bytes()
    heap = content.index(b"GCOL")
    for number in range(count):
        changed = bytearray(content)
        start = heap + 8 if number % 2 else 0
        place = chance.randrange(start, min(start + 200, len(content)) if number % 2 else len(content))
        changed[place] ^= 1 << chance.randrange(8)
        if number % 4 == 3:
            changed[place : place + 4] = b"\xff" * len(changed[place : place + 4])
        path = tmp_path / f"{number}.hdf5"
        path.write_bytes(changed)
        read_all(path)
        path.unlink()


def test_flipped_bits_do_not_hang(tmp_path: Path) -> None:
    """A few; the slow test has more."""
    flipped(tmp_path, 60)


@pytest.mark.slow
def test_many_flipped_bits_do_not_hang(tmp_path: Path) -> None:
    """600 files."""
    flipped(tmp_path, 600)


class _Contract(StoreContract):
    """Only for `fill`."""

    __test__ = False


@pytest.mark.parametrize("name", ["robomimic", "minari", "rlds", "lerobot"])
def test_what_a_killed_export_left_goes_with_the_next(tmp_path: Path, name: str) -> None:
    """A hidden temporary file or folder, named after a process that is gone; a living one's stays."""
    _Contract().fill(tmp_path / "store")
    store, output = EpisodeStore.open(tmp_path / "store"), tmp_path / "out"
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:

        def stop(ids: Any) -> Any:
            yield ids[0]
            os.write(write_end, b"!")
            signal.pause()

        try:
            formats.export_task(name, store, "Robot-v1", output, options={}, progress=stop)
        finally:
            os._exit(1)
    os.read(read_end, 1)
    (leftover,) = output.rglob(".*.tmp")
    folders.remove_leftovers(leftover.with_name(leftover.name[1:].rpartition(".")[0].rpartition(".")[0]))
    assert leftover.exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    formats.export_task(name, store, "Robot-v1", output, options={}, progress=lambda ids: ids)
    assert not list(output.rglob(".*.tmp"))
