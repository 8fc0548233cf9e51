"""Acting with the 79M on a CPU: the cache against computing the window anew, and how long one action takes."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.measure import Alone, Race
from benchmarks.train_data import ARM, POLE, shards
from tokenization.episode_tokenizer import EpisodeTokenizer
from trainer import presets
from trainer.decoder import Decoder, Fragment
from trainer.model import Generalist
from trainer.policy import ActingConfig, GeneralistPolicy, PromptSource
from trainer.shards import Dataset

_ENVIRONMENTS, _WINDOW, _ACTIONS = 50, 128, 100


def measures() -> Iterator[Race | Alone]:
    """`act.batched`, `act.latency.p50` and `act.latency.p99`."""
    torch.set_num_threads(1)
    yield Race(
        name="act.batched",
        unit="actions/s of CPU time",
        goal=5.0,
        amount=_ENVIRONMENTS,
        ours=lambda: _batched().step(),
        peers={f"the window of {_WINDOW} tokens computed anew for each action": lambda: _batched().recompute()},
    )
    for percent in (50, 99):
        yield Alone(
            name=f"act.latency.p{percent}",
            unit="ms of the clock",
            goal=None,
            most_rounds=1,
            ours=functools.partial(_latency, percent),
            facts={"what": f"79m, fp32, 39 numbers in, 4 out, {_ACTIONS} actions, rolling window of 1,024 tokens"},
        )


@functools.cache
def _model() -> Generalist:
    model = Generalist(presets.get("79m").model)
    model.initialize(0)
    return model.eval()


def _policy(task_id: str, window: int) -> tuple[GeneralistPolicy, int]:
    """A policy of the 79M, and the numbers in an observation of the task."""
    data = Dataset.open(shards()).load_task("train", task_id)
    acting = ActingConfig(rolling_tokens=window)
    policy = GeneralistPolicy(_model(), EpisodeTokenizer(data.task), PromptSource(data, 2), acting, "bench")
    return policy, data.task.observation_spec["observation"].size


class _Batched:
    """50 episodes whose window is full."""

    def __init__(self) -> None:
        self._policy, self._size = _policy(POLE, _WINDOW)
        self._rng = np.random.default_rng(0)
        for slot in range(_ENVIRONMENTS):
            self._policy.begin_episode(slot, None, slot)
        for _ in range(_WINDOW // 6 + 1):  # a step has 6 tokens
            self.step()

    def _observations(self) -> list[dict[str, Any]]:
        return [{"observation": self._rng.normal(size=self._size).astype(np.float32)} for _ in range(_ENVIRONMENTS)]

    def step(self) -> float:
        """Seconds of an action in all of them."""
        observations = self._observations()
        began = time.process_time()
        self._policy.act(range(_ENVIRONMENTS), observations)
        return time.process_time() - began

    def recompute(self) -> float:
        """The same by one pass over each whole window; an action here is one token, so one pass is enough."""
        windows = [Fragment.of_action(self._rng.integers(0, 33_025, _WINDOW).tolist()) for _ in range(_ENVIRONMENTS)]
        rngs = [np.random.default_rng(slot) for slot in range(_ENVIRONMENTS)]
        began = time.process_time()
        decoder = Decoder(_model(), batch_size=_ENVIRONMENTS, capacity=_WINDOW, precision="fp32")
        hidden = decoder.feed(windows, range(_ENVIRONMENTS))
        decoder.sample_action(hidden, 0, 2, rngs, 1.0)
        return time.process_time() - began


@functools.cache
def _batched() -> _Batched:
    return _Batched()


@functools.cache
def _latencies() -> np.ndarray:
    """Milliseconds of single actions."""
    policy, size = _policy(ARM, 1_024)
    rng = np.random.default_rng(0)
    policy.begin_episode(0, None, 0)
    times = []
    for _ in range(_ACTIONS + 5):
        observation = {"observation": rng.normal(size=size).astype(np.float32)}
        began = time.perf_counter()
        policy.act([0], [observation])
        times.append(1000.0 * (time.perf_counter() - began))
    return np.array(times[5:])


def _latency(percent: int) -> float:
    return float(np.percentile(_latencies(), percent))
