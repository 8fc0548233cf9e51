import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.tar_index import tar_members


def archive(files: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.type = len(data), kind
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z0-9-]{1,150}\.[a-z]{1,9}", fullmatch=True), st.binary(max_size=1_200)))
def test_property_finds_what_tarfile_finds(files: dict[str, bytes]) -> None:
    view = memoryview(archive(files))
    assert {name: bytes(view[start:stop]) for name, start, stop in tar_members(view)} == files


def test_names_that_are_not_ascii() -> None:
    files = {"caf\u00e9-000000.tokens.npy": b"1"}
    view = memoryview(archive(files))
    assert [(name, bytes(view[start:stop])) for name, start, stop in tar_members(view)] == [*files.items()]


def test_every_flipped_bit_of_a_header_is_noticed() -> None:
    whole = archive({"a.npy": b"x" * 600})
    for bit in range(512 * 8):
        if 148 <= bit // 8 < 156 and bit % 8 in (4, 5):  # a space, a zero or a NUL beside the checksum's digits
            continue
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(ValueError):
            list(tar_members(memoryview(bytes(damaged))))


def test_a_cut_archive_is_noticed() -> None:
    whole = archive({"a.npy": b"x" * 600, "b.npy": b"y"})
    for length in (0, 100, 512, 1_000, 1_536, 2_048, 2_560):
        with pytest.raises(ValueError, match="unexpected end"):
            list(tar_members(memoryview(whole[:length])))


def test_only_files_are_expected() -> None:
    with pytest.raises(ValueError, match="at byte 0 is of kind b'2': expected a plain file"):
        list(tar_members(memoryview(archive({"link": b""}, tarfile.SYMTYPE))))
