"""Training and collecting into a store, so that the same call again goes on where the last one stopped."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import time
from collections.abc import Mapping
from typing import Literal

import numpy as np

from collectors import policies, registry
from collectors.action_guard import count_events
from collectors.jobs import Report
from collectors.rollout import Policy, rollout
from collectors.seeds import Purpose, episode_seeds, place_of, purpose_of
from collectors.task import CorpusSource, Disturbance, Sb3Expert, ScriptedExpert, Task
from episode_store.errors import UserError
from episode_store.store import EpisodeStore
from episode_store.writer import EpisodeWriter

DEFAULT_EPISODES = 100
_FIRST_BATCH_EPISODES = 16
_MIN_BATCH_EPISODES = 4
_MAX_GROWTH = 4
# Specialists act for all environments in one forward pass; scripts gain nothing from more than one.
_SPECIALIST_ENVS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectionJob:
    """What to bring into the store for one task.

    Attributes:
      task_id: of the task.
      store: folder of the store.
      output: folder below which `agents/` lies.
      train: train the specialist, if the task has one, and record its training.
      collect: record demonstrations.
      agent: "expert" or "random".
      steps: of demonstrations, at least; whole episodes.
      episodes: of demonstrations; exclusive with `steps`. With neither: a whole corpus, or 100 episodes.
      train_steps: at most this many steps of training.
      seed: of everything.
      disturb: with the task's disturbance; never for a random agent.
      tensorboard: folder for the curves of the training; "" for none.
    """

    task_id: str
    store: str
    output: str = ""
    train: bool = False
    collect: bool = True
    agent: Literal["expert", "random"] = "expert"
    steps: int | None = None
    episodes: int | None = None
    train_steps: int | None = None
    seed: int = 0
    disturb: bool = True
    tensorboard: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectionResult:
    """What the store has after a job, for one task and agent.

    Attributes:
      task_id, agent_id: whose episodes.
      train_episodes, train_steps: recorded while the specialist trained.
      episodes, steps: of demonstrations.
      mean_return, std_return: of the demonstrations (of the training's last tenth when there are none).
      new_episodes: that this job added.
      train_seconds, collect_seconds: that this job took.
      guard_events: of the task's action guard in the demonstrations that this job added: kind -> number.
    """

    task_id: str
    agent_id: str
    train_episodes: int
    train_steps: int
    episodes: int
    steps: int
    mean_return: float
    std_return: float
    new_episodes: int
    train_seconds: float
    collect_seconds: float
    guard_events: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def line(self) -> str:
        """For a person."""
        parts = []
        if self.train_episodes:
            parts.append(f"{self.train_episodes} episodes ({self.train_steps} steps) of training")
        if self.episodes:
            parts.append(f"{self.episodes} episodes ({self.steps} steps) of demonstrations")
        took = f"{self.train_seconds + self.collect_seconds:.1f} s" if self.new_episodes else "nothing to do"
        parts += [f"guard: {kind} {number} times" for kind, number in self.guard_events.items()]
        what = ", ".join(parts) or "no episodes"
        return f"{self.task_id}: {what}, return {self.mean_return:.2f} ± {self.std_return:.2f}; {took}"


def expected_work(job: CollectionJob) -> float:
    """Steps that a job will report, about: for the bar's total."""
    task = registry.get(job.task_id)
    work = 0.0
    if job.train and isinstance(task.expert, Sb3Expert):
        work += _train_budget(task, job)
    if job.collect:
        work += job.steps or (job.episodes or DEFAULT_EPISODES) * 50
    return work


def run(job: CollectionJob, report: Report) -> CollectionResult:
    """Runs a job; what the store has already is not made again.

    Raises:
      UserError: a task without an expert, a specialist that is not trained, a package that is missing, a store that
        cannot be used.
    """
    task = registry.get(job.task_id)
    spec = task.spec()
    train_seconds = collect_seconds = 0.0
    guard_events: Mapping[str, int] = {}
    with EpisodeWriter(job.store) as writer:
        new_episodes = -_count(job)
        writer.add_task(spec)
        if job.train and job.agent == "expert" and isinstance(task.expert, Sb3Expert):
            started = time.monotonic()
            _train(task, job, writer, report)
            train_seconds = time.monotonic() - started
        started = time.monotonic()
        if isinstance(task.expert, CorpusSource):
            agent_id = _collect_corpus(task.expert, job, writer, report)
        else:
            policy = _policy(task, job) if job.collect else None
            agent_id = policy.agent_id if policy else _specialist_id(task, job)
            if policy is not None:
                guard_events = _collect(task, policy, job, writer, report, num_envs=num_envs_for(task))
        collect_seconds = time.monotonic() - started
    new_episodes += _count(job)
    result = _result(
        job, agent_id, new_episodes=new_episodes, train_seconds=train_seconds, collect_seconds=collect_seconds
    )
    return dataclasses.replace(result, guard_events=guard_events)


def collect_with(policy: Policy, job: CollectionJob, report: Report, *, num_envs: int = 1) -> CollectionResult:
    """Records demonstrations by any policy, for example a checkpoint of the generalist; what the store has stays.

    Args:
      policy: that acts; its agent_id says whose episodes of the store count as done.
      job: its `agent` and `train` do not matter.
      report: of the steps.
      num_envs: environments stepped together.

    Raises:
      UserError: a package that is missing, a store that cannot be used.
    """
    task = registry.get(job.task_id)
    started = time.monotonic()
    with EpisodeWriter(job.store) as writer:
        new_episodes = -_count(job)
        writer.add_task(task.spec())
        guard_events = _collect(task, policy, job, writer, report, num_envs=num_envs)
    new_episodes += _count(job)
    seconds = time.monotonic() - started
    result = _result(job, policy.agent_id, new_episodes=new_episodes, train_seconds=0.0, collect_seconds=seconds)
    return dataclasses.replace(result, guard_events=guard_events)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rows:
    """The store's episodes of one agent on one task, in order of collection."""

    seeds: list[int | None]
    indices: np.ndarray
    steps: np.ndarray
    returns: np.ndarray

    @property
    def is_training(self) -> np.ndarray:
        return np.array([purpose_of(seed) == Purpose.TRAIN for seed in self.seeds], bool)


def _rows(job: CollectionJob, agent_id: str) -> _Rows:
    table = EpisodeStore.open(job.store, damaged="skip").table(job.task_id).to_pydict()
    mine = [row for row, agent in enumerate(table["agent_id"]) if agent == agent_id]
    return _Rows(
        seeds=[table["seed"][row] for row in mine],
        indices=np.array([table["collection_index"][row] for row in mine], np.int64),
        steps=np.array([table["num_steps"][row] for row in mine], np.int64),
        returns=np.array([table["episode_return"][row] for row in mine], np.float64),
    )


def _count(job: CollectionJob) -> int:
    store = EpisodeStore.open(job.store, damaged="skip")
    return store.table(job.task_id).num_rows if job.task_id in store.tasks else 0


def _specialist_id(task: Task, job: CollectionJob) -> str:
    from collectors import specialists

    return specialists.agent_id(task, job.seed)


def _train(task: Task, job: CollectionJob, writer: EpisodeWriter, report: Report) -> None:
    from collectors import specialists

    recorded = _rows(job, specialists.agent_id(task, job.seed))
    places = [
        place_of(seed, Purpose.TRAIN, seed=job.seed)
        for seed in recorded.seeds
        if seed is not None and purpose_of(seed) == Purpose.TRAIN
    ]
    budget = _train_budget(task, job)
    seen = 0

    def on_progress(num_steps: int, mean_return: float) -> None:
        nonlocal seen
        num_steps = min(num_steps, budget)
        report(num_steps - seen, f"training, return {mean_return:.1f}")
        seen = num_steps

    specialists.train_specialist(
        task,
        writer.add_episode,
        seed=job.seed,
        path=specialists.agent_path(job.output, task, job.seed),
        first_index=int(recorded.indices.max()) + 1 if len(recorded.indices) else 0,
        first_seed=max(places, default=-1) + 1,
        max_steps=job.train_steps,
        tensorboard=job.tensorboard or None,
        on_progress=on_progress,
    )
    # What an early stop saved, or an earlier run did.
    report(budget - seen, "trained")


def _train_budget(task: Task, job: CollectionJob) -> int:
    assert isinstance(task.expert, Sb3Expert)
    return min(task.expert.steps, job.train_steps or task.expert.steps)


def _policy(task: Task, job: CollectionJob) -> Policy:
    if job.agent == "random":
        return policies.random_policy(task)
    return expert_policy(task, output=job.output, seed=job.seed)


def expert_id(task: Task, *, output: str, seed: int) -> str:
    """The agent_id of a task's expert, as `expert_policy` finds it; "" where there is none."""
    match task.expert:
        case ScriptedExpert():
            return policies.scripted_policy(task).agent_id
        case Sb3Expert():
            from collectors import specialists

            return specialists.agent_id(task, specialists.trained_seed(output, task, seed))
    return ""


def expert_policy(task: Task, *, output: str, seed: int) -> Policy:
    """A task's script, or its specialist trained below `output`: with this seed, or the only one there is.

    Raises:
      UserError: nobody knows an expert of the task, or it is not trained yet.
    """
    if task.expert is None:
        raise UserError(f"task {task.task_id} has no expert yet; `--agent random` needs none")
    if isinstance(task.expert, Sb3Expert):
        from collectors import specialists

        path = specialists.agent_path(output, task, specialists.trained_seed(output, task, seed))
        return specialists.load_specialist(task, path)
    return policies.scripted_policy(task)


def num_envs_for(task: Task) -> int:
    """How many environments to step together for the task's expert."""
    return _SPECIALIST_ENVS if isinstance(task.expert, Sb3Expert) else 1


def _collect(
    task: Task, policy: Policy, job: CollectionJob, writer: EpisodeWriter, report: Report, *, num_envs: int
) -> Mapping[str, int]:
    """Brings the episodes that the store lacks; returns what the task's guard logged in them, kind -> number."""
    rows = _rows(job, policy.agent_id)
    training = rows.is_training
    first_index = int(rows.indices[training].max()) + 1 if training.any() else 0
    have: Mapping[int | None, int] = {
        seed: int(steps) for seed, steps, trained in zip(rows.seeds, rows.steps, training, strict=True) if not trained
    }
    disturbance: Disturbance | None = task.disturbance if job.disturb and job.agent == "expert" else None
    environments = [task.environment() for _ in range(num_envs)]
    guard_events: collections.Counter[str] = collections.Counter()
    try:
        lengths: list[int] = []
        while (count := _next_batch(job, lengths)) > 0:
            places = range(len(lengths), len(lengths) + count)
            seeds = episode_seeds(Purpose.COLLECT, seed=job.seed, count=count, first=len(lengths))
            batch = {seed: have[seed] for seed in seeds if seed in have}
            report(sum(batch.values()), "found in the store")
            missing = [
                (first_index + place, seed) for place, seed in zip(places, seeds, strict=True) if seed not in have
            ]
            for episode in rollout(
                task,
                policy,
                seeds=[seed for _, seed in missing],
                indices=[index for index, _ in missing],
                environments=environments[: len(missing)],
                disturbance=disturbance,
                agent_hash=getattr(policy, "agent_hash", ""),
            ):
                writer.add_episode(episode)
                guard_events.update(count_events([episode]))
                assert episode.metadata.seed is not None
                batch[episode.metadata.seed] = episode.num_steps
                report(episode.num_steps, "collecting")
            lengths += [batch[seed] for seed in seeds]
    finally:
        for env in environments:
            env.close()
    return dict(guard_events)


def _next_batch(job: CollectionJob, lengths: list[int]) -> int:
    """How many more episodes to run. Whole batches only, so short episodes are not favoured; depends on the seeds'
    episodes alone, so an interrupted collection ends with the same ones."""
    if job.steps is None:
        return (job.episodes or DEFAULT_EPISODES) - len(lengths)
    missing = job.steps - sum(lengths)
    if missing <= 0:
        return 0
    if not lengths:
        return _FIRST_BATCH_EPISODES
    # Not far more than were seen: the mean length of a few episodes may mislead.
    wanted = math.ceil(missing * len(lengths) / sum(lengths))
    return max(_MIN_BATCH_EPISODES, min(wanted, _MAX_GROWTH * len(lengths)))


def _collect_corpus(source: CorpusSource, job: CollectionJob, writer: EpisodeWriter, report: Report) -> str:
    agent_id, num_steps = "", 0
    for episode in itertools.islice(source.load(seed=job.seed), job.episodes):
        if job.steps is not None and num_steps >= job.steps:
            break
        writer.add_episode(episode)
        agent_id = episode.metadata.agent_id
        num_steps += episode.num_steps
        report(episode.num_steps, "reading")
    return agent_id


def _result(job: CollectionJob, agent_id: str, **facts: float) -> CollectionResult:
    rows = _rows(job, agent_id)
    training = rows.is_training
    returns = rows.returns[~training]
    if not len(returns):
        returns = rows.returns[-max(1, len(rows.returns) // 10) :]
    return CollectionResult(
        task_id=job.task_id,
        agent_id=agent_id,
        train_episodes=int(training.sum()),
        train_steps=int(rows.steps[training].sum()),
        episodes=int((~training).sum()),
        steps=int(rows.steps[~training].sum()),
        mean_return=float(returns.mean()) if len(returns) else 0.0,
        std_return=float(returns.std()) if len(returns) else 0.0,
        **facts,  # type: ignore[arg-type]
    )
