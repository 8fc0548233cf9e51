"""Specialists: agents trained on one task with stable-baselines3, recorded while they train.

With `small_cnn.py` the only module that imports stable-baselines3; `specialist_file.py` owns the file of an agent.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import hashlib
import itertools
import json
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import stable_baselines3
import torch
from gymnasium.spaces import Dict
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from collectors import spaces, specialist_file
from collectors.recording import RecordingEnv
from collectors.seeds import Purpose, episode_seeds
from collectors.small_cnn import SmallCombinedExtractor
from collectors.task import Sb3Expert, Task
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import UserError
from episode_store.task import task_file_name

if TYPE_CHECKING:
    import gymnasium

_SECONDS_BETWEEN_CHECKPOINTS = 5.0
# What an off-policy agent remembers may be gigabytes.
_SECONDS_BETWEEN_REPLAYS = 60.0
_LOOKS_PER_BUDGET = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a specialist's training has come."""

    num_steps: int
    num_episodes: int
    finished: bool
    seconds: float


def agent_id(task: Task, seed: int) -> str:
    """The name of a task's specialist."""
    return f"{_recipe(task).algorithm.lower()}-{task.task_id}-seed{seed}"


def agent_path(folder: str | Path, task: Task, seed: int) -> Path:
    """Its file below the output folder."""
    return Path(folder) / "agents" / f"{task_file_name(task.task_id)}-seed{seed}.safetensors"


def trained_seed(folder: str | Path, task: Task, seed: int) -> int:
    """With which seed the specialist below a folder was trained: `seed`, or another if there is just one of it."""
    path = agent_path(folder, task, seed)
    name = re.compile(re.escape(task_file_name(task.task_id)) + r"-seed(\d+)\.safetensors")
    found = [int(match[1]) for file in path.parent.glob("*") if (match := name.fullmatch(file.name))]
    return found[0] if len(found) == 1 else seed


def train_specialist(
    task: Task,
    sink: Callable[[Episode], object],
    *,
    seed: int = 0,
    path: Path,
    first_index: int = 0,
    first_seed: int = 0,
    max_steps: int | None = None,
    experiment_id: str = "",
    tensorboard: str | None = None,
    on_progress: Callable[[int, float], None] | None = None,
) -> Progress:
    """Trains the specialist of `task`, or goes on where the file at `path` stopped.

    A finished one is left alone, unless `max_steps` had cut it short and now allows more.

    Every whole episode of the training goes to `sink` as it ends, so `collection_index` follows the order of
    collection. After `kill -9` the training goes on from the last checkpoint, at most a few seconds back: pass the
    next free index and seed of the store as `first_index` and `first_seed`. Episodes that the lost seconds recorded
    stay: they are experience of this specialist, in the order in which it was made.

    Args:
      task: with an `Sb3Expert`.
      sink: called with each episode, for example `writer.add_episode`.
      seed: of everything; part of the agent's name.
      path: of the specialist's file, written again and again while it trains.
      first_index: collection_index of the first episode recorded by this call.
      first_seed: place of its seed in the order of `seeds.episode_seeds`.
      max_steps: trains fewer steps than the recipe says.
      experiment_id: recorded in the metadata.
      tensorboard: folder for TensorBoard's curves; None for none.
      on_progress: called now and then with (steps so far, mean return of the latest episodes).

    Raises:
      UserError: the task's expert is not trained, or `path` is another task's or recipe's specialist.
    """
    recipe = _recipe(task)
    # One thread a process: a second thread slows small networks down, and processes share the cores.
    torch.set_num_threads(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = specialist_file.load(path, _identity(task, recipe)) if path.exists() else None
    total_steps = min(recipe.steps, max_steps or recipe.steps)
    if saved is not None and saved.header["finished"]:
        cut_short = not saved.header.get("converged", True)
        if not cut_short or saved.header["num_timesteps"] >= total_steps:
            return _progress(saved.header)
    trained = saved.header["num_episodes"] if saved else 0
    recorder = _Recorder(task, sink, seed=seed, first_index=first_index, experiment_id=experiment_id)
    vec_env = recorder.vec_env(recipe, first_seed=first_seed)
    set_random_seed(seed + trained)
    model = _build(recipe, vec_env, seed=seed + trained, tensorboard=tensorboard)
    if saved is not None:
        specialist_file.restore(model, saved)
        specialist_file.restore_replay(path, model)
    checkpoint = _Checkpoint(
        model,
        path,
        task,
        recipe,
        seed=seed,
        episodes_before=trained,
        seconds_before=saved.header["seconds"] if saved else 0.0,
        recorder=recorder,
    )
    callback = _Watch(recipe, recorder, checkpoint, on_progress)
    try:
        remaining = total_steps - model.num_timesteps
        if remaining > 0:
            model.learn(remaining, callback=callback, reset_num_timesteps=saved is None, tb_log_name=path.stem)
        return _progress(checkpoint.write(finished=True, converged=callback.converged))
    finally:
        model.get_env().close()  # type: ignore[union-attr]


class SpecialistPolicy:
    """A trained specialist as a `rollout.Policy`: one forward pass for all slots.

    Its actions are the most likely ones, or drawn where its recipe says so: the same in an episode of the same seed.
    """

    def __init__(self, task: Task, model: BaseAlgorithm, *, agent_id: str, agent_hash: str) -> None:
        self.agent_id = agent_id
        self.agent_hash = agent_hash
        self.train_seconds, self.train_steps = 0.0, 0
        self._model = model
        self._normalize = model.get_vec_normalize_env()
        # What a recurrent agent remembers in each slot: None until its first step.
        self._is_recurrent = hasattr(model.policy, "lstm_actor")
        self._memory: dict[int, Any] = {}
        self._frame_stack, self._draws = _recipe(task).frame_stack, _recipe(task).draws
        self._rngs: dict[int, np.random.Generator] = {}
        self._frames: dict[int, collections.deque[dict[str, np.ndarray]]] = {}
        env = task.environment()
        try:
            self._to_value = spaces.unflattener(env.observation_space, "observation")
            self._to_fields = spaces.flattener(env.action_space, "action")
        finally:
            env.close()

    def begin_episode(self, slot: int, env: gymnasium.Env, seed: int) -> None:
        """What an agent remembers of the episode before is forgotten."""
        self._memory.pop(slot, None)
        self._frames.pop(slot, None)
        self._rngs[slot] = np.random.default_rng(seed)

    def act(self, slots: Sequence[int], observations: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The actions, clipped or scaled into the action space as in training."""
        values = [self._to_value(observation) for observation in observations]
        if self._frame_stack > 1:
            values = [self._stacked(slot, value) for slot, value in zip(slots, values, strict=True)]
        batch: Any
        if isinstance(values[0], dict):
            batch = {key: np.stack([value[key] for value in values]) for key in values[0]}
        else:
            batch = np.stack(values)
        if self._normalize is not None:
            batch = self._normalize.normalize_obs(batch)
        if self._is_recurrent:
            actions = self._predict_with_memory(slots, batch)
        elif self._draws:
            actions = self._drawn(slots, batch)
        else:
            actions, _ = self._model.predict(batch, deterministic=True)
        return [self._to_fields(action) for action in actions]

    def _stacked(self, slot: int, value: Any) -> Any:
        """The newest observation behind those before it, as `VecFrameStack` has them."""
        keyed = value if isinstance(value, dict) else {"": value}
        black = {key: np.zeros_like(one) for key, one in keyed.items()}
        frames = self._frames.setdefault(slot, collections.deque([black] * self._frame_stack, self._frame_stack))
        frames.append(keyed)
        stacked = {key: np.concatenate([frame[key] for frame in frames], axis=-1) for key in keyed}
        return stacked if isinstance(value, dict) else stacked[""]

    def _drawn(self, slots: Sequence[int], batch: Any) -> np.ndarray:
        policy: Any = self._model.policy
        policy.set_training_mode(False)
        with torch.no_grad():
            tensors, _ = policy.obs_to_tensor(batch)
            probabilities = policy.get_distribution(tensors).distribution.probs.double().cpu().numpy()
        rows = zip(slots, probabilities / probabilities.sum(axis=1, keepdims=True), strict=True)
        return np.array([self._rngs[slot].choice(len(row), p=row) for slot, row in rows])

    def _predict_with_memory(self, slots: Sequence[int], batch: Any) -> Any:
        policy: Any = self._model.policy
        shape = policy.lstm_hidden_state_shape
        fresh = np.zeros((shape[0], shape[2]), np.float32)
        memories = [self._memory.get(slot, (fresh, fresh)) for slot in slots]
        state = tuple(np.stack([memory[part] for memory in memories], axis=1) for part in (0, 1))
        starts = np.array([slot not in self._memory for slot in slots])
        actions, after = self._model.predict(batch, state=state, episode_start=starts, deterministic=True)
        assert after is not None
        for row, slot in enumerate(slots):
            self._memory[slot] = (after[0][:, row], after[1][:, row])
        return actions


def load_specialist(task: Task, path: Path) -> SpecialistPolicy:
    """The specialist saved at `path`.

    Raises:
      UserError: there is none, it is another task's or recipe's, or its training is not finished.
    """
    if not path.exists():
        raise UserError(
            f"no specialist of {task.task_id} at {path}: run `collectors train --tasks {task.task_id}` with the same "
            "--output and --seed first"
        )
    torch.set_num_threads(1)
    recipe = _recipe(task)
    saved = specialist_file.load(path, _identity(task, recipe))
    if not saved.header["finished"]:
        raise UserError(f"the specialist at {path} is still in training: run `collectors train` again to finish it")
    model = _build(_to_act(recipe), _as_seen(DummyVecEnv([task.environment]), recipe, training=False), seed=0)
    specialist_file.restore(model, saved)
    digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    policy = SpecialistPolicy(task, model, agent_id=agent_id(task, saved.header["seed"]), agent_hash=digest)
    policy.train_seconds, policy.train_steps = saved.header["seconds"], saved.header["num_timesteps"]
    return policy


def _to_act(recipe: Sb3Expert) -> Sb3Expert:
    """The recipe with room for no experience, which may be gigabytes."""
    small = {"buffer_size": 1} if "buffer_size" in recipe.hyperparameters else {}
    return dataclasses.replace(recipe, hyperparameters={**recipe.hyperparameters, **small})


def _recipe(task: Task) -> Sb3Expert:
    if not isinstance(task.expert, Sb3Expert):
        raise UserError(f"task {task.task_id} has no specialist to train; `collectors collect` records its expert")
    return task.expert


class _Recorder:
    """Makes the vectorised environment whose episodes go to `sink`, and remembers the latest returns."""

    def __init__(
        self, task: Task, sink: Callable[[Episode], object], *, seed: int, first_index: int, experiment_id: str
    ) -> None:
        self._task = task
        self._sink = sink
        self._seed = seed
        self._indices = itertools.count(first_index)
        self._experiment_id = experiment_id
        self.num_episodes = 0
        self.returns: collections.deque[float] = collections.deque(maxlen=_recipe(task).stop_window)

    def vec_env(self, recipe: Sb3Expert, *, first_seed: int) -> VecEnv:
        task = self._task
        seeds = _endless_seeds(self._seed, first_seed)
        metadata = EpisodeMetadata(
            agent_id=agent_id(task, self._seed),
            experiment_id=self._experiment_id,
            environment_config=task.make_env.config() if task.make_env else {},
        )

        def make() -> gymnasium.Env:
            return RecordingEnv(
                task.environment(),
                spec=task.spec(),
                seeds=seeds,
                next_index=lambda: next(self._indices),
                metadata=metadata,
                on_episode=self._on_episode,
            )

        return _as_seen(DummyVecEnv([make] * recipe.num_envs), recipe)

    def _on_episode(self, episode: Episode) -> None:
        self._sink(episode)
        self.num_episodes += 1
        self.returns.append(episode.episode_return)


def _endless_seeds(seed: int, first: int) -> Any:
    for place in itertools.count(first, 1024):
        yield from episode_seeds(Purpose.TRAIN, seed=seed, count=1024, first=place)


def _as_seen(vec_env: VecEnv, recipe: Sb3Expert, *, training: bool = True) -> VecEnv:
    """What the learner gets instead of the environments themselves."""
    if recipe.frame_stack > 1:
        vec_env = VecFrameStack(vec_env, recipe.frame_stack)
    if recipe.normalize:
        space, gamma = vec_env.observation_space, recipe.hyperparameters.get("gamma", 0.99)
        keys = [key for key, one in space.items() if not _is_picture(one)] if isinstance(space, Dict) else None
        norm_obs = not _is_picture(space) if keys is None else bool(keys)
        vec_env = VecNormalize(vec_env, training=training, norm_obs=norm_obs, norm_obs_keys=keys or None, gamma=gamma)
    return vec_env


def _is_picture(space: gymnasium.Space) -> bool:
    return len(space.shape or ()) == 3


def _build(recipe: Sb3Expert, vec_env: VecEnv, *, seed: int, tensorboard: str | None = None) -> BaseAlgorithm:
    # A copy: SB3 writes into policy_kwargs, and the recipe is shared.
    hyperparameters = {key: _schedule(value) for key, value in copy.deepcopy(dict(recipe.hyperparameters)).items()}
    policy = hyperparameters.pop("policy", None) or _default_policy(recipe.algorithm, vec_env.observation_space)
    if hyperparameters.get("replay_buffer_class") == "HerReplayBuffer":
        hyperparameters["replay_buffer_class"] = HerReplayBuffer
    if hyperparameters.get("policy_kwargs", {}).get("features_extractor_class") == "SmallCombinedExtractor":
        hyperparameters["policy_kwargs"]["features_extractor_class"] = SmallCombinedExtractor
    if vec_env.num_envs < recipe.num_envs:
        # Loaded to act in one environment, where SB3 would warn that batches do not fit.
        warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
    space = vec_env.observation_space
    pictures = map(_is_picture, space.values() if isinstance(space, Dict) else [space])
    device = "auto" if any(pictures) else "cpu"
    return _algorithm(recipe.algorithm)(
        policy, vec_env, seed=seed, device=device, verbose=0, tensorboard_log=tensorboard, **hyperparameters
    )


def _algorithm(name: str) -> type[BaseAlgorithm]:
    if hasattr(stable_baselines3, name):
        return getattr(stable_baselines3, name)
    import sb3_contrib

    return getattr(sb3_contrib, name)


def _default_policy(algorithm: str, space: gymnasium.Space) -> str:
    kind = "Mlp"
    if isinstance(space, Dict):
        kind = "MultiInput"
    elif _is_picture(space):
        kind = "Cnn"
    return f"{kind}{'Lstm' * (algorithm == 'RecurrentPPO')}Policy"


def _schedule(value: Any) -> Any:
    """{"linear": x} becomes SB3's schedule from x to 0; everything else stays."""
    if isinstance(value, Mapping) and set(value) == {"linear"}:
        start = float(value["linear"])
        return lambda progress_remaining: progress_remaining * start
    return value


class _Watch(BaseCallback):
    """A checkpoint now and then, and the end when the return is good or stable: `converged`."""

    def __init__(
        self,
        recipe: Sb3Expert,
        recorder: _Recorder,
        checkpoint: _Checkpoint,
        on_progress: Callable[[int, float], None] | None,
    ) -> None:
        super().__init__()
        self._recipe = recipe
        self._recorder = recorder
        self._checkpoint = checkpoint
        self._on_progress = on_progress
        self._best = -np.inf
        self._best_steps = 0
        self._next_look = 0
        self.converged = False

    def _on_step(self) -> bool:
        # On-policy algorithms update between rollouts, off-policy ones all the time: look by count of steps.
        if self.num_timesteps < self._next_look:
            return True
        self._next_look = self.num_timesteps + self._recipe.steps // _LOOKS_PER_BUDGET
        returns = self._recorder.returns
        mean = float(np.mean(returns)) if returns else float("nan")
        if returns:
            self.logger.record("rollout/episode_return", mean)
        if self._on_progress is not None:
            self._on_progress(self.num_timesteps, mean)
        self.converged = len(returns) >= self._recipe.stop_window and self._is_done(mean)
        return not self.converged

    def _on_rollout_end(self) -> None:
        self._checkpoint.write_now_and_then()

    def _is_done(self, mean: float) -> bool:
        if self._recipe.stop_at is not None and mean >= self._recipe.stop_at:
            return True
        if mean > self._best:
            self._best, self._best_steps = mean, self.num_timesteps
        patience = self._recipe.patience_steps
        return patience is not None and self.num_timesteps - self._best_steps > patience


class _Checkpoint:
    """Writes a specialist's file and, less often, what it remembers."""

    def __init__(
        self,
        model: BaseAlgorithm,
        path: Path,
        task: Task,
        recipe: Sb3Expert,
        *,
        seed: int,
        episodes_before: int,
        seconds_before: float,
        recorder: _Recorder,
    ) -> None:
        self._model = model
        self._path = path
        self._facts = {**_identity(task, recipe), "seed": seed}
        self._episodes_before = episodes_before
        self._seconds_before = seconds_before
        self._recorder = recorder
        self._started_at = self._written_at = self._replay_written_at = time.monotonic()

    def write_now_and_then(self) -> None:
        """Call it after each stretch of experience."""
        now = time.monotonic()
        if now - self._written_at < _SECONDS_BETWEEN_CHECKPOINTS:
            return
        if now - self._replay_written_at >= _SECONDS_BETWEEN_REPLAYS:
            specialist_file.save_replay(self._path, self._model)
            self._replay_written_at = time.monotonic()
        self.write(finished=False)

    def write(self, *, finished: bool, converged: bool = False) -> dict[str, Any]:
        """Returns the header that was written."""
        facts = {
            **self._facts,
            "finished": finished,
            "converged": converged,
            "num_episodes": self._episodes_before + self._recorder.num_episodes,
            "seconds": self._seconds_before + time.monotonic() - self._started_at,
        }
        header = specialist_file.save(self._path, self._model, facts)
        if finished:
            specialist_file.replay_path(self._path).unlink(missing_ok=True)
        self._written_at = time.monotonic()
        return header


def _identity(task: Task, recipe: Sb3Expert) -> dict[str, Any]:
    """What a file must say to be this task's specialist."""
    return {"format": specialist_file.FORMAT, "task_id": task.task_id, "recipe": _recipe_json(recipe)}


def _recipe_json(recipe: Sb3Expert) -> dict[str, Any]:
    """What it was trained by, as JSON gives it back, so that it compares equal; how it acts later is not part of it."""
    facts = dataclasses.asdict(recipe)
    del facts["draws"]
    return json.loads(json.dumps(facts, default=str))


def _progress(header: Mapping[str, Any]) -> Progress:
    return Progress(
        num_steps=header["num_timesteps"],
        num_episodes=header["num_episodes"],
        finished=header["finished"],
        seconds=header["seconds"],
    )
