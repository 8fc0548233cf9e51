"""What every foreign format has in common: importers, exporters, what was lost, what a doctor finds, the registry.

A format is one module of this package with these functions (those it can do):

    detect(source: Path) -> bool                                            is this folder or file of my format? Cheap.
    open_importer(source: Path, *, task_id: str | None = None,
                  options: Mapping[str, str]) -> Importer                   task_id names the one task of the set
    export(store: EpisodeStore, task_id: str, destination: Path, *,
           options: Mapping[str, str], progress: Progress) -> ExportResult
    doctor(source: Path) -> list[Finding]                                   what is wrong with a set, in plain words

and one entry in `FORMATS`. Modules are imported when they are asked for; packages of an extra are imported inside
functions through `need`, so that a missing one is told in one line.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import numpy as np

from episode_store import layout
from episode_store.episode import Episode
from episode_store.errors import UserError
from episode_store.spec import FieldValues
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec

# Wraps the ids that an exporter works through; the command line's shows a bar.
Progress = Callable[[Sequence[str]], Iterable[str]]


def no_progress(items: Sequence[str]) -> Iterable[str]:
    """The `Progress` that shows nothing."""
    return items


def one_line(error: BaseException | str) -> str:
    """An error's text as one line of bounded length."""
    return " ".join(str(error).split())[:200]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
    """One thing that did not survive a conversion, or that the foreign set lacked and was assumed.

    Attributes:
      what: the thing, for example "final observation" or "actions/action: float64".
      why: what was done about it and why, one sentence.
      count: how many episodes (or files, fields) it happened to.
    """

    what: str
    why: str
    count: int = 1

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)

    def describe(self) -> str:
        """One line."""
        return f"{self.what} ({self.count}): {self.why}"


class LossLog:
    """Collects losses while a conversion runs: equal ones are counted, not repeated."""

    def __init__(self) -> None:
        self._counts: collections.Counter[tuple[str, str]] = collections.Counter()

    def add(self, what: str, why: str, count: int = 1) -> None:
        """Notes one loss."""
        if count:
            self._counts[what, why] += count

    def losses(self) -> list[Loss]:
        """In the order in which they were first met."""
        return [Loss(what=what, why=why, count=count) for (what, why), count in self._counts.items()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something wrong, or worth knowing, about a set.

    Attributes:
      severity: "error": data is damaged or cannot be used; "warning": it can, but not as it stands; "note": a fact.
      where: file, and record, episode or field in it.
      what: what is wrong.
      remedy: what to do about it; "" where nothing can be done.
    """

    severity: Literal["error", "warning", "note"]
    where: str
    what: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return dataclasses.asdict(self)

    def describe(self) -> str:
        """One line."""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.severity.upper()} {self.where}: {self.what}{remedy}"


class Importer(Protocol):
    """Reads one foreign set.

    `losses` and `findings` are complete once `episodes` is exhausted. A record that is damaged or that cannot be an
    episode becomes a finding of severity "error" and the next one follows; only what makes the whole set unusable
    raises.
    """

    name: str

    def tasks(self) -> list[TaskSpec]:
        """The tasks of the set, in a fixed order.

        Raises:
          UserError: the set cannot be used at all.
        """
        ...

    def episodes(self) -> Iterator[Episode]:
        """All episodes in a fixed order. Equal sources give equal episodes and so equal ids, which makes an import
        that was killed go on where it stopped."""
        ...

    def losses(self) -> list[Loss]:
        """What the foreign set lacked and what was assumed."""
        ...

    def findings(self) -> list[Finding]:
        """What was damaged or refused."""
        ...

    def num_episodes(self) -> int | None:
        """How many episodes the set says it has; None when it does not say."""
        ...


class ImporterBase:
    """What every importer has to say of its set; `episodes` begins both anew."""

    def __init__(self) -> None:
        self._losses = LossLog()
        self._findings: list[Finding] = []

    def losses(self) -> list[Loss]:
        """What the foreign set lacked and what was assumed."""
        return self._losses.losses()

    def findings(self) -> list[Finding]:
        """What was damaged or refused."""
        return list(self._findings)


class SingleTaskImporter(ImporterBase):
    """An importer of sets that hold one task, `_task`."""

    _task: TaskSpec

    def tasks(self) -> list[TaskSpec]:
        """The one task of the set."""
        return [self._task]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What an export made.

    Attributes:
      format: name of the format.
      task_id: the task.
      destination: folder or file that was made, to be opened by the format's own reader.
      num_episodes, num_steps: how much was written.
      num_bytes: of all files written.
      losses: what the format could not hold.
    """

    format: str
    task_id: str
    destination: Path
    num_episodes: int
    num_steps: int
    num_bytes: int
    losses: Sequence[Loss]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "destination": str(self.destination),
            "losses": [loss.to_json() for loss in self.losses],
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """One entry of the registry.

    Attributes:
      module: where it is implemented.
      description: one line for help texts.
      reads, writes: whether `import` and `export` know it.
      import_options, export_options: name -> help of what `--option NAME=VALUE` takes.
    """

    module: str
    description: str
    reads: bool = True
    writes: bool = True
    import_options: Mapping[str, str] = dataclasses.field(default_factory=dict)
    export_options: Mapping[str, str] = dataclasses.field(default_factory=dict)


# In the order in which `detect_format` asks; one entry a format.
FORMATS: dict[str, Format] = {
    "rlds": Format(
        module="episode_store.formats.rlds",
        description="RLDS/TFDS folder (dataset_info.json, features.json, TFRecord or ArrayRecord shards)",
        import_options={
            "split": "only this split, for example train (default: all)",
            "last_step": "real or padding: whether the last step's action means something (default auto: padding when "
            "action and reward are zeros)",
            "discrete": "FIELD:N,...: integer fields that are one of N choices",
        },
        export_options={
            "file_format": "tfrecord (default) or array_record (needs extra array_record)",
            "float64": "bytes (default, lossless) or float32 (plain float_list, as most published sets)",
            "shard_episodes": "episodes a shard (default: shards of about 256 MB)",
            "version": "x.y.z of the set (default 1.0.0)",
        },
    ),
    "minari": Format(
        module="episode_store.formats.minari",
        description="Minari folder (data/metadata.json with HDF5, Arrow or Parquet)",
        import_options={"bounds": "keep (default) or drop: bounds of actions, which some sets overstep"},
        export_options={"gzip": "0 to 9 (default 4): of pictures, lossless"},
    ),
    "lerobot": Format(
        module="episode_store.formats.lerobot",
        description="LeRobot v3.0 folder (meta/info.json, data/*/*.parquet)",
        import_options={
            "task": "observation, metadata or auto (default: observation where there are several): where the "
            "instruction of each frame goes",
            "last_frame": "repeat (default) or drop: LeRobot has no observation after the last action; repeat the "
            "last one, or drop the last action and its reward",
            "discrete": "FIELD:N,...: integer fields that are one of N choices",
        },
        export_options={
            "fps": "frames a second (default: the imported set's, else 30)",
            "images": "png (default, lossless) or video (lossy, needs extra video)",
            "robot_type": "name of the robot for info.json",
        },
    ),
    "robomimic": Format(
        module="episode_store.formats.robomimic",
        description="robomimic HDF5 (data/demo_<i>/obs, actions, rewards, dones, states)",
        import_options={"model_file": "keep (default) or drop: the simulator's XML of each demo"},
        export_options={"gzip": "0 to 9 (default 4): of pictures, lossless"},
    ),
    "jat": Format(
        module="episode_store.formats.jat",
        description="Parquet of the JAT dataset (one folder a task)",
        writes=False,
    ),
    "d4rl": Format(
        module="episode_store.formats.d4rl",
        description="HDF5 of D4RL (flat observations, actions, rewards, terminals, timeouts)",
        writes=False,
    ),
    "webdataset": Format(
        module="episode_store.formats.webdataset_tars",
        description="WebDataset tars of pictures with captions, or questions and answers",
        writes=False,
        import_options={"side": "of the pictures in pixels (default 64): they are scaled and cut to a square"},
    ),
    "coco": Format(
        module="episode_store.formats.coco",
        description="JSON of COCO captions or VQA questions beside a folder of pictures",
        writes=False,
        import_options={
            "side": "of the pictures in pixels (default 64): they are scaled and cut to a square",
            "images": "folder of the pictures (default: below the source)",
        },
    ),
    "dialogue": Format(
        module="episode_store.formats.dialogue",
        description="JSON lines of conversations (turns or messages)",
        writes=False,
    ),
    "text": Format(
        module="episode_store.formats.text",
        description="documents in .txt, .jsonl, .jsonl.zst or Parquet",
        writes=False,
        import_options={
            "text": "name of the text in JSON or Parquet (default text)",
            "title": "name of the title (default title)",
            "unit": "of .txt: file (default), paragraph or line: what one document is",
        },
    ),
}


def get_format(name: str) -> Format:
    """The registry's entry.

    Raises:
      UserError: there is no such format.
    """
    if name not in FORMATS:
        raise UserError(f"format {name!r}: expected one of {', '.join(sorted(FORMATS))}{layout.near(name, FORMATS)}")
    return FORMATS[name]


def load_module(name: str) -> ModuleType:
    """The module of a format, imported now."""
    return importlib.import_module(get_format(name).module)


def need(module: str, extra: str, purpose: str) -> ModuleType:
    """An optional package.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{purpose} needs the package {module}; pip install 'generalist-agent[{extra}]'") from None


def check_options(options: Mapping[str, str], known: Mapping[str, str], where: str) -> None:
    """Checks the names of `--option`s.

    Raises:
      UserError: one is not known.
    """
    for name in options:
        if name not in known:
            expected = f"expected one of {', '.join(known)}" if known else "there are none"
            raise UserError(f"{where}: no option {name!r}: {expected}{layout.near(name, known)}")


def open_importer(
    name: str, source: str | Path, *, task_id: str | None = None, options: Mapping[str, str] | None = None
) -> Importer:
    """Opens a foreign set.

    Raises:
      UserError: no such format or source, or the set cannot be used at all.
    """
    entry = get_format(name)
    if not entry.reads:
        raise UserError(f"format {name!r} can only be written")
    check_options(options or {}, entry.import_options, f"import --from {name}")
    return load_module(name).open_importer(existing_source(source), task_id=task_id, options=options or {})


def export_task(
    name: str,
    store: EpisodeStore,
    task_id: str,
    destination: str | Path,
    *,
    options: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> ExportResult:
    """Writes one task of a store in a foreign format.

    Raises:
      UserError: no such format or option, or the destination holds something already.
    """
    entry = get_format(name)
    if not entry.writes:
        raise UserError(f"format {name!r} can only be read")
    check_options(options or {}, entry.export_options, f"export --to {name}")
    return load_module(name).export(store, task_id, Path(destination), options=options or {}, progress=progress)


def existing_source(source: str | Path) -> Path:
    """The source as a path.

    Raises:
      UserError: there is nothing.
    """
    path = Path(source)
    if not path.exists():
        raise UserError(f"source {path}: no such folder or file")
    return path


def detect_format(source: Path) -> str | None:
    """The name of the format of a folder or file; None when no module knows it."""
    for name in FORMATS:
        if load_module(name).detect(source):
            return name
    return None


def with_repeated_last(values: FieldValues) -> FieldValues:
    """T observations and the last one again: T + 1, where a set lacks the final observation."""
    return [*values, values[-1]] if isinstance(values, list) else np.concatenate([values, values[-1:]])


def task_id_from(name: str, version: int = 0) -> str:
    """A task id made of any name: what the grammar of task ids forbids becomes '_' or '-'.

    An existing ending "-vN" is kept.
    """
    namespace, _, rest = name.rpartition("/")
    match = re.fullmatch(r"(.*?)-v([0-9]{1,4})", rest)
    if match:
        rest, version = match[1], int(match[2])
    parts = [re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9_-]", "_", part)).strip("-_") for part in (namespace, rest)]
    base = parts[1][:100].strip("-_") or "imported"
    prefix = f"{parts[0][:64].strip('-_')}/" if parts[0] else ""
    return f"{prefix}{base}-v{version}"
