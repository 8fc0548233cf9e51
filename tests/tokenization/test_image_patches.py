import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from episode_store.errors import UserError
from tokenization import image_patches


def test_worked_example_of_the_paper() -> None:
    intervals = image_patches.patch_intervals(80, 64)
    assert intervals.shape == (20, 4)
    assert intervals.dtype == np.uint8
    # Patch row 2 of 5 and patch column 1 of 4: rows [32, 48) of 80 are [0.4, 0.6], columns [16, 32) of 64 [0.25, 0.5].
    assert intervals[2 * 4 + 1].tolist() == [51, 77, 32, 64]
    assert image_patches.evaluation_positions(intervals[9:10]).tolist() == [[64, 48]]
    assert intervals[:, 0].reshape(5, 4)[:, 0].tolist() == [0, 26, 51, 77, 102]
    assert intervals[-1].tolist() == [102, 128, 96, 128]


def test_training_positions_cover_their_interval_and_fit_the_table() -> None:
    intervals = np.tile(np.array([[51, 77, 112, 128]], np.uint8), (4_000, 1))
    rows, columns = image_patches.training_positions(intervals, np.random.default_rng(0)).T
    assert set(rows.tolist()) == set(range(51, 77))
    assert set(columns.tolist()) == set(range(112, 128))


def test_positions_of_images_with_more_than_128_rows_of_patches() -> None:
    intervals = image_patches.patch_intervals(16 * 300, 16)
    assert intervals[:, 1].max() == 128
    assert image_patches.evaluation_positions(intervals).max() <= 127
    assert image_patches.training_positions(intervals, np.random.default_rng(0)).max() <= 127


def test_patches_stand_in_raster_order() -> None:
    image = np.zeros((1, 32, 48, 3), np.uint8)
    for row in range(2):
        for column in range(3):
            image[0, row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = row * 3 + column
    image[0, 17, 34] = [7, 8, 9]  # row 1, column 2 of the last patch
    patches = image_patches.patchify(image)
    assert patches.shape == (1, 6, 16, 16, 3)
    assert [int(patch[0, 0, 0]) for patch in patches[0]] == [0, 1, 2, 3, 4, 5]
    assert patches[0, 5, 1, 2].tolist() == [7, 8, 9]


def test_scaling() -> None:
    pixels = np.array([0, 255, 127, 128], np.uint8)
    scaled = image_patches.scale(pixels)
    assert scaled.dtype == np.float32
    assert scaled.tolist() == pytest.approx([-0.25, 0.25, -0.25 / 255, 0.25 / 255], abs=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.sampled_from([1, 3]), st.integers(0, 3), st.integers(0, 1 << 32))
def test_unpatchify_inverts_patchify(height: int, width: int, channels: int, steps: int, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (steps, height, width, channels), np.uint8)
    patches = image_patches.patchify(images)
    rows, columns = image_patches.patch_grid(height, width)
    assert patches.shape == (steps, rows * columns, 16, 16, 3)
    back = image_patches.unpatchify(patches, height=height, width=width)
    assert np.array_equal(back, np.broadcast_to(images, back.shape))
    reference = np.zeros((steps, rows * 16, columns * 16, 3), np.uint8)
    reference[:, :height, :width] = images
    reference = reference.reshape(steps, rows, 16, columns, 16, 3).transpose(0, 1, 3, 2, 4, 5)
    assert np.array_equal(patches, reference.reshape(patches.shape))


def test_padding_is_black_at_the_bottom_and_at_the_right() -> None:
    patches = image_patches.patchify(np.full((1, 20, 17, 1), 200, np.uint8))
    assert patches.shape == (1, 4, 16, 16, 3)
    assert (patches[0, 0] == 200).all()
    assert (patches[0, 1][:, 0] == 200).all()
    assert (patches[0, 1][:, 1:] == 0).all()
    assert (patches[0, 2][:4] == 200).all()
    assert (patches[0, 2][4:] == 0).all()


@pytest.mark.parametrize("shape", [(8, 8, 4), (8, 8), (0, 8, 3)])
def test_other_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"task x: expected an image of shape \(height, width, 1 or 3\), got "):
        image_patches.check_image_shape(shape, where="task x")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 6), st.integers(0, 1 << 32))
def test_equal_patches_are_stored_once(steps: int, per_step: int, kinds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pool = rng.integers(0, 256, (kinds, 16, 16, 3), np.uint8)
    frames = pool[rng.integers(0, kinds, (steps, per_step))]
    unique, index = image_patches.unique_patches_of_frames(
        [image_patches.unpatchify(frames, height=16, width=16 * per_step)]
    )
    assert index.dtype == np.int32
    assert np.array_equal(unique[index], frames)
    assert len({patch.tobytes() for patch in unique}) == len(unique)
    # In order of first appearance, so that equal episodes give equal bytes.
    assert index.reshape(-1)[0] == 0
    assert (index.reshape(-1) <= np.maximum.accumulate(np.concatenate([[-1], index.reshape(-1)[:-1]])) + 1).all()
    again, same = image_patches.unique_patches(frames.reshape(-1, 16, 16, 3))
    assert np.array_equal(again, unique)
    assert np.array_equal(same, index.reshape(-1))


def test_patches_that_share_a_hash_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_patches, "_HASH_MULTIPLIERS", np.zeros(96, np.uint64))
    frames = np.random.default_rng(0).integers(0, 256, (5, 2, 16, 16, 3), np.uint8)
    unique, index = image_patches.unique_patches_of_frames([image_patches.unpatchify(frames, height=32, width=16)])
    assert len(unique) == 10
    assert np.array_equal(unique[index], frames)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(0, 1 << 32))
def test_property_unique_patches_of_two_cameras(steps: int, height: int, width: int, channels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    still = np.repeat(rng.integers(0, 256, (1, height, width, channels), np.uint8), steps, axis=0)
    still[rng.integers(0, steps), rng.integers(0, height), rng.integers(0, width)] ^= 1
    moving = rng.integers(0, 256, (steps, 16, 20, 3), np.uint8)
    unique, index = image_patches.unique_patches_of_frames([still, moving])
    wanted = np.concatenate([image_patches.patchify(still), image_patches.patchify(moving)], axis=1)
    assert np.array_equal(unique[index], wanted)
    assert np.array_equal(unique, image_patches.unique_patches(wanted.reshape(-1, 16, 16, 3))[0])
