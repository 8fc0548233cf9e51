"""Meta-World as a plain Gymnasium environment: a new goal from each seed, success as the reward."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from collectors.task import Controller


class SuccessTask(gymnasium.Wrapper):
    """What Gato calls a Meta-World task: reach success once, within 500 steps.

    `reset(seed=...)` draws the goal and the objects' places from the seed (Meta-World by itself ignores it); a reset
    without a seed draws the next ones. The reward is 1 at the step that first succeeds, which ends the episode, else 0.
    """

    def __init__(self, env: gymnasium.Env, *, upside_down: bool = False) -> None:
        super().__init__(env)
        self._upside_down = upside_down
        # Goals are drawn at each reset, from the environment's own generator, and are part of the observation.
        env._freeze_rand_vec = False  # type: ignore[attr-defined]
        env.seeded_rand_vec = True  # type: ignore[attr-defined]
        env._partially_observable = False  # type: ignore[attr-defined]
        env._set_task_called = True  # type: ignore[attr-defined]
        env.__dict__.pop("sawyer_observation_space", None)
        self.observation_space = env.sawyer_observation_space  # type: ignore[attr-defined]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """A new goal; the same one for the same seed."""
        if seed is not None:
            self.env.unwrapped.seed(seed)  # type: ignore[attr-defined]
        return self.env.reset(options=options)

    def step(self, action: Any) -> Any:
        """As the environment's, with success in place of the shaped reward, which `info` keeps."""
        observation, shaped_reward, _, truncated, info = self.env.step(action)
        success = bool(info["success"])
        info["shaped_reward"] = shaped_reward
        return observation, float(success), success, truncated and not success, info

    def render(self) -> Any:
        """As the environment's, the right way up."""
        frame: Any = self.env.render()
        return frame[::-1, ::-1] if self._upside_down else frame


# These cameras of Meta-World's scene hang upside down.
_UPSIDE_DOWN_CAMERAS = ("corner", "corner2", "corner3")


def make(env_id: str, *, render_mode: Any = None, **kwargs: Any) -> gymnasium.Env:
    """A Meta-World environment of that name. Never copy one: `copy.deepcopy` breaks it silently."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    # Said at every step of a policy whose gains exceed the bounds; `script` clips.
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
    env = ALL_V3_ENVIRONMENTS[env_id](render_mode=render_mode, **kwargs)
    return SuccessTask(env, upside_down=kwargs.get("camera_name") in _UPSIDE_DOWN_CAMERAS)


def script(env: gymnasium.Env, seed: int) -> Controller:
    """The policy that Meta-World ships for the task, clipped to the action's bounds."""
    from metaworld.policies import ENV_POLICY_MAP

    make_policy: Callable[[], Any] = ENV_POLICY_MAP[_name_of(env)]
    policy = make_policy()

    def controller(observation: Mapping[str, Any], last_action: Any) -> np.ndarray:
        return np.clip(policy.get_action(observation["observation"]), -1.0, 1.0).astype(np.float32)

    return controller


def _name_of(env: gymnasium.Env) -> str:
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    kind = type(env.unwrapped)
    return next(name for name, candidate in ALL_V3_ENVIRONMENTS.items() if candidate is kind)
