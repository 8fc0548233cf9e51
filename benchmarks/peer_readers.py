"""Reads training sequences with a peer's package: `python -P peer_readers.py PEER FOLDER` in the peers' environment.

FOLDER holds raw arrays that `benchmarks/shards.py` made: tokens.npy uint16 [n, 1024], targets.npy uint8 [n, 1024] and,
for sequences with images, patches.npy uint8 [m, 16, 16, 3] and patch_offsets.npy int64 [n + 1]. The peer writes them in
its own format beside them, one sequence an item, prints "ready" if it reads back the same bytes, and then for each line
on its input reads all of them once and prints the seconds of its CPU, all threads included. A sequence read is a tuple
of arrays: tokens, targets and, if any, patches.
"""

from __future__ import annotations

import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

Sequence = tuple[np.ndarray, ...]
_PATCH = (16, 16, 3)
_BATCH = 64
_DTYPES = (np.uint16, np.uint8, np.uint8)


def litdata(source: Source, folder: Path) -> Callable[[], Iterable[Sequence]]:
    """One item a sequence, chunks of 64 MB."""
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for number, sequence in enumerate(source):
        writer[number] = dict(zip(source.names, sequence, strict=True))
    writer.done()
    writer.merge()

    def read() -> Iterator[Sequence]:
        for item in StreamingDataset(str(folder)):
            yield tuple(item[name] for name in source.names)

    return read


def litdata_tokens(source: Source, folder: Path) -> Callable[[], Iterable[Sequence]]:
    """Its loader for tokens alone, which knows no targets."""
    import torch
    from litdata import StreamingDataset
    from litdata.streaming import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes="64MB", item_loader=TokensLoader())
    for number, (tokens, *_) in enumerate(source):
        writer[number] = torch.from_numpy(tokens.astype(np.int32))
    writer.done()
    writer.merge()
    return lambda: ((item,) for item in StreamingDataset(str(folder), item_loader=TokensLoader(block_size=1_024)))


def mds(source: Source, folder: Path) -> Callable[[], Iterable[Sequence]]:
    """One sample a sequence."""
    from streaming import MDSWriter, StreamingDataset

    columns = {"tokens": "ndarray:uint16:1024", "targets": "ndarray:uint8:1024", "patches": "ndarray:uint8"}
    columns = {name: columns[name] for name in source.names}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for sequence in source:
            writer.write(dict(zip(source.names, sequence, strict=True)))
    dataset = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)

    def read() -> Iterator[Sequence]:
        for number in range(len(dataset)):  # as fast as iterating, without threads that read ahead
            sample = dataset[number]
            yield tuple(sample[name] for name in source.names)

    return read


def grain(source: Source, folder: Path) -> Callable[[], Iterable[Sequence]]:
    """ArrayRecord, one record a sequence."""
    import grain.python as pygrain
    from array_record.python.array_record_module import ArrayRecordWriter

    path = str(folder / "data.array_record")
    writer = ArrayRecordWriter(path, "group_size:1,uncompressed")
    for sequence in source:
        writer.write(b"".join(array.tobytes() for array in sequence))
    writer.close()

    def parse(record: bytes) -> Sequence:
        tokens = np.frombuffer(record, np.uint16, 1_024)
        targets = np.frombuffer(record, np.uint8, 1_024, 2_048)
        if not source.has_patches:
            return tokens, targets
        return tokens, targets, np.frombuffer(record, np.uint8, offset=3_072).reshape(-1, *_PATCH)

    dataset = pygrain.MapDataset.source(pygrain.ArrayRecordDataSource(path)).map(parse)
    return lambda: (dataset[number] for number in range(len(dataset)))  # iterating it takes five times the CPU


def hf_datasets(source: Source, folder: Path) -> Callable[[], Iterable[Sequence]]:
    """Arrow, read in batches of 64 as NumPy arrays; patches as bytes."""
    import datasets

    number = datasets.Sequence
    features = {"tokens": number(datasets.Value("uint16"), 1_024), "targets": number(datasets.Value("uint8"), 1_024)}
    if source.has_patches:
        features["patches"] = datasets.Value("large_binary")

    def rows() -> Iterator[dict[str, object]]:
        for tokens, targets, *patches in source:
            yield {"tokens": tokens, "targets": targets, **({"patches": patches[0].tobytes()} if patches else {})}

    made = datasets.Dataset.from_generator(rows, features=datasets.Features(features), cache_dir=str(folder / "cache"))
    made.save_to_disk(str(folder / "data"))
    dataset = datasets.load_from_disk(str(folder / "data"))
    if source.has_patches:
        dataset = dataset.with_format("arrow")  # as NumPy, its bytes lose the zeros at their end
    else:
        dataset = dataset.with_format("numpy")

    def read() -> Iterator[Sequence]:
        for batch in dataset.iter(batch_size=_BATCH):
            if source.has_patches:
                columns = [batch[name].combine_chunks() for name in source.names]
                tokens, targets = (column.flatten().to_numpy().reshape(-1, 1_024) for column in columns[:2])
                frames = (np.frombuffer(value.as_buffer(), np.uint8).reshape(-1, *_PATCH) for value in columns[2])
                yield from zip(tokens, targets, frames, strict=True)
            else:
                yield from zip(batch["tokens"], batch["targets"], strict=True)

    return read


PEERS = {
    "litdata": litdata,
    "litdata TokensLoader, tokens alone": litdata_tokens,
    "MDS": mds,
    "Grain": grain,
    "HF datasets": hf_datasets,
}


class Source:
    """The raw arrays of a folder, as sequences."""

    def __init__(self, folder: Path) -> None:
        self.tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        self.targets = np.load(folder / "targets.npy", mmap_mode="r")
        self.has_patches = (folder / "patches.npy").exists()
        self.names = ("tokens", "targets", "patches")[: 3 if self.has_patches else 2]
        if self.has_patches:
            self.patches = np.load(folder / "patches.npy", mmap_mode="r")
            self.offsets = np.load(folder / "patch_offsets.npy")

    def __iter__(self) -> Iterator[Sequence]:
        for number in range(len(self.tokens)):
            sequence = np.array(self.tokens[number]), np.array(self.targets[number])
            if self.has_patches:
                sequence += (np.array(self.patches[self.offsets[number] : self.offsets[number + 1]]),)
            yield sequence


def checksum(sequences: Iterable[Sequence], num_arrays: int) -> int:
    """CRC-32 of the first arrays of all sequences."""
    value = 0
    for sequence in sequences:
        for array, dtype in zip(sequence[:num_arrays], _DTYPES, strict=False):
            value = zlib.crc32(np.ascontiguousarray(np.asarray(array).astype(dtype, copy=False)).data, value)
    return value


def count(sequences: Iterable[Sequence]) -> int:
    """How many sequences; nothing else is done with them."""
    number = 0
    for _ in sequences:
        number += 1
    return number


def main() -> None:
    """Writes, verifies, and answers each line of input with the seconds of one pass."""
    name, path = sys.argv[1], Path(sys.argv[2])
    folder = path / name.partition(",")[0].replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    source = Source(path)
    read = PEERS[name](source, folder)
    num_arrays = 1 if "alone" in name else len(source.names)
    found, wanted = checksum(read(), num_arrays), checksum(source, num_arrays)
    print("ready" if found == wanted else f"other bytes than were written: {found:08x}, {wanted:08x}", flush=True)
    for _ in sys.stdin:
        began = time.process_time()
        number = count(read())
        seconds = time.process_time() - began
        print(seconds if number == len(source.tokens) else "nan", flush=True)


if __name__ == "__main__":
    main()
