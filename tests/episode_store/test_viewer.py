"""The viewer without a browser: what it answers, whom it answers, and what it makes of damage and of hostile text."""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from episode_store import change
from episode_store.cli import main
from episode_store.compact import compact
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import UserError
from episode_store.spec import ArraySpec, Modality
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from episode_store.testing import StoreContract
from episode_store.viewer import page, pictures, plots, snapshot
from episode_store.viewer.content import Content
from episode_store.viewer.server import ViewerServer
from episode_store.writer import EpisodeWriter

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=\'document.title="owned"\'>'


class _Contract(StoreContract):
    __test__ = False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Twelve episodes of three tasks: a picture and a text; dicts of vectors; captions."""
    _Contract().fill(tmp_path / "store")
    return tmp_path / "store"


def first(content: Content, task: str) -> str:
    return str(content.episodes(task=task)["rows"][0]["episode_id"])


def damage(path: Path, episode_id: str, *, header: bool) -> None:
    """Flips a bit of an episode's record: in its header, or in its last block."""
    facts = EpisodeStore.open(path).facts(episode_id)
    file = path / "segments" / f"{facts['segment']}.data"
    content = bytearray(file.read_bytes())
    store = EpisodeStore.open(path)
    column = max(store.columns(episode_id), key=lambda one: one.offset)
    content[facts["offset"] + (90 if header else column.offset)] ^= 1
    file.write_bytes(content)


# --- pictures and plots --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_png_holds_every_pixel(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (13, 7, channels), np.uint8)
    with Image.open(io.BytesIO(pictures.encode_png(pixels))) as image:
        assert image.format == "PNG"
        assert image.mode == {1: "L", 3: "RGB"}[channels]
        assert np.array_equal(np.array(image).reshape(pixels.shape), pixels)


def test_channels_that_are_no_colours_stand_side_by_side() -> None:
    frame = np.arange(2 * 2 * 4, dtype=np.uint8).reshape(2, 2, 4)
    wide = pictures.displayable(frame)
    assert wide.shape == (2, 11, 1)
    assert wide[0, :, 0].tolist() == [0, 4, 128, 1, 5, 128, 2, 6, 128, 3, 7]
    kinds = pictures.displayable(np.array([[[0, 5, 10]]], np.uint8), scale_to=10)
    assert kinds[0, :, 0].tolist() == [0, 128, 127, 128, 255]


def test_a_short_field_is_plotted_as_it_is() -> None:
    values = np.array([[1.0, 5.0], [2.0, np.nan], [3.0, 7.0]])
    answer = plots.series(lambda start, stop: values[start:stop], 3, (2,))
    assert answer["steps"] == [0, 1, 2]
    assert answer["lines"] == [
        {"index": [0], "values": [1.0, 2.0, 3.0]},
        {"index": [1], "values": [5.0, None, 7.0]},
    ]
    assert (answer["low"], answer["high"], answer["bucketed"]) == (1.0, 7.0, False)


def test_no_peak_of_a_long_field_is_lost() -> None:
    """A spike of one step in a million shows, and no more than a part is in memory at once."""
    asked = []

    def read(start: int, stop: int) -> np.ndarray:
        asked.append(stop - start)
        rows = np.zeros((stop - start, 1))
        if start <= 765_432 < stop:
            rows[765_432 - start] = 9.0
        return rows

    answer = plots.series(read, 1_000_000, (1,))
    assert answer["high"] == 9.0
    assert len(answer["steps"]) == len(answer["lines"][0]["values"]) == plots.MAX_POINTS
    assert sum(asked) == 1_000_000
    assert max(asked) <= 20_000
    assert answer["steps"] == sorted(answer["steps"])


def test_of_a_wide_field_the_liveliest_numbers_are_shown() -> None:
    values = np.zeros((10, 30))
    values[::2, [3, 29]] = 1.0
    answer = plots.series(lambda start, stop: values[start:stop], 10, (5, 6))
    shown = [line["index"] for line in answer["lines"]]
    assert len(shown) == plots.MAX_LINES
    assert [0, 3] in shown
    assert [4, 5] in shown
    assert answer["elements"] == 30


# --- content -------------------------------------------------------------------------------------------------------


def test_the_table_is_filtered_sorted_and_cut_into_pages(path: Path) -> None:
    content = Content(path)
    table = EpisodeStore.open(path).query(columns=["episode_id", "task_id", "episode_return", "num_steps"]).to_pylist()
    everything = content.episodes()
    assert everything["total"] == 12
    assert [row["episode_id"] for row in everything["rows"]] == list(EpisodeStore.open(path).episode_ids)
    best = sorted((row["episode_return"] for row in table), reverse=True)
    page_of = content.episodes(sort="-episode_return", offset=3, limit=4)
    assert [row["episode_return"] for row in page_of["rows"]] == best[3:7]
    assert page_of["total"] == 12
    robots = content.episodes(task="Robot-v1", where="num_steps > 3", lowest=0.0)
    expected = [r for r in table if r["task_id"] == "Robot-v1" and r["num_steps"] > 3 and r["episode_return"] >= 0.0]
    assert {row["episode_id"] for row in robots["rows"]} == {row["episode_id"] for row in expected}
    assert content.episodes(offset=100)["rows"] == []
    assert len(content.episodes(limit=10_000)["rows"]) == 12
    with pytest.raises(UserError, match="'num_step': no such column"):
        content.episodes(where="num_step > 3")
    with pytest.raises(UserError, match="no column"):
        content.episodes(sort="secret")
    assert content.episodes(task="x' or True or '")["total"] == 0


def test_steps_are_what_was_written(path: Path) -> None:
    content, store = Content(path), EpisodeStore.open(path)
    for task_id in store.tasks:
        episode_id = first(content, task_id)
        episode = store.read(episode_id)
        fields = {field["path"]: field for field in content.episode(episode_id)["fields"]}
        got = content.steps(episode_id, 0, 64)["fields"]
        assert got["rewards"]["values"] == [[reward] for reward in episode.rewards.tolist()]
        for group, values in (("observations", episode.observations), ("actions", episode.actions)):
            for key, value in values.items():
                path_of = f"{group}/{key}"
                if fields[path_of]["kind"] == "text":
                    assert got[path_of]["texts"] == value
                elif fields[path_of]["kind"] == "numbers":
                    rows = np.asarray(value).reshape(len(value), -1).tolist()
                    assert got[path_of]["values"] == rows
                else:
                    assert path_of not in got
                    with Image.open(io.BytesIO(content.frame(episode_id, path_of, len(value) - 1))) as image:
                        assert np.array_equal(np.array(image).reshape(value[-1].shape), value[-1])


def test_texts_come_in_the_order_in_which_they_were_said(tmp_path: Path) -> None:
    task = TaskSpec(
        task_id="dialogue/chat-v0",
        observation_spec={"text": ArraySpec(modality=Modality.TEXT, dtype="str")},
        action_spec={"text": ArraySpec(modality=Modality.TEXT, dtype="str")},
    )
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add_task(task)
        episode_id = writer.add_episode(
            Episode(
                task_id=task.task_id,
                observations={"text": ["hello", "hello", "bye", ""]},
                actions={"text": ["yes", "yes", "x" * 5_000]},
                rewards=np.zeros(3),
                terminated=True,
                truncated=False,
            )
        )
    answer = Content(tmp_path / "store").texts(episode_id)
    entries = [(entry["path"].split("/")[0], entry["first"], entry["last"]) for entry in answer["entries"]]
    assert entries == [
        ("observations", 0, 1),
        ("actions", 0, 0),
        ("actions", 1, 1),
        ("observations", 2, 2),
        ("actions", 2, 2),
        ("observations", 3, 3),
    ]
    assert answer["entries"][4]["text"] == f"{'x' * 4_000} … (1000 more characters)"


def test_a_grid_of_kinds_is_a_picture_with_its_channels_apart(tmp_path: Path) -> None:
    grid = ArraySpec(modality=Modality.DISCRETE, shape=(2, 3, 2), dtype="uint8", num_values=(11,) * 12)
    task = TaskSpec(
        task_id="Grid-v0",
        observation_spec={"grid": grid},
        action_spec={"action": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(2,))},
    )
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add_task(task)
        episode_id = writer.add_episode(
            Episode(
                task_id="Grid-v0",
                observations={"grid": np.full((2, 2, 3, 2), 10, np.uint8)},
                actions={"action": np.zeros(1, np.int64)},
                rewards=np.zeros(1),
                terminated=True,
                truncated=False,
            )
        )
    content = Content(tmp_path / "store")
    (field,) = [field for field in content.episode(episode_id)["fields"] if field["path"] == "observations/grid"]
    assert (field["kind"], field["apart"]) == ("picture", True)
    with Image.open(io.BytesIO(content.frame(episode_id, "observations/grid", 0))) as image:
        assert np.array(image).tolist() == [[255, 255, 255, 128, 255, 255, 255]] * 2


def test_tokens_come_from_above(path: Path) -> None:
    seen: list[tuple[str, int, str]] = []

    def token_view(task: TaskSpec, episode: Episode, episode_id: str) -> list[dict[str, Any]]:
        seen.append((task.task_id, episode.num_steps, episode_id))
        if task.task_id == "Robot-v1":
            raise UserError("no tokens for robots")
        return [{"id": 1}, {"id": 2}]

    content = Content(path, token_view=token_view)
    grid, robot = first(content, "grid/Example-v0"), first(content, "Robot-v1")
    assert content.tokens(grid, 0) == {"rows": [{"id": 1}, {"id": 2}], "left_out": 0}
    assert seen == [("grid/Example-v0", 1, grid)]
    assert content.tokens(robot, 0) == {"message": "no tokens for robots"}
    assert Content(path, no_tokens="nobody lends one").tokens(grid, 0) == {"message": "nobody lends one"}


def test_damage_is_shown_and_the_rest_as_well(path: Path) -> None:
    whole = Content(path)
    one, other = first(whole, "Robot-v1"), first(whole, "grid/Example-v0")
    damage(path, one, header=True)
    damage(path, other, header=False)
    content = Content(path)
    rows = {row["episode_id"]: row for row in content.episodes()["rows"]}
    assert len(rows) == 12
    assert f"episode {one} of Robot-v1" in rows[one]["damaged"]
    assert sum(bool(row["damaged"]) for row in rows.values()) == 1
    facts = content.episode(one)
    assert "checksum" in facts["damaged"]
    assert facts["fields"] == []
    assert content.episode(other)["damaged"] == ""
    answers = content.steps(other, 0, 64)["fields"]
    broken = [name for name, answer in answers.items() if "damaged" in answer]
    assert broken == ["step_columns/exploratory"]
    assert f"episode {other} of grid/Example-v0" in answers[broken[0]]["damaged"]
    assert "damaged" in content.series(other, broken[0])
    assert content.series(other, "rewards")["rows"] > 0


def test_a_damaged_index_is_named(path: Path) -> None:
    (seal,) = (path / "segments").glob("*.seal")
    seal.write_bytes(seal.read_bytes().replace(b"1", b"2", 1))
    summary = Content(path).summary()
    assert summary["episodes"] == 0
    assert len(summary["damage"]) == 1


# --- the server ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(content: Content) -> Iterator[ViewerServer]:
    with ViewerServer(content) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(
    server: ViewerServer,
    place: str,
    *,
    host: str | None = None,
    method: str = "GET",
    token: str | None = None,
    **asked: Any,
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    query = urllib.parse.urlencode({**asked, "token": server.token if token is None else token})
    connection.putrequest(method, f"{place}?{query}", skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    response = connection.getresponse()
    answer = response.status, dict(response.getheaders()), response.read()
    connection.close()
    return answer


def test_only_who_knows_the_token_is_answered(path: Path) -> None:
    with serving(Content(path)) as server:
        for place in ("/", "/api/summary", "/api/episodes", "/nothing"):
            for token in ("", "wrong", server.token[:-1], server.token + "x", "\u00e9"):
                status, _, body = ask(server, place, token=token)
                assert status == 403
                assert b"store" not in body
                assert server.token.encode() not in body
        assert ask(server, "/")[0] == 200
        assert ask(server, "/api/summary")[0] == 200
        assert len(server.token) >= 32
        with serving(Content(path)) as another:
            assert another.token != server.token


def test_the_code_for_a_browser_works_once(path: Path) -> None:
    """What stands in a process's arguments is of no use to who reads it later."""
    with serving(Content(path)) as server:
        code = server.url_once.partition("once=")[2]
        assert server.token not in server.url_once
        assert ask(server, "/", token="", once="wrong")[0] == 403
        assert ask(server, "/", token="", once=code, host="evil.example")[0] == 403
        assert ask(server, "/api/summary", token="", once=code)[0] == 403
        status, headers, _ = ask(server, "/", token="", once=code)
        assert (status, headers["Location"]) == (303, f"/?token={server.token}")
        assert ask(server, "/", token="", once=code)[0] == 403
        assert ask(server, "/", token="", once="")[0] == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil", "", "0"]
)
def test_another_host_is_refused(path: Path, host: str) -> None:
    """A site that points its own name to 127.0.0.1 sends its own name (DNS rebinding)."""
    with serving(Content(path)) as server:
        assert ask(server, "/", host=host or " ")[0] == 403
        assert ask(server, "/api/summary", host=host or " ")[0] == 403


def test_this_machine_is_served_through_any_port(path: Path) -> None:
    with serving(Content(path)) as server:
        for host in ("localhost", "localhost:9000", "127.0.0.1:1"):
            assert ask(server, "/api/summary", host=host)[0] == 200
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.putrequest("GET", f"/?token={server.token}", skip_host=True)
        for name in ("127.0.0.1", "evil.example"):
            connection.putheader("Host", name)
        connection.endheaders()
        assert connection.getresponse().status == 403
        connection.close()


def test_it_listens_on_the_loopback_only(path: Path) -> None:
    with ViewerServer(Content(path)) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        with socket.socket() as outside:
            outside.settimeout(1)
            # 127.0.0.2 is another address of this machine, as that of its network card would be.
            assert outside.connect_ex(("127.0.0.2", server.server_port)) != 0


@pytest.mark.parametrize(
    "place", ["/../../etc/passwd", "//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/page.js", "/api/"]
)
def test_no_path_leads_to_a_file(path: Path, place: str) -> None:
    with serving(Content(path)) as server:
        status, _, body = ask(server, place)
        assert status in (403, 404)
        assert b"root:" not in body


def test_ids_and_fields_lead_to_no_file(path: Path) -> None:
    with serving(Content(path)) as server:
        episode_id = first(server.content, "grid/Example-v0")
        for bad in ("../../store.json", "/etc/passwd", "\x00", "x" * 5_000):
            assert ask(server, "/api/episode", id=bad)[0] == 400
            assert ask(server, "/api/frame", id=episode_id, path=bad, step=0)[0] == 400
        for step in ("-1", "99999", "x", "1e9", str(10**30)):
            assert ask(server, "/api/frame", id=episode_id, path="observations/image", step=step)[0] == 400
        assert ask(server, "/api/frame", id=episode_id)[0] == 400
        assert ask(server, "/api/tokens", id=episode_id, step=-1)[0] == 200
        assert ask(server, "/api/steps", id=episode_id, start=10**9, count=10**9)[0] == 200
        # A call, an import or an attribute of Python is no condition.
        for where in ("__import__('os').system('true')", "task_id.__class__", "(lambda: 1)()"):
            assert ask(server, "/api/episodes", where=where)[0] == 400


def test_nothing_but_reading_is_allowed(path: Path) -> None:
    with serving(Content(path)) as server:
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            assert ask(server, "/api/summary", method=method)[0] == 501
        status, headers, body = ask(server, "/", method="HEAD")
        assert (status, body) == (200, b"")
        assert int(headers["Content-Length"]) > 10_000


def test_headers_forbid_everything_foreign(path: Path) -> None:
    with serving(Content(path)) as server:
        for place in ("/", "/api/summary"):
            _, headers, _ = ask(server, place)
            policy = headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'sha256-")
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["Cache-Control"] == "no-store"
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert "Set-Cookie" not in headers
            assert "Access-Control-Allow-Origin" not in headers


def test_the_page_asks_nobody_else() -> None:
    """No address in what a browser loads, but the name space of SVG, which is never fetched."""
    html = page.build()
    assert set(re.findall(r"https?://[^\s\"'<]+", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|script|img|iframe)[^>]+(src|href)=\"(?!data:)", html)
    for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert dangerous not in html


def test_what_writers_add_shows_when_the_page_is_loaded_again(path: Path) -> None:
    with serving(Content(path)) as server:
        _Contract().fill(path, seed=5)
        assert json.loads(ask(server, "/api/summary")[2])["episodes"] == 12
        assert ask(server, "/")[0] == 200
        assert json.loads(ask(server, "/api/summary")[2])["episodes"] == 24


def test_a_store_compacted_meanwhile_is_told_and_reopened(path: Path) -> None:
    with serving(Content(path)) as server:
        change.delete(path, where="task_id == 'Robot-v1'")
        compact(path)
        status, _, body = ask(server, "/api/episodes")
        assert status == 400
        assert "the store was compacted since it was opened" in json.loads(body)["error"]
        assert ask(server, "/")[0] == 200
        assert json.loads(ask(server, "/api/episodes")[2])["total"] == 9


def test_many_at_once_get_the_right_answers(path: Path) -> None:
    """Readers of a store are for one thread; the viewer's are many."""
    content = Content(path)
    wanted = {row["episode_id"]: content.steps(row["episode_id"], 0, 64) for row in content.episodes()["rows"]}
    wrong: list[str] = []

    def work() -> None:
        for _ in range(20):
            for episode_id, answer in wanted.items():
                if content.steps(episode_id, 0, 64) != answer:
                    wrong.append(episode_id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- one file ------------------------------------------------------------------------------------------------------


def test_a_file_holds_what_was_chosen(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "deep" / "page.html"
    arguments = ["view", "--store", str(path), "--output", str(output), "--tasks", "*/*", "--episodes", "1", "--json"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["left_out"] == []
    assert len(result["episodes"]) == 2
    html = output.read_text()
    assert result["bytes"] == len(html.encode())
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    assert list(data["episodes"]) == result["episodes"]
    assert [task["task_id"] for task in data["summary"]["tasks"]] == ["caption/example-v0", "grid/Example-v0"]
    content = Content(path)
    for episode_id, entry in data["episodes"].items():
        assert entry["steps"][0] == content.steps(episode_id, 0, 64)
        assert all(url.startswith("data:image/png;base64,") for url in entry["frames"]["observations/image"]["urls"])
    assert "connect-src 'none'" in html


def test_what_does_not_fit_is_named(path: Path) -> None:
    content = Content(path)
    ids = [row["episode_id"] for row in content.episodes()["rows"]]
    data = snapshot.gather(content, ids, max_bytes=20_000)
    kept = list(data["episodes"])
    assert 0 < len(kept) < 12
    (sentence,) = data["left_out"]
    assert sentence.startswith(
        f"{12 - len(kept)} of the 12 episodes chosen are left out, as this file would exceed 0.02 MB"
    )
    assert next(one for one in ids if one not in kept)[:12] in sentence
    assert len(json.dumps(data["episodes"])) < 21_000


def test_damage_is_in_the_file_too(path: Path) -> None:
    whole = Content(path)
    one, other = first(whole, "Robot-v1"), first(whole, "caption/example-v0")
    column = next(column for column in whole.store.columns(other) if column.name == "image")
    facts = whole.store.facts(other)
    file = path / "segments" / f"{facts['segment']}.data"
    content = bytearray(file.read_bytes())
    content[facts["offset"] + column.offset] ^= 1
    file.write_bytes(content)
    damage(path, one, header=True)
    data = snapshot.gather(Content(path), [one, other], max_bytes=10**6)
    assert [bool(row["damaged"]) for row in data["rows"]] == [True, False]
    assert list(data["episodes"][one]) == ["episode"]
    frames = data["episodes"][other]["frames"]["observations/image"]
    lost = range(min(column.block_rows, column.num_rows))
    assert list(frames["damaged"]) == list(lost)
    assert [place for place, url in enumerate(frames["urls"]) if not url] == list(lost)
    assert "checksum of block 0 does not match" in frames["damaged"][0]


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    task = TaskSpec(
        task_id="text/hostile-v0",
        observation_spec={"text": ArraySpec(modality=Modality.TEXT, dtype="str")},
        action_spec={"text": ArraySpec(modality=Modality.TEXT, dtype="str")},
        licence=HOSTILE,
    )
    with EpisodeWriter(tmp_path / "store") as writer:
        writer.add_task(task)
        writer.add_episode(
            Episode(
                task_id=task.task_id,
                observations={"text": [HOSTILE, HOSTILE]},
                actions={"text": [HOSTILE]},
                rewards=np.zeros(1),
                terminated=True,
                truncated=False,
                metadata=EpisodeMetadata(agent_id=HOSTILE, attribution=HOSTILE, environment_config={"id": HOSTILE}),
            )
        )
    content = Content(tmp_path / "store")
    data = snapshot.gather(content, list(content.store.episode_ids), max_bytes=10**6)
    html = page.build(data)
    assert html.count("</script>") == 2
    assert "<img src=x" not in html
    assert json.loads(re.search(r'id="data">(.*?)</script>', html, re.DOTALL)[1]) == json.loads(json.dumps(data))  # type: ignore[index]


# --- the command ---------------------------------------------------------------------------------------------------


def test_mistakes_cost_one_line(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", "--store", str(path), "--tasks", "Robot-v1"]) == 2
    assert "--tasks chooses what --output writes; the page itself has filters" in capsys.readouterr().err
    assert main(["view", "--store", str(tmp_path), "--no-browser"]) == 2
    assert main(["view", "--store", str(path), "--output", str(tmp_path)]) == 2
    assert "is a folder, expected the name of a file" in capsys.readouterr().err
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["view", "--store", str(path), "--no-browser", "--port", str(port)]) == 2
        assert f"port {port}: Address already in use; choose another with --port" in capsys.readouterr().err


def test_the_command_serves_until_it_is_interrupted(path: Path) -> None:
    command = [sys.executable, "-m", "episode_store", "view", "--store", str(path), "--no-browser", "--json"]
    # Where the tests run in the background Ctrl-C is ignored, and children inherit that.
    attend = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=attend
    ) as process:
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            text += process.stdout.readline()
        facts = json.loads(text)
        token = urllib.parse.parse_qs(urllib.parse.urlsplit(facts["url"]).query)["token"][0]
        connection = http.client.HTTPConnection("127.0.0.1", facts["port"], timeout=10)
        connection.request("GET", f"/api/summary?token={token}")
        assert json.load(connection.getresponse())["episodes"] == 12
        # Tokens come from the package above without a flag, by its entry point.
        episode_id = first(Content(path), "Robot-v1")
        connection.request("GET", f"/api/tokens?token={token}&id={episode_id}&step=0")
        meanings = [row["meaning"] for row in json.load(connection.getresponse())["rows"]]
        assert "separator" in meanings
        connection.close()
        time.sleep(0.1)
        process.send_signal(2)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0
        assert errors == "stopped\n"
