"""One way of storing episodes, in a process of its own: `python store_peers.py PEER DATA FOLDER`.

It imports nothing of this project but for "ours", so that it runs in any environment that has the peer's package. It
answers lines of JSON on standard input: `["write"]`, `["size"]`, `["sequential"]`, `["windows", seed]`. What was read
counts when it is in the caller's own arrays, as for a batch; times are seconds of CPU of this process.
"""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

WINDOW = 32
_SECONDS = 0.15
# Data are read long after they were written; our windows trust no file that changed a moment ago.
_SETTLING_SECONDS = 2.5
# Who writes so slowly that more would take all day; rates are a step's and a window's.
_MOST_EPISODES = {"LeRobot v3": 20}
# Windows are read in batches, as for training: so many, and fewer where they are large.
_LARGEST_BATCH, _LARGEST_BATCH_BYTES = 256, 1 << 22
Arrays = dict[str, np.ndarray]


class Data:
    """A set of episodes: `<field>.npy` with all rows, `lengths.json`. Observations have one row more a episode."""

    def __init__(self, folder: Path, most_episodes: int | None = None) -> None:
        self.lengths: list[int] = json.loads((folder / "lengths.json").read_text())[:most_episodes]
        self.fields = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("observation", "action", "reward")
        }
        for values in self.fields.values():
            values.max()  # in memory before anyone is timed
        self.starts = np.cumsum([0, *self.lengths]).tolist()
        self.num_steps = sum(self.lengths)
        self.is_image = self.fields["observation"].dtype == np.uint8

    def episode(self, number: int) -> Arrays:
        """Views: T + 1 observations, T actions and rewards."""
        start, stop = self.starts[number], self.starts[number + 1]
        first = start + number
        return {
            "observation": np.asarray(self.fields["observation"][first : first + stop - start + 1]),
            "action": np.asarray(self.fields["action"][start:stop]),
            "reward": np.asarray(self.fields["reward"][start:stop]),
        }

    def rows(self, number: int) -> Arrays:
        """The same with T + 1 rows each, for those who keep a table of steps."""
        episode = self.episode(number)
        more = {name: np.zeros((1, *episode[name].shape[1:]), episode[name].dtype) for name in ("action", "reward")}
        return {**episode, **{name: np.concatenate([episode[name], row]) for name, row in more.items()}}


class Peer:
    """What every peer does; subclasses write, and read an episode or a part of it as arrays."""

    def __init__(self, data: Data, folder: Path) -> None:
        self.data, self.folder = data, folder
        self.out = {
            name: np.zeros((max(data.lengths) + 1, *values.shape[1:]), values.dtype)
            for name, values in data.fields.items()
        }
        window_bytes = WINDOW * sum(values[0].nbytes for values in data.fields.values())
        self.batch_size = max(1, min(_LARGEST_BATCH, _LARGEST_BATCH_BYTES // window_bytes))
        self.batch = {
            name: np.zeros((self.batch_size, WINDOW + (name == "observation"), *values.shape[1:]), values.dtype)
            for name, values in data.fields.items()
        }

    def write(self) -> None:
        raise NotImplementedError

    def open(self) -> None:
        raise NotImplementedError

    def read(self, number: int, start: int, steps: int) -> Mapping[str, np.ndarray]:
        """`steps` steps, and one observation more; the arrays may have rows to spare."""
        raise NotImplementedError

    def fill(self, number: int, start: int, steps: int, out: Arrays) -> None:
        """Puts the steps into the caller's arrays."""
        for name, values in self.read(number, start, steps).items():
            rows = steps + (name == "observation")
            out[name][:rows] = values[:rows]

    def fill_batch(self, places: list[tuple[int, int]]) -> None:
        """Puts windows into `self.batch`."""
        for element, (number, start) in enumerate(places):
            self.fill(number, start, WINDOW, {name: values[element] for name, values in self.batch.items()})


class _Views(Peer):
    """Who hands out arrays at once: no more is done for a window than must be."""

    def fill_batch(self, places: list[tuple[int, int]]) -> None:
        batch = self.batch
        for element, (number, start) in enumerate(places):
            for name, values in self.read(number, start, WINDOW).items():
                batch[name][element] = values[: WINDOW + (name == "observation")]


class Ours(Peer):
    """This project."""

    checksums = True

    def write(self) -> None:
        from episode_store.episode import Episode, EpisodeMetadata
        from episode_store.spec import ArraySpec, Modality
        from episode_store.task import TaskSpec
        from episode_store.writer import EpisodeWriter

        fields = self.data.fields
        shape, dtype = fields["observation"].shape[1:], str(fields["observation"].dtype)
        modality = Modality.IMAGE if self.data.is_image else Modality.CONTINUOUS
        action = (
            ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(18,))
            if fields["action"].ndim == 1
            else ArraySpec(modality=Modality.CONTINUOUS, shape=fields["action"].shape[1:], dtype="float32")
        )
        task = TaskSpec(
            task_id="Benchmark-v0",
            observation_spec={"observation": ArraySpec(modality=modality, shape=shape, dtype=dtype)},
            action_spec={"action": action},
        )
        with EpisodeWriter(self.folder) as writer:
            writer.add_task(task)
            for number in range(len(self.data.lengths)):
                episode = self.data.episode(number)
                writer.add_episode(
                    Episode(
                        task_id=task.task_id,
                        observations={"observation": episode["observation"]},
                        actions={"action": episode["action"]},
                        rewards=episode["reward"],
                        terminated=True,
                        truncated=False,
                        metadata=EpisodeMetadata(agent_id="benchmark", seed=number, collection_index=number),
                    )
                )

    def open(self) -> None:
        from episode_store import column_codecs
        from episode_store.store import EpisodeStore
        from episode_store.window_table import WindowTable

        if not self.checksums:
            column_codecs.checksum, column_codecs.digest = _Anything.of, _AnyDigest.of
            WindowTable._check = lambda *_: None
        self.store = EpisodeStore.open(self.folder)
        self.ids = self.store.table(columns=["episode_id"])["episode_id"].to_pylist()
        self.paths = {"observations/observation": "observation", "actions/action": "action", "rewards": "reward"}
        self.arrays = {path: self.out[name] for path, name in self.paths.items()}
        self.batches = {path: self.batch[name] for path, name in self.paths.items()}

    def fill(self, number: int, start: int, steps: int, out: Arrays) -> None:
        self.store.read_into(self.ids[number], self.arrays)

    def fill_batch(self, places: list[tuple[int, int]]) -> None:
        ids = self.ids
        self.store.read_windows([(ids[number], start) for number, start in places], WINDOW, self.batches)


class _Anything(int):
    """Equal to every checksum, so that none is compared."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__

    @classmethod
    def of(cls, _: object) -> _Anything:
        return _ANYTHING


_ANYTHING = _Anything()


class _AnyDigest(bytes):
    """The same for whole columns."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = bytes.__hash__

    @classmethod
    def of(cls, _: object) -> _AnyDigest:
        return _ANY_DIGEST


_ANY_DIGEST = _AnyDigest(16)


class Unchecked(Ours):
    """This project without comparing checksums."""

    checksums = False


class Memmap(_Views):
    """np.memmap: one file a field, no compression."""

    def write(self) -> None:
        self.folder.mkdir()
        counts = {name: len(values) for name, values in self.data.fields.items()}
        for name, values in self.data.fields.items():
            target = np.memmap(self.folder / name, values.dtype, "w+", shape=values.shape)
            row = 0
            for number in range(len(self.data.lengths)):
                part = self.data.episode(number)[name]
                target[row : row + len(part)] = part
                row += len(part)
            assert row == counts[name]
            target.flush()

    def open(self) -> None:
        self.maps = {
            name: np.memmap(self.folder / name, values.dtype, "r", shape=values.shape)
            for name, values in self.data.fields.items()
        }

    def read(self, number: int, start: int, steps: int) -> Mapping[str, np.ndarray]:
        first = self.data.starts[number] + start
        maps = self.maps
        return {
            "observation": maps["observation"][first + number : first + number + steps + 1],
            "action": maps["action"][first : first + steps],
            "reward": maps["reward"][first : first + steps],
        }


def _arrow_table(rows: Arrays) -> Any:
    """Rows as Arrow; each value a FixedSizeBinary, or a number."""
    import pyarrow as pa

    columns = {}
    for name, values in rows.items():
        values = np.ascontiguousarray(values)
        if values.ndim == 1:
            columns[name] = pa.array(values)
        else:
            width = values[0].nbytes
            buffers = [None, pa.py_buffer(values.reshape(-1).view(np.uint8))]
            columns[name] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(values), buffers)
    return pa.RecordBatch.from_pydict(columns)


def _from_arrow(column: Any, like: np.ndarray) -> np.ndarray:
    """The inverse of a column of `_arrow_table`, a view."""
    shape = like.shape[1:]
    row = int(np.prod(shape, dtype=int)) * like.dtype.itemsize
    values = np.frombuffer(column.buffers()[1], np.uint8)
    return values[column.offset * row : (column.offset + len(column)) * row].view(like.dtype).reshape(-1, *shape)


class ArrowRaw(_Views):
    """Arrow IPC, memory-mapped, a batch an episode, a NumPy view of each kept; no compression."""

    compression: str | None = None
    batch_rows = 1 << 30
    keep = True

    def write(self) -> None:
        import pyarrow as pa

        self.folder.mkdir()
        options = pa.ipc.IpcWriteOptions(compression=self.compression)
        writer = None
        for number in range(len(self.data.lengths)):
            rows = self.data.rows(number)
            for start in range(0, len(rows["reward"]), self.batch_rows):
                batch = _arrow_table({name: values[start : start + self.batch_rows] for name, values in rows.items()})
                if writer is None:
                    writer = pa.ipc.new_file(str(self.folder / "data.arrow"), batch.schema, options=options)
                writer.write_batch(batch)
        assert writer is not None
        writer.close()

    def open(self) -> None:
        import pyarrow as pa

        self.file = pa.ipc.open_file(pa.memory_map(str(self.folder / "data.arrow")))
        self.names = self.file.schema.names
        if self.keep:
            self.views = [self._batch(number) for number in range(self.file.num_record_batches)]
        self.batch_starts = np.cumsum([0, *(-(-(length + 1) // self.batch_rows) for length in self.data.lengths)])

    def _batch(self, number: int) -> Arrays:
        batch = self.file.get_batch(number)
        return {name: _from_arrow(batch.column(name), self.data.fields[name]) for name in self.names}

    def read(self, number: int, start: int, steps: int) -> Mapping[str, np.ndarray]:
        view = self.views[number]
        return {name: view[name][start : start + steps + 1] for name in self.names}


class ArrowZstd(ArrowRaw):
    """Arrow IPC, zstd, 32 rows a batch."""

    compression, batch_rows, keep = "zstd", 32, False
    fill_batch = Peer.fill_batch

    def fill(self, number: int, start: int, steps: int, out: Arrays) -> None:
        base = int(self.batch_starts[number])
        stop = start + steps + 1
        for part in range(start // 32, (stop - 1) // 32 + 1):
            batch = self._batch(base + part)
            low, high = max(start, 32 * part), min(stop, 32 * part + 32)
            for name, values in batch.items():
                end = min(high, start + len(out[name]))
                out[name][low - start : end - start] = values[low - 32 * part : end - 32 * part]


class Parquet(Peer):
    """Parquet, zstd level 3, a row group an episode."""

    def write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.folder.mkdir()
        writer = None
        for number in range(len(self.data.lengths)):
            table = pa.Table.from_batches([_arrow_table(self.data.rows(number))])
            if writer is None:
                writer = pq.ParquetWriter(
                    self.folder / "data.parquet", table.schema, compression="zstd", compression_level=3,
                    use_dictionary=False,
                )  # fmt: skip
            writer.write_table(table, row_group_size=table.num_rows)
        assert writer is not None
        writer.close()

    def open(self) -> None:
        import pyarrow.parquet as pq

        self.file = pq.ParquetFile(self.folder / "data.parquet", memory_map=True)

    def read(self, number: int, start: int, steps: int) -> Mapping[str, np.ndarray]:
        table = self.file.read_row_group(number, use_threads=False)
        fields = self.data.fields
        return {
            name: _from_arrow(table[name].combine_chunks(), fields[name])[start : start + steps + 1] for name in fields
        }


class Hdf5(Peer):
    """HDF5 as robomimic writes it, no compression."""

    def write(self) -> None:
        import h5py

        self.folder.mkdir()
        with h5py.File(self.folder / "data.hdf5", "w") as file:
            for number in range(len(self.data.lengths)):
                episode = self.data.episode(number)
                group = file.create_group(f"data/demo_{number}")
                group["obs/observation"], group["actions"] = episode["observation"], episode["action"]
                group["rewards"] = episode["reward"]

    def open(self) -> None:
        import h5py

        self.file = h5py.File(self.folder / "data.hdf5", "r")
        self.groups = [
            {"observation": group["obs/observation"], "action": group["actions"], "reward": group["rewards"]}
            for group in (self.file[f"data/demo_{number}"] for number in range(len(self.data.lengths)))
        ]

    def read(self, number: int, start: int, steps: int) -> Mapping[str, np.ndarray]:
        group = self.groups[number]
        return {name: group[name][start : start + steps + (name == "observation")] for name in group}


class Zarr(Peer):
    """zarr 3, zstd, chunks of 32 rows."""

    def write(self) -> None:
        import zarr

        for name, values in self.data.fields.items():
            array = zarr.create_array(
                str(self.folder / name), shape=values.shape, chunks=(32, *values.shape[1:]), dtype=values.dtype,
                compressors=zarr.codecs.ZstdCodec(level=3),
            )  # fmt: skip
            array[:] = np.asarray(values)

    def open(self) -> None:
        import zarr

        self.arrays = {name: zarr.open_array(str(self.folder / name), mode="r") for name in self.data.fields}

    def read(self, number: int, start: int, steps: int) -> Mapping[str, np.ndarray]:
        first = self.data.starts[number] + start
        arrays = self.arrays
        return {
            "observation": arrays["observation"][first + number : first + number + steps + 1],
            "action": arrays["action"][first : first + steps],
            "reward": arrays["reward"][first : first + steps],
        }


class _TableOfSteps(Peer):
    """A table of T + 1 rows an episode."""

    def first(self, number: int, start: int) -> int:
        """The row of a step."""
        return int(self.data.starts[number]) + number + start


class Lance(_TableOfSteps):
    """Lance."""

    def write(self) -> None:
        import lance
        import pyarrow as pa

        batches = (_arrow_table(self.data.rows(number)) for number in range(len(self.data.lengths)))
        schema = _arrow_table({name: values[:1] for name, values in self.data.rows(0).items()}).schema
        lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches), str(self.folder))

    def open(self) -> None:
        import lance

        self.dataset = lance.dataset(str(self.folder))

    def read(self, number: int, start: int, steps: int) -> Mapping[str, np.ndarray]:
        first = self.first(number, start)
        table = self.dataset.take(range(first, first + steps + 1)).combine_chunks()
        fields = self.data.fields
        return {name: _from_arrow(table[name].chunk(0), fields[name]) for name in fields}


class HuggingFace(_TableOfSteps):
    """Hugging Face datasets, Arrow on disk."""

    def write(self) -> None:
        import datasets

        kinds = {3: datasets.Array3D, 2: datasets.Array2D}
        features = {}
        for name, values in self.data.fields.items():
            dtype, shape = str(values.dtype), values.shape[1:]
            if len(shape) in kinds:
                features[name] = kinds[len(shape)](shape, dtype)
            elif len(shape) == 1:
                features[name] = datasets.Sequence(datasets.Value(dtype), length=shape[0])
            else:
                features[name] = datasets.Value(dtype)
        writer = datasets.arrow_writer.ArrowWriter(
            features=datasets.Features(features), path=str(self.folder) + ".arrow", writer_batch_size=100
        )
        for number in range(len(self.data.lengths)):
            rows = self.data.rows(number)
            for row in range(len(rows["reward"])):
                writer.write({name: values[row] for name, values in rows.items()})
        writer.finalize()
        self.folder.mkdir()
        shutil.move(str(self.folder) + ".arrow", self.folder / "data.arrow")

    def open(self) -> None:
        import datasets

        self.dataset = datasets.Dataset.from_file(str(self.folder / "data.arrow")).with_format("numpy")

    def read(self, number: int, start: int, steps: int) -> Mapping[str, np.ndarray]:
        first = self.first(number, start)
        return self.dataset[first : first + steps + 1]


class Mds(_TableOfSteps):
    """MosaicML streaming, MDS, no compression."""

    def write(self) -> None:
        from streaming import MDSWriter

        columns = {
            name: f"ndarray:{values.dtype}:{','.join(map(str, values.shape[1:]))}" if values.ndim > 1 else
            ("float64" if values.dtype == np.float64 else "int")
            for name, values in self.data.fields.items()
        }  # fmt: skip
        with MDSWriter(out=str(self.folder), columns=columns) as writer:
            for number in range(len(self.data.lengths)):
                rows = self.data.rows(number)
                for row in range(len(rows["reward"])):
                    writer.write(
                        {name: values[row] if values.ndim > 1 else values[row].item() for name, values in rows.items()}
                    )

    def open(self) -> None:
        from streaming import StreamingDataset

        self.dataset = StreamingDataset(local=str(self.folder), shuffle=False, batch_size=1)

    def fill(self, number: int, start: int, steps: int, out: Arrays) -> None:
        first = self.first(number, start)
        for row in range(steps + 1):
            for name, value in self.dataset[first + row].items():
                if row < len(out[name]):
                    out[name][row] = value


class ArrayRecord(Peer):
    """array_record through Grain, a record an episode; zstd level 3 for images."""

    def write(self) -> None:
        import zstandard
        from array_record.python import array_record_module

        self.folder.mkdir()
        writer = array_record_module.ArrayRecordWriter(
            str(self.folder / "data.array_record"), "group_size:1,uncompressed"
        )
        packer = zstandard.ZstdCompressor(level=3)
        for number in range(len(self.data.lengths)):
            record = b"".join(self.data.episode(number)[name].tobytes() for name in self.data.fields)
            writer.write(packer.compress(record) if self.data.is_image else record)
        writer.close()

    def open(self) -> None:
        import grain
        import zstandard

        self.source = grain.sources.ArrayRecordDataSource(str(self.folder / "data.array_record"))
        self.unpacker = zstandard.ZstdDecompressor()

    def read(self, number: int, start: int, steps: int) -> Mapping[str, np.ndarray]:
        record = self.source[number]
        if self.data.is_image:
            record = self.unpacker.decompress(record)
        result, position = {}, 0
        for name, values in self.data.fields.items():
            rows, shape = self.data.lengths[number] + (name == "observation"), values.shape[1:]
            count = rows * int(np.prod(shape, dtype=int))
            array = np.frombuffer(record, values.dtype, count, position).reshape(rows, *shape)
            result[name] = array[start : start + steps + 1]
            position += array.nbytes
        return result


class Minari(Peer):
    """Minari, Arrow files, lossless."""

    def write(self) -> None:
        self.folder.mkdir()
        os.environ["MINARI_DATASETS_PATH"] = str(self.folder)
        import gymnasium
        import minari
        from minari.data_collector import EpisodeBuffer

        fields = self.data.fields
        shape, dtype = fields["observation"].shape[1:], fields["observation"].dtype
        low, high = (0, 255) if self.data.is_image else (-np.inf, np.inf)
        action = fields["action"]
        buffers = []
        for number in range(len(self.data.lengths)):
            episode = self.data.episode(number)
            ends = np.zeros(len(episode["reward"]), bool)
            ends[-1] = True
            buffers.append(
                EpisodeBuffer(
                    id=number,
                    observations=episode["observation"],
                    actions=episode["action"],
                    rewards=episode["reward"],
                    terminations=ends,
                    truncations=np.zeros_like(ends),
                )
            )
        minari.create_dataset_from_buffers(
            dataset_id="benchmark/steps-v0",
            buffer=buffers,
            observation_space=gymnasium.spaces.Box(low, high, shape, dtype),
            action_space=gymnasium.spaces.Discrete(18)
            if action.ndim == 1
            else gymnasium.spaces.Box(-np.inf, np.inf, action.shape[1:], action.dtype),
            data_format="arrow",
            jpeg_encoding=False,
        )

    def open(self) -> None:
        os.environ["MINARI_DATASETS_PATH"] = str(self.folder)
        import minari

        self.dataset = minari.load_dataset("benchmark/steps-v0")

    def read(self, number: int, start: int, steps: int) -> Mapping[str, np.ndarray]:
        episode = self.dataset[number]
        values = {"observation": episode.observations, "action": episode.actions, "reward": episode.rewards}
        return {name: array[start : start + steps + 1] for name, array in values.items()}


class Tfds(Peer):
    """TFDS, RLDS features, array_record read at random through `as_data_source`.

    Its fastest use: steps are not decoded one by one as it does by default, only the frames of a window are. Frames are
    zlib tensors, which are read 1.8 times as fast as PNG images and are smaller here; numbers are bytes, since lists of
    numbers are parsed value by value.
    """

    @functools.cached_property
    def _builder(self) -> Any:
        import tensorflow_datasets as tfds

        data = self.data

        def feature(values: np.ndarray) -> Any:
            encoding = "zlib" if values.dtype == np.uint8 else "bytes"
            return tfds.features.Tensor(shape=values.shape[1:], dtype=values.dtype, encoding=encoding)

        class Steps(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
            """Episodes as RLDS."""

            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path = self.folder.parent

            def _info(self) -> Any:
                steps = {name: feature(values) for name, values in data.fields.items()}
                # Otherwise episode 3 of the source is not the third one written.
                return self.dataset_info_from_configs(
                    features=tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps)}),
                    disable_shuffling=True,
                )

            def _split_generators(self, _: Any) -> Any:
                return {"train": self._generate_examples()}

            def _generate_examples(self) -> Any:
                for number in range(len(data.lengths)):
                    rows = data.rows(number)
                    yield number, {"steps": rows}

        return Steps(data_dir=str(self.folder), file_format="array_record")

    def write(self) -> None:
        # Else the builder of the last round believes that its files are still there.
        self.__dict__.pop("_builder", None)
        self._builder.download_and_prepare()

    def open(self) -> None:
        import tensorflow_datasets as tfds

        self.source = self._builder.as_data_source(split="train", decoders={"steps": tfds.decode.SkipDecoding()})
        self.features = self._builder.info.features["steps"].feature

    def fill(self, number: int, start: int, steps: int, out: Arrays) -> None:
        for name, values in self.source[number]["steps"].items():
            target, rows = out[name], values[start : start + steps + 1]
            if target.dtype == np.uint8:
                for row, frame in enumerate(rows):
                    target[row] = self.features[name].decode_example_np(frame)
            else:
                found = np.frombuffer(b"".join(rows), target.dtype).reshape(-1, *target.shape[1:])
                target[: steps + 1] = found[: len(target)]


class LeRobot(_TableOfSteps):
    """LeRobot v3, images as PNG."""

    def write(self) -> None:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        names = {"observation": "observation.image" if self.data.is_image else "observation.state", "action": "action"}
        features: dict[str, Any] = {}
        for name, values in self.data.fields.items():
            shape = values.shape[1:] or (1,)
            kind = "image" if values.dtype == np.uint8 else str(values.dtype)
            features[names.get(name, f"next.{name}")] = {"dtype": kind, "shape": shape, "names": None}
        dataset = LeRobotDataset.create(
            "benchmark/steps", fps=30, features=features, root=self.folder, use_videos=False
        )
        for number in range(len(self.data.lengths)):
            rows = self.data.rows(number)
            for row in range(len(rows["reward"])):
                frame = {
                    names.get(name, f"next.{name}"): values[row] if values.ndim > 1 else values[row : row + 1]
                    for name, values in rows.items()
                }
                dataset.add_frame({**frame, "task": "play"})
            dataset.save_episode()
        dataset.finalize()

    def open(self) -> None:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        self.dataset = LeRobotDataset("benchmark/steps", root=self.folder)
        self.names = {
            "observation": "observation.image" if self.data.is_image else "observation.state",
            "action": "action",
            "reward": "next.reward",
        }

    def fill(self, number: int, start: int, steps: int, out: Arrays) -> None:
        first = self.first(number, start)
        for row in range(steps + 1):
            frame = self.dataset[first + row]
            for name, theirs in self.names.items():
                value = frame[theirs].numpy()
                if value.ndim == 3:
                    value = (np.moveaxis(value, 0, -1) * 255).round()
                if row < len(out[name]):
                    out[name][row] = value.reshape(out[name].shape[1:])


PEERS: dict[str, Callable[[Data, Path], Peer]] = {
    "ours": Ours,
    "ours, checksums not compared": Unchecked,
    "np.memmap": Memmap,
    "Arrow IPC, mapped, views kept": ArrowRaw,
    "Arrow IPC zstd, 32 rows": ArrowZstd,
    "Parquet zstd-3": Parquet,
    "HDF5 as robomimic": Hdf5,
    "zarr zstd": Zarr,
    "Lance": Lance,
    "HF datasets": HuggingFace,
    "MDS": Mds,
    "array_record + Grain": ArrayRecord,
    "Minari": Minari,
    "TFDS RLDS": Tfds,
    "LeRobot v3": LeRobot,
}


def serve(peer: Peer) -> None:
    """Answers commands until standard input ends."""
    data = peer.data
    # What a package prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    opened = False
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        result: Any
        if command == "write":
            shutil.rmtree(peer.folder, ignore_errors=True)
            began = time.process_time()
            peer.write()
            _sync(peer.folder)
            result = [data.num_steps, time.process_time() - began]
            opened = False
        elif command == "size":
            result = sum(file.stat().st_size for file in peer.folder.rglob("*") if file.is_file())
        else:
            if not opened:
                time.sleep(_SETTLING_SECONDS)
                peer.open()
                opened = True
                _check(peer)
            result = _sequential(peer) if command == "sequential" else _windows(peer, *arguments)
        answers.write(json.dumps(result) + "\n")
        answers.flush()


def _sync(folder: Path) -> None:
    """Brings to the disk what a peer left to the kernel: data that is not there is not written yet."""
    for path in folder.parent.glob(f"{folder.name}*"):
        for file in path.rglob("*") if path.is_dir() else [path]:
            if file.is_file():
                descriptor = os.open(file, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)


def _check(peer: Peer) -> None:
    """What is read is what was written: the first and the last episode whole, and windows."""
    last = len(peer.data.lengths) - 1
    for number in (0, last):
        for values in peer.out.values():
            values[:] = 0
        peer.fill(number, 0, peer.data.lengths[number], peer.out)
        _compare(peer.out, peer.data.episode(number), f"episode {number}")
    chance = random.Random(0)
    places = [
        (number, chance.randrange(peer.data.lengths[number] - WINDOW))
        for number in chance.choices(range(last + 1), k=max(64, peer.batch_size))
    ]
    for first in range(0, len(places), peer.batch_size):
        batch = places[first : first + peer.batch_size]
        peer.fill_batch(batch)
        for element, (number, start) in enumerate(batch):
            episode = peer.data.episode(number)
            wanted = {
                name: values[start : start + WINDOW + (name == "observation")] for name, values in episode.items()
            }
            found = {name: values[element] for name, values in peer.batch.items()}
            _compare(found, wanted, f"window of episode {number}")


def _compare(found: Arrays, wanted: Arrays, where: str) -> None:
    for name, values in wanted.items():
        # Some hand out float64 as float32.
        tolerance = 1e-6 if values.dtype.kind == "f" else 0.0
        np.testing.assert_allclose(found[name][: len(values)], values, rtol=tolerance, err_msg=f"{where} {name}")


def _sequential(peer: Peer) -> list[float]:
    """Steps read, whole episodes in order, and seconds."""
    steps, began = 0, time.process_time()
    while True:
        for number, length in enumerate(peer.data.lengths):
            peer.fill(number, 0, length, peer.out)
            steps += length
            seconds = time.process_time() - began
            if seconds > _SECONDS:
                return [steps, seconds]


def _windows(peer: Peer, seed: int) -> list[float]:
    """Windows read at random places, and seconds."""
    chance = random.Random(seed)
    numbers = range(len(peer.data.lengths))
    places = [(n, chance.randrange(peer.data.lengths[n] - WINDOW)) for n in chance.choices(numbers, k=4096)]
    batches = [places[first : first + peer.batch_size] for first in range(0, len(places), peer.batch_size)]
    done, began = 0, time.process_time()
    while True:
        for batch in batches:
            peer.fill_batch(batch)
            done += len(batch)
            seconds = time.process_time() - began
            if seconds > _SECONDS:
                return [done, seconds]


if __name__ == "__main__":
    serve(PEERS[sys.argv[1]](Data(Path(sys.argv[2]), _MOST_EPISODES.get(sys.argv[1])), Path(sys.argv[3])))
