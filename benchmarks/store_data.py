"""The sets of episodes that the stores are compared on, played by real simulators with random actions."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from collectors import headless

ATARI_GAMES = ("Pong", "Breakout", "SpaceInvaders", "Qbert", "MsPacman", "Seaquest")
MUJOCO_CAMERAS = ("HalfCheetah-v5", "Hopper-v5", "Ant-v5")
MINIGRIDS = ("MiniGrid-FourRooms-v0", "MiniGrid-DoorKey-8x8-v0", "MiniGrid-Dynamic-Obstacles-8x8-v0")


def missing(name: str) -> str:
    """What must be installed first for a set; "" where nothing is missing."""
    package = {"atari": "ale_py", "mujoco": "mujoco", "minigrid": "minigrid", "states": "mujoco"}[name]
    return "" if importlib.util.find_spec(package) else package


def make(name: str, folder: Path) -> str:
    """Writes a set for `store_peers.Data` and says what it is."""
    folder.mkdir(parents=True)
    headless.prepare()
    description, episodes = _SETS[name]()
    fields: dict[str, list[np.ndarray]] = {"observation": [], "action": [], "reward": []}
    for episode in episodes:
        for field, rows in zip(fields, episode, strict=True):
            fields[field].append(np.stack(rows))
    for field, parts in fields.items():
        np.save(folder / f"{field}.npy", np.concatenate(parts))
    lengths = [len(part) for part in fields["reward"]]
    (folder / "lengths.json").write_text(json.dumps(lengths))
    return f"{description}, {len(lengths)} episodes, {sum(lengths)} steps"


Rows = tuple[list[np.ndarray], list[np.ndarray], list[np.float64]]


def _play(
    environment: gymnasium.Env[Any, Any], seed: int, limit: int, see: Callable[[Any], np.ndarray], sticky: float = 0.0
) -> Rows:
    """One episode of at most `limit` steps; `sticky`: how often an action is repeated."""
    observation, _ = environment.reset(seed=seed)
    environment.action_space.seed(seed)
    chance = np.random.default_rng(seed)
    observations, actions, rewards = [see(observation)], [], []
    action = environment.action_space.sample()
    for _ in range(limit):
        if chance.random() >= sticky:
            action = environment.action_space.sample()
        observation, reward, terminated, truncated, _ = environment.step(action)
        observations.append(see(observation))
        actions.append(np.asarray(action))
        rewards.append(np.float64(reward))
        if terminated or truncated:
            break
    return observations, actions, rewards


def _atari() -> tuple[str, Iterator[Rows]]:
    import ale_py

    gymnasium.register_envs(ale_py)

    def episodes() -> Iterator[Rows]:
        for game in ATARI_GAMES:
            environment = gymnasium.make(f"ALE/{game}-v5", obs_type="rgb", full_action_space=True)
            for seed in range(2):
                yield _play(environment, seed, 600, np.asarray, sticky=0.5)
            environment.close()

    return f"Atari RGB 210x160 ({', '.join(ATARI_GAMES)})", episodes()


def _mujoco() -> tuple[str, Iterator[Rows]]:
    def episodes() -> Iterator[Rows]:
        for task in MUJOCO_CAMERAS:
            environment = gymnasium.make(task, render_mode="rgb_array", width=128, height=128)
            for seed in range(2):
                observations, actions, rewards = _play(environment, seed, 150, lambda _: environment.render())  # type: ignore[return-value,arg-type] # noqa: B023
                if len(rewards) <= 40:
                    continue
                # The widths of the actions differ; a set has one.
                yield observations, [np.resize(action, 3).astype(np.float32) for action in actions], rewards
            environment.close()

    return f"MuJoCo camera 128x128 ({', '.join(MUJOCO_CAMERAS)})", episodes()


def _minigrid() -> tuple[str, Iterator[Rows]]:
    from minigrid.wrappers import RGBImgObsWrapper

    def episodes() -> Iterator[Rows]:
        for task in MINIGRIDS:
            environment = RGBImgObsWrapper(gymnasium.make(task), tile_size=8)

            def see(observation: Any) -> np.ndarray:
                image = observation["image"]
                seen = np.zeros((152, 152, 3), np.uint8)
                seen[: image.shape[0], : image.shape[1]] = image
                return seen

            for seed in range(4):
                rows = _play(environment, seed, 100, see)
                if len(rows[2]) > 40:
                    yield rows

    return f"MiniGrid RGB 152x152 ({', '.join(MINIGRIDS)})", episodes()


def _states() -> tuple[str, Iterator[Rows]]:
    def episodes() -> Iterator[Rows]:
        environment = gymnasium.make("HalfCheetah-v5")
        for seed in range(400):
            yield _play(environment, seed, 1_000, lambda seen: np.asarray(seen, np.float32))

    return "HalfCheetah-v5: 17 + 6 float32 and a float64 reward, 100 bytes a step", episodes()


_SETS = {"atari": _atari, "mujoco": _mujoco, "minigrid": _minigrid, "states": _states}
