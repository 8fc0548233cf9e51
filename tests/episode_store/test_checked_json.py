"""Checked JSON: literal bytes, and no flip or cut passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from episode_store import checked_json
from episode_store.errors import CorruptionError

_JSON = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5).filter(lambda key: key != "crc32c"),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text('aé\n"\\'),
    min_size=1,
    max_size=4,
)


def test_the_bytes() -> None:
    """As docs/file_format.md says."""
    line = checked_json.encode_line({"a": 1, "b": "é"})
    assert line == '{"a":1,"b":"é","crc32c":"082b0fee"}\n'.encode()
    assert json.loads(line) == {"a": 1, "b": "é", "crc32c": "082b0fee"}
    with pytest.raises(ValueError, match="at least one member"):
        checked_json.encode_line({})
    with pytest.raises(ValueError, match="not JSON compliant"):
        checked_json.encode_line({"a": float("nan")})


@given(content=_JSON, data=st.data())
def test_round_trip_and_flips(content: dict, data: st.DataObject) -> None:
    """Any object returns; with any bit flipped, or cut, it is refused."""
    line = checked_json.encode_line(content)
    assert checked_json.decode_line(line, where="x") == content
    position = data.draw(st.integers(0, len(line) - 1))
    changed = bytearray(line)
    changed[position] ^= 1 << data.draw(st.integers(0, 7))
    for bad in (bytes(changed), line[:position]):
        with pytest.raises(CorruptionError, match="x: its checksum does not match"):
            checked_json.decode_line(bad, where="x")


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    """No temporary name stays; `create_file` never replaces."""
    path = tmp_path / "file.json"
    assert checked_json.create_file(path, {"a": 1})
    assert not checked_json.create_file(path, {"a": 2})
    assert checked_json.read_file(path) == {"a": 1}
    checked_json.write_file(path, {"a": 3})
    assert checked_json.read_file(path) == {"a": 3}
    assert [file.name for file in tmp_path.iterdir()] == ["file.json"]
