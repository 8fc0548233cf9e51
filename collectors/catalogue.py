"""What is known of every task without its packages: kinds of observations and actions, tokens a step, scores, counts.

The spaces are measured once (`collectors describe`) and kept in `collectors/data/spaces.json`, one line a task; the
conformance test compares them with the environments. So the list needs no environment.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from collectors import scores
from collectors.task import CorpusSource, Sb3Expert, ScriptedExpert, Task
from episode_store.errors import UserError
from episode_store.files import write_bytes
from episode_store.spec import ArraySpec, Modality
from tokenization.timestep import TimestepLayout

_DATA = "spaces.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spaces:
    """Fields of a task.

    Attributes:
      observation, action: field -> "modality[shape]", for example "continuous[39]" or "text".
      tokens_per_step: of the observation, the separator and the action; words come on top where `has_text`.
      has_text: whether there are words, whose number of tokens varies.
    """

    observation: Mapping[str, str]
    action: Mapping[str, str]
    tokens_per_step: int
    has_text: bool = False

    @property
    def modalities(self) -> set[str]:
        """Of the observation."""
        return {kind.partition("[")[0] for kind in self.observation.values()}

    @property
    def tokens(self) -> str:
        """Tokens a step for a person."""
        return f"{self.tokens_per_step}{' + words' * self.has_text}"


def measure(task: Task) -> Spaces:
    """Makes the environment once and looks at its spaces."""
    spec = task.spec()
    layout = TimestepLayout.of(spec)
    return Spaces(
        observation=_kinds(spec.observation_spec),
        action=_kinds(spec.action_spec),
        tokens_per_step=layout.num_fixed_tokens,
        has_text=layout.has_text,
    )


def _kinds(specs: Mapping[str, ArraySpec]) -> dict[str, str]:
    return {
        key: str(spec.modality) if spec.modality == Modality.TEXT else f"{spec.modality}{list(spec.shape)}"
        for key, spec in specs.items()
    }


@functools.cache
def spaces() -> Mapping[str, Spaces]:
    """Task id -> its spaces, as kept in the project."""
    return load(Path(str(importlib.resources.files("collectors") / "data" / _DATA)))


def load(path: str | Path) -> dict[str, Spaces]:
    """The spaces in a file; empty when there is none.

    Raises:
      UserError: it holds something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        return {task_id: Spaces(**values) for task_id, values in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: expected spaces as `collectors describe` writes them, got {type(error).__name__}: {error}"
        ) from None


def save(path: str | Path, found: Mapping[str, Spaces]) -> None:
    """Writes a file of spaces, whole or not at all, one line a task."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{json.dumps(task_id)}: {json.dumps(dataclasses.asdict(found[task_id]))}" for task_id in sorted(found)]
    write_bytes(Path(path), ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def is_counted(task: Task) -> bool:
    """Whether a task is one of its own: it differs from the others in what must be done or controlled.

    A corpus is no control task; a twin that only shows or rewards another task differently is not counted.
    """
    return not task.is_corpus and not task.variant_of


def counts(tasks: Iterable[Task]) -> dict[str, dict[str, int]]:
    """Family -> {"counted", "variants", "corpora"}, and "total"."""
    found: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for task in tasks:
        kind = "counted" if is_counted(task) else "corpora" if task.is_corpus else "variants"
        found[task.family][kind] += 1
        found["total"][kind] += 1
    total = found.pop("total", collections.Counter())
    return {
        family: {kind: number[kind] for kind in ("counted", "variants", "corpora")}
        for family, number in [*sorted(found.items()), ("total", total)]
    }


def facts(task: Task) -> dict[str, Any]:
    """Everything that `collectors list` tells of a task."""
    score = scores.known().get(task.task_id)
    known = spaces().get(task.task_id)
    return {
        "task_id": task.task_id,
        "family": task.family,
        "observation": dict(known.observation) if known else None,
        "action": dict(known.action) if known else None,
        "tokens_per_step": known.tokens_per_step if known else None,
        "has_text": known.has_text if known else None,
        "expert": expert_name(task),
        "random_return": score.random_return if score else None,
        "expert_return": score.expert_return if score else None,
        "max_episode_steps": task.max_episode_steps,
        "counted": is_counted(task),
        "variant_of": task.variant_of,
        "tags": list(task.tags),
        "extra": task.make_env.extra if task.make_env else "",
        "licence": task.licence,
        "description": task.description,
    }


def expert_name(task: Task) -> str:
    """The recipe in a word or two; "" where nobody knows an expert yet."""
    match task.expert:
        case ScriptedExpert(name=name):
            return name
        case Sb3Expert(algorithm=algorithm, steps=steps):
            return f"{algorithm} {steps // 1000}k"
        case CorpusSource():
            return "corpus"
    return ""


def with_modality(tasks: Iterable[Task], modality: str) -> list[Task]:
    """The tasks with a field of that modality in their observations."""
    known = spaces()
    return [task for task in tasks if task.task_id in known and modality in known[task.task_id].modalities]


HEADER = ("task", "family", "observation", "action", "tokens a step", "expert", "random", "expert return", "licence")


def row(task: Task) -> list[str]:
    """A line of the table for a person, as `HEADER` names it."""
    told = facts(task)
    known = spaces().get(task.task_id)
    return [
        task.task_id,
        task.family,
        shown(told["observation"]),
        shown(told["action"]),
        known.tokens if known else "",
        told["expert"],
        *("" if told[key] is None else f"{told[key]:.2f}" for key in ("random_return", "expert_return")),
        task.licence,
    ]


def shown(fields: Mapping[str, str] | None) -> str:
    """Kinds in a few words: `continuous[39]`, or the sum over many fields of one modality."""
    sizes: dict[str, list[str]] = collections.defaultdict(list)
    for kind in (fields or {}).values():
        modality, _, shape = kind.partition("[")
        sizes[modality].append("x".join(shape.rstrip("]").split(", ")))
    return " ".join(modality + _size(shapes) for modality, shapes in sorted(sizes.items()))


def _size(shapes: Sequence[str]) -> str:
    if len(shapes) == 1:
        return f"[{shapes[0]}]" if shapes[0] else ""
    total = 0
    for shape in shapes:
        size = 1
        for side in filter(None, shape.split("x")):
            size *= int(side)
        total += size
    return f"[{total}]"


def markdown(tasks: Sequence[Task]) -> str:
    """The tables of the documentation: a count by family, then every task."""
    lines = ["| family | counted | variants | corpora |", "|---|---|---|---|"]
    lines += [
        f"| {family} | {number['counted']} | {number['variants']} | {number['corpora']} |"
        for family, number in counts(tasks).items()
    ]
    lines += ["", f"| {' | '.join(HEADER)} |", "|" + "---|" * len(HEADER)]
    lines += [f"| {' | '.join(row(task))} |" for task in tasks]
    return "\n".join(lines) + "\n"
