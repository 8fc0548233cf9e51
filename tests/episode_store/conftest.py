"""Fixtures of all tests of the store."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fsync` guards against power loss, which no test can cause; without it the suite is several times faster."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
