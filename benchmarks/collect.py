"""Collection into a store beside stepping the same environments with the same policy and keeping nothing."""

from __future__ import annotations

import collections
import contextlib
import functools
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.measure import Limit, Measure
from collectors import policies, registry, spaces, specialists
from collectors.collection import CollectionJob, collect_with
from collectors.rollout import Policy, reset_quietly
from collectors.seeds import Purpose, episode_seeds
from collectors.task import Task

# Task -> (episodes of a call, environments stepped together). The first is a network that acts for all at once. A call
# takes a second or so: opening and sealing a store costs 16 ms of it.
TASKS = {
    "CartPole-v1": (40, 8),
    "LunarLander-v3": (80, 4),
    "babyai/GoToLocal-v0": (250, 4),
    "metaworld/reach-v3": (40, 4),
    "sokoban/8x8-2-v0": (120, 4),
}
_FEW, _MANY = 100, 1000
# Megabytes that ten times as many episodes may add.
_GROWTH_GOAL = 16.0


def measures() -> Iterator[Measure | Limit]:
    """`collect.throughput` for several families, whose ratio should be above 1 / 1.2, and `collect.memory`."""
    for task_id, (num_episodes, num_envs) in TASKS.items():
        task = registry.get(task_id)
        policy = _policy(task)
        seeds = episode_seeds(Purpose.COLLECT, seed=0, count=num_episodes)
        steps = step_plainly(task, policy, seeds, num_envs=num_envs)
        yield Measure(
            name="collect.throughput",
            unit=f"steps/s of {task_id}, {num_envs} environments",
            amount=steps,
            ours=functools.partial(_collect, task, policy, num_episodes, num_envs),
            peer=functools.partial(step_plainly, task, policy, seeds, num_envs=num_envs),
            peer_name="the same policy and environments in a loop that keeps nothing",
        )
    yield Limit(
        name="collect.memory",
        unit=f"MB more for {_MANY} episodes of MountainCar than for {_FEW}",
        goal=_GROWTH_GOAL,
        ours=functools.partial(_growth, "collect"),
        peer=functools.partial(_growth, "step_plainly"),
        peer_name="the loop that keeps nothing",
    )


def _policy(task: Task) -> Policy:
    """The task's program, or a network of its recipe that was never trained: it takes as long."""
    if isinstance(task.expert, registry.Sb3Expert):
        from stable_baselines3.common.vec_env import DummyVecEnv

        model = specialists._build(task.expert, DummyVecEnv([task.environment]), seed=0)
        return specialists.SpecialistPolicy(task, model, agent_id="untrained", agent_hash="")
    return policies.scripted_policy(task)


def _collect(task: Task, policy: Policy, num_episodes: int, num_envs: int) -> None:
    with tempfile.TemporaryDirectory() as store:
        job = CollectionJob(task_id=task.task_id, store=store, episodes=num_episodes, disturb=False)
        collect_with(policy, job, lambda steps, doing: None, num_envs=num_envs)


def step_plainly(task: Task, policy: Policy, seeds: Sequence[int], *, num_envs: int) -> int:
    """Steps `num_envs` environments together through an episode of each seed; the number of steps."""
    with contextlib.ExitStack() as stack:
        environments = [task.environment() for _ in range(num_envs)]
        for env in environments:
            stack.callback(env.close)
        see = spaces.flattener(environments[0].observation_space, "observation")
        act = spaces.unflattener(environments[0].action_space, "action")
        todo = [collections.deque(seeds[slot::num_envs]) for slot in range(num_envs)]
        observations: dict[int, Any] = {}

        def begin(slot: int) -> None:
            observations.pop(slot, None)
            if todo[slot]:
                seed = todo[slot].popleft()
                observations[slot] = see(reset_quietly(environments[slot], seed)[0])
                policy.begin_episode(slot, environments[slot], seed)

        for slot in range(num_envs):
            begin(slot)
        num_steps = 0
        acted = getattr(policy, "acted", None)
        while observations:
            live = list(observations)
            for slot, choice in zip(live, policy.act(live, [observations[slot] for slot in live]), strict=True):
                action = act(choice)
                value, _, terminated, truncated, _ = environments[slot].step(action)
                observations[slot] = see(value)
                num_steps += 1
                if acted is not None:
                    acted(slot, action)
                if terminated or truncated:
                    begin(slot)
        return num_steps


def _growth(how: str) -> float:
    """MB by which the peak of a new process grows from few to many episodes."""
    done = subprocess.run(
        [sys.executable, "-c", f"from benchmarks import collect; collect.print_growth({how!r})"],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def print_growth(how: str) -> None:
    """In a process of its own."""
    import resource

    task = registry.get("MountainCar-v0")
    policy = policies.scripted_policy(task)
    peaks = []
    for num_episodes in (_FEW, _MANY):
        if how == "collect":
            _collect(task, policy, num_episodes, 4)
        else:
            step_plainly(task, policy, episode_seeds(Purpose.COLLECT, seed=0, count=num_episodes), num_envs=4)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    # A millionth: nothing at all has no ratio.
    print(max(peaks[1] - peaks[0], 1e-6))
