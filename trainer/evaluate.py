"""Rollouts of the generalist on control tasks, scored against their specialist and a random policy."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from collectors import registry, scores
from collectors.action_guard import count_events
from collectors.rollout import Policy, rollout
from collectors.scores import normalized_score
from collectors.seeds import Purpose, episode_seeds
from episode_store.command_line import progress
from episode_store.errors import UserError
from episode_store.files import write_json
from tokenization.episode_tokenizer import EpisodeTokenizer
from trainer import checkpoint, scores_file
from trainer.nearest_neighbour import NearestNeighbourPolicy
from trainer.policy import ActingConfig, GeneralistPolicy, PromptSource
from trainer.precision import choose_device
from trainer.shards import Dataset
from trainer.statistics import interquartile_interval, interquartile_mean, mean_interval

_MAKE_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """How one task went.

    Attributes:
      episode_returns: of the generalist, one a rollout.
      expert_return, random_return, nearest_neighbour_return: means over rollouts.
      normalized_score: 100 * (mean return - random) / (expert - random), as in the Gato paper.
      score_interval: 95% bootstrap interval of the same.
      episode_lengths: in steps.
      guard_events: of the task's action guard in the generalist's episodes: kind -> number.
    """

    task_id: str
    episode_returns: list[float]
    expert_return: float
    random_return: float
    nearest_neighbour_return: float | None
    normalized_score: float
    score_interval: tuple[float, float]
    episode_lengths: list[int]
    guard_events: dict[str, int] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """What a worker process needs to evaluate tasks.

    Attributes:
      checkpoint: of `run`, whose weights act.
      purpose, seed, episodes: which seeds the environments get, and how many a task.
      num_envs: environments stepped together, at most.
      threads: of torch in each process.
      agent_seed: of the specialists, for films.
      scores: file of `collectors score` with what specialists and a random policy reach; None: what the return filter
        of the shards saw.
    """

    run: Path
    checkpoint: Path
    shards: Path
    acting: ActingConfig
    purpose: Purpose
    seed: int
    episodes: int
    num_envs: int = 50
    threads: int = 1
    agent_seed: int = 0
    scores: Path | None = None

    @property
    def seeds(self) -> list[int]:
        """Of the environments, one a rollout."""
        return episode_seeds(self.purpose, seed=self.seed, count=self.episodes)

    def facts(self) -> dict[str, Any]:
        """All that the results depend on, as `scores.json` has it."""
        return {
            "format": scores_file.FORMAT,
            "purpose": self.purpose.name.lower(),
            "seed": self.seed,
            "episodes": self.episodes,
            "checkpoint": {
                "step": checkpoint.read_state(self.checkpoint)["step"],
                "weights": checkpoint.weights_hash(self.checkpoint),
            },
            "acting": dataclasses.asdict(self.acting),
            "shards": Dataset.open(self.shards).info["fingerprint"],
            "yardsticks": hashlib.sha256(self.scores.read_bytes()).hexdigest() if self.scores else None,
        }


def evaluate(job: EvaluationJob, task_ids: Sequence[str], *, partial: Path, workers: int = 1) -> list[EvaluationResult]:
    """Evaluates tasks in parallel processes.

    Each finished task is kept below the folder `partial`, apart from those of other checkpoints and seeds, and is not
    done again.
    """
    dataset = Dataset.open(job.shards)
    control = [task_id for task_id, task in sorted(dataset.tasks.items()) if not task.is_corpus]
    unknown = sorted(set(task_ids) - set(control))
    if unknown:
        raise UserError(f"{job.shards}: no control tasks {unknown} in these shards; there are {control}")
    partial = partial / scores_file.key(job.facts())
    partial.mkdir(parents=True, exist_ok=True)
    results: dict[str, EvaluationResult] = {}
    for task_id in task_ids:
        found = _read_partial(partial, task_id)
        if found is not None:
            results[task_id] = found
    todo = [task_id for task_id in task_ids if task_id not in results]
    with progress(description="evaluating", total=len(task_ids), unit="tasks") as bar:
        bar.update(len(results))
        for result in _run_all(evaluate_task, [(job, task_id) for task_id in todo], workers):
            write_json(_partial_file(partial, result.task_id), result.to_json())
            results[result.task_id] = result
            bar.set_postfix_str(f"{result.task_id} {result.normalized_score:.0f}")
            bar.update(1)
    return [results[task_id] for task_id in task_ids]


def _run_all(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], workers: int) -> Iterator[Any]:
    if workers == 1 or len(arguments) < 2:
        for one in arguments:
            yield function(*one)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(arguments)), mp_context=context) as pool:
        futures = [pool.submit(function, *one) for one in arguments]
        for future in concurrent.futures.as_completed(futures):
            yield future.result()


def _partial_file(folder: Path, task_id: str) -> Path:
    return folder / f"{task_id.replace('/', '--')}.json"


def _read_partial(folder: Path, task_id: str) -> EvaluationResult | None:
    try:
        return EvaluationResult(**json.loads(_partial_file(folder, task_id).read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # what is damaged is done again
        return None


def evaluate_task(job: EvaluationJob, task_id: str) -> EvaluationResult:
    """The generalist and the nearest neighbour on one task."""
    torch.set_num_threads(job.threads)
    dataset = Dataset.open(job.shards)
    data = dataset.load_task("train", task_id)
    generalist = generalist_policy(job.run, dataset, task_id, job.acting, job.checkpoint)
    task = registry.get(task_id)
    with contextlib.ExitStack() as stack:
        environments = _environments(task, min(job.num_envs, len(job.seeds)), stack)
        returns, lengths, guard_events = _rollouts(task, generalist, job.seeds, environments)
        neighbour, *_ = _rollouts(
            task, NearestNeighbourPolicy(data, _tokenizer(dataset, task_id)), job.seeds, environments
        )
    expert, random = _yardsticks(job, dataset, task_id)

    def score(value: float) -> float:
        return normalized_score(value, expert=expert, random=random)

    low, high = mean_interval(np.asarray(returns))
    return EvaluationResult(
        task_id=task_id,
        episode_returns=returns,
        expert_return=expert,
        random_return=random,
        nearest_neighbour_return=float(np.mean(neighbour)),
        normalized_score=score(float(np.mean(returns))),
        score_interval=(score(low), score(high)),
        episode_lengths=lengths,
        guard_events=guard_events,
    )


def summarize(results: Sequence[EvaluationResult]) -> dict[str, Any]:
    """Over all tasks: mean and lowest score, interquartile mean of the episodes' scores with its 95% interval."""
    if not results:
        return {}
    episodes = [
        np.array(
            [
                normalized_score(value, expert=result.expert_return, random=result.random_return)
                for value in result.episode_returns
            ]
        )
        for result in results
    ]
    values = [result.normalized_score for result in results]
    return {
        "num_tasks": len(results),
        "mean": float(np.mean(values)),
        "lowest": min(values),
        "tasks_at_half_of_the_specialist": sum(value >= 50 for value in values),
        "interquartile_mean": interquartile_mean(np.concatenate(episodes)),
        "interquartile_interval": interquartile_interval(episodes),
    }


def _yardsticks(job: EvaluationJob, dataset: Dataset, task_id: str) -> tuple[float, float]:
    """Expert and random return of a task."""
    if job.scores is None:
        facts: Mapping[str, Any] = dataset.info["tasks"][task_id]
        return float(facts["expert_return"]), float(facts["random_return"])
    score = scores.load(job.scores).get(task_id)
    if score is None or score.expert_return is None or score.random_return is None:
        raise UserError(f"{job.scores}: no expert and random return of {task_id}; run `collectors score` for it")
    return score.expert_return, score.random_return


def _tokenizer(dataset: Dataset, task_id: str) -> EpisodeTokenizer:
    return EpisodeTokenizer(dataset.tasks[task_id], dataset.text_tokenizer() if dataset.has_text_model else None)


def generalist_policy(
    run: Path, dataset: Dataset, task_id: str, acting: ActingConfig, source: Path | None = None
) -> GeneralistPolicy:
    """A checkpoint of a run, the newest by default, as a policy of one task."""
    trained = checkpoint.load_config(run).sampler
    acting.check(trained)
    prompts = PromptSource.of(dataset.load_task("train", task_id), acting, trained)
    source = source or checkpoint.latest(run)
    model = checkpoint.load_model(run, choose_device("auto"), source)
    agent_id = f"generalist-{source.name}"
    return GeneralistPolicy(model, _tokenizer(dataset, task_id), prompts, acting, agent_id)


def _environments(task: registry.Task, most: int, stack: contextlib.ExitStack) -> list[Any]:
    """Up to `most` environments, fewer where one takes long to make; what happens in them does not depend on it."""
    environments: list[Any] = []
    began = time.monotonic()
    while len(environments) < most and (len(environments) < 5 or time.monotonic() - began < _MAKE_SECONDS):
        environments.append(task.environment())
        stack.callback(environments[-1].close)
    return environments


def _rollouts(
    task: registry.Task, policy: Policy, seeds: Sequence[int], environments: Sequence[Any]
) -> tuple[list[float], list[int], dict[str, int]]:
    """Returns and lengths in the order of `seeds`, and what the task's guard logged."""
    episodes: dict[int | None, tuple[float, int]] = {}
    guard_events: collections.Counter[str] = collections.Counter()
    for episode in rollout(task, policy, seeds=seeds, environments=environments):
        episodes[episode.metadata.seed] = (episode.episode_return, episode.num_steps)
        guard_events.update(count_events([episode]))
    return [episodes[seed][0] for seed in seeds], [episodes[seed][1] for seed in seeds], dict(guard_events)


def film(job: EvaluationJob, task_id: str, folder: Path, agents: Path | None) -> None:
    """Films the generalist and, where it can be had, the task's specialist from the same first state."""
    from collectors.collection import expert_policy
    from trainer.videos import record_videos

    torch.set_num_threads(job.threads)
    task = registry.get(task_id)
    policies: dict[str, Policy] = {
        "generalist": generalist_policy(job.run, Dataset.open(job.shards), task_id, job.acting, job.checkpoint)
    }
    if isinstance(task.expert, registry.ScriptedExpert) or agents is not None:
        policies["specialist"] = expert_policy(task, output=str(agents or ""), seed=job.agent_seed)
    record_videos(task, policies, job.seeds[0], folder)
