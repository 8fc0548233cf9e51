"""The sessions of `trainer serve`: each is one running episode, with a policy of its own on the one model."""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from collectors.action_guard import Watch
from episode_store.errors import UserError
from trainer.policy import GeneralistPolicy

MAX_SEED = 2**63 - 1


class NoSessionError(UserError):
    """There is no session of this id."""


class BusyError(UserError):
    """Too many sessions, or two calls of one session at once."""


class StoppedError(UserError):
    """The session was stopped by its action guard."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a session does.

    Attributes:
      action: field -> value.
      step: how many actions came before it.
      is_last: the guard has put holding still in the action's place, and lets no further one through.
      guard_events: kind -> number in the session, of the task's guard; None for a task without one.
    """

    action: Mapping[str, Any]
    step: int
    is_last: bool = False
    guard_events: Mapping[str, int] | None = None


@dataclasses.dataclass(kw_only=True)
class Session:
    """One running episode.

    Attributes:
      watch: of the task's action guard; None for a task without one.
      encoding: of its actions, "lists" or "base64".
      num_steps: actions that it was given.
      stopped: why the guard has stopped it; "" while it runs.
      used: when it was last asked, on the monotonic clock.
    """

    task_id: str
    policy: GeneralistPolicy
    watch: Watch | None
    encoding: str
    num_steps: int = 0
    stopped: str = ""
    used: float
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def guarded(self, action: Mapping[str, Any]) -> Answer:
        """The action that may be executed in place of the policy's choice, as in `collectors.rollout`."""
        watch = self.watch
        if watch is None:
            return Answer(action=action, step=self.num_steps)
        if watch.refuses(action):
            self.stopped = f"at step {self.num_steps}: {watch.events[-1]['kind']}: {watch.events[-1]['what']}"
            executed = watch.hold_still
        else:
            executed = watch.limited(action["action"])
        return Answer(
            action={"action": executed},
            step=self.num_steps,
            is_last=bool(self.stopped),
            guard_events=dict(watch.counts),
        )


class Sessions:
    """All sessions; safe to use from several threads.

    Args:
      make_policy: a policy for a task of this id.
      make_watch: what stands between it and the robot; None where nothing does.
      most: sessions at a time.
      idle_seconds: after which one that is not asked is closed.
    """

    def __init__(
        self,
        make_policy: Callable[[str], GeneralistPolicy],
        make_watch: Callable[[str], Watch | None],
        *,
        most: int,
        idle_seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most, self.idle_seconds = most, idle_seconds
        self._make_policy, self._make_watch, self._now = make_policy, make_watch, now
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        # The network's products use all threads that torch has: two at once would only be in each other's way.
        self._model = threading.Lock()

    def __len__(self) -> int:
        self.close_idle()
        return len(self._sessions)

    def open(self, task_id: str, *, seed: int, encoding: str) -> str:
        """Begins an episode and returns the session's id, which nobody can guess.

        Raises:
          BusyError: there are as many as there may be.
        """
        if len(self) >= self.most:
            raise self._too_many()
        session_id = secrets.token_urlsafe(18)
        policy = self._make_policy(task_id)
        policy.begin_episode(0, None, seed)
        watch = self._make_watch(task_id)
        session = Session(task_id=task_id, policy=policy, watch=watch, encoding=encoding, used=self._now())
        with self._lock:
            if len(self._sessions) >= self.most:
                raise self._too_many()
            self._sessions[session_id] = session
        return session_id

    def _too_many(self) -> BusyError:
        return BusyError(f"{self.most} sessions are open, the most there may be; close one")

    def get(self, session_id: str) -> Session:
        """Raises NoSessionError when there is none."""
        self.close_idle()
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None:
                raise NoSessionError(
                    f"there is no such session; one that is not asked for {self.idle_seconds:g} seconds is closed"
                )
            session.used = self._now()
            return session

    def act(self, session_id: str, observation: Mapping[str, Any], reward: float = 0.0) -> Answer:
        """The action for an observation that was checked.

        Args:
          session_id: of `open`.
          observation: of the environment now.
          reward: of the action before; matters where the network is conditioned on the return.

        Raises:
          NoSessionError: there is no such session.
          BusyError: it is acting already.
          StoppedError: its guard has stopped it.
        """
        session = self.get(session_id)
        if not session.lock.acquire(blocking=False):
            raise BusyError("this session is acting already: wait for its answer before the next observation")
        try:
            if session.stopped:
                raise StoppedError(f"the action guard stopped this session {session.stopped}; begin another")
            session.policy.rewarded(0, reward)
            with self._model:
                (action,) = session.policy.act([0], [observation])
            answer = session.guarded(action)
            session.num_steps += 1
            session.used = self._now()
            return answer
        finally:
            session.lock.release()

    def close(self, session_id: str) -> int:
        """Ends a session; returns the number of its steps."""
        session = self.get(session_id)
        with self._lock:
            self._sessions.pop(session_id, None)
        return session.num_steps

    def close_idle(self) -> None:
        """Ends those that nobody has asked for long."""
        oldest = self._now() - self.idle_seconds
        with self._lock:
            for session_id, session in list(self._sessions.items()):
                if session.used < oldest and not session.lock.locked():
                    del self._sessions[session_id]
