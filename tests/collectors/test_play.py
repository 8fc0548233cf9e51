"""A person's episodes: keys of a browser that a small client imitates, recorded like any other's."""

from __future__ import annotations

import http.client
import io
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from PIL import Image

import collectors.play
from collectors import cli, registry
from collectors.browser_screen import BrowserScreen
from collectors.keyboard import keyboard_for
from collectors.play import next_place, play
from collectors.window_screen import WindowScreen
from episode_store.episode import Episode
from episode_store.errors import UserError
from episode_store.store import EpisodeStore
from episode_store.writer import EpisodeWriter

# MiniGrid-Empty-5x5: two steps, a turn to the right, two steps.
KEYS = ["up", "up", "right", "up", "up"]


class Client:
    """What the page's script does."""

    def __init__(self, address: str) -> None:
        parts = urllib.parse.urlsplit(address)
        assert parts.hostname == "127.0.0.1"
        self.port = parts.port
        self.token = urllib.parse.parse_qs(parts.query)["token"][0]

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None, **headers: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        separator = "&" if "?" in path else "?"
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, f"{path}{separator}token={token or self.token}", data, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer, content

    def press(self, key: str) -> None:
        assert self.ask("POST", "/keys", {"held": [key], "pressed": [key]})[0].status == 204
        assert self.ask("POST", "/keys", {"held": [], "pressed": []})[0].status == 204


@pytest.fixture
def screen() -> Iterator[BrowserScreen]:
    opened = BrowserScreen()
    yield opened
    opened.close()


def test_a_person_plays_in_the_browser_and_the_store_has_it(screen: BrowserScreen, tmp_path: Path) -> None:
    task, client = registry.get("minigrid/Empty-5x5-v0"), Client(screen.address)
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add_task(task.spec())
        player = threading.Thread(
            target=play, args=(task, screen, writer.add_episode), kwargs={"player": "ada", "num_episodes": 2}
        )
        player.start()
        number = 0
        for key in KEYS * 2:
            answer, picture = client.ask("GET", f"/frame?after={number}")
            assert answer.status == 200
            number = int(answer.headers["X-Frame"])
            assert Image.open(io.BytesIO(picture)).size[0] >= 80
            assert "minigrid/Empty-5x5-v0" in answer.headers["X-Caption"]
            if "over" in answer.headers["X-Caption"]:
                answer, _ = client.ask("GET", f"/frame?after={number}")
                number = int(answer.headers["X-Frame"])
            client.press(key)
        player.join(20)
        assert not player.is_alive()
    store = EpisodeStore.open(tmp_path / "store")
    episodes = [store.read(episode_id) for episode_id in store.episode_ids]
    assert [episode.actions["action"].tolist() for episode in episodes] == [[2, 2, 1, 2, 2]] * 2
    assert all(episode.terminated and episode.episode_return > 0.9 for episode in episodes)
    assert {episode.metadata.agent_id for episode in episodes} == {"person-ada-minigrid/Empty-5x5-v0"}
    assert next_place(str(tmp_path / "store"), task, "ada") == 2
    assert next_place(str(tmp_path / "store"), task, "bob") == 0


def test_strangers_are_turned_away(screen: BrowserScreen) -> None:
    client = Client(screen.address)
    assert b"<!doctype html>" in client.ask("GET", "/")[1]
    for path in ("/", "/frame?after=0"):
        assert client.ask("GET", path, token="guess")[0].status == 403
        assert client.ask("GET", path, Host="evil.example")[0].status == 403
    assert client.ask("POST", "/keys", {"held": ["up"]}, token="guess")[0].status == 403
    for nonsense in (b"[", b"[]", b'{"held": 1}', b'{"pressed": [1]}', b"x" * 5000):
        assert client.ask("POST", "/keys", nonsense)[0].status == 400
    assert client.ask("GET", "/etc/passwd")[0].status == 404
    client.ask("POST", "/keys", {"held": ["up", "os.system"], "pressed": ["f12"]})
    assert set(screen.held()) == {"up"}
    assert screen.next_press() is None


class Fingers:
    """A screen of a program: frames are counted, keys come from a list; gone when it is empty."""

    def __init__(self, presses: list[str]) -> None:
        self.presses, self.frames = deque(presses), 0

    is_closed = property(lambda self: not self.presses)

    def show(self, frame: np.ndarray, caption: str) -> None:
        assert frame.dtype == np.uint8
        self.frames += 1

    def held(self) -> list[str]:
        return []

    def next_press(self) -> str | None:
        return self.presses.popleft() if self.presses else None

    def forget(self) -> None:
        pass


def test_the_episode_that_is_left_is_dropped() -> None:
    episodes: list[Episode] = []
    task = registry.get("minigrid/Empty-5x5-v0")
    assert play(task, Fingers([*KEYS, "up", "up"]), episodes.append, player="ada") == 1
    assert len(episodes) == 1


class Visitor(Fingers):
    """Presses what it has and stays for so many looks at it, whether there is a key to press or not."""

    def __init__(self, presses: list[str], looks: int) -> None:
        super().__init__(presses)
        self.looks = looks

    @property
    def is_closed(self) -> bool:  # type: ignore[override]
        self.looks -= 1
        return self.looks < 0

    def close(self) -> None:
        pass


def test_a_world_that_runs_by_itself_stands_still_while_nobody_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectors.play, "_FASTEST", 10_000.0)
    episodes: list[Episode] = []
    nobody = Visitor(["k", "7"], looks=300)  # keys that mean nothing to a pendulum
    task = registry.get("Pendulum-v1")
    assert play(task, nobody, episodes.append, player="ada", frames_per_second=10_000.0) == 0
    assert episodes == []
    assert nobody.frames == 1


def test_each_episode_of_such_a_world_begins_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectors.play, "_FASTEST", 10_000.0)
    episodes: list[Episode] = []
    visitor = Visitor(["right"], looks=300)
    task = registry.get("Pendulum-v1")
    assert play(task, visitor, episodes.append, player="ada", frames_per_second=10_000.0) == 1
    (episode,) = episodes
    assert episode.actions["action"].ravel().tolist() == [2.0] + [0.0] * 199
    assert visitor.frames == 202  # 200 steps, the end, and the beginning of one that nobody began


def test_nothing_played_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("collectors.browser_screen.BrowserScreen", lambda **settings: Visitor([], looks=2))
    assert cli.main(["play", "--store", str(tmp_path / "s"), "--tasks", "Pendulum-v1", "--player", "ada"]) == 0
    assert capsys.readouterr().out == (
        "nothing is stored: no episode of Pendulum-v1 was played to its end; each begins with a key\n"
    )
    assert len(EpisodeStore.open(tmp_path / "s")) == 0


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> Iterator[WindowScreen]:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    opened = WindowScreen()
    yield opened
    opened.close()


def tell(*kinds_and_keys: tuple[str, str]) -> None:
    import pygame

    for kind, key in kinds_and_keys:
        pygame.event.post(pygame.event.Event(getattr(pygame, kind), key=getattr(pygame, f"K_{key}")))


def test_a_window_shows_the_frame_and_reads_the_keys(window: WindowScreen) -> None:
    import pygame

    frame = np.zeros((100, 200, 3), np.uint8)
    frame[:, 100:] = (10, 200, 30)
    window.show(frame, "a task")
    surface = pygame.display.get_surface()
    assert surface.get_size() == (1000, 500)  # five times, so that the shorter side is at least 480
    assert surface.get_at((499, 499))[:3] == (0, 0, 0)
    assert surface.get_at((500, 0))[:3] == (10, 200, 30)
    assert pygame.display.get_caption()[0] == "a task"
    tell(("KEYDOWN", "LEFT"), ("KEYDOWN", "RETURN"), ("KEYDOWN", "F12"), ("KEYUP", "LEFT"))
    assert window.held() == {"enter"}
    assert [window.next_press() for _ in range(3)] == ["left", "enter", None]
    tell(("KEYDOWN", "a"))
    window.forget()
    assert window.next_press() is None
    assert not window.is_closed
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    assert window.is_closed


def test_a_person_plays_in_a_window(window: WindowScreen, monkeypatch: pytest.MonkeyPatch) -> None:
    import pygame

    todo, show = iter([key.upper() for key in KEYS]), window.show

    def show_and_press(frame: np.ndarray, caption: str) -> None:
        show(frame, caption)
        if "over" in caption:
            pygame.event.post(pygame.event.Event(pygame.QUIT))
        else:
            tell(("KEYDOWN", key := next(todo)), ("KEYUP", key))

    monkeypatch.setattr(window, "show", show_and_press)
    episodes: list[Episode] = []
    assert play(registry.get("minigrid/Empty-5x5-v0"), window, episodes.append, player="ada") == 1
    assert episodes[0].actions["action"].tolist() == [2, 2, 1, 2, 2]


def test_a_window_without_a_display_is_refused(tmp_path: Path) -> None:
    unseen = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    words = ["play", "--tasks", "Taxi-v4", "--window", "--store", str(tmp_path / "s")]
    done = subprocess.run(
        [sys.executable, "-m", "collectors", *words],
        env={name: value for name, value in os.environ.items() if name not in unseen},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "collectors: error: no window can be opened here (" in done.stderr
    assert done.stderr.rstrip().endswith("): play in a browser")


def test_keys_of_other_kinds_of_actions() -> None:
    pendulum = gymnasium.make("Pendulum-v1")
    choose, _ = keyboard_for(pendulum, family="classic_control", task_id="Pendulum-v1")
    assert [choose(held).tolist() for held in ((), ("left",), ("right",))] == [[0.0], [-2.0], [2.0]]

    class Console(gymnasium.Env):
        action_space = gymnasium.spaces.Discrete(4)

        def get_action_meanings(self) -> list[str]:
            return ["NOOP", "FIRE", "RIGHT", "RIGHTFIRE"]

    choose, _ = keyboard_for(Console(), family="atari", task_id="atari/Console-v5")
    held = ((), ("space",), ("right", "left"), ("right", "space"))
    assert [int(choose(keys)) for keys in held] == [0, 1, 2, 3]
    many = gymnasium.Env()
    many.action_space = gymnasium.spaces.Box(-1, 1, (30,))
    with pytest.raises(UserError, match="cannot be played with a keyboard"):
        keyboard_for(many, family="robots", task_id="Many-v0")


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in (
        (["--tasks", "toy_text"], "--tasks: expected one task to play, got "),
        (["--tasks", "Taxi-v4", "--player", "../x"], "expected letters, digits"),
        (["--tasks", "Taxi-v4", "--fps", "0"], "expected more than 0"),
    ):
        assert cli.main(["play", "--store", str(tmp_path / "s"), *words]) == 2
        assert message in capsys.readouterr().err


def test_the_page_is_announced_when_there_is_something_to_see(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for task, store, message in (
        ("Taxi-v4", "file/store", "what should be a folder of this path is a file"),
        ("text/wikipedia-v0", "store", "is a corpus: it has no environment to act in"),
        ("Humanoid-v5", "store", "cannot be played with a keyboard"),
    ):
        assert cli.main(["play", "--tasks", task, "--store", str(tmp_path / store)]) == 2
        told = capsys.readouterr().err
        assert message in told
        assert "http" not in told
    addresses: list[str] = []
    screen = BrowserScreen(announce=addresses.append)
    assert addresses == []
    for _ in range(2):
        screen.show(np.zeros((16, 16, 3), np.uint8), "")
    assert addresses == [screen.address]
    screen.close()
