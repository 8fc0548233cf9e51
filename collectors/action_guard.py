"""What stands between a policy and a robot: bounds on actions and on the robot's state, a rate limit, a stop, a log.

An action that is not finite or not in its space is not executed: the robot is told to hold still for one step and the
episode is truncated. An action that changes too fast is executed as far as the limit lets it. A robot that leaves its
place, moves too fast or pushes too hard is stopped: the episode is truncated after that step.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from episode_store.episode import Episode

if TYPE_CHECKING:
    import gymnasium

# What is logged, as kinds of events. Those of `STOPS` end the episode.
NON_FINITE, OUT_OF_SPACE, RATE = "non-finite action", "action out of its space", "rate limited"
POSITION, SPEED, FORCE = "position", "speed", "force"
STOPS = (NON_FINITE, OUT_OF_SPACE, POSITION, SPEED, FORCE)

# Keys of an episode's environment_config.
GUARD, EVENTS = "action_guard", "action_guard_events"

_MAX_LOGGED = 20
# Rounding of float32 is no mistake.
_SLACK = 1e-5

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionGuard:
    """The limits of one robot.

    Attributes:
      site: of MuJoCo's model, at the end of the arm; its place and speed are watched.
      low, high: corners (x, y, z) in metres of the box that the site may be in.
      max_speed: of the site, in m/s.
      max_force: of the hardest contact of the hand, in newtons.
      max_change: of each element of an action from one step to the next, as a share of its range.
    """

    site: str
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    max_speed: float
    max_force: float
    max_change: float

    def to_json(self) -> dict[str, Any]:
        """For the metadata of an episode."""
        return dataclasses.asdict(self)


class Watch:
    """One guard on one robot; `begin` each episode, then for each step `refuses`, `limited` and `exceeded`.

    Without a simulator, as where a program drives a real robot, `exceeded` has nothing to measure and is left out.

    Args:
      guard: the limits.
      space: of actions: it has a shape, a dtype, `low` and `high`.
      name: of the task, for the log.

    Attributes:
      events: of the episode: {"step", "kind", "what"} each, the first 20 of a kind.
      counts: kind -> number of events in the episode.
    """

    def __init__(self, guard: ActionGuard, space: Any, name: str) -> None:
        self._guard = guard
        self._name = name
        self._space = space
        self.begin()

    def begin(self) -> None:
        """Right after a reset."""
        self.events: list[dict[str, Any]] = []
        self.counts: collections.Counter[str] = collections.Counter()
        self._step = -1
        self._last: np.ndarray | None = None

    @property
    def hold_still(self) -> np.ndarray:
        """The action that is executed in place of a refused one: the nearest to zero in the space."""
        return np.clip(np.zeros(self._space.shape, self._space.dtype), self._space.low, self._space.high)

    def refuses(self, choice: Mapping[str, Any]) -> bool:
        """Whether the policy's choice must not be executed; call it once a step, before all else."""
        self._step += 1
        action = np.asarray(choice["action"])
        if action.shape != self._space.shape:
            return self._event(OUT_OF_SPACE, f"shape {action.shape}, expected {self._space.shape}")
        if not np.isfinite(action).all():
            return self._event(NON_FINITE, f"{action.tolist()}")
        slack = _SLACK * (self._space.high - self._space.low)
        if (action < self._space.low - slack).any() or (action > self._space.high + slack).any():
            return self._event(OUT_OF_SPACE, f"{action.tolist()}")
        return False

    def limited(self, action: np.ndarray) -> np.ndarray:
        """The action, no further from the last one than the rate allows."""
        if self._last is not None:
            most = self._guard.max_change * (self._space.high - self._space.low)
            within = np.clip(action, self._last - most, self._last + most).astype(action.dtype)
            if not np.allclose(within, action, rtol=0.0, atol=_SLACK):
                self._event(RATE, f"a change of {np.abs(action - self._last).max():.3g}")
                action = within
        self._last = action
        return action

    def exceeded(self, env: gymnasium.Env) -> bool:
        """Whether the robot has left its bounds in the step that was just made."""
        position, speed, force = measure(env, self._guard.site)
        stop = False
        if (position < self._guard.low).any() or (position > self._guard.high).any():
            stop = self._event(POSITION, f"{np.round(position, 3).tolist()} m is outside of the box")
        if speed > self._guard.max_speed:
            stop = self._event(SPEED, f"{speed:.3g} m/s")
        if force > self._guard.max_force:
            stop = self._event(FORCE, f"{force:.3g} N")
        return stop

    def to_json(self) -> dict[str, Any]:
        """For the metadata of the episode: the limits, and the events if there were any."""
        logged = {EVENTS: {"counts": dict(self.counts), "first": list(self.events)}} if self.events else {}
        return {GUARD: self._guard.to_json()} | logged

    def _event(self, kind: str, what: str) -> bool:
        self.counts[kind] += 1
        if self.counts[kind] <= _MAX_LOGGED:
            self.events.append({"step": self._step, "kind": kind, "what": what})
        if kind in STOPS:
            _log.warning("%s: stopped at step %d: %s: %s", self._name, self._step, kind, what)
        return kind in STOPS


def measure(env: gymnasium.Env, site: str) -> tuple[np.ndarray, float, float]:
    """Place of a site (x, y, z) in metres, its speed in m/s, and the force of the hand's hardest contact in newtons."""
    import mujoco

    model, data = env.unwrapped.model, env.unwrapped.data  # type: ignore[attr-defined]
    number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, site)
    if number < 0:
        raise ValueError(f"the model has no site {site!r}")
    velocity = np.zeros(6)
    mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_SITE, number, velocity, 0)
    hand = _hand(model, int(model.site_bodyid[number]))
    wrench, hardest = np.zeros(6), 0.0
    touching = np.isin(model.geom_bodyid[data.contact.geom], hand).any(axis=1) if data.ncon else ()
    for contact in np.flatnonzero(touching):
        mujoco.mj_contactForce(model, data, contact, wrench)
        hardest = max(hardest, float(np.linalg.norm(wrench[:3])))
    return data.site_xpos[number].copy(), float(np.linalg.norm(velocity[3:])), hardest


def _hand(model: Any, body: int) -> list[int]:
    """The body that carries a site's body, and all that hangs on it: a gripper with its fingers."""
    hand = [int(model.body_parentid[body])]
    # Children come after their parents.
    for child in range(hand[0] + 1, model.nbody):
        if int(model.body_parentid[child]) in hand:
            hand.append(child)
    return hand


def count_events(episodes: Iterable[Episode]) -> dict[str, int]:
    """Kind -> events logged in the metadata of episodes."""
    counts: collections.Counter[str] = collections.Counter()
    for episode in episodes:
        counts.update(episode.metadata.environment_config.get(EVENTS, {}).get("counts", {}))
    return dict(counts)
