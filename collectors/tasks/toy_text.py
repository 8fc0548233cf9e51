"""Gymnasium's toy text: small tables, solved exactly by value iteration."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from collectors.task import Controller, Disturbance, Environment, ScriptedExpert, Task, seen

if TYPE_CHECKING:
    import gymnasium

# One per environment and not one per episode.
_POLICIES: weakref.WeakKeyDictionary[Any, np.ndarray] = weakref.WeakKeyDictionary()


def optimal_actions(
    transitions: Mapping[int, Mapping[int, list[tuple]]], *, discount: float = 0.999, tolerance: float = 1e-9
) -> np.ndarray:
    """Value iteration (Sutton and Barto, section 4.4): int64 [states], the best action in each state.

    Args:
      transitions: state -> action -> [(probability, next state, reward, terminated)], as Gymnasium's `env.P`.
      discount: just under 1, so that the shortest way wins.
      tolerance: largest change of a value at which to stop.
    """
    num_states, num_actions = len(transitions), len(transitions[0])
    # Transition table [S, A, S] without terminal successors, expected rewards [S, A].
    probability_SAS = np.zeros((num_states, num_actions, num_states))
    reward_SA = np.zeros((num_states, num_actions))
    for state, actions in transitions.items():
        for action, outcomes in actions.items():
            for probability, successor, reward, terminated in outcomes:
                reward_SA[state, action] += probability * reward
                if not terminated:
                    probability_SAS[state, action, successor] += probability
    value_S = np.zeros(num_states)
    while True:
        quality_SA = reward_SA + discount * (probability_SAS @ value_S)
        improved_S = quality_SA.max(axis=1)
        if np.abs(improved_S - value_S).max() < tolerance:
            return quality_SA.argmax(axis=1)
        value_S = improved_S


def _value_iteration(env: gymnasium.Env, seed: int) -> Controller:
    if env.unwrapped not in _POLICIES:
        _POLICIES[env.unwrapped] = optimal_actions(env.unwrapped.P)  # type: ignore[attr-defined]
    best = _POLICIES[env.unwrapped]
    return lambda observation, last_action: best[int(observation["observation"])]


def _basic_strategy(env: gymnasium.Env, seed: int) -> Controller:
    """Blackjack without doubling or splitting: Thorp's table for hard and soft hands."""

    def controller(observation: Mapping[str, Any], last_action: Any) -> int:
        total, dealer, usable_ace = (int(observation[key]) for key in "012")
        if usable_ace:
            return int(total <= 17 or (total == 18 and dealer in (1, 9, 10)))
        if total == 12:
            return int(dealer not in (4, 5, 6))
        return int(total <= 11 or (total <= 16 and (dealer == 1 or dealer >= 7)))

    return controller


_PLANNER = ScriptedExpert(name="value-iteration", script=_value_iteration)


def _table(task_id: str, description: str, max_episode_steps: int, *, limited: bool = True) -> Task:
    kwargs = {} if limited else {"max_episode_steps": max_episode_steps}
    return Task(
        task_id=task_id,
        family="toy_text",
        make_env=Environment(env_id=task_id, kwargs=kwargs, extra="toy"),
        expert=_PLANNER,
        # Ice slips by itself: a push more only drowns people.
        disturbance=None if "Lake" in task_id or "Slippery" in task_id else Disturbance(),
        max_episode_steps=max_episode_steps,
        licence="MIT",
        description=description,
    )


_STATE = (
    _table("Taxi-v4", "Fetch a passenger and bring them to their hotel.", 200),
    _table("FrozenLake-v1", "Cross a slippery lake without falling in.", 100),
    _table("FrozenLake8x8-v1", "Cross a larger slippery lake.", 200),
    # Without a limit a random walk along the cliff does not end.
    _table("CliffWalking-v1", "Walk along a cliff.", 200, limited=False),
    _table("CliffWalkingSlippery-v1", "Walk along a slippery cliff.", 200, limited=False),
    Task(
        task_id="Blackjack-v1",
        family="toy_text",
        make_env=Environment(env_id="Blackjack-v1", extra="toy"),
        expert=ScriptedExpert(name="basic-strategy", script=_basic_strategy),
        disturbance=None,
        licence="MIT",
        description="Draw cards up to 21, against a dealer.",
    ),
)
TASKS = (*_STATE, *(seen(task, height=80, width=80) for task in _STATE))
