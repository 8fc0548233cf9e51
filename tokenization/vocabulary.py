"""The id ranges of the one vocabulary (Gato, section 2.2).

    [0, 32000)      text pieces; discrete values use the first 1,024 of them, as in the paper
    [32000, 33024)  the 1,024 bins of continuous values
    33024           the separator between the observation and the action of a timestep

An image patch is never quantised. In `tokens` its place is held by `PATCH_PLACEHOLDER`, which is no vocabulary id.
"""

from __future__ import annotations

import numpy as np

NUM_TEXT_TOKENS = 32_000
NUM_DISCRETE = 1_024
NUM_BINS = 1_024
CONTINUOUS_OFFSET = NUM_TEXT_TOKENS
SEPARATOR = CONTINUOUS_OFFSET + NUM_BINS
VOCABULARY_SIZE = SEPARATOR + 1
PATCH_PLACEHOLDER = 65_535

# Name -> first id and one past the last.
ID_RANGES = {
    "text": (0, NUM_TEXT_TOKENS),
    "discrete": (0, NUM_DISCRETE),
    "continuous": (CONTINUOUS_OFFSET, CONTINUOUS_OFFSET + NUM_BINS),
    "separator": (SEPARATOR, SEPARATOR + 1),
}

# Every id fits in 16 bits: half the memory and disk of int32.
TOKEN_DTYPE = np.dtype("<u2")
