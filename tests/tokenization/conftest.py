"""One text model for all tests of tokenization, trained in a tenth of a second on Python's own help texts."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import pytest

from tokenization.text import TextTokenizer


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.model"
    TextTokenizer.train(topics.values(), path)
    return path


@pytest.fixture(scope="session")
def text(text_model: Path) -> TextTokenizer:
    return TextTokenizer.load(text_model)
