"""What stands between a policy and a robot: bounds on actions and on the robot's state, a rate limit, a stop, a log.

An action that is not finite or not in its space is not executed: the robot is told to hold still for one step and the
episode is truncated. An action that changes too fast is executed as far as the limit lets it. A robot that leaves its
place, moves too fast or pushes too hard is stopped: the episode is truncated after that step.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import math
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
        span = space.high - space.low
        self._low, self._high = space.low - _SLACK * span, space.high + _SLACK * span
        self._most = guard.max_change * span
        self._gauge: Gauge | None = None
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
        if "action" not in choice:
            return self._event(OUT_OF_SPACE, f"expected the field 'action', got {sorted(choice)}")
        action = np.asarray(choice["action"])
        if action.dtype.kind not in "biuf":
            return self._event(OUT_OF_SPACE, f"expected numbers, got {action.dtype}")
        if action.shape != self._space.shape:
            return self._event(OUT_OF_SPACE, f"shape {action.shape}, expected {self._space.shape}")
        if not np.isfinite(action).all():
            return self._event(NON_FINITE, f"{action.tolist()}")
        if (action < self._low).any() or (action > self._high).any():
            return self._event(OUT_OF_SPACE, f"{action.tolist()}")
        return False

    def limited(self, action: np.ndarray) -> np.ndarray:
        """The action, no further from the last one than the rate allows."""
        if self._last is not None:
            change = np.abs(action - self._last)
            if (change > self._most + _SLACK).any():
                self._event(RATE, f"a change of {change.max():.3g}")
                action = np.clip(action, self._last - self._most, self._last + self._most).astype(action.dtype)
        self._last = action
        return action

    def exceeded(self, env: gymnasium.Env) -> bool:
        """Whether the robot has left its bounds in the step that was just made."""
        model = env.unwrapped.model  # type: ignore[attr-defined]
        if self._gauge is None or self._gauge.model is not model:
            self._gauge = Gauge(model, self._guard.site)
        position, speed, force = self._gauge.read(env.unwrapped.data)  # type: ignore[attr-defined]
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


class Gauge:
    """Measures one place of a MuJoCo model.

    Args:
      model: of MuJoCo.
      site: name of the place.

    Raises:
      ValueError: the model has no such site.
    """

    def __init__(self, model: Any, site: str) -> None:
        import mujoco

        self.model = model
        self._site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, site)
        if self._site < 0:
            raise ValueError(f"the model has no site {site!r}")
        self._is_hand = np.isin(model.geom_bodyid, _hand(model, int(model.site_bodyid[self._site])))
        self._velocity, self._wrench = np.zeros(6), np.zeros(6)

    def read(self, data: Any) -> tuple[np.ndarray, float, float]:
        """Place (x, y, z) in metres, speed in m/s, and the force of the hand's hardest contact in newtons."""
        import mujoco

        mujoco.mj_objectVelocity(self.model, data, mujoco.mjtObj.mjOBJ_SITE, self._site, self._velocity, 0)
        hardest = 0.0
        if data.ncon:
            for contact in self._is_hand[data.contact.geom].any(axis=1).nonzero()[0]:
                mujoco.mj_contactForce(self.model, data, contact, self._wrench)
                hardest = max(hardest, math.hypot(*self._wrench[:3]))
        return data.site_xpos[self._site].copy(), math.hypot(*self._velocity[3:]), hardest


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
