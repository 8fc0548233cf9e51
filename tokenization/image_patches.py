"""Images as 16x16 patches in raster order (Gato, section 2.2 and appendix C).

A patch stays uint8 RGB until it enters the network: `scale` then gives what the paper feeds its ResNet. Sides that are
no multiple of 16 are padded with zeros at the bottom and at the right; one channel is repeated to three.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from episode_store.errors import UserError

PATCH_SIZE = 16
PATCH_SHAPE = (PATCH_SIZE, PATCH_SIZE, 3)
PATCH_BYTES = PATCH_SIZE * PATCH_SIZE * 3
NUM_POSITIONS = 128  # of the row table and of the column table

_ROW_OF_PATCH = np.dtype(f"V{PATCH_SIZE * 3}")  # 16 RGB pixels moved as one element: twice as fast as bytes
_HASH_MULTIPLIERS = np.random.default_rng(16).integers(0, 2**63, PATCH_BYTES // 8, dtype=np.uint64) * 2 + 1


def patch_grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patches of an image, padding included."""
    return -(-height // PATCH_SIZE), -(-width // PATCH_SIZE)


def check_image_shape(shape: tuple[int, ...], *, where: str) -> None:
    """Raises UserError when an image of `shape` has no patches: it must be (height, width, 1 or 3)."""
    if len(shape) != 3 or shape[2] not in (1, 3) or 0 in shape:
        raise UserError(f"{where}: expected an image of shape (height, width, 1 or 3), got {shape}")


def patchify(images: np.ndarray) -> np.ndarray:
    """Images uint8 [S, height, width, 1 or 3] -> patches uint8 [S, rows * columns, 16, 16, 3] in raster order."""
    lines = _lines(images)
    num_steps, height, columns = lines.shape
    rows = height // PATCH_SIZE
    grid = lines.reshape(num_steps, rows, PATCH_SIZE, columns).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(grid).view(np.uint8).reshape(num_steps, rows * columns, *PATCH_SHAPE)


def _lines(images: np.ndarray) -> np.ndarray:
    """Padded images as lines of patches: [S, 16 * rows, columns] of 48 bytes."""
    if images.dtype != np.uint8 or images.ndim != 4:
        raise UserError(f"images: expected uint8 [steps, height, width, channels], got {images.dtype} {images.shape}")
    check_image_shape(images.shape[1:], where="images")
    if images.shape[3] == 1:
        images = np.repeat(images, 3, axis=3)
    num_steps, height, width = images.shape[:3]
    rows, columns = patch_grid(height, width)
    pad = (rows * PATCH_SIZE - height, columns * PATCH_SIZE - width)
    if any(pad):
        images = np.pad(images, ((0, 0), (0, pad[0]), (0, pad[1]), (0, 0)))
    return (
        np.ascontiguousarray(images).reshape(num_steps, rows * PATCH_SIZE, columns * PATCH_SIZE * 3).view(_ROW_OF_PATCH)
    )


def unpatchify(patches: np.ndarray, *, height: int, width: int) -> np.ndarray:
    """The inverse of `patchify`: uint8 [S, rows * columns, 16, 16, 3] -> [S, height, width, 3], padding cut off."""
    rows, columns = patch_grid(height, width)
    grid = patches.reshape(-1, rows, columns, *PATCH_SHAPE).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(-1, rows * PATCH_SIZE, columns * PATCH_SIZE, 3)[:, :height, :width]


def scale(patches: np.ndarray) -> np.ndarray:
    """Pixels to [-1, 1], divided by sqrt(16) = 4: float32 in [-0.25, 0.25], of the shape of `patches`."""
    return (patches.astype(np.float32) / np.float32(127.5) - np.float32(1.0)) / np.float32(np.sqrt(PATCH_SIZE))


def patch_intervals(height: int, width: int) -> np.ndarray:
    """Where each patch lies: uint8 [rows * columns, 4] of row start, row end, column start, column end.

    In 128ths of the padded image, rounded (half to even), so from 0 to 128. Example of the paper: in an image of
    80x64, the rows [32, 48) are [0.4, 0.6] -> [51, 77] and the columns [16, 32) are [0.25, 0.5] -> [32, 64].
    """
    rows, columns = patch_grid(height, width)
    row_edges = np.rint(np.arange(rows + 1) * NUM_POSITIONS / rows).astype(np.uint8)
    column_edges = np.rint(np.arange(columns + 1) * NUM_POSITIONS / columns).astype(np.uint8)
    row, column = np.divmod(np.arange(rows * columns), columns)
    return np.stack([row_edges[row], row_edges[row + 1], column_edges[column], column_edges[column + 1]], axis=1)


def evaluation_positions(intervals: np.ndarray) -> np.ndarray:
    """Row and column index when evaluating: int64 [M, 2], the rounded mean (half to even) of each interval [M, 4]."""
    ends = intervals.reshape(-1, 2, 2).astype(np.int64)
    return np.minimum(np.rint(ends.mean(axis=2)).astype(np.int64), NUM_POSITIONS - 1)


def training_positions(intervals: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Row and column index when training: int64 [M, 2], uniform in [start, end) of each interval [M, 4]."""
    ends = intervals.reshape(-1, 2, 2).astype(np.int64)
    start = np.minimum(ends[:, :, 0], NUM_POSITIONS - 1)
    return rng.integers(start, np.maximum(ends[:, :, 1], start + 1))


def unique_patches(patches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Removes duplicates, keeping the order of first appearance.

    Args:
      patches: uint8 [M, 16, 16, 3].

    Returns:
      uint8 [U, 16, 16, 3] and int32 [M], the row of the first for each patch.
    """
    words = np.ascontiguousarray(patches).reshape(-1, PATCH_BYTES).view(np.uint64)
    first, index = _unique_in_order(np.einsum("ij,j->i", words, _HASH_MULTIPLIERS))  # modulo 2**64
    original = first[index]
    (copies,) = np.nonzero(original != np.arange(len(words)))
    if not np.array_equal(words[copies], words[original[copies]]):  # two different patches share a hash
        first, index = _unique_in_order(words.view(f"V{PATCH_BYTES}").reshape(-1))
    return patches.reshape(-1, *PATCH_SHAPE)[first], index.astype(np.int32)


def unique_patches_of_frames(cameras: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """As `unique_patches` of the patches of successive timesteps: uint8 [U, 16, 16, 3], int32 [S, P].

    Most patches equal their predecessor in time. Comparing with it is much cheaper than hashing, and only those that
    changed are ever cut out of their frames.

    Args:
      cameras: images uint8 [S, height, width, 1 or 3], for example of one camera or of several. The P patches of a
        timestep are those of the first, then those of the next.
    """
    grids = [_lines(images) for images in cameras]
    changed = np.concatenate([_changed(lines) for lines in grids], axis=1)
    num_steps = len(changed)
    patches = np.empty((np.count_nonzero(changed), PATCH_SIZE), _ROW_OF_PATCH)
    steps, places = np.nonzero(changed)
    first = 0
    for lines in grids:
        columns = lines.shape[2]
        grid = lines.reshape(num_steps, -1, PATCH_SIZE, columns)
        last = first + grid.shape[1] * columns
        (mine,) = np.nonzero((places >= first) & (places < last))
        row, column = np.divmod(places[mine] - first, columns)
        patches[mine] = grid[steps[mine], row, :, column]
        first = last
    unique, index = unique_patches(patches.view(np.uint8).reshape(-1, *PATCH_SHAPE))
    # The last step at which each patch changed, as a place in `index`.
    place = np.cumsum(changed.reshape(-1)).reshape(changed.shape) - 1
    last_change = np.maximum.accumulate(np.where(changed, np.arange(num_steps)[:, None], 0), axis=0)
    return unique, index[np.take_along_axis(place, last_change, axis=0)]


def _changed(lines: np.ndarray) -> np.ndarray:
    """Whether each patch differs from the one before it in time: bool [S, rows * columns]; True at the first step."""
    num_steps, height, columns = lines.shape
    rows = height // PATCH_SIZE
    words = lines.view(np.uint64).reshape(num_steps, rows, PATCH_SIZE, -1)
    changed = np.ones((num_steps, rows, columns), np.bool_)
    differs = np.empty(words.shape[1:], np.bool_)
    for step in range(1, num_steps):
        np.not_equal(words[step], words[step - 1], out=differs)
        differs.any(axis=1).reshape(rows, columns, -1).any(axis=2, out=changed[step])
    return changed.reshape(num_steps, -1)


def _unique_in_order(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First place of each distinct key, in order of appearance, and each key's place in that list."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[inverse.reshape(-1)]
