"""A job as its driver and its steps see it: stores, verdicts, plans, and what is done already. No Beam here."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

from beam_jobs import commit, inspection
from beam_jobs.files import AnyPath, hold, read_json, write_bytes
from beam_jobs.inspection import Block
from beam_jobs.plan import BuildConfig, TaskPlan, content_fingerprint, plan_task
from beam_jobs.shard_builder import RECORDS_FOLDER, TEXT_MODEL_FILE, ShardBuilder
from beam_jobs.stores import Stores
from episode_store.errors import UserError
from episode_store.spec import Modality

_PATIENCE_SECONDS = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What every step knows. The stores travel as their paths and extents, so that all see the same episodes."""

    config: BuildConfig
    stores: Stores
    content_fingerprint: str
    owner: str = ""

    def is_wanted(self) -> bool:
        """Whether no later job works on this folder; else this one comes to its end without writing."""
        return commit.is_owner(self.config.output, self.owner)

    @property
    def records(self) -> AnyPath:
        """Where what is done is noted."""
        return self.config.output / RECORDS_FOLDER

    def needs_inspection(self) -> bool:
        """Whether a corpus has no verdict yet."""
        tasks = self.stores.tasks
        return any(tasks[task_id].is_corpus and self.verdict(task_id) is None for task_id in self.config.task_ids)

    def blocks(self) -> list[Block]:
        """Of all corpora, and the name of every task."""
        return inspection.blocks(self.stores, self.config.task_ids)

    def verdict(self, task_id: str) -> inspection.Verdict | None:
        """Of the content filter on one corpus; None before it has one."""
        return inspection.read_verdict(self.records, task_id, self.content_fingerprint)

    def plan(self, task_id: str) -> TaskPlan:
        """Of one task. Raises as `plan_task` does."""
        is_corpus = self.stores.tasks[task_id].is_corpus
        return plan_task(self.stores, task_id, self.config, self.verdict(task_id) if is_corpus else None)

    def plans(self) -> list[TaskPlan] | None:
        """Of every task; None before all corpora are inspected. Raises as `plan_task` does."""
        if self.needs_inspection():
            return None
        return [self.plan(task_id) for task_id in self.config.task_ids]


def prepare_and_run(
    config: BuildConfig,
    run: Callable[[Job, Callable[[], None]], None],
    on_progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, Any], bool]:
    """Everything around the work itself: checks before it, the lock, the manifest of a run that is finished already.

    Args:
      config: what to build.
      run: does the work, calling its second argument now and then.
      on_progress: called with the shards done and the shards in all.

    Returns:
      the manifest, and whether anything was built.

    Raises:
      UserError: in the input, or in what the job found.
    """
    _check_output(config.output)
    stores = Stores.open(config.sources)
    builder = ShardBuilder(config, stores)
    job = Job(config=config, stores=stores, content_fingerprint=content_fingerprint(stores, config))
    for task_id in config.task_ids:
        _check_task(builder, task_id)
    progress = _Progress(builder, job, on_progress)
    # What the return filter refuses is told before any work.
    if job.needs_inspection():
        for task_id in config.task_ids:
            if not stores.tasks[task_id].is_corpus:
                job.plan(task_id)
    else:
        progress.look()
    job.records.mkdir(parents=True, exist_ok=True)
    with _hold_patiently(job.records / "lock") as free:
        if not free:
            raise UserError(f"--output {config.output}: another build-shards is writing there; wait for it or end it")
        manifest = commit.finished(config.output, progress.fingerprint())
        if manifest is not None:
            return manifest, False
        # From here on the old manifest, if any, no longer describes the files.
        (config.output / commit.DATASET_FILE).unlink(missing_ok=True)
        if config.text_model:
            write_bytes(config.output / TEXT_MODEL_FILE, config.text_model.read_bytes())
        run(job, progress.tick)
        progress.tick()
        manifest = commit.finished(config.output, progress.fingerprint())
        if manifest is None:
            # The worker that should have committed could not: say why.
            commit.manifest(builder, job.plans() or [], progress.records())
            raise UserError(f"{config.output}: the job ended without its manifest; run the same command again")
        return manifest, True


@contextlib.contextmanager
def _hold_patiently(path: AnyPath) -> Iterator[bool]:
    """`hold`, but workers of a job that was killed a moment ago get the time to end: they hold its lock, too."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        with hold(path) as free:
            if free or time.monotonic() > end:
                yield free
                return
        time.sleep(0.1)


class _Progress:
    """What the driver knows of a job from the files that its workers write."""

    def __init__(self, builder: ShardBuilder, job: Job, on_progress: Callable[[int, int], None] | None) -> None:
        self._builder = builder
        self._job = job
        self._on_progress = on_progress
        self._plans: list[TaskPlan] | None = None
        self._expected: dict[str, str] = {}
        self._pending: dict[str, str] = {}

    def fingerprint(self) -> str | None:
        """Of the finished folder; None before all corpora are inspected."""
        self.look()
        return None if self._plans is None else commit.dataset_fingerprint(self._builder, self._plans)

    def tick(self) -> None:
        """Looks which shards are done, and tells."""
        self.look()
        there = {path.name for path in self._job.records.iterdir()}
        for name, its_fingerprint in list(self._pending.items()):
            if f"{name}.json" not in there:
                continue
            if (read_json(self._job.records / f"{name}.json") or {}).get("fingerprint") == its_fingerprint:
                del self._pending[name]
        if self._on_progress and self._expected:
            self._on_progress(len(self._expected) - len(self._pending), len(self._expected))

    def records(self) -> list[dict[str, Any]]:
        """Those that are there."""
        found = [read_json(self._job.records / f"{name}.json") for name in self._expected]
        return [record for record in found if record]

    def look(self) -> None:
        """Makes the plans, once there is all that they need."""
        if self._plans is None and (plans := self._job.plans()) is not None:
            self._plans = plans
            self._expected = {shard.name: self._builder.fingerprint(shard) for plan in plans for shard in plan.shards}
            self._pending = dict(self._expected)


def _check_output(output: AnyPath) -> None:
    """Refuses a folder with other content: the commit removes tars that the manifest does not name."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"--output {output}: expected a folder, got a file")
    ours = (RECORDS_FOLDER, commit.DATASET_FILE)
    foreign = min((path.name for path in output.iterdir()), default=None)
    if foreign is not None and not any((output / name).exists() for name in ours):
        raise UserError(f"--output {output}: expected an empty folder or one with shards, got {foreign} in it")


def _check_task(builder: ShardBuilder, task_id: str) -> None:
    """A task that cannot be tokenized is told before any work."""
    task = builder.stores.tasks[task_id]
    if builder.stores.table(task_id).num_rows == 0:
        raise UserError(
            f"task {task_id}: expected episodes in the store {builder.stores.of(task_id).path}, got none; "
            "collect some first"
        )
    fields = [*task.observation_spec.items(), *task.action_spec.items()]
    text = [key for key, field in fields if field.modality == Modality.TEXT]
    if text and builder.config.text_model is None:
        raise UserError(
            f"task {task_id}: its field {text[0]!r} is text: expected --text-model FILE, got none; make one with "
            "`tokenization train-text`"
        )
    builder.tokenizer(task_id)
