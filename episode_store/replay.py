"""Does an episode happen again? Compares a stored one, bit by bit, with what its environment does from the same seed.

The environment is not known here: a `Simulator` from above (extensions.py) acts the recorded actions again. It finds
the environment by task id in a registry of its own; nothing that an episode's metadata name is imported or called.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import CorruptionError, UserError
from episode_store.spec import FieldValues
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec


class CannotReplayError(UserError):
    """The episode cannot be simulated again here, whether or not it would match."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
    """What an environment hands out at once: after its reset, then after each action.

    Attributes:
      observation: field -> value of one step.
      reward, terminated, truncated: None, False and False after the reset.
    """

    observation: Mapping[str, Any]
    reward: float | None = None
    terminated: bool = False
    truncated: bool = False


class Simulator(Protocol):
    """Makes environments and acts in them again."""

    def check(self, task: TaskSpec, metadata: EpisodeMetadata) -> list[str]:
        """What may make a difference though the episode is sound, such as other versions of a library.

        Raises:
          CannotReplayError: no seed, no such task, another environment.
        """

    def run(self, task: TaskSpec, seed: int, actions: Mapping[str, FieldValues], num_steps: int) -> Iterator[Moment]:
        """Resets with the seed, then executes the actions: up to `num_steps` + 1 moments, fewer when it ends.

        Raises:
          UserError: an action is none of the environment's.
        """

    def close(self) -> None:
        """Closes the environments."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The first place where a replay is not what was stored.

    Attributes:
      step: row of the field: reward t and action t have the same, observation t + 1 comes after them.
      field: "observations/<field>", "rewards", "terminated" or "truncated".
      element: index of the first element that differs; () for a scalar.
      expected, got: stored and simulated value, as text.
    """

    step: int
    field: str
    element: tuple[int, ...]
    expected: str
    got: str

    def describe(self) -> str:
        """One line."""
        place = f"[{', '.join(map(str, self.element))}]" if self.element else ""
        return f"step {self.step}: {self.field}{place}: expected {self.expected}, got {self.got}"


Status = Literal["match", "differs", "damaged", "skipped"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayResult:
    """What became of one episode.

    Attributes:
      episode_id, task_id: of the episode.
      status: "skipped" when it cannot be replayed here, with the reason.
      num_steps: of the episode.
      reason: why not "match".
      warnings: what differs between then and now, such as versions.
      difference: where it differs first.
    """

    episode_id: str
    task_id: str
    status: Status
    num_steps: int
    reason: str = ""
    warnings: Sequence[str] = ()
    difference: Difference | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)


def replay(store: EpisodeStore, episode_ids: Iterable[str], simulator: Simulator) -> Iterator[ReplayResult]:
    """Replays episodes one after the other."""
    for episode_id in episode_ids:
        yield replay_episode(store, episode_id, simulator)


def replay_episode(store: EpisodeStore, episode_id: str, simulator: Simulator) -> ReplayResult:
    """Simulates one episode again and compares."""
    try:
        episode = store.read(episode_id)
    except CorruptionError as error:
        row = store.facts(episode_id)
        return ReplayResult(
            episode_id=episode_id,
            task_id=row["task_id"],
            num_steps=row["num_steps"],
            status="damaged",
            reason=str(error),
        )

    def result(status: Status, **facts: Any) -> ReplayResult:
        return ReplayResult(
            episode_id=episode_id, task_id=episode.task_id, num_steps=episode.num_steps, status=status, **facts
        )

    task = store.tasks[episode.task_id]
    try:
        warnings = simulator.check(task, episode.metadata)
    except CannotReplayError as error:
        return result("skipped", reason=str(error))
    if episode.metadata.seed is None:
        return result("skipped", reason="it has no seed")
    moments = simulator.run(task, episode.metadata.seed, episode.actions, episode.num_steps)
    try:
        difference = first_difference(episode, moments)
    except UserError as error:
        return result("differs", reason=f"its environment refuses what was recorded: {error}", warnings=warnings)
    if difference is None:
        return result("match", warnings=warnings)
    return result("differs", reason=difference.describe(), warnings=warnings, difference=difference)


def first_difference(episode: Episode, moments: Iterable[Moment]) -> Difference | None:
    """Where a simulation departs from the episode; None when every bit is equal.

    Args:
      episode: as stored.
      moments: as they happen; not asked for more once one differs.
    """
    num_steps = episode.num_steps
    count = 0
    for count, moment in enumerate(itertools.islice(moments, num_steps + 1), start=1):
        step = count - 2
        if step >= 0:
            last = count == num_steps + 1
            stored = {
                "rewards": episode.rewards[step],
                "terminated": last and episode.terminated,
                "truncated": last and episode.truncated,
            }
            simulated = {
                "rewards": np.float64(moment.reward),
                "terminated": moment.terminated,
                "truncated": moment.truncated,
            }
            for field, expected in stored.items():
                if _bits(expected) != _bits(simulated[field]):
                    shown = repr(_plain(expected)), repr(_plain(simulated[field]))
                    return Difference(step=step, field=field, element=(), expected=shown[0], got=shown[1])
        for key, values in episode.observations.items():
            difference = _compare(f"observations/{key}", count - 1, values[count - 1], moment.observation[key])
            if difference is not None:
                return difference
    if count < num_steps + 1:
        return Difference(
            step=count - 1, field="rewards", element=(), expected=f"{num_steps} steps", got=f"an end after {count - 1}"
        )
    return None


def _compare(field: str, step: int, expected: Any, got: Any) -> Difference | None:
    if isinstance(expected, str):
        if expected == got:
            return None
        return Difference(step=step, field=field, element=(), expected=repr(expected), got=repr(got))
    stored = np.asarray(expected)
    simulated = np.asarray(got).astype(stored.dtype, copy=False)
    if simulated.shape != stored.shape:
        shapes = f"shape {stored.shape}", f"shape {simulated.shape}"
        return Difference(step=step, field=field, element=(), expected=shapes[0], got=shapes[1])
    if stored.tobytes() == simulated.tobytes():
        return None
    width = stored.dtype.itemsize
    old = np.frombuffer(stored.tobytes(), np.uint8).reshape(-1, width)
    new = np.frombuffer(simulated.tobytes(), np.uint8).reshape(-1, width)
    place = int(np.flatnonzero((old != new).any(axis=1))[0])
    element = tuple(int(index) for index in np.unravel_index(place, stored.shape)) if stored.shape else ()
    values = repr(stored[element].item()), repr(simulated[element].item())
    return Difference(step=step, field=field, element=element, expected=values[0], got=values[1])


def _bits(value: Any) -> bytes:
    return np.asarray(value).tobytes()


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
