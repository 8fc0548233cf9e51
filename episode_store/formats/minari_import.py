"""Reads Minari sets: what a set leaves out is assumed and said."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from episode_store.episode import Episode, EpisodeMetadata
from episode_store.errors import CorruptionError, UserError
from episode_store.formats import minari_files as files
from episode_store.formats.folders import TASK_FILE, read_task
from episode_store.formats.format import (
    Finding,
    LossLog,
    SingleTaskImporter,
    one_line,
    task_id_from,
    with_repeated_last,
)
from episode_store.formats.minari_files import EpisodeFiles, Node, RawEpisode
from episode_store.formats.rlds_features import Leaf, decode_images
from episode_store.formats.space_json import Role, SpaceLeaf, leaf_paths, parse_space
from episode_store.spec import STORED_DTYPES, ArraySpec, FieldValues, Modality
from episode_store.task import TaskSpec

_MAX_RESET_NUMBERS = 256
_MAX_FACT_TEXT = 65_536
# Attributes that Minari computes from the arrays.
_COMPUTED = re.compile(r"id|total_steps|seed|rewards_(sum|mean|std|max|min)")


class MinariImporter(SingleTaskImporter):
    """The importer of one set; see `format.Importer`."""

    name = "minari"

    def __init__(self, source: Path, *, task_id: str | None, options: Mapping[str, str]) -> None:
        self._folder, self._metadata = files.read_metadata(source)
        bounds = options.get("bounds", "keep")
        if bounds not in ("keep", "drop"):
            raise UserError(f"option bounds {bounds!r}: expected keep or drop")
        self._data_format = str(self._metadata.get("data_format", "hdf5"))
        self._set_name = str(self._metadata.get("dataset_id") or self._folder.parent.name)
        super().__init__()
        own, content = read_task(self._folder / TASK_FILE)
        try:
            observations = parse_space(self._metadata["observation_space"], "observation", bounds=False)
            actions = parse_space(self._metadata["action_space"], "action", bounds=bounds == "keep")
        except UserError as error:
            raise UserError(f"{self._folder / files.METADATA_FILE}: {error}") from None
        self._own = own
        self._own_step_columns: Mapping[str, Any] = content.get("step_columns", {})
        if own is not None:
            observations = _own_leaves(own.observation_spec, "observation", observations)
            actions = _own_leaves(own.action_spec, "action", actions)
        else:
            observations, actions = self._as_stored(observations, actions)
        self._observations, self._actions = observations, actions
        self._task = self._make_task(task_id)

    def num_episodes(self) -> int | None:
        """As metadata.json says."""
        count = self._metadata.get("total_episodes")
        return count if isinstance(count, int) else None

    def episodes(self) -> Iterator[Episode]:
        """All episodes in the order of their numbers."""
        self._losses, self._findings = LossLog(), []
        self._tell_assumptions()
        episodes = files.open_episodes(self._folder, self._data_format)
        try:
            self._check_counts(episodes)
            for index in episodes.indices:
                try:
                    episode = self._episode(episodes.read(index))
                except files.DAMAGE as error:
                    self._add_error(episodes.where(index), f"cannot be read: {one_line(error)}")
                    continue
                except UserError as error:
                    self._add_error(episodes.where(index), one_line(error))
                    continue
                yield episode
        finally:
            episodes.close()

    def _add_error(self, where: str, what: str) -> None:
        remedy = "mend or remove this episode, or copy the set again; the others are read"
        self._findings.append(Finding(severity="error", where=where, what=what, remedy=remedy))

    def _check_counts(self, episodes: EpisodeFiles) -> None:
        said = self.num_episodes()
        found = len(episodes.indices)
        if said != found:
            self._findings.append(
                Finding(
                    severity="error",
                    where=files.METADATA_FILE,
                    what=f"says total_episodes {said}, the data has {found}",
                    remedy="the set is not whole, or was changed without Minari: copy it again, or write the number",
                )
            )
        if episodes.indices and episodes.indices != list(range(found)):
            missing = sorted(set(range(episodes.indices[-1])) - set(episodes.indices))
            self._findings.append(
                Finding(
                    severity="warning",
                    where=episodes.where(episodes.indices[-1]),
                    what=f"the numbers of episodes have gaps: {missing[:5]} missing; Minari's reader fails there",
                    remedy="copy the set again",
                )
            )

    def _as_stored(
        self, observations: list[SpaceLeaf], actions: list[SpaceLeaf]
    ) -> tuple[list[SpaceLeaf], list[SpaceLeaf]]:
        """The leaves with the widths of floats that the first readable episode has: data are the truth."""
        try:
            episodes = files.open_episodes(self._folder, self._data_format)
        except UserError:
            return observations, actions
        try:
            for index in episodes.indices:
                try:
                    raw = episodes.read(index)
                    return (
                        [_with_stored_width(leaf, _find(raw.observations, leaf)) for leaf in observations],
                        [_with_stored_width(leaf, _find(raw.actions, leaf)) for leaf in actions],
                    )
                except files.DAMAGE:
                    continue
        finally:
            episodes.close()
        return observations, actions

    def _make_task(self, task_id: str | None) -> TaskSpec:
        if self._own is not None:
            return dataclasses.replace(self._own, task_id=task_id) if task_id else self._own
        facts = {
            name: self._metadata[name]
            for name in (
                "env_spec",
                "eval_env_spec",
                "requirements",
                "code_permalink",
                "description",
                "ref_min_score",
                "ref_max_score",
                "minari_version",
            )
            if self._metadata.get(name)
        }
        # Kept as text, for people: what it names is never imported.
        environment = {"dataset": self._set_name, "minari": facts}
        return TaskSpec(
            task_id=task_id or task_id_from(f"minari/{self._set_name.replace('/', '-')}"),
            observation_spec={leaf.name: leaf.spec for leaf in self._observations},
            action_spec={leaf.name: leaf.spec for leaf in self._actions},
            max_episode_steps=_max_steps(facts.get("env_spec")),
            env_spec_json=json.dumps(environment, sort_keys=True),
            tags=("imported:minari",),
        )

    def _tell_assumptions(self) -> None:
        if self._own is not None:
            return
        add = self._losses.add
        spaces = self._metadata["observation_space"] + self._metadata["action_space"]
        if '"Text"' in spaces:
            add("Text: length and characters", "a store's texts are free: the limits of the space are left out")
        if '"Tuple"' in spaces:
            add("Tuple", "its members become fields 0, 1, ...: an export makes a Dict of them")
        add("bounds of observations", "left out: observations are never scaled by them, and simulators overstep them")
        add("agent weights, licence", "Minari has no place for them: left empty")

    def _episode(self, raw: RawEpisode) -> Episode:
        """One episode.

        Raises:
          one of DAMAGE, UserError: it cannot be one.
        """
        own = _parse_own(raw.own) if self._own is not None and raw.own is not None else None
        steps = len(raw.rewards)
        terminated, truncated = self._end(raw, steps)
        texts = own["texts"] if own else {}
        observations = {
            leaf.name: self._observation(leaf, texts.get(f"observations/{leaf.name}"), raw, steps)
            for leaf in self._observations
        }
        actions = {}
        for leaf in self._actions:
            values = self._values(leaf, texts.get(f"actions/{leaf.name}"), raw.actions)
            if len(values) != steps:
                raise CorruptionError(f"actions/{leaf.name}: {len(values)} actions for {steps} rewards")
            actions[leaf.name] = values
        step_columns, at_reset = self._infos(raw, steps, own)
        episode = Episode(
            task_id=self._task.task_id,
            observations=observations,
            actions=actions,
            rewards=raw.rewards.astype(np.float64),
            terminated=terminated,
            truncated=truncated,
            step_columns=step_columns,
            metadata=EpisodeMetadata.from_json(own["metadata"]) if own else self._provenance(raw, at_reset),
        )
        if own and self._own is not None:
            same = dataclasses.replace(episode, task_id=self._own.task_id)
            if same.content_hash() != own["content_hash"]:
                self._losses.add("content hash", "differs from the exported episode's: the set was changed since")
        return episode

    def _end(self, raw: RawEpisode, steps: int) -> tuple[bool, bool]:
        """terminated, truncated."""
        if not steps:
            raise CorruptionError("no steps")
        ends = {}
        for name, flags in (("terminations", raw.terminations), ("truncations", raw.truncations)):
            if flags.shape != (steps,):
                raise CorruptionError(f"{name}: {len(flags)} flags for {steps} rewards")
            ends[name] = flags.astype(bool)
        early = np.flatnonzero(ends["terminations"][:-1] | ends["truncations"][:-1])
        if len(early):
            raise CorruptionError(
                f"an end in the middle: step {int(early[0])} of {steps}; several episodes in one, divide them"
            )
        terminated, truncated = bool(ends["terminations"][-1]), bool(ends["truncations"][-1])
        if not (terminated or truncated):
            self._losses.add("end of the episode", "neither terminations nor truncations is set: taken as truncated")
            truncated = True
        return terminated, truncated

    def _observation(self, leaf: SpaceLeaf, own_texts: list[str] | None, raw: RawEpisode, steps: int) -> FieldValues:
        values = self._values(leaf, own_texts, raw.observations)
        if len(values) == steps:
            self._losses.add(
                "final observation", "the set has one observation a step, Minari wants one more: the last is repeated"
            )
            return with_repeated_last(values)
        if len(values) != steps + 1:
            raise CorruptionError(f"observations/{leaf.name}: {len(values)} observations for {steps} rewards")
        return values

    def _values(self, leaf: SpaceLeaf, own_texts: list[str] | None, place: Node) -> FieldValues:
        if own_texts is not None:
            return own_texts
        values = _find(place, leaf)
        spec = leaf.spec
        if spec.modality == Modality.TEXT:
            return self._texts(leaf, values)
        if leaf.is_picture and _is_encoded(leaf, values):
            return self._pictures(leaf, values)
        values = np.asarray(values)
        if values.shape[1:] != spec.shape:
            if not len(values) or values.size != len(values) * spec.size:
                raise CorruptionError(f"{leaf.name}: steps of shape {values.shape[1:]}, expected {spec.shape}")
            values = values.reshape(len(values), *spec.shape)
        dtype = np.dtype(spec.dtype)
        if values.dtype != dtype and values.dtype.kind in "biu" and dtype.kind in "biu":
            cast = values.astype(dtype)
            if np.array_equal(cast, values):
                return cast
        return values.astype(values.dtype.newbyteorder("="), copy=False)

    def _texts(self, leaf: SpaceLeaf, values: Any) -> list[str]:
        texts = []
        for value in values:
            if isinstance(value, str):
                texts.append(value)
                continue
            if not isinstance(value, bytes):
                raise CorruptionError(f"{leaf.name}: expected texts, got {type(value).__name__}")
            text = value.decode("utf-8", "replace")
            self._losses.add(f"{leaf.name}: text", "bytes that are not UTF-8 became U+FFFD", int("\ufffd" in text))
            texts.append(text)
        return texts

    def _pictures(self, leaf: SpaceLeaf, values: Any) -> np.ndarray:
        shape = leaf.spec.shape
        items = [item if isinstance(item, bytes) else np.asarray(item, np.uint8).tobytes() for item in values]
        picture = Leaf(path=(leaf.name,), key=leaf.name, kind="image", dtype="uint8", shape=(*shape, 1)[:3])
        decoded = decode_images(picture, items)
        if any(item[:2] == b"\xff\xd8" for item in items[:1]):
            self._losses.add(f"{leaf.name}: pixels", "the set holds JPEGs, which lost detail when it was written")
        return decoded.reshape(len(items), *shape)

    def _infos(
        self, raw: RawEpisode, steps: int, own: Mapping[str, Any] | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Step columns of the infos, and the values that came with the reset."""
        columns: dict[str, np.ndarray] = {}
        at_reset: dict[str, Any] = {}
        wanted = own["step_columns"] if own else None
        for name, node in raw.infos.leaves() if raw.infos is not None else ():
            if wanted is not None:
                if name in wanted:
                    columns[name] = np.asarray(node.values())[1:]
                continue
            try:
                values = np.asarray(node.values())
            except CorruptionError as error:
                self._losses.add(f"infos/{name}", f"left out: {one_line(error)}")
                continue
            if values.dtype.newbyteorder("<").str not in STORED_DTYPES:
                self._losses.add(f"infos/{name}", f"left out: {values.dtype}, a step column holds numbers only")
            elif values.ndim and len(values) == steps:
                columns[f"infos/{name}"] = values
            elif values.ndim and len(values) == steps + 1:
                columns[f"infos/{name}"] = values[1:]
                first = np.ravel(values[0])
                if len(first) > _MAX_RESET_NUMBERS:
                    self._losses.add(
                        f"infos/{name} of the reset", "a step column has T rows: the first row is left out"
                    )
                else:
                    at_reset[name] = _json_value(values[0])
            else:
                self._losses.add(
                    f"infos/{name}", f"left out: {values.shape} for {steps} steps, expected T or T + 1 rows"
                )
        return columns, at_reset

    def _provenance(self, raw: RawEpisode, at_reset: Mapping[str, Any]) -> EpisodeMetadata:
        facts = {}
        for name, value in raw.facts.items():
            if not _COMPUTED.fullmatch(name):
                fact = _json_value(value)
                if len(json.dumps(fact)) > _MAX_FACT_TEXT:
                    self._losses.add(f"attribute {name}", f"more than {_MAX_FACT_TEXT} characters: left out")
                else:
                    facts[name] = fact
        config: dict[str, Any] = {"dataset": self._set_name, "source": raw.where}
        if facts:
            config["episode"] = facts
        if at_reset:
            config["infos_at_reset"] = dict(at_reset)
        seed = raw.facts.get("seed")
        author = self._metadata.get("author")
        return EpisodeMetadata(
            agent_id=str(self._metadata.get("algorithm_name") or f"minari:{self._set_name}"),
            seed=int(seed) if isinstance(seed, int | np.integer) and 0 <= int(seed) < 1 << 63 else None,
            collection_index=raw.index,
            environment_config=config,
            attribution=", ".join(sorted(map(str, author))) if isinstance(author, list) else "",
        )


def _own_leaves(specs: Mapping[str, ArraySpec], role: Role, leaves: list[SpaceLeaf]) -> list[SpaceLeaf]:
    paths = leaf_paths(specs, role, "task")
    if {leaf.path for leaf in leaves} != set(paths.values()):
        raise UserError(f"{role} space: differs from the task in {TASK_FILE}: the set was changed since its export")
    return [
        SpaceLeaf(path=path, name=name, spec=specs[name], is_picture=specs[name].modality == Modality.IMAGE)
        for name, path in paths.items()
    ]


def _find(place: Node, leaf: SpaceLeaf) -> Any:
    for key in leaf.path:
        place = place.member(key)
    return place.values()


def _is_encoded(leaf: SpaceLeaf, values: Any) -> bool:
    """Whether the pictures are JPEG files (Minari's default) and not raw pixels, which Arrow has in one row."""
    return isinstance(values, list) or values.size != len(values) * leaf.spec.size


def _with_stored_width(leaf: SpaceLeaf, values: Any) -> SpaceLeaf:
    dtype = values.dtype if isinstance(values, np.ndarray) else None
    if dtype is None or dtype.kind != "f" or np.dtype(leaf.spec.dtype).kind != "f" or dtype.itemsize > 8:
        return leaf
    return dataclasses.replace(leaf, spec=dataclasses.replace(leaf.spec, dtype=dtype.name))


def _parse_own(text: str) -> dict[str, Any]:
    try:
        own = json.loads(text)
        return {name: own[name] for name in ("metadata", "content_hash", "step_columns", "texts")}
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptionError(f"episode_store: cannot be understood: {one_line(error)}") from None


def _max_steps(env_spec: Any) -> int | None:
    """The time limit that env_spec names; read as JSON and nothing more."""
    try:
        steps = json.loads(env_spec).get("max_episode_steps")
    except (TypeError, ValueError, AttributeError, RecursionError):
        return None
    return steps if isinstance(steps, int) and steps > 0 else None


def _json_value(value: Any) -> Any:
    """A NumPy value or attribute as JSON; what JSON lacks becomes text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _json_value(item) for name, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
