"""Texts, dialogues, pictures with captions and questions become episodes; what is broken costs itself alone."""

from __future__ import annotations

import contextlib
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from episode_store.cli import main
from episode_store.corpus import is_held_out, parts_of
from episode_store.episode import Episode
from episode_store.errors import UserError
from episode_store.formats import dialogue, image_pairs, text_files
from episode_store.formats.format import Finding, LossLog, detect_format, open_importer
from episode_store.formats.transfer import import_set
from episode_store.store import EpisodeStore

Read = tuple[list[Episode], list[Finding]]


def _read(name: str, source: Path, **options: str) -> Read:
    importer = open_importer(name, source, options=options)
    (task,) = importer.tasks()
    episodes = list(importer.episodes())
    for episode in episodes:
        episode.validate(task)
    assert task.is_corpus
    # Once more: the same, so that an import that was killed goes on.
    again = [episode.episode_id() for episode in importer.episodes()]
    assert again == [episode.episode_id() for episode in episodes]
    return episodes, importer.findings()


def _jsonl(path: Path, rows: list[Any], level: int | None = None) -> Path:
    data = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    path.write_bytes(data if level is None else zstandard.ZstdCompressor(level).compress(data))
    return path


# Texts


@given(st.text(alphabet=st.sampled_from("ab .!\n\u2003é"), max_size=300), st.integers(8, 40))
def test_parts_join_to_the_text(text: str, size: int) -> None:
    parts = list(parts_of(text, size))
    assert "".join(parts) == text
    assert all(len(part.rstrip()) <= size for part in parts)


def test_documents_of_every_kind(tmp_path: Path) -> None:
    folder = tmp_path / "books"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_text("A first text.\nIt has two lines.\n")
    _jsonl(folder / "b.jsonl", [{"text": "one", "title": "One"}, {"text": "two"}])
    _jsonl(folder / "c.jsonl.zst", [{"text": "three"}], level=3)
    pq.write_table(pa.table({"text": ["four", "five"], "title": ["Four", None], "n": [1, 2]}), folder / "d.parquet")
    assert detect_format(folder) == "text"
    episodes, findings = _read("text", folder)
    assert findings == []
    assert {episode.task_id for episode in episodes} == {"text/books-v0"}
    assert [(episode.observations["text"], episode.actions["text"]) for episode in episodes] == [
        (["One", ""], ["one"]),
        (["", ""], ["two"]),
        (["", ""], ["three"]),
        (["Four", ""], ["four"]),
        (["", ""], ["five"]),
        (["", ""], ["A first text.\nIt has two lines."]),
    ]
    assert episodes[0].metadata.environment_config == {"source": "b.jsonl line 1"}
    assert episodes[4].metadata.environment_config == {"source": "d.parquet row 1"}


def test_a_text_is_a_file_a_paragraph_or_a_line(tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    path.write_text("one\ntwo\n\nthree\n\n\n")
    said = {unit: [e.actions["text"][0] for e in _read("text", path, unit=unit)[0]] for unit in ("paragraph", "line")}
    assert said == {"paragraph": ["one\ntwo", "three"], "line": ["one", "two", "three"]}
    assert _read("text", path)[0][0].actions["text"] == ["one\ntwo\n\nthree"]
    with pytest.raises(UserError, match="option unit 'word': expected one of file, paragraph, line"):
        _read("text", path, unit="word")


def test_a_long_document_goes_on_in_further_episodes(tmp_path: Path) -> None:
    text = "".join(f"Sentence number {number} of a long document. " for number in range(8_000))
    _jsonl(tmp_path / "long.jsonl", [{"text": text}])
    episodes, _ = _read("text", tmp_path / "long.jsonl")
    assert len(episodes) == 3
    assert "".join(part for episode in episodes for part in episode.actions["text"]) == text
    assert max(len(episode.actions["text"]) for episode in episodes) == 64
    assert [episode.terminated for episode in episodes] == [False, False, True]
    assert len({episode.metadata.split_group for episode in episodes}) == 1


def test_broken_lines_cost_themselves_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MAX_LINE_BYTES", 1_000)
    rows = [{"text": "good"}, "{broken", {"other": 1}, {"text": 3}, {"text": "x" * 2_000}, [1], {"text": "end"}]
    path = _jsonl(tmp_path / "x.jsonl", rows)
    path.write_bytes(path.read_bytes() + b'{"text": "\xff"}\n')
    episodes, findings = _read("text", path)
    assert [episode.actions["text"] for episode in episodes] == [["good"], ["end"]]
    assert [finding.where for finding in findings] == [f"x.jsonl line {number}" for number in (2, 3, 4, 5, 6, 8)]
    assert findings[3].what == "a line of 2013 bytes, expected at most 1000"


def test_a_damaged_or_unfolding_file_ends_where_it_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    rows = [{"text": "".join(rng.choices("abcdefgh ", k=400))} for _ in range(4_000)]
    path = _jsonl(tmp_path / "x.jsonl.zst", rows, level=1)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    episodes, findings = _read("text", path)
    assert 0 < len(episodes) < 4_000
    assert findings == [] or findings[0].severity == "error"
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 0x55
    path.write_bytes(flipped)
    episodes, findings = _read("text", path)
    assert len(episodes) + len(findings) > 0
    monkeypatch.setattr(text_files, "EXPANSION_ALLOWANCE", 1 << 16)
    bomb = tmp_path / "bomb.jsonl.zst"
    bomb.write_bytes(zstandard.ZstdCompressor(19).compress(b'{"text": "a"}\n' * 3_000_000))
    episodes, findings = _read("text", bomb)
    assert len(episodes) < 3_000_000
    assert "more than 1000 times its size" in findings[-1].what
    damaged = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a"] * 1_000}), damaged)
    damaged.write_bytes(damaged.read_bytes()[:-20])
    assert "cannot be read further" in _read("text", damaged)[1][0].what


def test_links_and_hidden_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("open")
    (folder / "b.txt").symlink_to(tmp_path / "secret.txt")
    (folder / ".c.txt").write_text("hidden")
    assert [episode.actions["text"] for episode in _read("text", folder)[0]] == [["open"]]
    (folder / "a.txt").unlink()
    with pytest.raises(UserError, match=r"expected files that end with \.txt, \.jsonl"):
        open_importer("text", folder)


# Dialogues


def test_dialogues_of_three_kinds(tmp_path: Path) -> None:
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]
    rows = [
        {"turns": ["Hello.", "Hi, how are you?", "Fine."]},
        {"turns": [{"speaker": "ann", "text": "A"}, {"speaker": "ann", "text": "B"}, {"speaker": "bob", "text": "C"}]},
        {"messages": [*said, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Bye."}]},
        {"conversation": [{"from": "gpt", "value": "Welcome."}, {"from": "human", "value": "Thanks."}]},
    ]
    path = _jsonl(tmp_path / "chat.jsonl", rows)
    assert detect_format(path) == "dialogue"
    episodes, findings = _read("dialogue", path)
    assert findings == []
    assert [(episode.observations["text"], episode.actions["text"]) for episode in episodes] == [
        (["Hello.", "Fine."], ["Hi, how are you?"]),
        (["A\nB", ""], ["C"]),
        (["Be brief.\nHello.", "Bye."], ["Hi."]),
        (["", "Thanks."], ["Welcome."]),
    ]


def test_long_dialogues_and_those_that_are_none(tmp_path: Path) -> None:
    long = {"turns": [f"turn {number}" for number in range(40)]}
    bad = [{"turns": ["alone"]}, {"turns": [3, 4]}, {"talk": []}, {"turns": [{"speaker": "a"}]}, {"turns": []}]
    three = {"turns": [{"speaker": name, "text": "hi"} for name in "abc"]}
    path = _jsonl(tmp_path / "chat.jsonl", [long, *bad, three])
    episodes, findings = _read("dialogue", path)
    assert [len(episode.actions["text"]) for episode in episodes] == [16, 4]
    assert episodes[0].observations["text"][-1] == "turn 32" == episodes[1].observations["text"][0]
    assert [episode.terminated for episode in episodes] == [False, True]
    assert len({episode.metadata.split_group for episode in episodes}) == 1
    assert [finding.where for finding in findings] == [f"chat.jsonl line {number}" for number in range(2, 8)]
    assert findings[-1].what == "expected two speakers, got 3"


_NAMES = st.sampled_from(["turns", "messages", "speaker", "text", "role", "content"])
_JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES, inner, max_size=3),
)


@given(_JSON)
def test_any_json_is_a_dialogue_or_an_error(values: Any) -> None:
    try:
        heard, replies = dialogue._sides(values if isinstance(values, dict) else {"turns": values})
    except ValueError:
        return
    assert 0 <= len(heard) - len(replies) <= 1


# Pictures


def _picture(seed: int, suffix: str = "png", size: tuple[int, int] = (64, 64), mode: str = "RGB") -> bytes:
    """A picture of two colours, which JPEG keeps too."""
    rng = random.Random(seed)
    image = Image.new("RGB", size, tuple(rng.choices(range(256), k=3)))
    image.paste(tuple(rng.choices(range(256), k=3)), (0, 0, size[0] // 2, size[1] // 2))
    file = io.BytesIO()
    name = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix]
    image.convert(mode).save(file, name, **({"lossless": True} if name == "WEBP" else {}))
    return file.getvalue()


def _tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _samples(number: int, suffix: str = "png") -> list[tuple[str, bytes]]:
    members = []
    for index in range(number):
        members.append((f"{index:06d}.{suffix}", _picture(index, suffix)))
        members.append((f"{index:06d}.txt", f"picture number {index}".encode()))
    return members


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_webdataset_of_captions(tmp_path: Path, suffix: str) -> None:
    _tar(tmp_path / "set-000000.tar", _samples(12, suffix))
    _tar(tmp_path / "set-000001.tar.gz", [(f"b/{name}", data) for name, data in _samples(3, suffix)], "w:gz")
    assert detect_format(tmp_path) == "webdataset"
    episodes, findings = _read("webdataset", tmp_path)
    assert findings == []
    said = [text for episode in episodes for text in episode.actions["text"]]
    assert sorted(said) == sorted([f"picture number {index}" for index in [*range(12), *range(3)]])
    assert all(1 <= episode.num_steps <= 5 for episode in episodes)
    for episode in episodes:
        images = episode.observations["image"]
        assert images.shape == (episode.num_steps + 1, 64, 64, 3)
        assert (images[-1] == 255).all()
        assert len({image.tobytes() for image in images}) == episode.num_steps + 1  # none twice in an episode
        for image, text in zip(images, episode.actions["text"], strict=False):
            expected = np.asarray(Image.open(io.BytesIO(_picture(int(text.split()[-1]), suffix))).convert("RGB"))
            assert np.array_equal(image, expected)
        split = episode.metadata.split_group.partition("/")[0]
        keys = {is_held_out(_key(image), 0.05) for image in images[:-1]}
        assert keys == {split == "validation"}


def _key(image: np.ndarray) -> str:
    from episode_store.corpus import facts_hash

    return facts_hash(image.tobytes())


def test_webdataset_of_questions(tmp_path: Path) -> None:
    members = []
    for index in range(5):
        facts = json.dumps({"question": f"What is {index}?", "answer": f"a number, {index}"}).encode()
        members += [(f"{index}.png", _picture(index)), (f"{index}.json", facts)]
    members += [("9.png", _picture(9)), ("9.txt", b"a caption among questions")]
    episodes, findings = _read("webdataset", _tar(tmp_path / "vqa.tar", members), side="32")
    assert episodes[0].task_id == "vqa/vqa-v0"
    pairs = [pair for e in episodes for pair in zip(e.observations["text"], e.actions["text"], strict=False)]
    assert sorted(pairs) == [(f"What is {index}?", f"a number, {index}") for index in range(5)]
    assert episodes[0].observations["image"].shape[1:] == (32, 32, 3)
    assert [finding.what for finding in findings] == ["expected a question in all samples or in none"]


def test_damaged_members_cost_themselves_and_damaged_tars_their_rest(tmp_path: Path) -> None:
    members = _samples(10)
    members[4] = (members[4][0], members[4][1][:40])  # picture 2, cut
    members[7] = (members[7][0], b"\xff\xfe")  # text 3
    members[8] = (members[8][0], b"<svg/>")  # picture 4
    members += [("lonely.png", _picture(50)), ("../../etc/evil.txt", b"out"), ("x/../y.cls", b"3")]
    _tar(tmp_path / "a.tar", members)
    whole = _tar(tmp_path / "b.tar", _samples(30)).read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.tar").write_bytes(b"no tar at all" * 100)
    episodes, findings = _read("webdataset", tmp_path)
    said = [text for episode in episodes for text in episode.actions["text"]]
    assert {int(text.split()[-1]) for text in said} >= {0, 1, 5, 6, 7, 8, 9, 10, 11, 12}
    wheres = [finding.where for finding in findings]
    assert [where for where in wheres if where.startswith("a.tar")] == [
        "a.tar 000002", "a.tar 000003", "a.tar 000004", "a.tar lonely", "a.tar ../../etc/evil", "a.tar x/../y",
    ]  # fmt: skip
    assert any(where.startswith("b.tar after 0000") for where in wheres)
    assert "c.tar after its beginning" in wheres
    assert not (tmp_path.parent / "etc").exists()


def test_pictures_are_bounded_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = LossLog()
    wide = image_pairs.decode(_picture(1, size=(200, 100)), 64, losses)
    assert wide.shape == (64, 64, 3)
    assert [loss.what for loss in losses.losses()] == ["picture sizes"]
    for mode in ("L", "P", "RGBA", "LA", "1"):
        assert image_pairs.decode(_picture(1, mode=mode), 64, losses).shape == (64, 64, 3)
    clear = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(clear, "PNG")
    assert (image_pairs.decode(clear.getvalue(), 64, losses) == 255).all()
    monkeypatch.setattr(image_pairs, "MAX_PIXELS", 10_000)
    with pytest.raises(ValueError, match="a picture of 200 x 100, expected at most 10000 pixels"):
        image_pairs.decode(_picture(1, size=(200, 100)), 64, losses)
    monkeypatch.setattr(image_pairs, "MAX_IMAGE_BYTES", 10)
    with pytest.raises(ValueError, match="bytes, expected at most 10"):
        image_pairs.decode(_picture(1), 64, losses)
    with pytest.raises(UserError, match="option side '5': expected a number of pixels from 16 to 1024"):
        image_pairs.side_option({"side": "5"})


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_flipped_picture_is_a_picture_or_an_error(place: int, value: int) -> None:
    data = bytearray(_picture(3, "jpg", (96, 64)))
    data[place % len(data)] = value
    with contextlib.suppress(ValueError):
        assert image_pairs.decode(bytes(data), 64, LossLog()).shape == (64, 64, 3)


def _write_coco(folder: Path, number: int, captions_each: int = 2) -> Path:
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for index in range(number):
        name = f"COCO_val2014_{index:012d}.jpg"
        (folder / "images" / name).write_bytes(_picture(index, "jpg", (100, 80)))
        images.append({"id": index, "file_name": f"somewhere/else/{name}"})
        annotations += [{"image_id": index, "caption": f"caption {index}.{n}"} for n in range(captions_each)]
    random.Random(0).shuffle(annotations)
    file = folder / "captions.json"
    file.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}))
    return file


def test_coco_captions(tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    file = _write_coco(folder, 20)
    assert detect_format(folder) == "coco"
    episodes, findings = _read("coco", folder)
    assert findings == []
    said = [text for episode in episodes for text in episode.actions["text"]]
    assert sorted(said) == sorted(f"caption {index}.{n}" for index in range(20) for n in range(2))
    for episode in episodes:
        pictures = [text.partition(".")[0] for text in episode.actions["text"]]
        assert len(set(pictures)) == len(pictures)
    assert len(_read("coco", file)[0]) == len(episodes)
    sides: dict[str, set[str]] = {}
    for episode in episodes:
        for text in episode.actions["text"]:
            sides.setdefault(text.partition(".")[0], set()).add(episode.metadata.split_group.partition("/")[0])
    assert all(len(found) == 1 for found in sides.values())  # both captions of a picture on one side


def test_broken_coco(tmp_path: Path) -> None:
    folder = tmp_path / "coco"
    file = _write_coco(folder, 10)
    content = json.loads(file.read_text())
    content["annotations"] += [{"image_id": 99, "caption": "nowhere"}, {"caption": "none"}, 3]
    content["annotations"] += [{"image_id": 1, "caption": None}]
    content["images"].append({"name": "no id"})
    file.write_text(json.dumps(content))
    (folder / "images" / f"COCO_val2014_{2:012d}.jpg").unlink()
    (folder / "images" / f"COCO_val2014_{3:012d}.jpg").write_bytes(b"no picture")
    episodes, findings = _read("coco", folder)
    assert sum(episode.num_steps for episode in episodes) == 16
    assert len(findings) == 5 + 2 + 2
    assert sum(finding.what == "its picture is missing" for finding in findings) == 2


def test_vqa(tmp_path: Path) -> None:
    folder = tmp_path / "vqa"
    _write_coco(folder, 7).unlink()
    questions = [{"question_id": 10 + i, "image_id": i, "question": f"Which is it, {i}?"} for i in range(7)]
    answers = [{"question_id": 10 + i, "multiple_choice_answer": f"it is {i}"} for i in range(6)]
    answers[5] = {"question_id": 15, "answers": [{"answer": "no"}, {"answer": "yes"}, {"answer": "yes"}]}
    (folder / "questions.json").write_text(json.dumps({"questions": questions}))
    (folder / "annotations.json").write_text(json.dumps({"annotations": answers}))
    episodes, findings = _read("coco", folder)
    pairs = [pair for e in episodes for pair in zip(e.observations["text"], e.actions["text"], strict=False)]
    assert sorted(pairs) == [
        *((f"Which is it, {i}?", f"it is {i}") for i in range(5)), ("Which is it, 5?", "yes"),
    ]  # fmt: skip
    assert [finding.where for finding in findings] == ["question 6"]
    (folder / "annotations.json").unlink()
    with pytest.raises(UserError, match="expected JSON of captions"):
        open_importer("coco", folder)


def test_import_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _tar(tmp_path / "set.tar", _samples(10))
    store = tmp_path / "store"
    arguments = ["import", "--source", str(tmp_path / "set.tar"), "--store", str(store), "--task-id", "caption/mine-v0"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["tasks"], report["num_refused"]) == ("webdataset", ["caption/mine-v0"], 0)
    assert main([*arguments, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["num_added"], again["num_known"]) == (0, report["num_added"])
    assert len(EpisodeStore.open(store)) == report["num_added"]
    assert main(["doctor", "--source", str(tmp_path / "set.tar")]) == 0


def test_an_import_that_was_stopped_goes_on(tmp_path: Path) -> None:
    path = _jsonl(tmp_path / "x.jsonl", [{"text": f"text number {index}"} for index in range(50)])
    importer = open_importer("text", path)

    def stop(items: Any, total: int | None) -> Any:
        for index, item in enumerate(items):
            if index == 20:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        import_set(importer, path, tmp_path / "store", progress=stop)
    report = import_set(open_importer("text", path), path, tmp_path / "store")
    assert (report.num_known, report.num_added) == (20, 30)
