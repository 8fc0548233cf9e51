"""Reads RLDS sets, ours and everyone's: what a set leaves out is assumed, and said in words.

RLDS has T + 1 steps: step t holds o_t, a_t and the r_t that follows; the last step holds o_T, is_last, and an action
and a reward without meaning. Many published robot sets have a real action in their last step instead, and no
observation after it: see `_is_real`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import CorruptionError, UserError
from episode_store.formats.format import Finding, LossLog, SingleTaskImporter, task_id_from, with_repeated_last
from episode_store.formats.rlds_features import Leaf, decode_leaf, image_size, num_rows
from episode_store.formats.rlds_folder import INFO_FILE, Record, RldsFolder, open_folder, read_records
from episode_store.formats.tf_example import FeatureValues, decode_example
from episode_store.spec import VARIES, ArraySpec, FieldValues, Modality, uniform_bounds
from episode_store.splits import TRAIN, VALIDATION
from episode_store.task import TaskSpec

# Records looked at before the task is made: which sides of shapes vary, whether last steps have real actions.
_NUM_PEEKED = 32
_FLAGS = ("is_first", "is_last", "is_terminal")
_MAX_METADATA_NUMBERS = 4096
# Where our own sets keep what RLDS has no place for.
METADATA_FIELD, STEP_COLUMNS_FIELD = "episode_store_metadata", "step_columns"


@dataclasses.dataclass(kw_only=True)
class _Plan:
    """Which field of an Example becomes what."""

    observations: dict[str, Leaf] = dataclasses.field(default_factory=dict)
    actions: dict[str, Leaf] = dataclasses.field(default_factory=dict)
    step_columns: dict[str, Leaf] = dataclasses.field(default_factory=dict)
    flags: dict[str, Leaf] = dataclasses.field(default_factory=dict)
    reward: Leaf | None = None
    discount: Leaf | None = None
    last_step: str = "auto"


class RldsImporter(SingleTaskImporter):
    """The importer of one set; see `format.Importer`."""

    name = "rlds"

    def __init__(self, source: Path, *, task_id: str | None, options: Mapping[str, str]) -> None:
        self._folder: RldsFolder = open_folder(source)
        self._split = options.get("split")
        splits = sorted({shard.split for shard in self._folder.shards})
        if self._split is not None and self._split not in splits:
            raise UserError(f"source {source}: no split {self._split!r}: expected one of {', '.join(splits)}")
        self._shards = [shard for shard in self._folder.shards if self._split in (None, shard.split)]
        super().__init__()
        self._findings = list(self._folder.findings)
        self._ours = self._folder.task is not None
        self._last_step = options.get("last_step", "auto")
        if self._last_step not in ("auto", "real", "padding"):
            raise UserError(f"option last_step {self._last_step!r}: expected auto, real or padding")
        self._discrete = _parse_discrete(options.get("discrete", ""))
        peeked = self._peek()
        self._plan = self._make_plan(peeked)
        self._task = self._make_task(task_id, peeked)
        self._jpeg_fields = _jpeg_fields(self._plan, peeked[0])

    def num_episodes(self) -> int | None:
        """As dataset_info.json says."""
        return self._folder.num_records(self._split)

    def episodes(self) -> Iterator[Episode]:
        """All episodes, shard by shard."""
        self._findings = list(self._folder.findings)
        self._losses = LossLog()
        self._tell_assumptions()
        index = 0
        for shard in self._shards:
            for record in read_records(shard, self._findings):
                try:
                    episode = self._episode(record, index)
                except CorruptionError as error:
                    remedy = "the record is left out; mend the set, or go on without it"
                    self._findings.append(Finding(severity="error", where=record.where, what=str(error), remedy=remedy))
                else:
                    yield episode
                index += 1

    def _peek(self) -> list[dict[str, FeatureValues]]:
        """The first few records that can be read.

        Raises:
          UserError: none can.
        """
        findings: list[Finding] = []
        examples = []
        records = itertools.chain.from_iterable(read_records(shard, findings) for shard in self._shards)
        for record in itertools.islice(records, _NUM_PEEKED):
            try:
                example = decode_example(record.data)
                if self._rows(example):
                    examples.append(example)
            except CorruptionError as error:
                findings.append(Finding(severity="error", where=record.where, what=str(error)))
        if not examples:
            reason = findings[0].describe() if findings else "its shards are empty"
            raise UserError(f"source {self._folder.path}: no record can be read: {reason}")
        return examples

    def _rows(self, example: Mapping[str, FeatureValues]) -> int:
        """The number of steps, on which all fields must agree.

        Raises:
          CorruptionError: they do not.
        """
        counts: dict[int, str] = {}
        for leaf in self._folder.features.steps:
            rows = num_rows(leaf, example)
            if rows is not None:
                counts.setdefault(rows, leaf.key)
        if len(counts) > 1:
            told = ", ".join(f"{name} has {rows}" for rows, name in counts.items())
            raise CorruptionError(f"fields of different numbers of steps: {told}")
        return next(iter(counts), 0)

    def _make_plan(self, peeked: list[dict[str, FeatureValues]]) -> _Plan:
        plan = _Plan(last_step="padding" if self._ours else self._last_step)
        varying: dict[str, str] = {}
        for leaf in self._folder.features.steps:
            resolved = self._resolve(leaf, peeked)
            if isinstance(resolved, str):
                varying[leaf.name] = resolved
                continue
            self._place(plan, resolved)
        self._left_out = {name.removeprefix("steps/"): why for name, why in self._folder.features.unknown.items()}
        self._left_out |= varying
        if plan.last_step == "auto":
            real = any(self._is_real(plan, example) for example in peeked)
            plan.last_step = "real" if real else "auto"
        return plan

    def _resolve(self, leaf: Leaf, peeked: list[dict[str, FeatureValues]]) -> Leaf | str:
        """The field with all sides of its shape known, or why it cannot be kept."""
        if None not in leaf.shape and not leaf.num_ragged:
            return leaf
        shapes: set[tuple[int, ...]] = set()
        problem = ""
        for example in peeked:
            try:
                if leaf.kind == "image" and not leaf.num_ragged:
                    # The first frame that can be decoded tells, unless the sizes vary; where they seem not to, an
                    # episode of another size is refused later.
                    first = {leaf.key: example.get(leaf.key, [])[:1]}
                    shape = np.asarray(decode_leaf(leaf, first, 1)).shape[1:]
                    shapes.add((VARIES, VARIES, shape[2]) if self._varies(leaf, peeked) else shape)
                    break
                values = decode_leaf(leaf, example, self._rows(example))
            except CorruptionError as error:
                problem = str(error)
                if leaf.kind != "image":
                    return problem
                continue
            if isinstance(values, np.ndarray):
                shapes.add(values.shape[1:])
        if not shapes:
            return problem or leaf
        if len(shapes) > 1:
            return f"{leaf.key}: episodes of different shapes, {min(shapes)} to {max(shapes)}"
        return dataclasses.replace(leaf, shape=shapes.pop())

    def _varies(self, leaf: Leaf, peeked: list[dict[str, FeatureValues]]) -> bool:
        """Whether images have several sizes; what this project exports says the size of all others."""
        if leaf.dtype != "uint8" or None not in leaf.shape[:2]:
            return False
        sizes = {image_size(item) for example in peeked for item in example.get(leaf.key, [])}
        return self._ours or len(sizes - {None}) > 1

    def _place(self, plan: _Plan, leaf: Leaf) -> None:
        """Puts one field of the steps where it belongs."""
        top, *rest = leaf.path
        name = "/".join(rest)
        size = math.prod(side or 0 for side in leaf.shape)
        if top in _FLAGS and not rest and size == 1:
            plan.flags[top] = leaf
        elif leaf.path == ("reward",) and leaf.kind == "tensor" and size == 1:
            plan.reward = leaf
        elif leaf.path == ("discount",) and leaf.kind == "tensor" and size == 1:
            plan.discount = leaf
        elif top == "observation":
            plan.observations[name or "observation"] = leaf
        elif top == "action":
            plan.actions[name or "action"] = leaf
        elif self._ours and top == STEP_COLUMNS_FIELD:
            plan.step_columns[name] = leaf
        elif leaf.kind == "tensor":
            plan.step_columns[leaf.name] = leaf
        else:
            # A text or an image of a step is seen before the action: it is observed.
            plan.observations[leaf.name if leaf.name not in plan.observations else f"step/{leaf.name}"] = leaf

    def _is_real(self, plan: _Plan, example: Mapping[str, FeatureValues]) -> bool:
        """Whether the last step's action or reward means something: padding is zeros, NaN or empty texts."""
        rows = self._rows(example)
        leaves = [*plan.actions.values(), *([plan.reward] if plan.reward else [])]
        for leaf in leaves:
            try:
                last = decode_leaf(leaf, example, rows)[-1]
            except CorruptionError:
                continue
            if bool(last) if isinstance(last, str) else bool(np.nan_to_num(np.asarray(last, np.float64)).any()):
                return True
        return False

    def _make_task(self, task_id: str | None, peeked: list[dict[str, FeatureValues]]) -> TaskSpec:
        plan, folder = self._plan, self._folder
        if folder.task is not None:
            for kind in ("observation", "action"):
                expected, got = getattr(folder.task, f"{kind}_spec"), getattr(plan, f"{kind}s")
                if set(expected) != set(got):
                    raise UserError(f"{folder.path}: {kind}s: expected {sorted(expected)}, got {sorted(got)}")
            return dataclasses.replace(folder.task, task_id=task_id) if task_id else folder.task
        if not plan.observations:
            why = "".join(f"; {name}: {reason}" for name, reason in self._left_out.items())
            raise UserError(f"source {folder.path}: its steps have no observation that a store can hold{why}")
        major = folder.version.split(".")[0]
        version = int(major) if major.isdecimal() and len(major) < 5 else 0
        longest = max(self._rows(example) for example in peeked)
        for name in self._discrete:
            if name not in plan.observations and name not in plan.actions:
                fields = ", ".join([*plan.observations, *plan.actions])
                raise UserError(f"option discrete: no field {name!r}: expected one of {fields}")
        self._longest_peeked = longest
        return TaskSpec(
            task_id=task_id or task_id_from(f"rlds/{folder.name}", version),
            observation_spec={name: self._spec(name, leaf) for name, leaf in plan.observations.items()},
            action_spec={name: self._spec(name, leaf) for name, leaf in plan.actions.items()},
            env_spec_json=json.dumps({"dataset": folder.name, "version": folder.version}),
            tags=("imported:rlds",),
        )

    def _spec(self, name: str, leaf: Leaf) -> ArraySpec:
        shape = tuple(side or 0 for side in leaf.shape)
        if leaf.kind == "text":
            return ArraySpec(modality=Modality.TEXT, dtype="str")
        size = math.prod(shape)
        num_values = self._discrete.get(name) or leaf.num_values or (2 if leaf.dtype == "bool" else 0)
        if num_values and leaf.dtype[0] in "bui":
            # TFDS marks a label that is not known with -1.
            low = uniform_bounds(-1, shape) if leaf.num_values and name not in self._discrete else ()
            counts = (num_values + (1 if low else 0),) * size
            return ArraySpec(modality=Modality.DISCRETE, shape=shape, dtype=leaf.dtype, low=low, num_values=counts)
        if leaf.dtype == "uint8" and len(shape) == 3 and (leaf.kind == "image" or shape[2] in (1, 3, 4)):
            return ArraySpec(modality=Modality.IMAGE, shape=shape, dtype="uint8")
        return ArraySpec(modality=Modality.CONTINUOUS, shape=shape, dtype=leaf.dtype)

    def _tell_assumptions(self) -> None:
        """What is the same for the whole set."""
        plan, add = self._plan, self._losses.add
        for name, why in self._left_out.items():
            add(f"field {name}", f"left out, a store cannot hold it: {why}")
        if self._ours:
            return
        if plan.reward is None:
            add("reward", "the set has none, or not one number a step: taken as 0 everywhere")
        if not plan.actions:
            add("action", "the set has none: episodes without actions")
        for name, leaf in {**plan.observations, **plan.actions}.items():
            if leaf.dtype == "float64" and leaf.encoding == "none" and leaf.kind == "tensor":
                add(f"{name}: float64", "declared so, but the file holds float32: digits beyond it were lost before")
            bounded = name in self._discrete or leaf.num_values
            if leaf.kind == "tensor" and leaf.dtype[0] in "ui" and not bounded and len(leaf.shape) < 3:
                add(
                    f"{name}: number of values",
                    f"the set does not say how many values this {leaf.dtype} takes: kept as numbers; if they are "
                    f"choices, say --option discrete={name}:N",
                )
        for name in self._jpeg_fields:
            add(
                f"{name}: JPEG",
                "lossy before; decoded exactly, as Pillow and OpenCV do; TensorFlow's default decoder is a faster "
                "approximation whose pixels differ by a few levels",
            )
        add("bounds of observations and actions", "features.json has none: taken as unbounded")
        add("seed, agent, environment", "RLDS has no place for them: left empty")

    def _episode(self, record: Record, index: int) -> Episode:
        """One episode.

        Raises:
          CorruptionError: the record cannot be one.
        """
        example = decode_example(record.data)
        plan = self._plan
        rows = self._rows(example)
        if not rows:
            raise CorruptionError("no steps")
        flags = self._flags(example, rows)
        is_padding = plan.last_step == "padding" or (plan.last_step == "auto" and not self._is_real(plan, example))
        num_steps = rows - 1 if is_padding else rows
        if not num_steps:
            raise CorruptionError("one step only, which is the final observation: no action to keep")
        observations = {
            name: self._observations(leaf, example, rows, is_padding) for name, leaf in plan.observations.items()
        }
        actions = {name: self._decode(leaf, example, rows)[:num_steps] for name, leaf in plan.actions.items()}
        rewards = np.zeros(num_steps)
        if plan.reward is not None:
            rewards = np.asarray(self._decode(plan.reward, example, rows), np.float64).reshape(rows)[:num_steps]
        terminated, truncated = self._end(flags)
        step_columns, beyond = self._step_columns(example, rows, num_steps)
        if self._ours:
            return self._own_episode(example, observations, actions, rewards, step_columns, terminated)
        if not is_padding:
            self._losses.add(
                "final observation",
                "the last step has a real action (not zeros), so the observation after it is missing: the last one is "
                "repeated; --option last_step=padding drops such a last action instead",
            )
        else:
            why = "zeros without meaning, as RLDS has it" if plan.last_step == "auto" else "dropped as last_step says"
            self._losses.add("action and reward of the last step", f"{why}: the step is o_T only")
        return Episode(
            task_id=self._task.task_id,
            observations=observations,
            actions=actions,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            step_columns=step_columns,
            metadata=self._metadata(example, record, index, is_padding, beyond),
        )

    def _decode(self, leaf: Leaf, example: Mapping[str, FeatureValues], rows: int) -> Any:
        values = decode_leaf(leaf, example, rows)
        if leaf.kind == "text":
            raw = example[leaf.key]
            bad = sum("\ufffd" in text and text.encode() != bytes(item) for text, item in zip(values, raw, strict=True))
            self._losses.add(f"{leaf.name}: text", "bytes that are not UTF-8 became U+FFFD", bad)
        elif isinstance(values, np.ndarray) and values.shape[1:] != leaf.shape:
            raise CorruptionError(f"{leaf.key}: steps of shape {values.shape[1:]}, expected {leaf.shape}")
        return values

    def _observations(
        self, leaf: Leaf, example: Mapping[str, FeatureValues], rows: int, is_padding: bool
    ) -> FieldValues:
        values = self._decode(leaf, example, rows)
        if is_padding:
            return values
        return with_repeated_last(values)

    def _flags(self, example: Mapping[str, FeatureValues], rows: int) -> dict[str, np.ndarray]:
        """The flags that are there, bool [rows], each checked for its place."""
        flags = {}
        for name, leaf in self._plan.flags.items():
            if leaf.key in example and len(example[leaf.key]):
                flags[name] = np.asarray(decode_leaf(leaf, example, rows)).reshape(rows) != 0
        for name, place in (("is_first", 0), ("is_last", rows - 1)):
            if name in flags:
                wrong = np.flatnonzero(np.delete(flags[name], place))
                if len(wrong):
                    step = int(wrong[0]) + (place == 0)
                    raise CorruptionError(
                        f"{name} is set at step {step} of {rows}: several episodes in one record, divide them"
                    )
        return flags

    def _end(self, flags: Mapping[str, np.ndarray]) -> tuple[bool, bool]:
        """terminated, truncated."""
        add = self._losses.add
        if "is_last" not in flags:
            add("is_last", "the set has none: the end of the record is taken as the end of the episode")
        elif not flags["is_last"][-1]:
            add("is_last", "not set at the last step: the record may be cut; taken as truncated")
        if "is_terminal" not in flags:
            add("is_terminal", "the set has none: taken as truncated, not terminated")
            return False, True
        terminated = bool(flags["is_terminal"][-1])
        if flags["is_terminal"][:-1].any():
            add("is_terminal", "set before the last step: only the last step's is kept")
        if not self._ours:
            add("truncation", "RLDS has no flag for it: taken as truncated where is_terminal is not set")
        return terminated, not terminated

    def _step_columns(
        self, example: Mapping[str, FeatureValues], rows: int, num_steps: int
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Step columns, and as JSON what the final observation's step has of them: a column has no row for that."""
        columns: dict[str, np.ndarray] = {}
        beyond: dict[str, Any] = {}
        for name, leaf in self._plan.step_columns.items():
            keys = (leaf.key, f"{leaf.key}/value", f"{leaf.key}/ragged_row_lengths_0")
            if not any(key in example for key in keys):
                continue
            values = self._decode(leaf, example, rows)
            columns[name] = values[:num_steps]
            if values[num_steps:].any():
                if values[0].size > _MAX_METADATA_NUMBERS:
                    self._losses.add(
                        f"{name} of the last step",
                        f"more than {_MAX_METADATA_NUMBERS} numbers that belong to no action: left out",
                    )
                else:
                    beyond[name] = _as_json(values[num_steps])
        discount = self._plan.discount
        if discount is not None and not self._ours and discount.key in example:
            values = np.asarray(self._decode(discount, example, rows)).reshape(rows)
            if not np.isin(values, (0, 1)).all() or not values[:-2].all():
                columns["discount"] = values[:num_steps]
        return columns, beyond

    def _metadata(
        self,
        example: Mapping[str, FeatureValues],
        record: Record,
        index: int,
        is_padding: bool,
        beyond: Mapping[str, Any],
    ) -> EpisodeMetadata:
        facts = {}
        for leaf in self._folder.features.episode:
            value = self._episode_fact(leaf, example)
            if value is not None:
                facts[leaf.name] = value
        split = record.shard.split
        group = f"{self._folder.name}:{record.where}"
        side = TRAIN if split.startswith("train") else VALIDATION if split.startswith(("val", "test")) else ""
        return EpisodeMetadata(
            agent_id=f"rlds:{self._folder.name}",
            collection_index=index,
            split_group=f"{side}/{group}" if side else group,
            environment_config={
                "dataset": self._folder.name,
                "version": self._folder.version,
                "split": split,
                "source": record.where,
                "last_step": "padding" if is_padding else "real",
                **({"last_step_columns": beyond} if beyond else {}),
                "episode": facts,
            },
        )

    def _episode_fact(self, leaf: Leaf, example: Mapping[str, FeatureValues]) -> Any:
        """A fact of the episode as JSON; None where it is missing or too large, which is told."""
        values = example.get(leaf.key)
        if values is None:
            return None
        if leaf.kind == "image" or (leaf.encoding != "none" and leaf.kind == "tensor") or leaf.num_ragged > 1:
            self._losses.add(f"field {leaf.name}", "an array of the whole episode: left out")
            return None
        if len(values) > _MAX_METADATA_NUMBERS:
            self._losses.add(f"field {leaf.name}", f"more than {_MAX_METADATA_NUMBERS} values an episode: left out")
            return None
        if isinstance(values, np.ndarray):
            items = _as_json(values.astype(bool) if leaf.dtype == "bool" else values)
        else:
            items = [bytes(item).decode("utf-8", "replace") for item in values]
        return items[0] if not leaf.shape and len(items) == 1 else items

    def _own_episode(
        self,
        example: Mapping[str, FeatureValues],
        observations: Mapping[str, FieldValues],
        actions: Mapping[str, FieldValues],
        rewards: np.ndarray,
        step_columns: dict[str, np.ndarray],
        terminated: bool,
    ) -> Episode:
        """An episode that this project exported: with its own metadata, and checked against its own hash."""
        try:
            facts = json.loads(bytes(example[f"episode_metadata/{METADATA_FIELD}"][0]))
            metadata = EpisodeMetadata.from_json(facts["metadata"])
            names, truncated, expected = facts["step_columns"], bool(facts["truncated"]), facts["content_hash"]
            known = {name: step_columns[name] for name in names}
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise CorruptionError(f"episode_metadata/{METADATA_FIELD}: cannot be understood: {error!r}") from None
        episode = Episode(
            task_id=self._folder.task.task_id if self._folder.task else self._task.task_id,
            observations=observations,
            actions=actions,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            step_columns=known,
            metadata=metadata,
        )
        if episode.content_hash() != expected:
            self._losses.add(
                "content hash", f"differs from the exported episode's: the export lost digits (see {INFO_FILE})"
            )
        return dataclasses.replace(episode, task_id=self._task.task_id)


def _as_json(values: np.ndarray) -> Any:
    """Numbers as JSON holds them: a list, in lists for each axis, or one number; what is not finite as text."""
    if values.ndim:
        return [_as_json(value) for value in values]
    number = values.item()
    return number if math.isfinite(number) else str(number)


def _jpeg_fields(plan: _Plan, example: Mapping[str, FeatureValues]) -> list[str]:
    """The image fields whose first frame is a JPEG file."""
    found = []
    for name, leaf in plan.observations.items():
        first = example.get(leaf.key, [])[:1] if leaf.kind == "image" else []
        if len(first) and bytes(first[0][:2]) == b"\xff\xd8":
            found.append(name)
    return found


def _parse_discrete(text: str) -> dict[str, int]:
    """`field:N,field:N` -> field -> N."""
    result = {}
    for item in filter(None, text.split(",")):
        name, _, count = item.rpartition(":")
        if not name or not count.isdecimal() or not 0 < int(count) < 1 << 31:
            raise UserError(f"option discrete {item!r}: expected FIELD:N, for example action:18")
        result[name] = int(count)
    return result
