"""Mu-law companding of continuous observations (Gato, appendix B; van den Oord et al. 2016).

    F(x) = sgn(x) * log(mu * |x| + 1) / log(M * mu + 1),  mu = 100, M = 256, then clipped to [-1, 1]

F saturates at |x| = 256. This file is the definition, in float64; `bins.companded_to_ids` gives its ids faster.
"""

from __future__ import annotations

import numpy as np

from episode_store.errors import EpisodeError

MU = 100.0
M = 256.0
LOG_RANGE = float(np.log(M * MU + 1.0))


def encode(values: np.ndarray, *, where: str = "values") -> np.ndarray:
    """Compands `values` of any real dtype and shape to float64 in [-1, 1].

    Raises:
      EpisodeError: for NaN and Inf, naming `where`, the step (first axis) and the element.
    """
    x = np.asarray(values, dtype=np.float64)
    check_finite(x, where=where)
    return compand_finite(x)


def decode(companded: np.ndarray) -> np.ndarray:
    """The inverse of `encode` on [-1, 1]: float64 in [-256, 256]."""
    f = np.asarray(companded, dtype=np.float64)
    return np.sign(f) * np.expm1(np.abs(f) * LOG_RANGE) / MU


def check_finite(values: np.ndarray, *, where: str) -> None:
    """Raises EpisodeError for the first NaN or Inf, naming `where`, its step (first axis) and its element."""
    finite = np.isfinite(values)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~np.atleast_1d(finite))[0])
        found = np.atleast_1d(values)[index]
        raise EpisodeError(f"{where}: step {index[0]}, element {index[1:]}: expected a finite number, got {found}")


def compand_finite(x: np.ndarray) -> np.ndarray:
    """F, clipped, of float64 values known to be finite."""
    with np.errstate(over="ignore"):  # 1e308 * mu is infinite, and is clipped to 1
        return np.clip(np.sign(x) * np.log(MU * np.abs(x) + 1.0) / LOG_RANGE, -1.0, 1.0)
