"""The same episodes kept by this project and by its peers, for `benchmarks/faults.py`; one class a format.

Each peer is used as its own documentation shows, with what it offers for checking. A package that is not installed
leaves its format out.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

NUM_STEPS, NUM_EPISODES = 24, 20
Arrays = dict[str, np.ndarray]
Acknowledge = Callable[[], object]


def make_episode(number: int) -> Arrays:
    """Episode `number`: frames that compress, float states, actions, rewards."""
    rng = np.random.default_rng(number)
    frames = np.zeros((NUM_STEPS, 24, 24, 3), np.uint8)
    frames[:, 4:12, 4:12] = rng.integers(0, 255, (NUM_STEPS, 8, 8, 3), np.uint8)
    return {
        "frames": frames,
        "states": rng.normal(size=(NUM_STEPS, 8)).astype(np.float32),
        "actions": rng.integers(0, 4, NUM_STEPS),
        # float64, of numbers that float32 can hold: LeRobot's reader hands out no more.
        "rewards": rng.normal(size=NUM_STEPS).astype(np.float32).astype(np.float64),
    }


def digest(episode: Arrays) -> str:
    """What must be equal for two episodes to be equal."""
    content = hashlib.blake2b(digest_size=8)
    for name in sorted(episode):
        content.update(name.encode() + np.ascontiguousarray(episode[name]).tobytes())
    return content.hexdigest()


class Ours:
    """This project's store."""

    title, package = "episode_store", "episode_store"
    modules: tuple[str, ...] = ("episode_store.store", "episode_store.writer")

    def write(self, folder: Path, episodes: Iterator[Arrays], saved: Acknowledge) -> None:
        """Adds episodes; `saved` is called when the library says that one is kept."""
        from episode_store.episode import Episode, EpisodeMetadata
        from episode_store.spec import ArraySpec, Modality
        from episode_store.task import TaskSpec
        from episode_store.writer import EpisodeWriter

        task = TaskSpec(
            task_id="Faults-v0",
            observation_spec={
                "frames": ArraySpec(modality=Modality.IMAGE, shape=(24, 24, 3), dtype="uint8"),
                "states": ArraySpec(modality=Modality.CONTINUOUS, shape=(8,)),
            },
            action_spec={"actions": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(4,))},
        )
        with EpisodeWriter(folder) as writer:
            writer.add_task(task)
            for number, arrays in enumerate(episodes):
                last = {name: np.concatenate([arrays[name], arrays[name][-1:]]) for name in ("frames", "states")}
                metadata = EpisodeMetadata(agent_id="bench", collection_index=number)
                writer.add_episode(
                    Episode(
                        task_id="Faults-v0",
                        observations=last,
                        actions={"actions": arrays["actions"]},
                        rewards=arrays["rewards"],
                        terminated=True,
                        truncated=False,
                        metadata=metadata,
                    )
                )
                saved()

    def read(self, folder: Path) -> Iterator[Arrays]:
        """All episodes that a fresh reader hands out."""
        from episode_store.store import EpisodeStore

        store = EpisodeStore.open(folder)
        for episode_id in store.episode_ids:
            episode = store.read(episode_id)
            observations = {name: np.asarray(values)[:-1] for name, values in episode.observations.items()}
            yield {**observations, "actions": np.asarray(episode.actions["actions"]), "rewards": episode.rewards}


class _Arrow:
    """Shared by the Arrow formats: one row a step."""

    package = "pyarrow"
    modules = ("pyarrow.parquet", "pyarrow.ipc")

    def table(self, arrays: Arrays) -> Any:
        """One episode."""
        import pyarrow as pa

        columns = {}
        for name, values in arrays.items():
            flat = pa.array(values.reshape(-1))
            width = values[0].size
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, width) if values.ndim > 1 else flat
        return pa.table(columns)

    def arrays(self, table: Any) -> Arrays:
        """Back."""
        shapes = {name: values.shape[1:] for name, values in make_episode(0).items()}
        found = {}
        for name in table.column_names:
            column = table[name].combine_chunks()
            flat = column.flatten() if shapes[name] else column
            found[name] = flat.to_numpy(zero_copy_only=False).reshape(-1, *shapes[name])
        return found


class Parquet(_Arrow):
    """Parquet as pyarrow writes it by default, one row group an episode."""

    title = "Parquet (pyarrow's defaults)"
    checks: bool = False

    def write(self, folder: Path, episodes: Iterator[Arrays], saved: Acknowledge) -> None:
        """See `Ours`."""
        import pyarrow.parquet as pq

        schema = self.table(make_episode(0)).schema
        with pq.ParquetWriter(
            folder / "a.parquet", schema, compression="zstd", write_page_checksum=self.checks
        ) as writer:
            for arrays in episodes:
                writer.write_table(self.table(arrays))
                saved()

    def read(self, folder: Path) -> Iterator[Arrays]:
        """See `Ours`."""
        import pyarrow.parquet as pq

        file = pq.ParquetFile(folder / "a.parquet", page_checksum_verification=self.checks)
        for number in range(file.num_row_groups):
            yield self.arrays(file.read_row_group(number, use_threads=False))


class CheckedParquet(Parquet):
    """Parquet with its optional checksums, written and verified."""

    title = "Parquet with page checksums"
    checks = True


class ArrowIpc(_Arrow):
    """Arrow IPC with zstd, one batch an episode."""

    title = "Arrow IPC file, zstd"

    def write(self, folder: Path, episodes: Iterator[Arrays], saved: Acknowledge) -> None:
        """See `Ours`."""
        import pyarrow as pa

        schema = self.table(make_episode(0)).schema
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(str(folder / "a.arrow"), schema, options=options) as writer:
            for arrays in episodes:
                writer.write_table(self.table(arrays))
                saved()

    def read(self, folder: Path) -> Iterator[Arrays]:
        """See `Ours`."""
        import pyarrow as pa

        with pa.memory_map(str(folder / "a.arrow")) as source:
            file = pa.ipc.open_file(source)
            for number in range(file.num_record_batches):
                batch = file.get_batch(number)
                batch.validate(full=True)
                yield self.arrays(pa.table(batch))


class Hdf5:
    """The layout of robomimic: frames gzipped, the rest raw; one group an episode, flushed after each."""

    title, package = "HDF5 in robomimic's layout", "h5py"
    modules = ("h5py",)

    def write(self, folder: Path, episodes: Iterator[Arrays], saved: Acknowledge) -> None:
        """See `Ours`."""
        import h5py

        with h5py.File(folder / "a.hdf5", "w") as file:
            for number, arrays in enumerate(episodes):
                group = file.create_group(f"data/demo_{number}")
                for name, values in arrays.items():
                    group.create_dataset(name, data=values, compression="gzip" if name == "frames" else None)
                file.flush()
                saved()

    def read(self, folder: Path) -> Iterator[Arrays]:
        """See `Ours`."""
        import h5py

        with h5py.File(folder / "a.hdf5", "r") as file:
            for number in sorted(int(name.split("_")[1]) for name in file["data"]):
                yield {name: values[()] for name, values in file[f"data/demo_{number}"].items()}


class Minari:
    """Minari's own storage."""

    package = "minari"
    modules = ("gymnasium", "minari.dataset.minari_storage", "minari.data_collector", "pyarrow.dataset")
    data_format = "hdf5"
    title = "Minari, HDF5"

    def write(self, folder: Path, episodes: Iterator[Arrays], saved: Acknowledge) -> None:
        """See `Ours`."""
        import gymnasium
        from minari.data_collector import EpisodeBuffer
        from minari.dataset.minari_storage import MinariStorage

        box = gymnasium.spaces.Box
        space = gymnasium.spaces.Dict(
            {"frames": box(0, 255, (24, 24, 3), np.uint8), "states": box(-np.inf, np.inf, (8,), np.float32)}
        )
        (folder / "data").mkdir()
        storage = MinariStorage.new(folder / "data", space, gymnasium.spaces.Discrete(4), data_format=self.data_format)
        for number, arrays in enumerate(episodes):
            flags = np.zeros(NUM_STEPS, bool)
            flags[-1] = True
            buffer = EpisodeBuffer(
                id=number,
                observations={
                    name: list(np.concatenate([arrays[name], arrays[name][-1:]])) for name in ("frames", "states")
                },
                actions=list(arrays["actions"]),
                rewards=list(arrays["rewards"]),
                terminations=list(flags),
                truncations=list(~flags & False),
            )
            storage.update_episodes([buffer])
            saved()

    def read(self, folder: Path) -> Iterator[Arrays]:
        """See `Ours`."""
        from minari.dataset.minari_storage import MinariStorage

        storage = MinariStorage.read(folder / "data")
        for found in storage.get_episodes(range(storage.total_episodes)):
            observations = {name: np.asarray(values)[:-1] for name, values in found["observations"].items()}
            yield {
                **observations,
                "actions": np.asarray(found["actions"]).astype(np.int64),
                "rewards": np.asarray(found["rewards"], np.float64),
            }


class MinariArrow(Minari):
    """Minari's storage in Arrow files."""

    title = "Minari, Arrow"
    data_format = "arrow"


def _raw(arrays: Arrays) -> bytes:
    return b"".join(np.ascontiguousarray(arrays[name]).tobytes() for name in sorted(arrays))


def _unraw(content: bytes) -> Arrays:
    found, start = {}, 0
    for name, values in sorted(make_episode(0).items()):
        found[name] = np.frombuffer(content, values.dtype, values.size, start).reshape(values.shape)
        start += values.nbytes
    return found


class ArrayRecord:
    """Google's array_record, which TFDS uses; one record an episode."""

    title, package = "array_record", "array_record"
    modules = ("array_record.python.array_record_module",)

    def write(self, folder: Path, episodes: Iterator[Arrays], saved: Acknowledge) -> None:
        """See `Ours`."""
        from array_record.python import array_record_module

        writer = array_record_module.ArrayRecordWriter(str(folder / "a.array_record"), "group_size:1")
        for arrays in episodes:
            writer.write(_raw(arrays))
            saved()
        writer.close()

    def read(self, folder: Path) -> Iterator[Arrays]:
        """See `Ours`."""
        from array_record.python import array_record_module

        reader = array_record_module.ArrayRecordReader(str(folder / "a.array_record"))
        for number in range(reader.num_records()):
            yield _unraw(reader.read([number])[0])


class WebDataset:
    """WebDataset tars of 10 samples."""

    title, package = "WebDataset", "webdataset"
    modules = ("webdataset",)

    def write(self, folder: Path, episodes: Iterator[Arrays], saved: Acknowledge) -> None:
        """See `Ours`."""
        import webdataset

        with webdataset.ShardWriter(f"file:{folder}/a-%06d.tar", maxcount=10, verbose=0) as writer:
            for number, arrays in enumerate(episodes):
                writer.write({"__key__": f"{number:06d}", "raw": _raw(arrays)})
                saved()

    def read(self, folder: Path) -> Iterator[Arrays]:
        """See `Ours`."""
        import webdataset

        urls = [f"file:{path}" for path in sorted(folder.glob("*.tar"))]
        for sample in webdataset.WebDataset(urls, shardshuffle=False) if urls else ():
            yield _unraw(sample["raw"])


class Mds:
    """MosaicML's streaming, with hashes in its index."""

    title, package = "MDS (mosaicml-streaming)", "streaming"
    modules = ("streaming",)

    def write(self, folder: Path, episodes: Iterator[Arrays], saved: Acknowledge) -> None:
        """See `Ours`."""
        from streaming import MDSWriter

        with MDSWriter(out=str(folder), columns={"raw": "bytes"}, hashes=["xxh64"], size_limit=1 << 18) as writer:
            for arrays in episodes:
                writer.write({"raw": _raw(arrays)})
                saved()

    def read(self, folder: Path) -> Iterator[Arrays]:
        """See `Ours`."""
        from streaming import LocalDataset

        dataset = LocalDataset(str(folder))
        for number in range(len(dataset)):
            yield _unraw(dataset[number]["raw"])


class Litdata:
    """Lightning's litdata, as its `optimize` writes: chunks, and an index at the end."""

    title, package = "litdata", "litdata"
    modules = ("litdata.streaming.writer", "litdata")

    def write(self, folder: Path, episodes: Iterator[Arrays], saved: Acknowledge) -> None:
        """See `Ours`."""
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(folder), chunk_size=5)
        for number, arrays in enumerate(episodes):
            writer[number] = arrays
            saved()
        writer.done()
        writer.merge()

    def read(self, folder: Path) -> Iterator[Arrays]:
        """See `Ours`."""
        from litdata import StreamingDataset

        dataset = StreamingDataset(str(folder))
        for number in range(len(dataset)):
            yield {name: np.asarray(values) for name, values in dataset[number].items()}


class Tfds:
    """TFDS with RLDS features, through its writer for data that comes one episode at a time."""

    title, package = "TFDS, RLDS in TFRecord", "tensorflow_datasets"
    modules = ("tensorflow", "tensorflow_datasets")

    def write(self, folder: Path, episodes: Iterator[Arrays], saved: Acknowledge) -> None:
        """See `Ours`."""
        import tensorflow_datasets as tfds

        features = tfds.features
        steps = {
            "frames": features.Image(shape=(24, 24, 3), encoding_format="png"),
            "states": features.Tensor(shape=(8,), dtype=np.float32),
            "actions": np.int64,
            # A list of numbers would be float32.
            "rewards": features.Tensor(shape=(), dtype=np.float64, encoding="bytes"),
        }
        identity = tfds.core.dataset_info.DatasetIdentity(
            name="faults", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name="faults"
        )
        info = tfds.core.DatasetInfo(
            builder=identity, features=features.FeaturesDict({"steps": features.Dataset(steps)})
        )
        writer = tfds.core.SequentialWriter(info, max_examples_per_shard=10)
        writer.initialize_splits(["train"])
        for arrays in episodes:
            writer.add_examples({"train": [{"steps": arrays}]})
            saved()
        writer.close_all()

    def read(self, folder: Path) -> Iterator[Arrays]:
        """See `Ours`."""
        import tensorflow_datasets as tfds

        dataset = tfds.builder_from_directory(str(folder)).as_dataset(split="train")
        for example in dataset:
            steps = list(example["steps"].as_numpy_iterator())
            yield {name: np.stack([step[name] for step in steps]) for name in steps[0]}


class LeRobot:
    """LeRobot v3 with images as PNG in Parquet."""

    title, package = "LeRobot v3", "lerobot"
    modules = ("datasets", "lerobot.datasets.lerobot_dataset")
    _names: ClassVar = {
        "observation.image": "frames",
        "observation.state": "states",
        "action": "actions",
        "next.reward": "rewards",
    }

    def write(self, folder: Path, episodes: Iterator[Arrays], saved: Acknowledge) -> None:
        """See `Ours`."""
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        features = {
            theirs: {
                "dtype": "image" if name == "frames" else str(values.dtype),
                "shape": values.shape[1:] or (1,),
                "names": None,
            }
            for theirs, name in self._names.items()
            for values in [make_episode(0)[name]]
        }
        dataset = LeRobotDataset.create("faults/set", fps=30, features=features, root=folder / "set", use_videos=False)
        for arrays in episodes:
            for row in range(NUM_STEPS):
                frame = {theirs: np.atleast_1d(arrays[name][row]) for theirs, name in self._names.items()}
                dataset.add_frame({**frame, "task": "play"})
            dataset.save_episode()
            saved()
        dataset.finalize()

    def read(self, folder: Path) -> Iterator[Arrays]:
        """See `Ours`."""
        import datasets
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        # Its cache would hand out what another file of the same name held.
        with tempfile.TemporaryDirectory() as cache:
            datasets.config.HF_DATASETS_CACHE = Path(cache)
            dataset = LeRobotDataset("faults/set", root=folder / "set")
            frames = (dataset[number] for number in range(len(dataset)))
            for _, episode in itertools.groupby(frames, lambda frame: int(frame["episode_index"])):
                yield self._arrays(list(episode))

    def _arrays(self, frames: list[Any]) -> Arrays:
        found = {}
        for theirs, name in self._names.items():
            values = np.stack([frame[theirs].numpy() for frame in frames])
            like = make_episode(0)[name]
            if name == "frames":
                values = (np.moveaxis(values, 1, -1) * 255).round()
            found[name] = values.reshape(-1, *like.shape[1:]).astype(like.dtype)
        return found


FORMATS = (
    *(Ours, CheckedParquet, Parquet, ArrowIpc, Hdf5, Minari, MinariArrow, ArrayRecord, WebDataset, Mds),
    *(Litdata, Tfds, LeRobot),
)


def installed() -> list[Any]:
    """The formats whose packages are there."""
    return [kind() for kind in FORMATS if importlib.util.find_spec(kind.package) is not None]
