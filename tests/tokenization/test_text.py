import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from episode_store.errors import UserError
from tokenization.text import TextTokenizer


@pytest.mark.parametrize(
    "sample",
    [
        "",
        " ",
        "\n",
        "a  b\t\tc\r\n\n d ",
        "\u2581",
        " \u2581a\u2581\u2581 b",
        "</s><s><unk><0x41>",
        "\0\x7f\ufeff\u2028",
        "e\u0301 \u00e9",
        "漢字 русский عربى 🤖👩\u200d🚀",
        "\U0010ffff\ue000\ufffd",
        "12345.678",
    ],
)
def test_text_comes_back_exactly(text: TextTokenizer, sample: str) -> None:
    ids = text.encode(sample)
    assert ids.dtype == np.uint16
    assert text.decode(ids) == sample
    assert text.end_id not in ids.tolist()


@settings(max_examples=150, deadline=None)
@given(st.text())
def test_property_any_text_comes_back(text: TextTokenizer, sample: str) -> None:
    assert text.decode(text.encode(sample)) == sample


def test_pieces(text: TextTokenizer) -> None:
    assert [text.piece(i) for i in text.encode("the import\n of")] == ["the", "▁import", "\n", "▁of"]
    assert text.num_pieces <= 32_000
    assert text.encode("the import statement").max() < 32_000


def test_digits_stand_alone(text: TextTokenizer) -> None:
    assert [text.piece(i) for i in text.encode("2024")] == ["2", "0", "2", "4"]


def test_batches(text: TextTokenizer) -> None:
    texts = ["go to the ball", "", "go to the ball", "stop"]
    batch = text.encode_batch(texts)
    assert [text.decode(ids) for ids in batch] == texts
    assert [ids.tolist() for ids in batch] == [text.encode(sample).tolist() for sample in texts]
    assert text.encode_batch([]) == []


def test_more_texts_than_are_remembered(text: TextTokenizer) -> None:
    texts = [f"text number {i}" for i in range(9_000)]
    batch = text.encode_batch(texts)
    assert text.decode(batch[8_999]) == "text number 8999"
    assert text.encode_batch(texts[:5])[3].tolist() == batch[3].tolist()


def test_training_is_deterministic(text_model: Path, tmp_path: Path) -> None:
    texts = ["pick up the red key", "open the door\nthen go", "x" * 20_000]
    TextTokenizer.train(texts, tmp_path / "a.model")
    TextTokenizer.train(iter(texts), tmp_path / "b.model")
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []
    small = TextTokenizer.load(tmp_path / "a.model")
    assert small.num_pieces < 1_000  # a small corpus gives fewer pieces, never an error
    assert small.model_sha256 != TextTokenizer.load(text_model).model_sha256


def test_a_model_travels_by_pickle_and_by_bytes(text: TextTokenizer) -> None:
    for copy in (pickle.loads(pickle.dumps(text)), TextTokenizer.load(text.model)):  # noqa: S301
        assert copy.model_sha256 == text.model_sha256
        assert copy.encode("a b").tolist() == text.encode("a b").tolist()


def test_errors(text: TextTokenizer, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.model"
    foreign.write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"foreign\.model: expected a SentencePiece model, got something else"):
        TextTokenizer.load(foreign)
    with pytest.raises(FileNotFoundError):
        TextTokenizer.load(tmp_path / "missing.model")
    with pytest.raises(UserError, match=r"token 33024: expected the id of a text piece in \[0, "):
        text.decode([5, 33_024])
    with pytest.raises(UserError, match="expected valid Unicode"):
        text.encode("a\ud800")
    with pytest.raises(UserError, match="expected text to learn from"):
        TextTokenizer.train([], tmp_path / "empty.model")
    assert not (tmp_path / "empty.model").exists()


def test_a_model_that_loses_newlines_is_refused(tmp_path: Path) -> None:
    import sentencepiece

    prefix = str(tmp_path / "lossy")
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["a b c", "the cat sat"]),
        model_prefix=prefix,
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        model_type="bpe",
        minloglevel=2,
    )
    with pytest.raises(UserError, match="expected a model that gives back spaces, newlines and rare characters"):
        TextTokenizer.load(f"{prefix}.model")


def test_importing_the_package_imports_nothing_heavy() -> None:
    import subprocess

    code = "import sys, tokenization; print([m for m in ('numpy', 'sentencepiece') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
