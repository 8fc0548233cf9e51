"""Policies that need no training: scripts, and uniformly random actions."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collectors import spaces
from collectors.rollout import random_value
from collectors.task import Controller, Script, ScriptedExpert, Task
from episode_store.errors import UserError

if TYPE_CHECKING:
    import gymnasium


class ScriptedPolicy:
    """Runs one controller of a script in each slot.

    Attributes:
      agent_id: who acts.
      agent_hash: of the source file that the script is in: what a script has for weights.
    """

    def __init__(self, agent_id: str, script: Script) -> None:
        self.agent_id = agent_id
        self.agent_hash = _source_hash(script)
        self._script = script
        self._controllers: dict[int, Controller] = {}
        self._flatten: dict[int, Callable[[Any], dict[str, Any]]] = {}
        self._last_actions: dict[int, Any] = {}

    def begin_episode(self, slot: int, env: gymnasium.Env, seed: int) -> None:
        """Makes the episode's controller."""
        if slot not in self._flatten:
            self._flatten[slot] = spaces.flattener(env.action_space, "action")
        self._last_actions[slot] = None
        self._controllers[slot] = self._script(env, seed)

    def act(self, slots: Sequence[int], observations: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Asks each slot's controller."""
        return [
            self._flatten[slot](self._controllers[slot](observation, self._last_actions[slot]))
            for slot, observation in zip(slots, observations, strict=True)
        ]

    def acted(self, slot: int, action: Any) -> None:
        """Remembers what was really done, which a bot's plan depends on."""
        self._last_actions[slot] = action


def _source_hash(script: Script) -> str:
    """BLAKE2b-16 of the script's source file; "" for one without, such as typed at a prompt."""
    function: Any = script
    while isinstance(function, functools.partial):
        function = function.func
    try:
        path = inspect.getsourcefile(function)
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest() if path else ""
    except (OSError, TypeError):
        return ""


def scripted_policy(task: Task) -> ScriptedPolicy:
    """The policy of a task with a `ScriptedExpert`.

    Raises:
      UserError: when its expert is something else.
    """
    if not isinstance(task.expert, ScriptedExpert):
        raise UserError(f"task {task.task_id} has no scripted expert")
    return ScriptedPolicy(f"{task.expert.name}-{task.task_id}", task.expert.script)


def random_policy(task: Task) -> ScriptedPolicy:
    """Uniformly random actions, decided by the episode's seed; an unbounded Box is drawn as Gymnasium draws it."""

    def script(env: gymnasium.Env, seed: int) -> Controller:
        rng = np.random.default_rng((seed, 0x7A4D))
        return lambda observation, last_action: random_value(env.action_space, rng)

    return ScriptedPolicy(f"random-{task.task_id}", script)
