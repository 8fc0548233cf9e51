"""A person plays: the episodes of a keyboard, in a window or in a browser, go to the store like any other's."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Collection
from typing import Any, Protocol

import numpy as np

from collectors import spaces
from collectors.keyboard import Keyboard, keyboard_for, waits
from collectors.pixels import draw
from collectors.rollout import EpisodeRecorder, reported_success, reset_quietly
from collectors.seeds import Purpose, episode_seeds
from collectors.task import Task
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.store import EpisodeStore

PLAYER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_POLL_SECONDS = 0.005
_FASTEST = 60.0


class Screen(Protocol):
    """Shows frames and knows which keys are held down."""

    def show(self, frame: np.ndarray, caption: str) -> None:
        """A new picture, uint8 [height, width, 3]."""

    def held(self) -> Collection[str]:
        """Names of the keys held down, of `keyboard.KEYS`."""

    def next_press(self) -> str | None:
        """The next key that was pressed, each press once, in order; None for none."""

    def forget(self) -> None:
        """Drops the presses that were not asked for yet."""

    @property
    def is_closed(self) -> bool:
        """Whether the player has gone."""


def play(
    task: Task,
    screen: Screen,
    on_episode: Callable[[Episode], object],
    *,
    player: str,
    num_episodes: int | None = None,
    seed: int = 0,
    first: int = 0,
    frames_per_second: float | None = None,
) -> int:
    """Lets a person play until they have gone; an episode that they leave is dropped.

    Each episode begins with a key: a world that runs by itself stands still until then, so that what is stored as a
    person's has been played by one.

    Args:
      task: that renders.
      screen: shows it and reads the keys.
      on_episode: called with each whole episode as it ends.
      player: goes into the agent_id.
      num_episodes: to play at most; None for no end.
      seed: picks the episodes' seeds, of `Purpose.COLLECT`.
      first: place of the first in their order; also its collection_index.
      frames_per_second: steps a second; None for the environment's own. Worlds that wait for the player have none.

    Returns:
      The number of episodes played to their end.

    Raises:
      UserError: a keyboard cannot do its actions, or it cannot be drawn here.
    """
    spec = task.spec()
    env = task.environment(render_mode="rgb_array")
    try:
        choose, legend = keyboard_for(env, family=task.family, task_id=task.task_id)
        see = spaces.flattener(env.observation_space, "observation")
        note = spaces.flattener(env.action_space, "action")
        rate = min(frames_per_second or env.metadata.get("render_fps") or 30.0, _FASTEST)
        recorder = EpisodeRecorder(spec.task_id, spec)
        metadata = EpisodeMetadata(
            agent_id=agent_id(task, player),
            environment_config=task.make_env.config() if task.make_env else {},
        )
        played = 0
        while not screen.is_closed and (num_episodes is None or played < num_episodes):
            (episode_seed,) = episode_seeds(Purpose.COLLECT, seed=seed, count=1, first=first + played)
            observation, _ = reset_quietly(env, episode_seed)
            recorder.begin(see(observation))
            screen.forget()
            total = 0.0
            while not recorder.is_over and not screen.is_closed:
                stands_still = waits(task.family) or recorder.num_steps == 0
                begin = "press a key to begin, " if recorder.num_steps == 0 else ""
                caption = f"{task.task_id}, step {recorder.num_steps}, return {total:.2f}; {begin}{legend}"
                screen.show(draw(env, task.task_id), caption)
                action = _wait_for_a_key(screen, choose) if stands_still else _at_the_beat(screen, choose, rate)
                if action is None:
                    continue
                observation, reward, terminated, truncated, info = env.step(action)
                success = reported_success(info)
                recorder.step(note(action), see(observation), reward, terminated, truncated, success=success)
                total += float(reward)
            if recorder.is_over:
                screen.show(draw(env, task.task_id), f"{task.task_id}: over, return {total:.2f}")
                facts = dataclasses.replace(metadata, seed=episode_seed, collection_index=first + played)
                on_episode(recorder.finish(facts))
                played += 1
        return played
    finally:
        env.close()


def next_place(store: str, task: Task, player: str) -> int:
    """Where the player goes on: one after the last of their episodes that the store has."""
    opened = EpisodeStore.open(store, damaged="skip")
    if task.task_id not in opened.tasks:
        return 0
    table = opened.table(task.task_id).to_pydict()
    mine = zip(table["agent_id"], table["collection_index"], strict=True)
    return max((index + 1 for agent, index in mine if agent == agent_id(task, player)), default=0)


def agent_id(task: Task, player: str) -> str:
    """How the store names a player."""
    return f"person-{player}-{task.task_id}"


def _wait_for_a_key(screen: Screen, choose: Keyboard) -> Any:
    while not screen.is_closed:
        key = screen.next_press()
        if key in choose.keys:
            return choose((key,))
        time.sleep(_POLL_SECONDS)
    return None


def _at_the_beat(screen: Screen, choose: Keyboard, rate: float) -> Any:
    time.sleep(1.0 / rate)
    # A key that went down and up between two frames counts for one.
    short = set()
    while (key := screen.next_press()) is not None:
        short.add(key)
    return choose({*screen.held(), *short})
