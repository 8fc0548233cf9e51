"""What a task is to a collector: how its environment is made, who is expert at it, and what may disturb the expert."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from collectors import headless, packages
from collectors.action_guard import ActionGuard
from episode_store.episode import Episode
from episode_store.errors import UserError
from episode_store.spec import Modality
from episode_store.task import TaskSpec, check_task_id

if TYPE_CHECKING:
    import gymnasium


# Extras whose environments run on MuJoCo, whose version is recorded too.
_ON_MUJOCO = ("dmc", "metaworld", "mujoco", "robosuite", "robotics")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disturbance:
    """Bursts of actions that are not the expert's, so that demonstrations show how to recover (DART, Laskey 2017).

    Attributes:
      episode_share: share of the episodes that are disturbed at all.
      burst_probability: chance that a burst begins at a step.
      max_burst_steps: a burst lasts 1 to this many steps.
      noise: 0 for a uniformly random action; else the standard deviation of noise added to the expert's own
        continuous action, as a share of half the range of the action.
      actions: discrete actions that a burst may take; empty for all.
    """

    episode_share: float = 0.5
    burst_probability: float = 0.05
    max_burst_steps: int = 3
    noise: float = 0.0
    actions: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """How an environment is made, as data.

    Attributes:
      env_id: in Gymnasium's registry, or the name that `maker` understands.
      kwargs: given to the maker.
      wrappers: applied in this order, innermost first.
      package: that brings the environment; its version is recorded.
      module: imported first, so that it registers its environments; "" for none.
      extra: of this project that installs the package.
      maker: called as maker(env_id, render_mode=..., **kwargs); None for `gymnasium.make`.
      render_kwargs: added to the kwargs when frames are asked for.
      pixels: (height, width) of the rendered picture that is the observation; None where the environment's own is.
    """

    env_id: str
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    wrappers: tuple[Callable[[gymnasium.Env], gymnasium.Env], ...] = ()
    package: str = "gymnasium"
    module: str = ""
    extra: str = "collect"
    maker: Callable[..., gymnasium.Env] | None = None
    render_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pixels: tuple[int, int] | None = None

    def __call__(self, *, render_mode: str | None = None) -> gymnasium.Env:
        """A new environment.

        Raises:
          UserError: naming the extra to install when the package is missing.
        """
        headless.prepare()
        if self.pixels:
            render_mode = "rgb_array"
        for module in ("gymnasium", self.module or "gymnasium"):
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                raise self._missing(error) from None
            except (ImportError, AttributeError, OSError) as error:
                # MuJoCo loads the driver that MUJOCO_GL names when it is imported.
                raise UserError(
                    f"environment {self.env_id}: {self.package} is installed but cannot be loaded "
                    f"({type(error).__name__}: {error}); MUJOCO_GL is {os.environ.get('MUJOCO_GL')!r}"
                ) from None
        import gymnasium

        kwargs = dict(self.kwargs)
        if render_mode is not None:
            kwargs |= self.render_kwargs
        try:
            maker = self.maker or functools.partial(gymnasium.make, disable_env_checker=True)
            env = maker(self.env_id, render_mode=render_mode, **kwargs)
        except gymnasium.error.DependencyNotInstalled as error:
            raise self._missing(error) from None
        for wrapper in self.wrappers:
            env = wrapper(env)
        if self.pixels:
            from collectors.pixels import Pixels

            env = Pixels(env, height=self.pixels[0], width=self.pixels[1])
        return env

    def _missing(self, error: Exception) -> UserError:
        what = packages.told(error, self.extra) or f"{error}: pip install 'generalist-agent[{self.extra}]'"
        return UserError(f"environment {self.env_id}: {what}")

    def to_json(self) -> dict[str, Any]:
        """How it is made, without versions: equal environments are equal JSON."""
        return {
            "id": self.env_id,
            "kwargs": dict(self.kwargs),
            "wrappers": [_describe(wrapper) for wrapper in self.wrappers],
            **({"pixels": list(self.pixels), "render_kwargs": dict(self.render_kwargs)} if self.pixels else {}),
        }

    def config(self) -> dict[str, Any]:
        """JSON-able facts for the metadata of every episode: `to_json`, and the versions of all that decides it."""
        packages = {"generalist-agent", "gymnasium", "numpy", self.package}
        if self.extra in _ON_MUJOCO:
            packages.add("mujoco")
        versions = {package: _version(package) for package in packages} | {"python": platform.python_version()}
        return {**self.to_json(), "versions": dict(sorted(versions.items()))}


def _describe(wrapper: Callable[..., Any]) -> str:
    if isinstance(wrapper, functools.partial):
        return f"{wrapper.func.__name__}({', '.join(f'{key}={value!r}' for key, value in wrapper.keywords.items())})"
    return wrapper.__name__


@functools.cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


# A controller picks the next action of one episode: controller(observation fields, action executed before or None)
# returns an action of the environment's own action space. A script makes one for each episode.
Controller = Callable[[Mapping[str, Any], Any], Any]
Script = Callable[["gymnasium.Env", int], Controller]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScriptedExpert:
    """An expert that is a program: a rule, a planner, a bot.

    Attributes:
      name: first part of its agent_id.
      script: called as script(env, seed) after each reset; returns the controller of the episode.
    """

    name: str
    script: Script


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sb3Expert:
    """A specialist trained with stable-baselines3.

    Attributes:
      algorithm: name of the class, for example "PPO".
      steps: of training at most.
      hyperparameters: keyword arguments of the algorithm; "policy_kwargs" included. A number may be written as
        {"linear": 0.001}: it falls linearly to 0 over the training. Classes are named: "HerReplayBuffer" as
        replay_buffer_class, "SmallCombinedExtractor" (`small_cnn.py`) as features_extractor_class.
      num_envs: environments stepped together.
      normalize: rewards, and observations that are not pictures, are scaled by running statistics.
      frame_stack: so many of the last observations are seen at once, one behind the other; zeros before the first.
      draws: acts by drawing from its probabilities of discrete actions, as in training, not by the most likely one; an
        agent that learned little stands still without chance.
      stop_at: training ends once the mean return of the last `stop_window` episodes is at least this; None: never.
      stop_window: see `stop_at`.
      patience_steps: training also ends once that mean has not risen for this many steps; None: never.
    """

    algorithm: str = "PPO"
    steps: int
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    num_envs: int = 8
    normalize: bool = False
    frame_stack: int = 1
    draws: bool = False
    stop_at: float | None = None
    stop_window: int = 40
    patience_steps: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusSource:
    """Demonstrations that are a data set: nobody acts, `load` yields the episodes.

    Attributes:
      load: called as load(seed=...); yields every episode once, in an order that the seed decides.
      spec: the task's spec; called without arguments.
    """

    load: Callable[..., Iterator[Episode]]
    spec: Callable[[], TaskSpec]


ExpertRecipe = ScriptedExpert | Sb3Expert | CorpusSource


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One entry of the catalogue.

    Attributes:
      task_id: Gymnasium's own id where it has no namespace of ours, else `namespace/name-vN`.
      family: of environments, for example "classic_control".
      make_env: makes the environment, make_env(render_mode="rgb_array") one that renders; None for a corpus.
      expert: how demonstrations are had; None where nobody knows yet.
      max_episode_steps: time limit; None where the environment has none.
      modalities: field -> modality, where the default of `spaces.py` is not the right one.
      disturbance: of demonstrations; None where a wrong action is never to be recovered from.
      tags: extra labels; "family:..." is added by itself.
      guard: of a robot's actions; None for none.
      variant_of: the task that this one only shows or rewards in another way; such a task is not counted.
      licence: of the environment or the data, as SPDX where there is one.
      description: one line.
    """

    task_id: str
    family: str
    make_env: Environment | None = None
    expert: ExpertRecipe | None = None
    max_episode_steps: int | None = None
    modalities: Mapping[str, Modality] = dataclasses.field(default_factory=dict)
    disturbance: Disturbance | None = dataclasses.field(default_factory=Disturbance)
    tags: tuple[str, ...] = ()
    guard: ActionGuard | None = None
    variant_of: str = ""
    licence: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        check_task_id(self.task_id)

    @property
    def is_corpus(self) -> bool:
        """Whether the episodes come from a data set and not from an environment."""
        return self.make_env is None

    def environment(self, *, render_mode: str | None = None) -> gymnasium.Env:
        """A new environment.

        Raises:
          UserError: for a corpus, and where a package is missing.
        """
        if self.make_env is None:
            raise UserError(f"task {self.task_id} is a corpus: it has no environment to act in")
        return self.make_env(render_mode=render_mode)

    def spec(self) -> TaskSpec:
        """The part of the task that travels with its data. Makes the environment once."""
        return _spec(self.task_id, self)


def seen(
    task: Task, *, height: int = 64, width: int = 64, expert: ExpertRecipe | None = None, **render_kwargs: Any
) -> Task:
    """The same task seen as pixels: `name-rgb-vN`, whose observation is the rendered picture (and a mission in words).

    Args:
      task: that renders.
      height, width: of the picture, multiples of 16, the side of a patch.
      expert: of the twin; only experts that ask the environment and not the observation can be the task's own.
      render_kwargs: of the environment, for example its own size of a frame.
    """
    assert task.make_env is not None
    assert height % 16 == width % 16 == 0
    name, _, version = task.task_id.rpartition("-v")
    make_env = dataclasses.replace(
        task.make_env, pixels=(height, width), render_kwargs={**task.make_env.render_kwargs, **render_kwargs}
    )
    return dataclasses.replace(
        task,
        task_id=f"{name}-rgb-v{version}",
        make_env=make_env,
        expert=expert,
        modalities={},
        tags=(*task.tags, "rgb"),
        variant_of=task.variant_of or task.task_id,
        description=f"{task.description} Seen in {height}x{width} pixels.",
    )


# By identity of the task: Task holds mappings, which do not hash.
_SPECS: dict[tuple[str, int], tuple[Task, TaskSpec]] = {}


def _spec(task_id: str, task: Task) -> TaskSpec:
    key = (task_id, id(task))
    if key not in _SPECS:
        _SPECS[key] = (task, _make_spec(task))
    return _SPECS[key][1]


def _make_spec(task: Task) -> TaskSpec:
    if isinstance(task.expert, CorpusSource):
        return task.expert.spec()
    from collectors import spaces

    env = task.environment()
    try:
        return TaskSpec(
            task_id=task.task_id,
            observation_spec=spaces.observation_spec(env.observation_space, task.modalities),
            action_spec=spaces.action_spec(env.action_space),
            max_episode_steps=task.max_episode_steps,
            env_spec_json=json.dumps(task.make_env.to_json(), sort_keys=True) if task.make_env else "{}",
            tags=(f"family:{task.family}", *task.tags),
            licence=task.licence,
        )
    finally:
        env.close()
