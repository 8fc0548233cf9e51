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
    yield Measure(
        name="tokenize.floats",
        unit="GB/s of float32",
        amount=values.nbytes / 1e9,
        ours=functools.partial(bins.companded_to_ids, values),
        peer=lambda: bins.to_ids(mu_law.encode(values)),
        peer_name="the definition in NumPy float64, the same ids, 64 MB",
    )
    few = values[:200_000]
    assert np.array_equal(bins.companded_to_ids(few), bins.to_ids(mu_law.encode(few)))
    for loop, peer_name in (
        (scalar_ids, "a Python loop over NumPy scalars, as public Gato code has it (written here)"),
        (math_ids, "a Python loop with the math module (written here)"),
    ):
        assert np.array_equal(bins.companded_to_ids(few), loop(few))
        yield Measure(
            name="tokenize.floats",
            unit="GB/s of float32",
            amount=few.nbytes / 1e9,
            ours=functools.partial(bins.companded_to_ids, few),
            peer=functools.partial(loop, few),
            peer_name=peer_name,
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


def scalar_ids(values: np.ndarray) -> list[int]:
    """One value after the other through functions of NumPy that are made for arrays, as in public Gato code."""
    ids = []
    for value in values.astype(np.float64):
        companded = np.sign(value) * np.log(100 * np.abs(value) + 1.0) / np.log(256 * 100 + 1.0)
        clipped = np.clip(companded, -1.0, 1.0)
        ids.append(32_000 + min(1_023, int(np.floor((clipped + 1) / 2 * 1_024))))
    return ids


def math_ids(values: np.ndarray) -> list[int]:
    """One value after the other as Python's floats, the fastest such loop. In float64, as the definition."""
    ids = []
    for x in values.tolist():
        companded = math.copysign(math.log(100 * abs(x) + 1.0), x) / math.log(256 * 100 + 1.0)
        clipped = max(-1.0, min(1.0, companded))
        ids.append(32_000 + min(1_023, math.floor((clipped + 1) / 2 * 1_024)))
    return ids


def plain_patches(images: np.ndarray) -> np.ndarray:
    """[S, 16 * rows, 16 * columns, 3] -> [S, rows * columns, 16, 16, 3]."""
    steps, height, width, _ = images.shape
    grid = images.reshape(steps, height // 16, 16, width // 16, 16, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.ascontiguousarray(grid).reshape(steps, -1, 16, 16, 3)
