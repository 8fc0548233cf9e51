"""The page in a real browser: a headless Chromium. When it is missing these tests fail and say what to install."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from episode_store.episode import Episode, EpisodeMetadata
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.viewer import page, snapshot
from episode_store.viewer.content import Content
from episode_store.viewer.server import ViewerServer
from episode_store.writer import EpisodeWriter
from tests.episode_store.browser import DOWN, LEFT, RIGHT, UP, Browser, chromium

pytestmark = pytest.mark.slow

HOSTILE = '"></script><script>window.owned=1</script><img src=x onerror="window.owned=1"><svg onload="window.owned=1">'
_SCALAR = ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(4,))
_TEXT = ArraySpec(modality=Modality.TEXT, dtype="str")
PIXELS = TaskSpec(
    task_id="grid/Pixels-v0",
    observation_spec={
        "image": ArraySpec(modality=Modality.IMAGE, shape=(20, 30, 3), dtype="uint8"),
        "state": ArraySpec(modality=Modality.CONTINUOUS, shape=(3,), dtype="float64"),
        "mission": _TEXT,
    },
    action_spec={"action": _SCALAR},
    licence=HOSTILE,
)
CHAT = TaskSpec(task_id="dialogue/chat-v0", observation_spec={"text": _TEXT}, action_spec={"text": _TEXT})


def pixels_episode(number: int, *, num_steps: int = 12) -> Episode:
    """The picture of step t has the red value 20 * t; the reward of step t is t."""
    image = np.zeros((num_steps + 1, 20, 30, 3), np.uint8)
    image[..., 0] = 20 * np.arange(num_steps + 1)[:, None, None]
    return Episode(
        task_id=PIXELS.task_id,
        observations={
            "image": image,
            "state": np.random.default_rng(number).normal(size=(num_steps + 1, 3)),
            "mission": [HOSTILE] * (num_steps + 1),
        },
        actions={"action": np.arange(num_steps, dtype=np.int64) % 4},
        rewards=np.arange(num_steps, dtype=np.float64) + number,
        terminated=True,
        truncated=False,
        metadata=EpisodeMetadata(
            agent_id=f"{HOSTILE} {number:03d}", seed=number, collection_index=number, attribution=HOSTILE
        ),
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """130 episodes with pictures and a conversation; every text that can be hostile is."""
    folder = tmp_path_factory.mktemp("viewer") / "store"
    with EpisodeWriter(folder) as writer:
        writer.add_task(PIXELS)
        writer.add_task(CHAT)
        for number in range(130):
            writer.add_episode(pixels_episode(number))
        chat = Episode(
            task_id=CHAT.task_id,
            observations={"text": ["how are you?", HOSTILE, ""]},
            actions={"text": ["well, thank you", "oh"]},
            rewards=np.zeros(2),
            terminated=False,
            truncated=True,
        )
        writer.add_episode(chat)
    return folder


@pytest.fixture(scope="module")
def one_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture
def browser(one_browser: Browser) -> Browser:
    """With no page and an empty console: an earlier test's page may ask a server that has gone."""
    one_browser.open("about:blank")
    one_browser.console()
    return one_browser


@pytest.fixture
def server(path: Path) -> Iterator[ViewerServer]:
    def token_view(task: TaskSpec, episode: Episode, episode_id: str) -> list[dict[str, object]]:
        action = int(episode.actions["action"][0]) if task == PIXELS else 0
        return [{"id": 7, "target": "", "meaning": HOSTILE}, {"id": action, "target": "action", "meaning": "action"}]

    with ViewerServer(Content(path, token_view=token_view)) as opened:
        thread = threading.Thread(target=opened.serve_forever, args=(0.01,))
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


def opened(browser: Browser, url: str) -> Browser:
    browser.open(url)
    browser.wait_for_text("#episode-title", "v0")
    browser.wait_for_text("#values", "reward")
    return browser


def shown_red(browser: Browser) -> int:
    """The red value in the middle of the picture, as the browser decoded it."""
    return browser.run(
        """const image = document.querySelector("#pictures img");
        if (!image.complete || !image.naturalWidth) return -1;
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        const context = canvas.getContext("2d");
        context.drawImage(image, 0, 0);
        return context.getImageData(15, 10, 1, 1).data[0];"""
    )


def choose_task(browser: Browser, task_id: str) -> None:
    browser.run(
        """const task = document.getElementById("task");
        task.value = arguments[0];
        task.dispatchEvent(new Event("input", {bubbles: true}));""",
        task_id,
    )


def test_keys_move_through_steps_and_episodes(browser: Browser, server: ViewerServer) -> None:
    opened(browser, server.url)
    choose_task(browser, PIXELS.task_id)
    browser.wait_for_text("#page-facts", "of 130 episodes")
    browser.click("#rows button")
    browser.wait_for_text("#episode-title", PIXELS.task_id)
    browser.wait_for_text("#step-facts", "Step 0 of 12")
    browser.wait("the picture", lambda: shown_red(browser) == 0)
    browser.press(RIGHT, RIGHT, RIGHT)
    browser.wait_for_text("#step-facts", "Step 3 of 12")
    browser.wait("the picture of step 3", lambda: shown_red(browser) == 60)
    browser.wait_for_text("#token-box tr.target", "3")
    browser.press(LEFT)
    browser.wait_for_text("#step-facts", "Step 2 of 12")
    browser.wait("the reward of step 2", lambda: browser.text("#values tr td") == "2")
    assert browser.run("return document.querySelector('#plots line.now').getAttribute('x1')") == "2"
    browser.press(DOWN)
    browser.wait_for_text("#episode-facts", "return 78 ")
    browser.press(UP)
    browser.wait_for_text("#episode-facts", "return 66 ")
    browser.press(" ")
    browser.wait_for_text("#step-facts", "After the last step: terminated")
    browser.wait("it to stop", lambda: browser.text("#play") == "Play")
    browser.press("?")
    browser.wait("the help", lambda: browser.run("return document.getElementById('help').open"))
    browser.press("\ue00c")
    assert not browser.run("return document.getElementById('help').open")
    assert browser.console() == []


def test_the_table_is_sorted_filtered_and_paged(browser: Browser, server: ViewerServer) -> None:
    opened(browser, server.url)
    choose_task(browser, PIXELS.task_id)
    browser.wait_for_text("#page-facts", "1–50 of 130 episodes")
    browser.click("#heads th:nth-child(3) button")
    browser.wait("the best first", lambda: browser.text("#rows tr td:nth-child(3)") == "1614")
    assert (
        browser.run("return document.querySelector('#heads th:nth-child(3)').getAttribute('aria-sort')") == "descending"
    )
    browser.click("#page-on")
    browser.wait_for_text("#page-facts", "51–100 of 130")
    browser.click("#rows tr:last-child button")
    browser.press(DOWN)
    browser.wait_for_text("#page-facts", "101–130 of 130")
    browser.type("#lowest", "1600")
    browser.wait_for_text("#page-facts", "of 2 episodes")
    browser.type("#lowest", "\ue003")
    browser.press("\ue003")
    browser.run("document.getElementById('lowest').value = ''")
    browser.type("#where", "seed in (5, 6, 7)")
    browser.wait_for_text("#page-facts", "of 3 episodes")
    browser.type("#where", "sed == 5")
    browser.wait_for_text("#list-problem", "did you mean 'seed'?")
    assert browser.console() == [] or all("400" in message for message in browser.console())


def test_hostile_texts_are_inert(browser: Browser, server: ViewerServer) -> None:
    """In agent, mission, licence, attribution, tokens, dialogue: seen as they are, and nothing of them runs."""
    opened(browser, server.url)
    choose_task(browser, CHAT.task_id)
    browser.wait_for_text("#page-facts", "of 1 episode")
    browser.click("#rows button")
    browser.wait_for_text("#said", HOSTILE)
    assert "well, thank you" in browser.text("#said")
    choose_task(browser, PIXELS.task_id)
    browser.wait_for_text("#page-facts", "of 130 episodes")
    browser.click("#rows button")
    browser.wait_for_text("#token-box", HOSTILE)
    browser.click("#origin summary")
    browser.wait_for_text("#provenance", HOSTILE)
    assert HOSTILE in browser.text("#episode-facts")
    assert browser.run("return window.owned === undefined")
    assert browser.run("return document.querySelectorAll('script').length") == 2
    assert browser.run("return document.querySelectorAll('#episode script, #list script, img[src=x]').length") == 0
    assert browser.console() == []


def test_a_damaged_episode_is_told(browser: Browser, tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add_task(PIXELS)
        ids = [writer.add_episode(pixels_episode(number)) for number in range(3)]
    store = EpisodeStore.open(tmp_path / "store")
    facts = [store.facts(episode_id) for episode_id in ids]
    file = tmp_path / "store" / "segments" / f"{facts[0]['segment']}.data"
    content = bytearray(file.read_bytes())
    image = next(column for column in store.columns(ids[1]) if column.name == "image")
    content[facts[0]["offset"] + 90] ^= 1
    content[facts[1]["offset"] + image.offset + 8] ^= 1
    file.write_bytes(content)
    with ViewerServer(Content(tmp_path / "store")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            browser.open(server.url)
            browser.wait_for_text("#page-facts", "of 3 episodes")
            assert browser.run("return document.querySelectorAll('#rows tr.damaged').length") == 1
            browser.click(f"#rows button[title='{ids[0]}']")
            browser.wait_for_text("#episode-damage", "This episode is damaged: episode")
            browser.click(f"#rows button[title='{ids[1]}']")
            browser.wait_for_text("#pictures figcaption.problem", "checksum of block 0 does not match")
            browser.wait_for_text("#values", "reward")
            browser.click(f"#rows button[title='{ids[2]}']")
            browser.wait("its picture", lambda: shown_red(browser) == 0)
        finally:
            server.shutdown()
            thread.join()
    browser.console()


def test_a_file_works_without_a_server(browser: Browser, path: Path, tmp_path: Path) -> None:
    content = Content(path, no_tokens="Tokens are not shown.")
    ids = [str(row["episode_id"]) for row in content.episodes(sort="-episode_return", limit=20)["rows"]]
    output = tmp_path / "page.html"
    output.write_text(page.build(snapshot.gather(content, ids, max_bytes=10**7)))
    opened(browser, output.as_uri())
    browser.wait_for_text("#page-facts", "1–20 of 20 episodes")
    browser.press(RIGHT, RIGHT)
    browser.wait("the picture of step 2", lambda: shown_red(browser) == 40)
    browser.press(DOWN)
    browser.wait_for_text("#episode-facts", "return 1602 ")
    browser.click("#heads th:nth-child(3) button")
    browser.click("#heads th:nth-child(3) button")
    browser.wait("the worst first", lambda: browser.text("#rows tr td:nth-child(3)") == "1386")
    assert (
        browser.run(
            "return performance.getEntriesByType('resource').filter((one) => !one.name.startsWith('data:')).length"
        )
        == 0
    )
    assert browser.run("return window.owned === undefined")
    assert browser.console() == []


def test_controls_have_names_and_contrast(browser: Browser, server: ViewerServer) -> None:
    """Every control has a name, and text stands out from what is behind it: 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    opened(browser, server.url)
    unnamed = browser.run(
        """const controls = document.querySelectorAll("button, input, select, summary, [role=region], dialog");
        return [...controls].filter((node) => !(node.innerText || "").trim() && !node.getAttribute("aria-label")
            && !node.getAttribute("aria-labelledby") && !(node.labels && node.labels.length)
        ).map((node) => node.outerHTML)"""
    )
    assert unnamed == []
    for scheme in ("light", "dark"):
        browser.emulate("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        colours = browser.run(
            """const style = getComputedStyle(document.documentElement);
            const names = ["page", "panel", "soft", "problem-soft", "ink", "muted", "accent", "problem"];
            return Object.fromEntries(names.map((name) => [name, style.getPropertyValue("--" + name).trim()]))"""
        )
        pairs = [("ink", "page"), ("ink", "panel"), ("ink", "soft"), ("muted", "page"), ("muted", "panel")]
        pairs += [("accent", "panel"), ("accent", "soft"), ("problem", "problem-soft"), ("problem", "panel")]
        for text, behind in pairs:
            ratio = contrast(colours[text], colours[behind])
            assert ratio >= 4.5, f"{scheme}: {text} on {behind}: {ratio:.2f}"
    browser.emulate("Emulation.setEmulatedMedia", features=[])


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of the relative luminances of two colours such as #fff and #1b1f24."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    digits = colour.removeprefix("#")
    if len(digits) == 3:
        digits = "".join(digit * 2 for digit in digits)
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_code_leads_to_the_page(browser: Browser, server: ViewerServer) -> None:
    opened(browser, server.url_once)
    assert browser.run("return location.href") == server.url


def test_the_browser_is_refused_without_the_token(browser: Browser, server: ViewerServer) -> None:
    browser.open(server.url.partition("?")[0])
    assert "the token is missing or wrong" in browser.text("body")
    browser.console()


def test_example_episodes_are_valid() -> None:
    pixels_episode(0).validate(PIXELS)
    assert dataclasses.is_dataclass(PIXELS)
