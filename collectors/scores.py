"""What random actions and the expert score on each task, measured and kept as data: the ends of every score's scale."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib.resources
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collectors import registry
from collectors.jobs import Report
from collectors.seeds import Purpose, episode_seeds
from collectors.task import Task
from episode_store.errors import UserError
from episode_store.files import write_json

if TYPE_CHECKING:
    from collectors.rollout import Policy

EPISODES = 50
_RESAMPLES = 10_000
_FORMAT_ERROR = "expected a JSON object of task id -> score, as `collectors score --output` writes it"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """Returns over `episodes` episodes each, undisturbed, on seeds that no demonstration has.

    Attributes:
      random_return, random_std: mean and standard deviation over episodes, of uniformly random actions.
      expert_return, expert_std: of the task's expert; None where it was not measured.
      expert: agent_id of the expert.
      gain_low: lower end of the 95% bootstrap interval of expert_return - random_return; see `bootstrap_gain_low`.
      expert_seconds, expert_steps: that the expert's episodes took; 0 where unknown.
      train_seconds, train_steps: that the expert's training took; 0 for a program.
      episodes: of each of the two.
      seed: that picked the episodes' seeds.
      versions: package -> version of the environment.
      date: day of the measurement.
    """

    random_return: float
    random_std: float
    expert_return: float | None = None
    expert_std: float | None = None
    expert: str = ""
    gain_low: float | None = None
    expert_seconds: float = 0.0
    expert_steps: int = 0
    train_seconds: float = 0.0
    train_steps: int = 0
    episodes: int
    seed: int
    versions: Mapping[str, str]
    date: str

    @property
    def is_expert(self) -> bool:
        """Whether the expert is better than random by a margin that the spread supports."""
        return self.gain_low is not None and self.gain_low > 0

    def normalized(self, episode_return: float) -> float:
        """See `normalized_score`."""
        return normalized_score(episode_return, expert=self.expert_return, random=self.random_return)


def normalized_score(episode_return: float, *, expert: float | None, random: float) -> float:
    """100 * (return - random) / (expert - random), the score of the Gato paper: 0 is random, 100 the specialist.

    Raises:
      UserError: the expert was not measured, or is no better than random.
    """
    if expert is None or not expert > random:
        raise UserError(f"no normalised score: expert return {expert} is not above random return {random}")
    return 100.0 * (episode_return - random) / (expert - random)


def bootstrap_gain_low(expert: np.ndarray, random: np.ndarray) -> float:
    """Lower end of the 95% percentile interval of the difference of means (Efron and Tibshirani 1993, section 13.3).

    Episodes of both are drawn again 10,000 times, independently; the draws are the same at every call.

    Args:
      expert: returns, [episodes].
      random: returns, [episodes].
    """
    rng = np.random.default_rng(0)
    gains = [
        returns[rng.integers(len(returns), size=(_RESAMPLES, len(returns)))].mean(axis=1)
        for returns in (expert, random)
    ]
    return float(np.quantile(gains[0] - gains[1], 0.025))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """One task to measure; `output` is the folder that holds `agents/`."""

    task_id: str
    output: str = ""
    episodes: int = EPISODES
    seed: int = 0
    expert: bool = True


def get(task_id: str) -> Score:
    """The score kept in the project.

    Raises:
      UserError: there is no such task, or it was not measured yet.
    """
    registry.get(task_id)
    try:
        return known()[task_id]
    except KeyError:
        raise UserError(f"task {task_id} was not scored yet: run `collectors score --tasks {task_id}`") from None


@functools.cache
def known() -> Mapping[str, Score]:
    """Every score kept in the project, by task id."""
    text = (importlib.resources.files("collectors") / "data" / "scores.json").read_text(encoding="utf-8")
    return _parse(text, "collectors/data/scores.json")


def load(path: str | Path) -> dict[str, Score]:
    """The scores in a file.

    Raises:
      UserError: it holds something else.
    """
    return dict(_parse(Path(path).read_text(encoding="utf-8"), str(path)))


def save(path: str | Path, scores: Mapping[str, Score]) -> None:
    """Writes a file of scores, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {task_id: dataclasses.asdict(scores[task_id]) for task_id in sorted(scores)})


def measure(job: ScoreJob, report: Report) -> tuple[str, Score]:
    """Runs the episodes of one task; returns its id and score.

    Raises:
      UserError: the task is a corpus, or its expert cannot be had.
    """
    # Reading the scores that are kept, as `collectors list` does, needs none of these.
    from collectors import policies
    from collectors.collection import expert_policy

    task = registry.get(job.task_id)
    if task.make_env is None:
        raise UserError(f"task {job.task_id} is a corpus: nobody acts in it, so it has no return to score")
    # First of all: one that cannot be had is told before anything is measured.
    policy = expert_policy(task, output=job.output, seed=job.seed) if job.expert and task.expert is not None else None
    random = _play(task, policies.random_policy(task), job, report, "random")
    facts: dict[str, Any] = {}
    if policy is not None:
        expert = _play(task, policy, job, report, "expert")
        facts = {
            "expert": policy.agent_id,
            "expert_return": round(float(expert.returns.mean()), 4),
            "expert_std": round(float(expert.returns.std()), 4),
            "gain_low": round(bootstrap_gain_low(expert.returns, random.returns), 4),
            "expert_seconds": round(expert.seconds, 2),
            "expert_steps": expert.num_steps,
            "train_seconds": round(getattr(policy, "train_seconds", 0.0), 1),
            "train_steps": getattr(policy, "train_steps", 0),
        }
    score = Score(
        random_return=round(float(random.returns.mean()), 4),
        random_std=round(float(random.returns.std()), 4),
        episodes=job.episodes,
        seed=job.seed,
        versions=task.make_env.config()["versions"],
        date=datetime.date.today().isoformat(),
        **facts,
    )
    return job.task_id, score


def is_measured(job: ScoreJob, score: Score | None) -> bool:
    """Whether `score` is what this job would measure: the same episodes of the same expert in the same versions."""
    task = registry.get(job.task_id)
    if score is None or task.make_env is None:
        return False
    now = task.make_env.config()["versions"]
    # What the episodes depend on; Python's version and the like are kept for the record.
    unchanged = all(
        score.versions.get(name) == now.get(name) for name in ("gymnasium", task.make_env.package, "mujoco")
    )
    from collectors.collection import expert_id

    expert = expert_id(task, output=job.output, seed=job.seed) if job.expert else ""
    return unchanged and (score.episodes, score.seed, score.expert) == (job.episodes, job.seed, expert)


@dataclasses.dataclass(frozen=True)
class _Played:
    returns: np.ndarray
    num_steps: int
    seconds: float


def _play(task: Task, policy: Policy, job: ScoreJob, report: Report, doing: str) -> _Played:
    from collectors.collection import num_envs_for
    from collectors.rollout import rollout

    seeds = episode_seeds(Purpose.SCORE, seed=job.seed, count=job.episodes)
    returns, num_steps = {}, 0
    started = time.monotonic()
    for episode in rollout(task, policy, seeds=seeds, num_envs=num_envs_for(task)):
        returns[episode.metadata.seed] = episode.episode_return
        num_steps += episode.num_steps
        report(1, doing)
    # In the order of the seeds, so that the sum does not depend on which episode ended first.
    return _Played(np.array([returns[seed] for seed in seeds]), num_steps, time.monotonic() - started)


def _parse(text: str, where: str) -> Mapping[str, Score]:
    try:
        return {task_id: Score(**values) for task_id, values in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: {_FORMAT_ERROR}, got {type(error).__name__}: {error}") from None
