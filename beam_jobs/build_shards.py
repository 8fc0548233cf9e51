"""The Beam pipeline that turns an episode store into shards.

Only names travel between its steps, never frames: a worker reads the episodes of its shards from the store and writes
whole files. It is one chain without side outputs, state or windows, because some runners drop those in silence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam

from beam_jobs import commit, runners
from beam_jobs.files import AnyPath, hold, read_json, write_bytes
from beam_jobs.plan import BuildConfig, Reference, ShardPlan, TaskPlan, plan_task, sort_references
from beam_jobs.shard_builder import RECORDS_FOLDER, TEXT_MODEL_FILE, ShardBuilder
from episode_store.errors import UserError
from episode_store.spec import Modality
from episode_store.store import EpisodeStore

# (shard name, task id, split): strings alone, so that every runner groups them alike.
ShardKey = tuple[str, str, str]


def build_pipeline(pipeline: beam.Pipeline, config: BuildConfig, store: EpisodeStore, job: str) -> None:
    """The whole job, from task ids to dataset.json; `job` is its name as the owner of the output folder."""
    parts = config, store, job
    _ = (
        pipeline
        | "TaskIds" >> beam.Create(config.task_ids, reshuffle=False)
        | "SpreadKey" >> beam.Map(lambda task_id: (task_id, task_id)).with_output_types(tuple[str, str])
        | "SpreadTasks" >> beam.GroupByKey()
        | "FilterAndAssign"
        >> beam.ParDo(FilterAndAssign(config, store, job)).with_output_types(tuple[ShardKey, Reference])
        | "GroupByShard" >> beam.GroupByKey()
        | "BuildShard" >> beam.ParDo(BuildShard(*parts)).with_output_types(tuple[str, str])
        | "GatherRecords" >> beam.GroupByKey()
        | "Commit" >> beam.ParDo(Commit(*parts))
        | "End" >> beam.Map(lambda num_shards: num_shards)  # a last stage without output can hang
    )


class _JobFn(beam.DoFn):
    """A step of the job. The store travels as its path and extent, so that all see the same episodes."""

    def __init__(self, config: BuildConfig, store: EpisodeStore, job: str) -> None:
        self._config = config
        self._store = store
        self._job = job

    def setup(self) -> None:
        self._builder = ShardBuilder(self._config, self._store)

    def is_wanted(self) -> bool:
        """Whether no later job works on this folder; else this one comes to its end without writing."""
        return commit.is_owner(self._config.output, self._job)


class FilterAndAssign(_JobFn):
    """(key, task ids) -> (shard, reference) for every episode that the filter keeps; reads metadata only."""

    def process(self, element: tuple[str, Iterable[str]]) -> Iterator[tuple[ShardKey, Reference]]:
        for task_id in set(element[1]):
            for shard in plan_task(self._store, task_id, self._config).shards:
                for reference in shard.references:
                    yield (shard.name, shard.task_id, shard.split), reference


class BuildShard(_JobFn):
    """(shard, references) -> its record, after its files are on the disk."""

    def process(self, element: tuple[ShardKey, Iterable[Reference]]) -> Iterator[tuple[str, str]]:
        if not self.is_wanted():
            return
        (name, task_id, split), references = element
        ordered = sort_references(self._config.seed, references)
        plan = ShardPlan(name=name, task_id=task_id, split=split, references=ordered)
        yield "records", json.dumps(self._builder.build(plan))


class Commit(_JobFn):
    """(key, all records) -> the number of shards, after dataset.json is on the disk."""

    def process(self, element: tuple[str, Iterable[str]]) -> Iterator[int]:
        if not self.is_wanted():
            return
        plans = plan_tasks(self._builder)
        records = [json.loads(record) for record in element[1]]
        try:
            commit.commit(self._builder, plans, records)
        except UserError as error:
            # An exception would make the runner try again; the driver finds the same reason in the records.
            logging.getLogger(__name__).warning("not committed: %s", error)
        yield len(records)


def plan_tasks(builder: ShardBuilder) -> list[TaskPlan]:
    """The plan of every task of the job. Raises as `plan_task` does."""
    return [plan_task(builder.store, task_id, builder.config) for task_id in builder.config.task_ids]


def build_shards(
    config: BuildConfig,
    *,
    workers: int = 1,
    beam_flags: Sequence[str] = (),
    timeout_seconds: float | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], bool]:
    """Runs the job; a finished folder with the same fingerprint is left as it is.

    Args:
      config: what to build.
      workers: processes of the local runner.
      beam_flags: handed to Beam as they are.
      timeout_seconds: the job is given up after this time.
      on_progress: called now and then with the shards done and the shards in all.

    Returns:
      the manifest, and whether anything was built.

    Raises:
      UserError: in the input, or in what the job found.
    """
    flags = runners.pipeline_flags(beam_flags, workers)
    # Workers on other machines share the output folder: the text model is read from its copy there.
    shared_model = config.output / TEXT_MODEL_FILE if config.text_model else None
    worker_config = dataclasses.replace(config, text_model=shared_model)

    def run(builder: ShardBuilder, tick: Callable[[], None]) -> None:
        job = commit.take_over(config.output)
        with _log_folder(config.output) as log_folder:
            runners.run(
                lambda pipeline: build_pipeline(pipeline, worker_config, builder.store, job),
                flags,
                workers=workers,
                log_folder=log_folder,
                timeout_seconds=timeout_seconds,
                on_tick=tick,
            )

    return _prepare_and_run(config, run, on_progress)


def build_locally(config: BuildConfig) -> tuple[dict[str, Any], bool]:
    """The same job as a plain loop without Beam: the yardstick of tests and benchmarks."""

    def loop(builder: ShardBuilder, _: Callable[[], None]) -> None:
        plans = plan_tasks(builder)
        commit.commit(builder, plans, [builder.build(shard) for plan in plans for shard in plan.shards])

    return _prepare_and_run(config, loop, None)


def _prepare_and_run(
    config: BuildConfig,
    run: Callable[[ShardBuilder, Callable[[], None]], None],
    on_progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, Any], bool]:
    _check_output(config.output)
    builder = ShardBuilder(config, EpisodeStore.open(config.store))
    for task_id in config.task_ids:
        _check_task(builder, task_id)
    plans = plan_tasks(builder)
    fingerprint = commit.dataset_fingerprint(builder, plans)
    records = config.output / RECORDS_FOLDER
    records.mkdir(parents=True, exist_ok=True)
    with hold(records / "lock") as free:
        if not free:
            raise UserError(f"--output {config.output}: another build-shards is writing there; wait for it or end it")
        manifest = commit.finished(config.output, fingerprint)
        if manifest is not None:
            return manifest, False
        # From here on the old manifest, if any, no longer describes the files.
        (config.output / commit.DATASET_FILE).unlink(missing_ok=True)
        if config.text_model:
            write_bytes(config.output / TEXT_MODEL_FILE, config.text_model.read_bytes())
        expected = {shard.name: builder.fingerprint(shard) for plan in plans for shard in plan.shards}

        pending = dict(expected)

        def tick() -> None:
            there = {path.name for path in records.iterdir()}
            for name, its_fingerprint in list(pending.items()):
                if f"{name}.json" not in there:
                    continue
                if (read_json(records / f"{name}.json") or {}).get("fingerprint") == its_fingerprint:
                    del pending[name]
            if on_progress:
                on_progress(len(expected) - len(pending), len(expected))

        run(builder, tick)
        manifest = commit.finished(config.output, fingerprint)
        if manifest is None:
            # The worker that should have committed could not: say why.
            found = [read_json(records / f"{name}.json") for name in expected]
            commit.manifest(builder, plans, [record for record in found if record])
            raise UserError(f"{config.output}: the job ended without its manifest; run the same command again")
        return manifest, True


@contextlib.contextmanager
def _log_folder(output: AnyPath) -> Iterator[Path]:
    """Where worker processes of this machine print to; kept after an error, which names it."""
    if isinstance(output, Path):
        yield output / RECORDS_FOLDER
    else:
        folder = Path(tempfile.mkdtemp(prefix="build-shards-"))
        yield folder
        shutil.rmtree(folder)


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
    task = builder.store.tasks[task_id]
    fields = [*task.observation_spec.items(), *task.action_spec.items()]
    text = [key for key, field in fields if field.modality == Modality.TEXT]
    if text and builder.config.text_model is None:
        raise UserError(
            f"task {task_id}: its field {text[0]!r} is text: expected --text-model FILE, got none; make one with "
            "`tokenization train-text`"
        )
    builder.tokenizer(task_id)
