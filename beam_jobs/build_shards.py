"""The Beam pipeline that turns episode stores into shards.

Only names and statistics travel between its steps, never frames or texts: a worker reads the episodes of its shards
from their store and writes whole files. It is one chain without side outputs, state or windows, because some runners
drop those in silence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam

from beam_jobs import commit, inspection, runners
from beam_jobs.content_filter import ContentFilter
from beam_jobs.duplicates import Entry
from beam_jobs.files import AnyPath
from beam_jobs.inspection import Block
from beam_jobs.job import Job, prepare_and_run
from beam_jobs.plan import BuildConfig, Reference, ShardPlan, sort_references
from beam_jobs.shard_builder import RECORDS_FOLDER, TEXT_MODEL_FILE, ShardBuilder
from episode_store.errors import UserError

_LOGGER = logging.getLogger(__name__)

# (shard name, task id, split): strings alone, so that every runner groups them alike.
ShardKey = tuple[str, str, str]
# Some of a shard's references: one by one, a million take half a minute through the local runner's shuffle.
References = list[Reference]
_MOST_REFERENCES = 4_096


def build_pipeline(pipeline: beam.Pipeline, job: Job) -> None:
    """The whole job, to dataset.json."""
    start = pipeline | beam.Impulse()
    _ = (
        (_inspected_tasks(start, job) if job.needs_inspection() else _known_tasks(start, job))
        | "GroupByTask" >> beam.GroupByKey()
        | "FilterAndAssign" >> beam.ParDo(FilterAndAssign(job)).with_output_types(tuple[ShardKey, References])
        | "GroupByShard" >> beam.GroupByKey()
        | "BuildShard" >> beam.ParDo(BuildShard(job)).with_output_types(tuple[str, str])
        | "GatherRecords" >> beam.GroupByKey()
        | "Commit" >> beam.ParDo(Commit(job))
    )


def _inspected_tasks(start: beam.PCollection, job: Job) -> beam.PCollection:
    """(task, what a bucket knows of it), after a look at every episode of a corpus."""
    blocks = [(f"{block[0]}:{block[1]}", block) for block in job.blocks()]
    return (
        start
        | "Blocks" >> beam.FlatMap(lambda _: blocks).with_output_types(tuple[str, Block])
        | "SpreadBlocks" >> beam.GroupByKey()
        | "Inspect" >> beam.ParDo(Inspect(job)).with_output_types(tuple[str, Any])
        | "GroupAlike" >> beam.GroupByKey()
        | "Judge" >> beam.ParDo(Judge(job.config.content.similarity)).with_output_types(tuple[str, str])
    )


def _known_tasks(start: beam.PCollection, job: Job) -> beam.PCollection:
    """(task, nothing new), when there is no corpus, or an earlier run has looked at all of them."""
    tasks = [(task_id, "") for task_id in job.config.task_ids]
    return start | "Tasks" >> beam.FlatMap(lambda _: tasks).with_output_types(tuple[str, str])


class _JobFn(beam.DoFn):
    """Beam copies a step many times before it runs: its stores are opened only where it does."""

    def __init__(self, job: Job) -> None:
        self._pickled = pickle.dumps(job)

    def setup(self) -> None:
        self._job: Job = pickle.loads(self._pickled)  # noqa: S301 - what `__init__` wrote


class Inspect(_JobFn):
    """(key, blocks) -> (bucket, entry) of every episode of a corpus that the content filter lets pass."""

    def setup(self) -> None:
        super().setup()
        self._content = ContentFilter(self._job.config.content)

    def process(self, element: tuple[str, Iterable[Block]]) -> Iterator[tuple[str, Entry | str]]:
        for block in set(element[1]):
            yield from inspection.inspect_block(self._job.stores, self._content, block, self._job.config.content)


class Judge(beam.DoFn):
    """(bucket, entries) -> (task, what the bucket knows of it): which of alike episodes are copies."""

    def __init__(self, similarity: float) -> None:
        self._similarity = similarity

    def process(self, element: tuple[str, Iterable[Entry | str]]) -> Iterator[tuple[str, str]]:
        yield from inspection.judge_bucket(*element, self._similarity)


class FilterAndAssign(_JobFn):
    """(task, what buckets know of it) -> (shard, references) of the episodes that stay; reads metadata only."""

    def process(self, element: tuple[str, Iterable[str]]) -> Iterator[tuple[ShardKey, References]]:
        task_id, parts = element
        verdict = inspection.gather(parts, self._job.content_fingerprint)
        if verdict is not None and self._job.is_wanted():
            inspection.write_verdict(self._job.records, task_id, verdict)
        try:
            plan = self._job.plan(task_id)
        except UserError as error:
            # As in `Commit`: the driver makes the same plan and tells the same reason.
            _LOGGER.info("not planned: %s", error)
            return
        for shard in plan.shards:
            for first in range(0, len(shard.references), _MOST_REFERENCES):
                some = list(shard.references[first : first + _MOST_REFERENCES])
                yield (shard.name, shard.task_id, shard.split), some


class BuildShard(_JobFn):
    """(shard, references) -> its record, after its files are on the disk."""

    def setup(self) -> None:
        super().setup()
        self._builder = ShardBuilder(self._job.config, self._job.stores)

    def process(self, element: tuple[ShardKey, Iterable[References]]) -> Iterator[tuple[str, str]]:
        if not self._job.is_wanted():
            return
        (name, task_id, split), groups = element
        ordered = sort_references(self._job.config.seed, itertools.chain.from_iterable(groups))
        plan = ShardPlan(name=name, task_id=task_id, split=split, references=ordered)
        yield "records", json.dumps(self._builder.build(plan))


class Commit(_JobFn):
    """(key, all records) -> the number of shards, after dataset.json is on the disk."""

    def process(self, element: tuple[str, Iterable[str]]) -> Iterator[int]:
        if not self._job.is_wanted():
            return
        records = [json.loads(record) for record in element[1]]
        try:
            builder = ShardBuilder(self._job.config, self._job.stores)
            commit.commit(builder, self._job.plans() or [], records)
        except UserError as error:
            # An exception would make the runner try again; the driver finds the same reason in the records.
            _LOGGER.info("not committed: %s", error)
        yield len(records)


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

    def run(job: Job, tick: Callable[[], None]) -> None:
        worker_config = dataclasses.replace(job.config, text_model=shared_model)
        worker_job = dataclasses.replace(job, config=worker_config, owner=commit.take_over(config.output))
        with _log_folder(config.output) as log_folder:
            runners.run(
                lambda pipeline: build_pipeline(pipeline, worker_job),
                flags,
                workers=workers,
                log_folder=log_folder,
                timeout_seconds=timeout_seconds,
                on_tick=tick,
            )

    return prepare_and_run(config, run, on_progress)


def build_locally(config: BuildConfig) -> tuple[dict[str, Any], bool]:
    """The same job as a plain loop without Beam: the yardstick of tests and benchmarks."""

    def loop(job: Job, _: Callable[[], None]) -> None:
        corpora = [task_id for task_id in config.task_ids if job.stores.tasks[task_id].is_corpus]
        if job.needs_inspection():
            verdicts = inspection.inspect_locally(job.stores, corpora, config.content, job.content_fingerprint)
            for task_id, verdict in verdicts.items():
                inspection.write_verdict(job.records, task_id, verdict)
        builder, plans = ShardBuilder(config, job.stores), job.plans()
        assert plans is not None
        commit.commit(builder, plans, [builder.build(shard) for plan in plans for shard in plan.shards])

    return prepare_and_run(config, loop, None)


@contextlib.contextmanager
def _log_folder(output: AnyPath) -> Iterator[Path]:
    """Where worker processes of this machine print to; kept after an error, which names it."""
    if isinstance(output, Path):
        yield output / RECORDS_FOLDER
    else:
        folder = Path(tempfile.mkdtemp(prefix="build-shards-"))
        yield folder
        shutil.rmtree(folder)
