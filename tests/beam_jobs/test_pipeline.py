"""The graph of the job: one chain, without what some engines drop in silence; and what Dataflow would be given."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2

from beam_jobs.build_shards import build_pipeline
from beam_jobs.job import Job
from beam_jobs.plan import BuildConfig
from beam_jobs.stores import Stores

# Impulse and ParDo, which every engine has, and grouping by key.
_ALLOWED = {
    common_urns.primitives.IMPULSE.urn,
    common_urns.primitives.PAR_DO.urn,
    common_urns.primitives.GROUP_BY_KEY.urn,
}


@pytest.fixture(params=["with a corpus to inspect", "with control tasks alone"])
def pipeline(make_config: Callable[..., BuildConfig], request: pytest.FixtureRequest) -> beam.Pipeline:
    config = make_config()
    if request.param == "with control tasks alone":
        config = dataclasses.replace(config, task_ids=("Swing-v1", "toy/Picture-v0"))
    return _pipeline(config, ["--runner=FnApiRunner"])


def _pipeline(config: BuildConfig, flags: list[str]) -> beam.Pipeline:
    pipeline = beam.Pipeline(options=PipelineOptions(flags))
    stores = Stores.open(config.sources)
    build_pipeline(pipeline, Job(config=config, stores=stores, content_fingerprint="test", owner="test"))
    return pipeline


def test_the_graph_is_one_chain_of_plain_steps(pipeline: beam.Pipeline) -> None:
    graph, _ = pipeline.to_runner_api(return_context=True)
    leaves = [step for step in graph.components.transforms.values() if not step.subtransforms]
    steps = [step for step in leaves if set(step.outputs.values()) - set(step.inputs.values())]  # others do nothing
    assert {step.spec.urn for step in steps} == _ALLOWED
    consumers: Counter[str] = Counter()
    producers: Counter[str] = Counter()
    for step in steps:
        assert len(step.inputs) == (step.spec.urn != common_urns.primitives.IMPULSE.urn), step.unique_name
        assert len(step.outputs) == 1, step.unique_name
        consumers.update(step.inputs.values())
        producers.update(step.outputs.values())
        if step.spec.urn == common_urns.primitives.PAR_DO.urn:
            payload = beam_runner_api_pb2.ParDoPayload.FromString(step.spec.payload)
            assert not payload.side_inputs, step.unique_name
            assert not payload.state_specs, step.unique_name
            assert not payload.timer_family_specs, step.unique_name
            assert not payload.restriction_coder_id, step.unique_name
            assert not payload.requests_finalization, step.unique_name
    assert set(consumers.values()) == set(producers.values()) == {1}
    # One chain: everything but the last output is read, once.
    assert len(producers) - len(consumers) == 1
    for collection in graph.components.pcollections.values():
        windows = graph.components.windowing_strategies[collection.windowing_strategy_id]
        assert windows.window_fn.urn == common_urns.global_windows.urn


def test_no_step_emits_when_a_bundle_ends(pipeline: beam.Pipeline) -> None:
    functions: dict[str, type] = {}

    class Visitor(PipelineVisitor):
        def visit_transform(self, transform_node: AppliedPTransform) -> None:
            if isinstance(transform_node.transform, beam.ParDo):
                functions[transform_node.full_label] = type(transform_node.transform.fn)

    pipeline.visit(Visitor())
    assert {"FilterAndAssign", "BuildShard", "Commit"} <= set(functions)
    for name, function in functions.items():
        ours = function.__module__ != "apache_beam.transforms.core"
        assert not ours or function.finish_bundle is beam.DoFn.finish_bundle, name


def test_dataflow_graph_without_a_cloud(make_config: Callable[..., BuildConfig]) -> None:
    """The job as Dataflow would be given it; nothing is sent, and nobody asks who we are."""
    flags = ["--runner=DataflowRunner", "--dry_run=True", "--no_auth", "--project=some-project", "--job_name=shards"]
    flags += ["--region=europe-west1", "--temp_location=gs://some-bucket/tmp"]
    flags += ["--sdk_container_image=registry.example.com/workers:1"]
    pipeline = _pipeline(make_config(), flags)
    result = pipeline.run()
    assert result.state == "DONE"
    assert json.loads(result.job.json())["name"] == "shards"
    graph = pipeline.runner.proto_pipeline
    (environment,) = graph.components.environments.values()
    assert environment.urn == common_urns.environments.DOCKER.urn
    image = beam_runner_api_pb2.DockerPayload.FromString(environment.payload).container_image
    assert image == "registry.example.com/workers:1"
    names = {step.unique_name.partition("/")[0] for step in graph.components.transforms.values()}
    assert {"FilterAndAssign", "GroupByShard", "BuildShard", "GatherRecords", "Commit"} <= names
