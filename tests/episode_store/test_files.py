"""Whether a result can be written, asked before the work is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from episode_store.errors import UserError
from episode_store.files import check_can_write


def test_what_can_be_written(tmp_path: Path) -> None:
    """Also over what is there, and in folders that are still to be made; nothing is made by asking."""
    (tmp_path / "old.json").write_text("{}")
    for path in (tmp_path / "old.json", tmp_path / "new.json", tmp_path / "a" / "b" / "new.json"):
        check_can_write(path)
    check_can_write(tmp_path, folder=True)
    check_can_write(tmp_path / "a" / "b", folder=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]


def test_what_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for a file, a file for a folder, a folder that is closed."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("folder").mkdir()
    for path, folder, message in (
        ("folder", False, "^folder: is a folder, expected a file$"),
        ("file/x/y.json", False, "^file/x/y.json: file is a file, expected a folder$"),
        ("file", True, "^file: is a file, expected a folder$"),
        ("file/x", True, "^file/x: file is a file, expected a folder$"),
    ):
        with pytest.raises(UserError, match=message):
            check_can_write(Path(path), folder=folder)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"^folder/x: folder cannot be written: permission denied$"):
        check_can_write(Path("folder/x"))
