"""`trainer serve`: the generalist behind HTTP and JSON, for a robot's program or any other. docs/serving.md.

GET  /health                 whether it answers, and with what
GET  /schema                 the tasks, what they are shown and what they do, and the limits
POST /sessions               begins an episode: {"task_id", "seed", "encoding"}
POST /sessions/<id>/act      {"observation": {...}, "reward": 0.0} -> {"action": {...}, "step": 0}
POST /sessions/<id>/close    ends it
"""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from collectors import registry
from collectors.action_guard import Watch
from collectors.spaces import action_box
from episode_store.errors import UserError
from episode_store.loopback import ADDRESS, BodyError, LoopbackHandler, LoopbackServer
from tokenization.episode_tokenizer import EpisodeTokenizer
from trainer import checkpoint
from trainer.model import num_parameters
from trainer.policy import ActingConfig, GeneralistPolicy, PromptSource
from trainer.precision import choose_device
from trainer.serve_sessions import MAX_SEED, BusyError, NoSessionError, Sessions, StoppedError
from trainer.serve_values import describe, most_bytes, read_observation, read_reward, write_action
from trainer.shards import Dataset

_MAX_OPENING_BYTES = 4096
_MAX_CONNECTIONS = 64
_ENCODINGS = ("lists", "base64")
_SESSION = re.compile(r"/sessions/([A-Za-z0-9_-]{1,64})/(act|close)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """How a server serves.

    Attributes:
      address: to listen on; beyond this machine a token is required.
      port: 0 for any that is free.
      max_sessions: open at a time.
      idle_seconds: after which a session that is not asked is closed.
      request_seconds: after which a connection that was not answered is closed.
    """

    address: str = ADDRESS
    port: int = 8471
    max_sessions: int = 16
    idle_seconds: float = 300.0
    request_seconds: float = 60.0

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.address == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.address).is_loopback
        except ValueError:
            return False


class Service:
    """The model and its tasks, shared by all sessions.

    Args:
      run: of `trainer train`.
      dataset: what it was trained on.
      task_ids: what is served.
      acting: by which rule.
      source: the checkpoint; the newest by default.

    Attributes:
      tasks: by id.
      guards: action guards of robots, by task id.
      asks_for_return: whether the network is conditioned on the return, and so wants to know the rewards.
    """

    def __init__(
        self, run: Path, dataset: Dataset, task_ids: Sequence[str], acting: ActingConfig, source: Path | None = None
    ) -> None:
        self._trained = checkpoint.load_config(run).sampler
        acting.check(self._trained)
        self.asks_for_return = self._trained.condition_on_return
        self._acting, self._dataset = acting, dataset
        source = source or checkpoint.latest(run)
        self._model = checkpoint.load_model(run, choose_device("auto"), source)
        self._checkpoint = source.name
        tasks = dataset.tasks
        self.tasks = {task_id: tasks[task_id] for task_id in task_ids}
        text = dataset.text_tokenizer() if dataset.has_text_model else None
        self._tokenizers = {task_id: EpisodeTokenizer(task, text) for task_id, task in self.tasks.items()}
        self._prompts: dict[str, PromptSource] = {}
        self.guards = {task.task_id: task.guard for task in registry.all_tasks() if task.guard is not None}

    def make_policy(self, task_id: str) -> GeneralistPolicy:
        """A policy of one session; the demonstrations of a task are read when it is first asked for."""
        if task_id not in self._prompts:
            data = self._dataset.load_task("train", task_id)
            self._prompts[task_id] = PromptSource.of(data, self._acting, self._trained)
        agent_id = f"generalist-{self._checkpoint}"
        return GeneralistPolicy(self._model, self._tokenizers[task_id], self._prompts[task_id], self._acting, agent_id)

    def make_watch(self, task_id: str) -> Watch | None:
        """The task's action guard at the beginning of a session; None for a task that has none."""
        if task_id not in self.guards:
            return None
        return Watch(self.guards[task_id], action_box(self.tasks[task_id].action_spec["action"]), task_id)

    def facts(self) -> dict[str, Any]:
        """What answers."""
        return {
            "checkpoint": self._checkpoint,
            "parameters": num_parameters(self._model),
            "device": str(next(self._model.parameters()).device),
        }


class PolicyServer(LoopbackServer):
    """Serves until `shutdown`.

    Args:
      service: what it serves.
      config: how.
      token: required of every request; None for none, on this machine only.

    Raises:
      UserError: it cannot listen there.
    """

    def __init__(self, service: Service, config: ServeConfig, *, token: str | None = None) -> None:
        if token is None and not config.is_local:
            raise UserError(f"address {config.address}: other machines reach it, so a token is required")
        self.service, self.config, self.needs_token = service, config, token is not None
        self.sessions = Sessions(
            service.make_policy, service.make_watch, most=config.max_sessions, idle_seconds=config.idle_seconds
        )
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._close_late, name="late connections", daemon=True)
        super().__init__(_Handler, address=config.address, port=config.port, token=token)
        self._watch.start()

    @property
    def url(self) -> str:
        """Where it is."""
        address = self.config.address
        return f"http://{f'[{address}]' if ':' in address else address}:{self.server_port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for a connection, unless there are too many."""
        if len(self._connections) >= _MAX_CONNECTIONS:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def server_close(self) -> None:
        """Stops listening, and waits for the requests that are being answered, up to `request_seconds`."""
        super().server_close()  # a client that does not read its answer is still cut
        self._ended.set()
        if self._watch.ident is not None:
            self._watch.join()

    def _close_late(self) -> None:
        while not self._ended.wait(min(1.0, self.config.request_seconds / 4)):
            self.cut(before=time.monotonic() - self.config.request_seconds)
            self.sessions.close_idle()


class _Handler(LoopbackHandler):
    server: PolicyServer
    timeout = None  # the server closes what is late

    def do_GET(self) -> None:  # noqa: N802
        """Health and schema."""
        if not self._may_ask():
            return
        config, sessions = self.server.config, self.server.sessions
        if self.path == "/health":
            self._say(HTTPStatus.OK, {"status": "ok", "sessions": len(sessions), **self.server.service.facts()})
        elif self.path == "/schema":
            guards = self.server.service.guards
            tasks = {
                task_id: {
                    "observation": describe(task.observation_spec),
                    "action": describe(task.action_spec),
                    "max_body_bytes": most_bytes(task.observation_spec),
                    "guard": guards[task_id].to_json() if task_id in guards else None,
                }
                for task_id, task in self.server.service.tasks.items()
            }
            limits = {"sessions": config.max_sessions, "idle_seconds": config.idle_seconds,
                      "request_seconds": config.request_seconds}  # fmt: skip
            asks = self.server.service.asks_for_return
            schema = {"tasks": tasks, "encodings": _ENCODINGS, "limits": limits, "asks_for_return": asks}
            self._say(HTTPStatus.OK, schema)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such address; see GET /health and GET /schema")

    def do_POST(self) -> None:  # noqa: N802
        """Sessions."""
        if not self._may_ask():
            return
        try:
            match = _SESSION.fullmatch(self.path)
            if self.path == "/sessions":
                self._open(self._object(_MAX_OPENING_BYTES))
            elif match and match[2] == "act":
                self._act(match[1])
            elif match:
                self._object(_MAX_OPENING_BYTES)
                self._say(HTTPStatus.OK, {"closed": match[1], "steps": self.server.sessions.close(match[1])})
            else:
                self.close_connection = True
                self._refuse(HTTPStatus.NOT_FOUND, "there is no such address: /sessions, /sessions/ID/act or .../close")
        except BodyError as error:
            self._refuse(error.status, str(error))
        except NoSessionError as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))
        except StoppedError as error:
            self._refuse(HTTPStatus.CONFLICT, str(error))
        except BusyError as error:
            self._refuse(HTTPStatus.TOO_MANY_REQUESTS, str(error))
        except UserError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))

    def _open(self, given: Mapping[str, Any]) -> None:
        unknown = sorted(set(given) - {"task_id", "seed", "encoding"})
        if unknown:
            raise UserError(f"unknown fields {str(unknown)[:200]}; expected task_id, seed, encoding")
        task_id, seed, encoding = given.get("task_id"), given.get("seed", 0), given.get("encoding", "lists")
        if not isinstance(task_id, str) or task_id not in self.server.service.tasks:
            known = ", ".join(self.server.service.tasks)
            raise UserError(f"task_id: expected one of {known}, got {json.dumps(task_id)[:200]}")
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed <= MAX_SEED:
            raise UserError(f"seed: expected an integer from 0 to 2^63 - 1, got {json.dumps(seed)[:200]}")
        if encoding not in _ENCODINGS:
            raise UserError(f"encoding: expected lists or base64, got {json.dumps(encoding)[:200]}")
        session_id = self.server.sessions.open(task_id, seed=seed, encoding=encoding)
        self._say(HTTPStatus.CREATED, {"session": session_id, "idle_seconds": self.server.config.idle_seconds})

    def _act(self, session_id: str) -> None:
        try:
            session = self.server.sessions.get(session_id)
        except NoSessionError:
            self._object(_MAX_OPENING_BYTES)
            raise
        specs = self.server.service.tasks[session.task_id].observation_spec
        given = self._object(most_bytes(specs))
        if not {"observation"} <= set(given) <= {"observation", "reward"}:
            raise UserError(
                f"expected an object with the field observation, and reward if wanted, got {str(sorted(given))[:200]}"
            )
        observation, reward = read_observation(given["observation"], specs), read_reward(given.get("reward", 0.0))
        answer = self.server.sessions.act(session_id, observation, reward)
        body = {"action": write_action(answer.action, session.encoding), "step": answer.step}
        if answer.guard_events is not None:
            body["guard"] = {"stopped": answer.is_last, "events": answer.guard_events}
        self._say(HTTPStatus.OK, body)

    def _may_ask(self) -> bool:
        """Checks host, origin, token and the kind of body; else the answer is given."""
        kind = (self.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        refusal = None
        if self.server.config.is_local and not self.names_this_machine:
            refusal = HTTPStatus.FORBIDDEN, "this host is not served here"
        elif "Origin" in self.headers:
            refusal = HTTPStatus.FORBIDDEN, "pages of a browser are not served here"
        elif self.server.needs_token and not (scheme.lower() == "bearer" and self.server.admits(token.strip())):
            refusal = HTTPStatus.UNAUTHORIZED, "Authorization: expected 'Bearer' and the token that `serve` was given"
        elif self.command == "POST" and kind != "application/json":
            refusal = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Type: expected application/json"
        if refusal is not None:
            self.close_connection = True  # its body is not read
            self._refuse(*refusal)
        return refusal is None

    def _object(self, most: int) -> dict[str, Any]:
        body = self.read_body(most)
        if body is None:
            raise BodyError(HTTPStatus.REQUEST_TIMEOUT, "body: fewer bytes came than Content-Length says")
        if not body:
            return {}
        try:
            given = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise UserError(f"body: expected JSON, got something else ({str(error)[:200]})") from None
        if not isinstance(given, dict):
            raise UserError(f"body: expected a JSON object, got {type(given).__name__}")
        return given

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self._say(status, {"error": sentence})
        if self.close_connection:
            self.drain()

    def _say(self, status: HTTPStatus, answer: Mapping[str, Any]) -> None:
        extra = {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else {}
        self.reply(status, "application/json", json.dumps(answer, allow_nan=False).encode(), extra)
        self.server.answered(self.connection)
