"""JSON that notices a flipped bit: an object whose last member is the CRC-32C of all bytes before that member.

    {"name":"value","crc32c":"1a2b3c4d"}

The checksum covers every byte of the line up to and including the comma before `"crc32c"`; the member itself, the
brace and the newline are compared literally. So every JSON reader opens it, and every byte of it is checked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c

from episode_store import files, storage
from episode_store.errors import CorruptionError
from episode_store.storage import StorePath

# `"crc32c":"` + 8 hex digits + `"}` + newline.
_SUFFIX_BYTES = 10 + 8 + 3
# A journal line or a task file larger than this is refused before it is parsed.
MAX_LINE_BYTES = 1 << 26
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def encode_line(content: Mapping[str, Any]) -> bytes:
    """One line of checked JSON, with its newline.

    Raises:
      ValueError: `content` is empty or holds NaN or infinity.
    """
    if not content:
        raise ValueError("a checked JSON object needs at least one member")
    text = _ENCODER.encode(content)
    prefix = text[:-1].encode("utf-8") + b","
    return prefix + b'"crc32c":"%08x"}\n' % google_crc32c.value(prefix)


def decode_line(line: bytes, *, where: str) -> dict[str, Any]:
    """The object of one line that `encode_line` made, newline included.

    Raises:
      CorruptionError: a byte differs from what was written.
    """
    if len(line) > MAX_LINE_BYTES:
        raise CorruptionError(f"{where}: {len(line)} bytes, expected at most {MAX_LINE_BYTES}")
    prefix = line[:-_SUFFIX_BYTES]
    if not is_line(line):
        raise CorruptionError(f"{where}: its checksum does not match: a byte was changed or is missing")
    try:
        content = json.loads(prefix[:-1] + b"}")
    except ValueError as error:
        raise CorruptionError(f"{where}: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CorruptionError(f"{where}: expected a JSON object, got {type(content).__name__}")
    return content


def is_line(line: bytes) -> bool:
    """Whether the bytes are a whole unchanged line."""
    prefix, suffix = line[:-_SUFFIX_BYTES], line[-_SUFFIX_BYTES:]
    return suffix == b'"crc32c":"%08x"}\n' % google_crc32c.value(prefix)


def split_lines(content: bytes) -> tuple[list[bytes], bytes]:
    """The lines of a file that is appended to, newlines included, and what a killed writer left of one more.

    A line that lacks nothing but has another last byte was damaged: it counts as a line, whose check then fails.
    """
    complete, newline, tail = content.rpartition(b"\n")
    lines = [line + b"\n" for line in complete.split(b"\n")] if newline else []
    if is_line(tail[:-1] + b"\n"):
        return [*lines, tail], b""
    return lines, tail


def read_file(path: StorePath) -> dict[str, Any]:
    """The object of a file of one checked line.

    Raises:
      CorruptionError: a byte differs from what was written.
      FileNotFoundError: there is none.
    """
    return decode_line(storage.read_bytes(path, MAX_LINE_BYTES), where=str(path))


def write_file(path: Path, content: Mapping[str, Any]) -> None:
    """Writes `content` to `path`: a temporary name, synced, renamed."""
    files.write_bytes(path, encode_line(content))


def create_file(path: Path, content: Mapping[str, Any]) -> bool:
    """Like `write_file`, but never replaces: False when `path` exists already, also if another process was faster."""
    temporary = files.write_temporary(path, encode_line(content))
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(temporary)
    files.sync_folder(path.parent)
    return True
