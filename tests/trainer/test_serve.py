"""A real client over a socket: actions as without a server, and a sentence for every mistake."""

import ast
import base64
import functools
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from collectors import registry
from collectors.action_guard import ActionGuard
from episode_store.errors import UserError
from episode_store.spec import ArraySpec, Modality
from tokenization.episode_tokenizer import EpisodeTokenizer
from trainer import checkpoint, cli
from trainer.policy import ActingConfig, GeneralistPolicy, PromptSource
from trainer.serve import PolicyServer, ServeConfig, Service
from trainer.serve_sessions import Sessions
from trainer.serve_values import most_bytes, read_observation
from trainer.shards import Dataset
from trainer.train import train

TOKEN = "a-token-of-this-test"
TASKS = ["Continuous-v0", "Discrete-v0", "grid/Seen-v0"]
ACTING = ActingConfig(history_steps=4)


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    """A run of two steps."""
    from trainer.config import ModelConfig, SamplerConfig, TrainConfig

    folder = tmp_path_factory.mktemp("served") / "run"
    config = TrainConfig(
        model=ModelConfig(width=32, num_blocks=2, num_heads=2, key_size=16, feed_forward_size=64),
        sampler=SamplerConfig(context_tokens=64, long_segment_tokens=48),
        batch_size=2, steps=2, precision="fp32", device="cpu",
    )  # fmt: skip
    train(Dataset.open(shards), folder, config)
    return folder


@pytest.fixture(scope="module")
def service(run, shards):
    return Service(run, Dataset.open(shards), TASKS, ACTING)


@pytest.fixture
def serve(service):
    """Starts servers; returns a function that asks one."""
    servers = []

    def start(token=None, **settings):
        server = PolicyServer(service, ServeConfig(port=0, **settings), token=token)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
        return Client(server.server_port, token)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Client:
    def __init__(self, port, token=None):
        self.port, self.token = port, token

    def ask(self, method, path, body=None, **headers):
        """Status and answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        if self.token:
            headers = {"Authorization": f"Bearer {self.token}"} | headers
        given = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(method, path, given, {"Content-Type": "application/json"} | headers)
        answer = connection.getresponse()
        content = json.loads(answer.read())
        connection.close()
        return answer.status, content

    def open(self, task_id, **more):
        status, answer = self.ask("POST", "/sessions", {"task_id": task_id, **more})
        assert status == 201, answer
        return answer["session"]

    def act(self, session, observation):
        status, answer = self.ask("POST", f"/sessions/{session}/act", {"observation": observation})
        assert status == 200, answer
        return answer["action"]


def observations(task_id, seed, num_steps):
    rng = np.random.default_rng(seed)
    if task_id == "grid/Seen-v0":
        return [{"image": rng.integers(0, 256, (32, 48, 3)).astype(np.uint8), "mission": "the red ball"}
                for _ in range(num_steps)]  # fmt: skip
    size = {"Discrete-v0": 3, "Continuous-v0": 2}[task_id]
    return [{"observation": rng.normal(size=size).astype(np.float32)} for _ in range(num_steps)]


def as_json(observation):
    return {key: value if isinstance(value, str) else value.tolist() for key, value in observation.items()}


def without_a_server(run, shards, task_id, seed, steps):
    dataset = Dataset.open(shards)
    prompts = PromptSource(dataset.load_task("train", task_id), ACTING.prompt_steps)
    tokenizer = EpisodeTokenizer(dataset.tasks[task_id], dataset.text_tokenizer())
    policy = GeneralistPolicy(checkpoint.load_model(run, torch.device("cpu")), tokenizer, prompts, ACTING, "test")
    policy.begin_episode(0, None, seed)
    return [policy.act([0], [step])[0]["action"].tolist() for step in steps]


def test_sessions_interleaved_act_as_each_alone(serve, run, shards):
    client = serve()
    plan = [("Discrete-v0", 3), ("grid/Seen-v0", 4), ("Continuous-v0", 5), ("Continuous-v0", 6)]
    steps = [observations(task_id, seed, 10) for task_id, seed in plan]
    sessions = [client.open(task_id, seed=seed) for task_id, seed in plan]
    assert client.ask("GET", "/health")[1]["sessions"] == 4
    found = [[] for _ in plan]
    for step in range(10):
        for index, session in enumerate(sessions):
            found[index].append(client.act(session, as_json(steps[index][step]))["action"])
    for (task_id, seed), actions, shown in zip(plan, found, steps, strict=True):
        assert actions == without_a_server(run, shards, task_id, seed, shown)
    assert client.ask("POST", f"/sessions/{sessions[0]}/close") == (200, {"closed": sessions[0], "steps": 10})
    status, answer = client.ask("POST", f"/sessions/{sessions[0]}/act", {"observation": {}})
    assert status == 404
    assert answer["error"] == "there is no such session; one that is not asked for 300 seconds is closed"


def test_base64_says_the_same_as_lists(serve):
    client = serve()
    for task_id in ("grid/Seen-v0", "Continuous-v0"):
        (shown,) = observations(task_id, 0, 1)
        lists = client.act(client.open(task_id, seed=7), as_json(shown))["action"]
        coded = {
            key: value if isinstance(value, str) else {"base64": base64.b64encode(value.tobytes()).decode()}
            for key, value in shown.items()
        }
        answer = client.act(client.open(task_id, seed=7, encoding="base64"), coded)["action"]["base64"]
        dtype = {"grid/Seen-v0": "<i8", "Continuous-v0": "<f4"}[task_id]
        assert np.frombuffer(base64.b64decode(answer), dtype).tolist() == np.ravel(lists).tolist()


def test_schema_and_health(serve):
    client = serve(max_sessions=3)
    status, schema = client.ask("GET", "/schema")
    assert (status, sorted(schema["tasks"])) == (200, TASKS)
    assert schema["tasks"]["grid/Seen-v0"]["observation"]["image"]["shape"] == [32, 48, 3]
    assert schema["tasks"]["Discrete-v0"]["action"]["action"]["num_values"] == [4]
    assert schema["limits"] == {"sessions": 3, "idle_seconds": 300.0, "request_seconds": 60.0}
    health = client.ask("GET", "/health")[1]
    assert (health["status"], health["checkpoint"], health["sessions"]) == ("ok", "step-00000002", 0)


class Wild:
    """Does what it is told, however mad; in place of a policy."""

    def __init__(self, choices):
        self._choices = iter(choices)

    def begin_episode(self, slot, env, seed):
        pass

    def rewarded(self, slot, reward):
        pass

    def act(self, slots, observations):
        return [{"action": np.array(next(self._choices), np.float32)}]


GUARD = ActionGuard(site="hand", low=(0, 0, 0), high=(1, 1, 1), max_speed=1.0, max_force=1.0, max_change=0.25)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ([np.nan, 0], "non-finite action: [nan, 0.0]"),
        ([0, np.inf], "non-finite action: [0.0, inf]"),
        ([0, 1.5], "action out of its space: [0.0, 1.5]"),
        ([0, 0, 0], "action out of its space: shape (3,), expected (2,)"),
    ],
)
def test_a_policy_that_misbehaves_is_slowed_and_stopped(serve, service, monkeypatch, bad, why):
    monkeypatch.setitem(service.guards, "Continuous-v0", GUARD)
    monkeypatch.setattr(service, "make_policy", lambda task_id: Wild([[1, 0], [-1, 0], [-1, 0], bad, [0, 0]]))
    client = serve()
    session, other = client.open("Continuous-v0"), client.open("Continuous-v0")
    act = f"/sessions/{session}/act", {"observation": {"observation": [0, 0]}}
    answers = [client.ask("POST", *act) for _ in range(4)]
    assert [status for status, _ in answers] == [200] * 4
    # A quarter of the range of 2 in each step, and then it holds still.
    assert [answer["action"]["action"] for _, answer in answers] == [[1, 0], [0.5, 0], [0, 0], [0, 0]]
    kind = why.partition(":")[0]
    assert [answer["guard"] for _, answer in answers] == [
        {"stopped": False, "events": {}},
        {"stopped": False, "events": {"rate limited": 1}},
        {"stopped": False, "events": {"rate limited": 2}},
        {"stopped": True, "events": {"rate limited": 2, kind: 1}},
    ]
    told = f"the action guard stopped this session at step 3: {why}; begin another"
    assert client.ask("POST", *act) == (409, {"error": told})
    assert client.act(other, {"observation": [0, 0]}) == {"action": [1, 0]}  # another robot's session goes on
    assert client.ask("GET", "/schema")[1]["tasks"]["Continuous-v0"]["guard"]["max_change"] == 0.25


def test_robots_of_the_catalogue_are_guarded_and_others_are_not(service):
    assert service.guards["metaworld/reach-v3"] == registry.get("metaworld/reach-v3").guard
    assert all(service.make_watch(task_id) is None for task_id in TASKS)


FIELD = "observation.observation: "


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (b'{"observation": {"observation": [1, NaN, 2]}}',
         FIELD + "step 0, element (1,): expected a finite number, got nan"),
        (b'{"observation": {"observation": [1, 1e999, 2]}}',
         FIELD + "step 0, element (1,): expected a finite number, got inf"),
        ({"observation": {"observation": [1, 2]}}, FIELD + "expected float32 of shape [3], got shape [2]"),
        ({"observation": {"observation": [[1, 2, 3]]}}, FIELD + "expected float32 of shape [3], got shape [1, 3]"),
        ({"observation": {"observation": [1, [2], 3]}},
         FIELD + "expected float32 of shape [3], got lists of different lengths"),
        ({"observation": {"observation": ["1", "2", "3"]}},
         FIELD + "expected float32 of shape [3], got text among its values"),
        ({"observation": {"observation": [True, 2, 3]}}, None),
        ({"observation": {"observation": None}}, FIELD + "expected float32 of shape [3], got null among its values"),
        ({"observation": {"observation": {"base64": "AAAA"}}},
         FIELD + "expected 12 bytes (float32 [3], little-endian), got 3"),
        ({"observation": {"observation": {"base64": "?"}}}, None),
        ({"observation": {"observation": {"pickle": "AAAA"}}}, None),
        ({"observation": {"other": 1}},
         "observation: expected the fields ['observation']; missing ['observation'], unknown ['other']"),
        ({"observation": [1, 2, 3]}, "observation: expected an object with ['observation'], got a list"),
        ({"other": 1}, "expected an object with the field observation, and reward if wanted, got ['other']"),
        ({"observation": {"observation": [1, 2, 3]}, "reward": "1"},
         "reward: expected a number of at most 1e+30 in size, got text"),
        (b'{"observation": {"observation": [1, 2, 3]}, "reward": NaN}', None),
        (b'{"observation": {"observation": [1, 2, 3]}, "reward": 1e999}', None),
        ({"observation": {"observation": [1, 2, 3]}, "reward": True}, None),
        (b"[" * 3000, None),
        (b"{", None),
        (b"\xff\xfe", None),
        (b"[1]", "body: expected a JSON object, got list"),
    ],
)  # fmt: skip
def test_a_wrong_observation_is_told_and_changes_nothing(serve, given, sentence):
    client = serve()
    session, other = client.open("Discrete-v0", seed=1), client.open("Discrete-v0", seed=1)
    status, answer = client.ask("POST", f"/sessions/{session}/act", given)
    assert status == 400
    assert set(answer) == {"error"}
    if sentence is not None:
        assert answer["error"] == sentence
    shown = {"observation": [0.5, 1, -2]}
    assert client.act(session, shown) == client.act(other, shown)


def test_wrong_images_and_texts_are_told():
    specs = {
        "image": ArraySpec(modality=Modality.IMAGE, shape=(2, 1, 3), dtype="uint8"),
        "text": ArraySpec(modality=Modality.TEXT, dtype="str"),
        "cell": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(4,), shape=(1,)),
        "door": ArraySpec(modality=Modality.CONTINUOUS, dtype="bool", shape=(1,)),
    }
    right = {"image": [[[1, 2, 3]], [[4, 5, 255]]], "text": "é", "cell": [3], "door": [True]}
    read = read_observation(right, specs)
    assert (read["image"].dtype, read["image"].tolist(), read["text"]) == (np.uint8, right["image"], "é")
    assert read["door"].tolist() == [True]
    for key, value, sentence in (
        ("image", [[[1, 2, 3]], [[4, 5, 256]]], r"image: expected uint8 of shape \[2, 1, 3\], got 256"),
        ("image", [[[1, 2, 3]], [[4, 5, 0.5]]], "image: expected uint8 of shape .*, got a fraction among"),
        ("text", 5, "text: expected text, got an integer"),
        ("text", "x" * 4097, "text: expected at most 4096 bytes of text, got 4097"),
        ("text", "\ud800", "text: step 0 is not valid Unicode text"),
        ("cell", [4], "cell: step 0, element .* expected a value of its discrete space, got 4"),
        ("cell", [True], "cell: expected int64 of shape"),
        ("door", [1], "door: expected bool of shape .*, got something else than true and false"),
        ("door", {"base64": "Ag=="}, "door: expected bytes 0 and 1"),
    ):
        with pytest.raises(UserError, match=sentence):
            read_observation(right | {key: value}, specs)
    assert most_bytes(specs) >= len(json.dumps(right | {"text": "é" * 2048}))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "task_id: expected one of Continuous-v0, Discrete-v0, grid/Seen-v0, got null"),
        ({"task_id": "Other-v0"}, 'task_id: expected one of Continuous-v0, Discrete-v0, grid/Seen-v0, got "Other-v0"'),
        ({"task_id": "Discrete-v0", "seed": -1}, "seed: expected an integer from 0 to 2^63 - 1, got -1"),
        ({"task_id": "Discrete-v0", "seed": True}, "seed: expected an integer from 0 to 2^63 - 1, got true"),
        ({"task_id": "Discrete-v0", "encoding": "pickle"}, 'encoding: expected lists or base64, got "pickle"'),
        ({"task_id": "Discrete-v0", "more": 1}, "unknown fields ['more']; expected task_id, seed, encoding"),
    ],
)
def test_a_wrong_opening_is_told(serve, given, sentence):
    assert serve().ask("POST", "/sessions", given) == (400, {"error": sentence})


def test_who_may_ask(serve):
    client = serve(TOKEN)
    assert client.ask("GET", "/health")[0] == 200
    told = "Authorization: expected 'Bearer' and the token that `serve` was given"
    for wrong in ("Bearer another-token-of-this", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x"):
        assert client.ask("GET", "/health", Authorization=wrong) == (401, {"error": told})
    assert Client(client.port).ask("POST", "/sessions", {"task_id": "Discrete-v0"}) == (401, {"error": told})
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1]", "127.0.0.1:x"):
        assert client.ask("GET", "/health", Host=host) == (403, {"error": "this host is not served here"})
    assert client.ask("GET", "/health", Host="localhost:99")[0] == 200
    assert client.ask("GET", "/health", Origin="http://evil.example")[0] == 403
    assert client.ask("POST", "/sessions", {"task_id": "Discrete-v0"}, **{"Content-Type": "text/plain"})[0] == 415
    assert client.ask("GET", "/sessions")[0] == 404
    assert client.ask("POST", "/sessions/../../etc/passwd", {})[0] == 404


def test_other_machines_need_a_token(service):
    with pytest.raises(UserError, match=r"address 0\.0\.0\.0: other machines reach it, so a token is required"):
        PolicyServer(service, ServeConfig(address="0.0.0.0", port=0))


def test_this_machine_has_a_second_address(service):
    try:
        server = PolicyServer(service, ServeConfig(address="::1", port=0))
    except UserError:
        pytest.skip("no IPv6 here")
    with server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        assert server.url == f"http://[::1]:{server.server_port}"
        for host, status in (("[::1]", 200), (f"[::1]:{server.server_port}", 200), ("127.0.0.1", 403), ("::1", 403)):
            connection = http.client.HTTPConnection("::1", server.server_port, timeout=60)
            connection.request("GET", "/health", headers={"Host": host})
            assert connection.getresponse().status == status
            connection.close()
        server.shutdown()
    serving.join()


def test_an_address_of_another_machine_is_told(service):
    with pytest.raises(UserError, match=r"address 192\.0\.2\.1: .*; choose another with --address"):
        PolicyServer(service, ServeConfig(address="192.0.2.1", port=0), token=TOKEN)


def test_a_taken_port_is_told(serve, service):
    client = serve()
    with pytest.raises(UserError, match=f"port {client.port}: Address already in use; choose another with --port"):
        PolicyServer(service, ServeConfig(port=client.port))


def test_a_huge_body_is_not_read(serve):
    client = serve()
    session = client.open("Discrete-v0")
    most = client.ask("GET", "/schema")[1]["tasks"]["Discrete-v0"]["max_body_bytes"]
    status, answer = client.ask("POST", f"/sessions/{session}/act", b" " * (most + 1))
    assert (status, answer["error"]) == (413, f"body: expected at most {most} bytes, got {most + 1}")
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as raw:
        lines = ["POST /sessions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        raw.sendall("\r\n".join([*lines, f"Content-Length: {10**17}", "", ""]).encode())
        assert raw.recv(65_536).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as raw:
        raw.sendall("\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode())
        assert raw.recv(65_536).startswith(b"HTTP/1.1 411 ")
    assert client.ask("GET", "/health")[0] == 200


def test_a_request_that_does_not_end_is_ended(serve):
    client = serve(request_seconds=0.5)
    with socket.create_connection(("127.0.0.1", client.port), timeout=20) as raw:
        raw.sendall(b"POST /sessions HTTP/1.1\r\nHost: localhost\r\n")
        assert raw.recv(100) == b""
    assert client.ask("GET", "/health")[0] == 200


def test_there_are_so_many_sessions(serve):
    client = serve(max_sessions=2)
    sessions = [client.open("Discrete-v0") for _ in range(2)]
    status, answer = client.ask("POST", "/sessions", {"task_id": "Discrete-v0"})
    assert (status, answer["error"]) == (429, "2 sessions are open, the most there may be; close one")
    client.ask("POST", f"/sessions/{sessions[0]}/close", {})
    client.open("Discrete-v0")


def test_idle_sessions_are_closed(service):
    now = [0.0]
    sessions = Sessions(service.make_policy, service.make_watch, most=2, idle_seconds=10, now=lambda: now[0])
    first = sessions.open("Discrete-v0", seed=0, encoding="lists")
    now[0] = 8.0
    second = sessions.open("Discrete-v0", seed=0, encoding="lists")
    now[0] = 12.0
    assert len(sessions) == 1
    with pytest.raises(UserError, match="no such session; one that is not asked for 10 seconds is closed"):
        sessions.get(first)
    sessions.get(second)
    with sessions.get(second).lock, pytest.raises(UserError, match="is acting already"):
        sessions.act(second, {})


def test_no_thread_is_left_after_closing(service):
    """One that has used torch and outlives the interpreter aborts it."""
    before = set(threading.enumerate())
    with PolicyServer(service, ServeConfig(port=0)) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        client = Client(server.server_port)
        client.act(client.open("Discrete-v0"), {"observation": [0, 0, 0]})
        kept = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        kept.request("GET", "/health")
        kept.getresponse().read()
        assert len(set(threading.enumerate()) - before) >= 3
        server.shutdown()
    serving.join()
    assert set(threading.enumerate()) <= before
    kept.close()


def test_closing_does_not_wait_for_a_client_that_never_reads(service):
    server = PolicyServer(service, ServeConfig(port=0, request_seconds=0.5))
    serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    serving.start()
    with socket.create_connection(("127.0.0.1", server.server_port)) as raw:
        raw.settimeout(0.2)
        with pytest.raises(TimeoutError):  # the server is stuck with its answers, and takes no more
            raw.sendall(b"GET /schema HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500_000)
        server.shutdown()
        closing = threading.Thread(target=server.server_close, daemon=True)
        closing.start()
        closing.join(timeout=20)
        assert not closing.is_alive()
    serving.join()


def test_the_command_serves_and_ends_cleanly(run, shards, tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    command = ["serve", "--run", str(run), "--shards", str(shards), "--tasks", "Disc*", "--port", "0", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", *command, "--token-file", str(tmp_path / "token")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Where the tests run in the background Ctrl-C is ignored, and children inherit that.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("}"):
            break
    facts = json.loads("".join(lines))
    assert (facts["tasks"], facts["token"]) == (["Discrete-v0"], None)
    client = Client(facts["port"], TOKEN)
    assert client.act(client.open("Discrete-v0"), {"observation": [0, 0, 0]})["action"] in range(4)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert errors.splitlines()[-1] == "stopped"
    assert "Traceback" not in errors


def test_the_client_of_the_documentation(serve, capsys):
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    program = page.partition("```text\n")[2].partition("```")[0]
    program = program.replace(":8471", f":{serve().port}").replace("CartPole-v1", "Discrete-v0")
    exec(compile(program.replace("[0.0, 0.0, 0.0, 0.0]", "[0.0, 0.0, 0.0]"), "client", "exec"), {})  # noqa: S102
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(set(ast.literal_eval(line)) == {"action"} for line in lines)


def test_mistakes_of_the_command_line(run, shards, tmp_path, capsys):
    command = ["serve", "--run", str(run), "--shards", str(shards)]
    (tmp_path / "token").write_text("short")
    for more, sentence in (
        (["--token-file", str(tmp_path / "none")], "cannot be read"),
        (["--token-file", str(tmp_path / "token")], "expected 16 or more characters of ASCII without spaces"),
        (["--tasks", "No*"], "no control task matches 'No*'"),
        (["--rolling-tokens", "65"], "--rolling-tokens 65: the network was trained with 64, expected at most as many"),
        (["--rolling-tokens", "65", "--history-steps", "2"], "are two rules of what is seen; give one of them"),
        (["--top-k", "-1"], "acting: top_k -1: expected 0 or more"),
    ):
        assert cli.main([*command, *more]) == 2
        assert sentence in capsys.readouterr().err
