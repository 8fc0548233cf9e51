"""Tokenization beside plain NumPy on the same arrays."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np

from benchmarks.measure import Measure
from tokenization import bins, image_patches, mu_law


def measures() -> Iterator[Measure]:
    """`tokenize.floats` and `tokenize.patches`, in GB of input a second."""
    # Plain NumPy depends on the size: its temporary arrays of 8 MB are used again, those of 64 MB are new memory.
    for megabytes in (8, 64):
        values = np.random.default_rng(0).normal(scale=3.0, size=megabytes * 250_000).astype(np.float32)
        yield Measure(
            name="tokenize.floats",
            unit="GB/s of float32",
            amount=values.nbytes / 1e9,
            ours=functools.partial(bins.companded_to_ids, values),
            peer=functools.partial(plain_ids, values),
            peer_name=f"NumPy float32, one expression, {megabytes} MB",
        )
    few = values[:1_000_000]
    assert np.array_equal(bins.companded_to_ids(few), bins.to_ids(mu_law.encode(few)))
    assert np.array_equal(bins.companded_to_ids(few), loop_ids(few))
    yield Measure(
        name="tokenize.floats",
        unit="GB/s of float32",
        amount=few.nbytes / 1e9,
        ours=functools.partial(bins.companded_to_ids, few),
        peer=functools.partial(loop_ids, few),
        peer_name="a Python loop over the values, as public Gato code has it (written here)",
    )
    images = np.random.default_rng(1).integers(0, 256, (400, 96, 96, 3), dtype=np.uint8)
    assert np.array_equal(image_patches.patchify(images), plain_patches(images))
    yield Measure(
        name="tokenize.patches",
        unit="GB/s of 96x96 RGB",
        amount=images.nbytes / 1e9,
        ours=lambda: image_patches.patchify(images),
        peer=lambda: plain_patches(images),
        peer_name="NumPy transpose and copy",
    )


def plain_ids(x: np.ndarray) -> np.ndarray:
    """The formula as one would write it in float32; some ids at edges of bins differ from the definition's."""
    y = np.clip(np.sign(x) * np.log(np.float32(100) * np.abs(x) + 1) / np.float32(np.log(25_601)), -1, 1)
    return (np.minimum(np.floor((y + 1) / 2 * 1024), 1023) + 32_000).astype(np.uint16)


def loop_ids(values: np.ndarray) -> list[int]:
    """One value after the other, each a scalar of NumPy. In float64, so the ids are those of the definition."""
    ids = []
    for value in values:
        x = float(value)
        companded = np.sign(x) * math.log(100 * abs(x) + 1.0) / math.log(256 * 100 + 1.0)
        clipped = max(-1.0, min(1.0, companded))
        ids.append(32_000 + min(1_023, math.floor((clipped + 1) / 2 * 1_024)))
    return ids


def plain_patches(images: np.ndarray) -> np.ndarray:
    """[S, 16 * rows, 16 * columns, 3] -> [S, rows * columns, 16, 16, 3]."""
    steps, height, width, _ = images.shape
    grid = images.reshape(steps, height // 16, 16, width // 16, 16, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(grid).reshape(steps, -1, 16, 16, 3)
