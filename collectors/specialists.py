"""Specialists: agents trained on one task with stable-baselines3, recorded while they train.

The only module that imports stable-baselines3. A specialist is one `.safetensors` file: the tensors of the agent and
its optimizer, and a JSON header with its recipe and progress. Nothing is pickled.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import stable_baselines3
import torch
from safetensors import SafetensorError
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from collectors import spaces
from collectors.recording import RecordingEnv
from collectors.seeds import Purpose, episode_seeds
from collectors.task import Sb3Expert, Task
from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import UserError
from episode_store.files import write_bytes
from episode_store.task import task_file_name

if TYPE_CHECKING:
    import gymnasium

_FORMAT = "gato-specialist-v1"
_SECONDS_BETWEEN_CHECKPOINTS = 5.0
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
    on_progress: Callable[[int, float], None] | None = None,
) -> Progress:
    """Trains the specialist of `task`, or goes on where the file at `path` stopped; a finished one is left alone.

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
      on_progress: called now and then with (steps so far, mean return of the latest episodes).

    Raises:
      UserError: the task's expert is not trained, or `path` is another task's or recipe's specialist.
    """
    recipe = _recipe(task)
    # One thread a process: a second thread slows small networks down, and processes share the cores.
    torch.set_num_threads(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = _load(path, task) if path.exists() else None
    if saved is not None and saved.header["finished"]:
        return _progress(saved.header)
    total_steps = min(recipe.steps, max_steps or recipe.steps)
    trained = saved.header["num_episodes"] if saved else 0
    recorder = _Recorder(task, sink, seed=seed, first_index=first_index, experiment_id=experiment_id)
    vec_env = recorder.vec_env(recipe, first_seed=first_seed)
    set_random_seed(seed + trained)
    model = _build(recipe, vec_env, seed=seed + trained)
    if saved is not None:
        _restore(model, saved)
    checkpoint = _Checkpoint(model, path, task, recipe, seed=seed, episodes_before=trained, recorder=recorder)
    if saved is not None:
        checkpoint.seconds_before = saved.header["seconds"]
    callback = _Watch(recipe, recorder, checkpoint, on_progress)
    try:
        remaining = total_steps - model.num_timesteps
        if remaining > 0:
            model.learn(remaining, callback=callback, reset_num_timesteps=saved is None)
        return _progress(checkpoint.write(finished=True))
    finally:
        model.get_env().close()  # type: ignore[union-attr]


class SpecialistPolicy:
    """A trained specialist as a `rollout.Policy`: its most likely action, one forward pass for all slots."""

    def __init__(self, task: Task, model: BaseAlgorithm, *, agent_id: str, agent_hash: str) -> None:
        self.agent_id = agent_id
        self.agent_hash = agent_hash
        self._model = model
        self._normalize = model.get_vec_normalize_env()
        env = task.environment()
        try:
            self._to_value = spaces.unflattener(env.observation_space, "observation")
            self._to_fields = spaces.flattener(env.action_space, "action")
        finally:
            env.close()

    def begin_episode(self, slot: int, env: gymnasium.Env, seed: int) -> None:
        """Nothing: the agent has no memory."""

    def act(self, slots: Sequence[int], observations: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """The deterministic actions, clipped or scaled into the action space as in training."""
        values = [self._to_value(observation) for observation in observations]
        batch: Any
        if isinstance(values[0], dict):
            batch = {key: np.stack([value[key] for value in values]) for key in values[0]}
        else:
            batch = np.stack(values)
        if self._normalize is not None:
            batch = self._normalize.normalize_obs(batch)
        actions, _ = self._model.predict(batch, deterministic=True)
        return [self._to_fields(action) for action in actions]


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
    saved = _load(path, task)
    if not saved.header["finished"]:
        raise UserError(f"the specialist at {path} is still in training: run `collectors train` again to finish it")
    model = _build(_recipe(task), DummyVecEnv([task.environment]), seed=0)
    _restore(model, saved)
    model.get_env().close()  # type: ignore[union-attr]
    digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return SpecialistPolicy(task, model, agent_id=agent_id(task, saved.header["seed"]), agent_hash=digest)


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

        vec_env: VecEnv = DummyVecEnv([make] * recipe.num_envs)
        if recipe.normalize:
            vec_env = VecNormalize(vec_env, gamma=recipe.hyperparameters.get("gamma", 0.99))
        return vec_env

    def _on_episode(self, episode: Episode) -> None:
        self._sink(episode)
        self.num_episodes += 1
        self.returns.append(episode.episode_return)


def _endless_seeds(seed: int, first: int) -> Any:
    for place in itertools.count(first, 1024):
        yield from episode_seeds(Purpose.TRAIN, seed=seed, count=1024, first=place)


def _build(recipe: Sb3Expert, vec_env: VecEnv, *, seed: int) -> BaseAlgorithm:
    hyperparameters = {key: _schedule(value) for key, value in recipe.hyperparameters.items()}
    policy = hyperparameters.pop("policy", None) or _default_policy(vec_env.observation_space)
    if recipe.normalize and not isinstance(vec_env, VecNormalize):
        vec_env = VecNormalize(vec_env, training=False)
    if vec_env.num_envs < recipe.num_envs:
        # Loaded to act in one environment, where SB3 would warn that batches do not fit.
        warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
    device = "auto" if policy == "CnnPolicy" else "cpu"
    return _algorithm(recipe.algorithm)(policy, vec_env, seed=seed, device=device, verbose=0, **hyperparameters)


def _algorithm(name: str) -> type[BaseAlgorithm]:
    if hasattr(stable_baselines3, name):
        return getattr(stable_baselines3, name)
    import sb3_contrib

    return getattr(sb3_contrib, name)


def _default_policy(space: gymnasium.Space) -> str:
    import gymnasium

    if isinstance(space, gymnasium.spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if len(space.shape or ()) == 3 else "MlpPolicy"


def _schedule(value: Any) -> Any:
    """{"linear": x} becomes SB3's schedule from x to 0; everything else stays."""
    if isinstance(value, Mapping) and set(value) == {"linear"}:
        start = float(value["linear"])
        return lambda progress_remaining: progress_remaining * start
    return value


class _Watch(BaseCallback):
    """After each stretch of experience: a checkpoint now and then, and the end when the return is good or stable."""

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

    def _on_step(self) -> bool:
        # On-policy algorithms update between rollouts, off-policy ones all the time: look by count of steps.
        if self.num_timesteps < self._next_look:
            return True
        self._next_look = self.num_timesteps + self._recipe.steps // _LOOKS_PER_BUDGET
        returns = self._recorder.returns
        mean = float(np.mean(returns)) if returns else float("nan")
        if self._on_progress is not None:
            self._on_progress(self.num_timesteps, mean)
        return len(returns) < self._recipe.stop_window or not self._is_done(mean)

    def _on_rollout_end(self) -> None:
        if time.monotonic() - self._checkpoint.written_at >= _SECONDS_BETWEEN_CHECKPOINTS:
            self._checkpoint.write(finished=False)

    def _is_done(self, mean: float) -> bool:
        if self._recipe.stop_at is not None and mean >= self._recipe.stop_at:
            return True
        if mean > self._best:
            self._best, self._best_steps = mean, self.num_timesteps
        patience = self._recipe.patience_steps
        return patience is not None and self.num_timesteps - self._best_steps > patience


@dataclasses.dataclass(frozen=True)
class _Saved:
    header: dict[str, Any]
    tensors: dict[str, torch.Tensor]


class _Checkpoint:
    """Writes a specialist's file, whole or not at all."""

    def __init__(
        self,
        model: BaseAlgorithm,
        path: Path,
        task: Task,
        recipe: Sb3Expert,
        *,
        seed: int,
        episodes_before: int,
        recorder: _Recorder,
    ) -> None:
        self._model = model
        self._path = path
        self._facts = {"format": _FORMAT, "task_id": task.task_id, "recipe": _recipe_json(recipe), "seed": seed}
        self._episodes_before = episodes_before
        self._recorder = recorder
        self._started_at = self.written_at = time.monotonic()
        self.seconds_before = 0.0

    def write(self, *, finished: bool) -> dict[str, Any]:
        """Returns the header that was written."""
        tensors: dict[str, torch.Tensor] = {}
        parameters = _take_tensors(self._model.get_parameters(), "", tensors)
        normalize = self._model.get_vec_normalize_env()
        if normalize is not None:
            for name, statistics in (("observation", normalize.obs_rms), ("return", normalize.ret_rms)):
                for part in ("mean", "var", "count"):
                    values = np.asarray(getattr(statistics, part), np.float64)
                    tensors[f"normalize/{name}/{part}"] = torch.from_numpy(values.copy())
        header = {
            **self._facts,
            "finished": finished,
            "num_timesteps": self._model.num_timesteps,
            "num_updates": self._model._n_updates,
            "num_episodes": self._episodes_before + self._recorder.num_episodes,
            "seconds": self.seconds_before + time.monotonic() - self._started_at,
            "parameters": parameters,
        }
        write_bytes(self._path, safetensors.torch.save(tensors, {"specialist": json.dumps(header)}))
        self.written_at = time.monotonic()
        return header


def _load(path: Path, task: Task) -> _Saved:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("specialist", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is no specialist of this project, or damaged ({error}): delete it") from None
    recipe = _recipe(task)
    for name, expected in (("format", _FORMAT), ("task_id", task.task_id), ("recipe", _recipe_json(recipe))):
        if header.get(name) != expected:
            raise UserError(
                f"{path}: expected a specialist with {name} {expected!r}, got {header.get(name)!r}: delete it, or give "
                "another --output"
            )
    return _Saved(header, tensors)


def _restore(model: BaseAlgorithm, saved: _Saved) -> None:
    model.set_parameters(_put_tensors(saved.header["parameters"], saved.tensors))
    model.num_timesteps = saved.header["num_timesteps"]
    model._n_updates = saved.header["num_updates"]
    normalize = model.get_vec_normalize_env()
    if normalize is not None:
        for name, statistics in (("observation", normalize.obs_rms), ("return", normalize.ret_rms)):
            for part in ("mean", "var", "count"):
                values = saved.tensors[f"normalize/{name}/{part}"].numpy()
                setattr(statistics, part, values if values.ndim else float(values))


def _take_tensors(tree: Any, key: str, tensors: dict[str, torch.Tensor]) -> Any:
    """A JSON skeleton of a nested state; its tensors go to `tensors`. Keys that are numbers are marked."""
    if isinstance(tree, torch.Tensor):
        tensors[key] = tree.detach().cpu().contiguous()
        return {"$tensor": key}
    if isinstance(tree, Mapping):
        return {
            f"#{name}" if isinstance(name, int) else name: _take_tensors(value, f"{key}/{name}", tensors)
            for name, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [_take_tensors(value, f"{key}/{place}", tensors) for place, value in enumerate(tree)]
    return tree


def _put_tensors(skeleton: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(skeleton, dict):
        if set(skeleton) == {"$tensor"}:
            return tensors[skeleton["$tensor"]]
        return {
            int(name[1:]) if name.startswith("#") else name: _put_tensors(value, tensors)
            for name, value in skeleton.items()
        }
    if isinstance(skeleton, list):
        return [_put_tensors(value, tensors) for value in skeleton]
    return skeleton


def _recipe_json(recipe: Sb3Expert) -> dict[str, Any]:
    """As JSON gives it back, so that it compares equal."""
    return json.loads(json.dumps(dataclasses.asdict(recipe), default=str))


def _progress(header: Mapping[str, Any]) -> Progress:
    return Progress(
        num_steps=header["num_timesteps"],
        num_episodes=header["num_episodes"],
        finished=header["finished"],
        seconds=header["seconds"],
    )
