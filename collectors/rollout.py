"""The one loop that steps environments (stable-baselines3's own training apart), and what a policy is to it."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from collectors import spaces
from collectors.action_guard import ActionGuard, Watch
from collectors.pixels import draw
from collectors.task import Disturbance, Task
from episode_store.episode import EXPLORATORY, Episode, EpisodeMetadata
from episode_store.errors import EpisodeError, UserError
from episode_store.spec import Modality
from episode_store.task import TaskSpec

if TYPE_CHECKING:
    import gymnasium


# Longest side of a recorded frame in pixels.
MAX_FRAME_SIDE = 320

# Where environments say in a step's info whether the task is solved: Meta-World and robosuite, Gymnasium-Robotics.
SUCCESS_KEYS = ("success", "is_success")


class Policy(Protocol):
    """Acts in several episodes at once, one a slot.

    A policy may also have a method `acted(slot, action)`: it is told the action that was executed, in the
    environment's own form, which under a `Disturbance` is not always the one it chose. And a method
    `rewarded(slot, reward)`: it is told what each step earned.
    """

    agent_id: str

    def begin_episode(self, slot: int, env: gymnasium.Env, seed: int) -> None:
        """A new episode starts in `slot`; `env` has just been reset with `seed`."""

    def act(self, slots: Sequence[int], observations: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """One action (fields of the task's action_spec) for each of `slots`, from its observation's fields."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FilmedEpisode(Episode):
    """An episode with its pictures, which are never stored: frames uint8 [T + 1, height, width, 3],
    shrunk by a whole number so that no side exceeds `MAX_FRAME_SIDE`."""

    frames: np.ndarray


def rollout(
    task: Task,
    policy: Policy,
    *,
    seeds: Sequence[int],
    num_envs: int = 1,
    disturbance: Disturbance | None = None,
    frames: bool = False,
    indices: Sequence[int] | None = None,
    experiment_id: str = "",
    agent_hash: str = "",
    environments: Sequence[gymnasium.Env] | None = None,
) -> Iterator[Episode]:
    """Runs one whole episode for each seed and yields them as they end.

    Seeds are dealt to the slots beforehand (slot i gets seeds i, i + num_envs, ...), so that short episodes are not
    over-represented. All live slots are stepped in lockstep and `policy.act` sees all of them at once. With a policy
    that treats slots alike, what happens in an episode depends on its seed alone, not on `num_envs`.

    Args:
      task: to act in.
      policy: that acts.
      seeds: given to `env.reset`, one episode each.
      num_envs: environments stepped together.
      disturbance: None for none; see `Disturbance`. Disturbed steps are True in step_columns["exploratory"].
      frames: yield `FilmedEpisode`s.
      indices: `collection_index` of each seed's episode; 0, 1, ... when None.
      experiment_id: recorded in the metadata.
      agent_hash: recorded in the metadata.
      environments: to use instead of making `num_envs` new ones; they stay open.

    Raises:
      EpisodeError: a policy's action or an environment's observation breaks the task's spec.
      RenderingUnavailable: `frames` on a machine that cannot draw this task.
    """
    spec = task.spec()
    with contextlib.ExitStack() as stack:
        if environments is None:
            environments = []
            for _ in range(min(num_envs, len(seeds))):
                environments.append(task.environment(render_mode="rgb_array" if frames else None))
                stack.callback(environments[-1].close)
        metadata = EpisodeMetadata(
            agent_id=policy.agent_id,
            experiment_id=experiment_id,
            environment_config=task.make_env.config() if task.make_env else {},
            agent_hash=agent_hash,
        )
        numbered = list(zip(indices if indices is not None else range(len(seeds)), seeds, strict=True))
        slots = []
        for index, env in enumerate(environments):
            todo = collections.deque(numbered[index :: len(environments)])
            slots.append(_Slot(index, env, spec, metadata, todo, disturbance, frames, task.guard))
        yield from _lockstep(slots, policy)


def _lockstep(slots: Sequence[_Slot], policy: Policy) -> Iterator[Episode]:
    acted: Callable[[int, Any], None] | None = getattr(policy, "acted", None)
    rewarded: Callable[[int, float], None] | None = getattr(policy, "rewarded", None)
    live = [slot for slot in slots if slot.begin(policy)]
    while live:
        choices = policy.act([slot.index for slot in live], [slot.observation for slot in live])
        ended = False
        for slot, choice in zip(live, choices, strict=True):
            action = slot.step(choice)
            if acted is not None:
                acted(slot.index, action)
            if rewarded is not None:
                rewarded(slot.index, slot.recorder.last_reward)
            if slot.recorder.is_over:
                ended = True
                yield slot.finish()
        if ended:
            live = [slot for slot in live if not slot.recorder.is_over or slot.begin(policy)]


class EpisodeRecorder:
    """Collects the steps of one episode: `begin`, `step` until `is_over`, `finish`."""

    def __init__(self, task_id: str, spec: TaskSpec) -> None:
        self._task_id = task_id
        self._spec = spec
        self.is_over = False

    def begin(self, observation: Mapping[str, Any]) -> None:
        """Starts with the first observation's fields."""
        self._observations = [observation]
        self._actions: list[Mapping[str, Any]] = []
        self._rewards: list[float] = []
        self._exploratory: list[bool] = []
        self._terminated = self._truncated = self.is_over = False
        self._success: bool | None = None

    def step(
        self,
        action: Mapping[str, Any],
        observation: Mapping[str, Any],
        reward: Any,
        terminated: bool,
        truncated: bool,
        exploratory: bool = False,
        success: bool | None = None,
    ) -> None:
        """Adds an executed action and what came after it; the last step's `success` is the episode's."""
        self._actions.append(action)
        self._observations.append(observation)
        self._rewards.append(float(reward))
        self._exploratory.append(exploratory)
        self._terminated, self._truncated = bool(terminated), bool(truncated)
        self._success = success
        self.is_over = self._terminated or self._truncated

    @property
    def num_steps(self) -> int:
        """Steps so far."""
        return len(self._rewards)

    @property
    def last_reward(self) -> float:
        """Of the newest step."""
        return self._rewards[-1]

    def finish(self, metadata: EpisodeMetadata) -> Episode:
        """The whole episode."""
        if self._success is not None:
            metadata = dataclasses.replace(metadata, success=self._success)
        return Episode(
            task_id=self._task_id,
            observations=_stack(self._observations, self._spec.observation_spec),
            actions=_stack(self._actions, self._spec.action_spec),
            rewards=np.array(self._rewards, np.float64),
            terminated=self._terminated,
            truncated=self._truncated,
            step_columns={EXPLORATORY: np.array(self._exploratory, bool)},
            metadata=metadata,
        )


def reported_success(info: Mapping[str, Any]) -> bool | None:
    """Whether an environment says in a step's info that the task is solved; None where it does not tell."""
    return next((bool(info[key]) for key in SUCCESS_KEYS if key in info), None)


def _stack(steps: Sequence[Mapping[str, Any]], specs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: [step[key] for step in steps]
        if spec.modality == Modality.TEXT
        else np.stack([step[key] for step in steps]).astype(spec.dtype, copy=False)
        for key, spec in specs.items()
    }


class _Slot:
    """One environment and the episodes it still has to run."""

    def __init__(
        self,
        index: int,
        env: gymnasium.Env,
        spec: TaskSpec,
        metadata: EpisodeMetadata,
        todo: collections.deque[tuple[int, int]],
        disturbance: Disturbance | None,
        frames: bool,
        guard: ActionGuard | None,
    ) -> None:
        self.index = index
        self.env = env
        self._metadata = metadata
        self._todo = todo
        self._disturbance = disturbance
        self._filming = frames
        self._watch = Watch(guard, env.action_space, spec.task_id) if guard is not None else None
        self._flatten_observation = spaces.flattener(env.observation_space, "observation")
        self._flatten_action = spaces.flattener(env.action_space, "action")
        self._unflatten_action = spaces.unflattener(env.action_space, "action")
        self.recorder = EpisodeRecorder(spec.task_id, spec)
        self.observation: Mapping[str, Any] = {}

    def begin(self, policy: Policy) -> bool:
        """Resets with the next seed; False when none is left."""
        if not self._todo:
            return False
        self._place, self._seed = self._todo.popleft()
        value, _ = reset_quietly(self.env, self._seed)
        self.observation = self._flatten_observation(value)
        self.recorder.begin(self.observation)
        self._bursts = _Bursts(self._disturbance, self.env.action_space, self._seed) if self._disturbance else None
        self._frames = [self._frame()] if self._filming else []
        if self._watch is not None:
            self._watch.begin()
        policy.begin_episode(self.index, self.env, self._seed)
        return True

    def step(self, choice: Mapping[str, Any]) -> Any:
        """Executes the choice, or what a disturbance or the task's guard puts in its place; returns what it did."""
        stopped = self._watch is not None and self._watch.refuses(choice)
        # Neither a disturbance nor holding still is the agent's own choice.
        action, exploratory = (self._watch.hold_still, True) if stopped else self._chosen(choice)  # type: ignore[union-attr]
        if self._watch is not None and not stopped:
            action = self._watch.limited(action)
        value, reward, terminated, truncated, info = self.env.step(action)
        if self._watch is not None:
            stopped = self._watch.exceeded(self.env) or stopped
            truncated = truncated or (stopped and not terminated)
        self.observation = self._flatten_observation(value)
        fields = self._flatten_action(action)
        success = reported_success(info)
        self.recorder.step(fields, self.observation, reward, terminated, truncated, exploratory, success)
        if self._filming:
            self._frames.append(self._frame())
        return action

    def _chosen(self, choice: Mapping[str, Any]) -> tuple[Any, bool]:
        """The action to execute, and whether it is a disturbance."""
        try:
            action = self._unflatten_action(choice)
        except UserError as error:
            where = f"episode of {self.recorder._task_id} with seed {self._seed}: step {self.recorder.num_steps}"
            raise EpisodeError(f"{where}: {self._metadata.agent_id}: {error}") from None
        disturbed = self._bursts.disturb(action) if self._bursts is not None else None
        return (action, False) if disturbed is None else (disturbed, True)

    def finish(self) -> Episode:
        """The episode that has just ended."""
        metadata = dataclasses.replace(self._metadata, seed=self._seed, collection_index=self._place)
        if self._watch is not None:
            config = {**metadata.environment_config, **self._watch.to_json()}
            metadata = dataclasses.replace(metadata, environment_config=config)
        episode = self.recorder.finish(metadata)
        if not self._filming:
            return episode
        fields = {field.name: getattr(episode, field.name) for field in dataclasses.fields(Episode)}
        return FilmedEpisode(**fields, frames=np.stack(self._frames))

    def _frame(self) -> np.ndarray:
        return _shrunk(draw(self.env, self.recorder._task_id))


def _shrunk(picture: np.ndarray) -> np.ndarray:
    """At most `MAX_FRAME_SIDE` pixels a side: 500 frames of 600x400 would be 360 MB."""
    factor = -(-max(picture.shape[:2]) // MAX_FRAME_SIDE)
    if factor == 1:
        return np.array(picture, np.uint8)
    from PIL import Image

    return np.array(Image.fromarray(np.ascontiguousarray(picture)).reduce(factor), np.uint8)


def reset_quietly(env: gymnasium.Env, seed: int, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
    """`env.reset(seed=seed)` without what some environments print (MiniGrid's "Sampling rejected")."""
    with contextlib.redirect_stdout(io.StringIO()):
        return env.reset(seed=seed, options=options)


class _Bursts:
    """Decides, from the episode's seed alone, when an action is replaced and by what."""

    def __init__(self, disturbance: Disturbance, space: gymnasium.Space, seed: int) -> None:
        # The second word keeps this stream apart from the environment's own, which starts from the same seed.
        self._rng = np.random.default_rng((seed, 0xD157))
        self._disturbance = disturbance
        self._space = space
        self._active = bool(self._rng.random() < disturbance.episode_share)
        self._left = 0

    def disturb(self, action: Any) -> Any | None:
        """The action to execute instead of `action`, or None for no disturbance at this step."""
        if not self._active:
            return None
        if self._left == 0 and self._rng.random() < self._disturbance.burst_probability:
            self._left = int(self._rng.integers(1, self._disturbance.max_burst_steps + 1))
        if self._left == 0:
            return None
        self._left -= 1
        return self._replacement(action)

    def _replacement(self, action: Any) -> Any:
        import gymnasium

        if self._disturbance.actions:
            return np.int64(self._rng.choice(self._disturbance.actions))
        if self._disturbance.noise and isinstance(self._space, gymnasium.spaces.Box):
            low, high = self._space.low, self._space.high
            noise = self._rng.normal(size=action.shape) * (high - low) / 2 * self._disturbance.noise
            return np.clip(action + noise, low, high).astype(action.dtype)
        return random_value(self._space, self._rng)


def random_value(space: gymnasium.Space, rng: np.random.Generator) -> Any:
    """A uniformly random member of `space`, drawn with `rng`."""
    import gymnasium

    if isinstance(space, gymnasium.spaces.Discrete):
        return np.int64(space.start + rng.integers(space.n))
    if isinstance(space, gymnasium.spaces.Box) and space.is_bounded() and space.dtype in (np.float32, np.float64):
        return rng.uniform(space.low, space.high).astype(space.dtype)
    space.seed(int(rng.integers(2**31)))
    return space.sample()
