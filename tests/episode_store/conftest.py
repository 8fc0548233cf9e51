"""Fixtures of all tests of the store."""

from __future__ import annotations

import os
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fsync` guards against power loss, which no test can cause; without it the suite is several times faster."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(name="tfds", scope="session")
def _tfds() -> Any:
    """The real tensorflow-datasets, for the tests of `make test-peers`."""
    os.environ.update(CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="3")
    import tensorflow as tf
    import tensorflow_datasets

    tf.config.threading.set_intra_op_parallelism_threads(1)
    return tensorflow_datasets
