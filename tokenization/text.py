"""Text as SentencePiece pieces, ids [0, 32000) (Gato, section 2.2), without loss.

SentencePiece's defaults lose newlines, tabs, repeated spaces and the character U+2581. Here the settings keep all of
them, bytes stand for whatever has no piece, and U+2581 (SentencePiece's own mark for a space) is written as bytes.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from episode_store.errors import UserError
from episode_store.files import write_bytes
from tokenization.vocabulary import NUM_TEXT_TOKENS, TOKEN_DTYPE

_SPACE_MARK = "\u2581"
_PROBE = " a\n\n\tb  \u00e9\u6f22\u2581\U0001f600 "
_MAX_SENTENCE_BYTES = 4_192  # SentencePiece drops longer ones from training
_CACHE_TEXTS = 4_096


class TextTokenizer:
    """One SentencePiece model. Made by `load`, or by `train` and then `load`. Cheap to pickle.

    Attributes:
      model: the model file's bytes.
      model_sha256: of the bytes, in hex: two tokenizers with the same hash give the same ids.
      end_id: the id of `</s>`, which ends every text that is an action, and nothing else.
    """

    def __init__(self, model: bytes, *, where: str = "text model") -> None:
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise UserError(f"{where}: expected a SentencePiece model, got something else") from None
        if not 0 < processor.vocab_size() <= NUM_TEXT_TOKENS:
            raise UserError(
                f"{where}: expected at most {NUM_TEXT_TOKENS} pieces, got {processor.vocab_size()}; "
                "train one with `tokenization train-text`"
            )
        if processor.eos_id() < 0:
            raise UserError(
                f"{where}: expected a model with an end piece </s>; train one with `tokenization train-text`"
            )
        self.model = model
        self.model_sha256 = hashlib.sha256(model).hexdigest()
        self.end_id: int = processor.eos_id()
        self._processor = processor
        self._space_mark = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]
        self._cache: dict[str, np.ndarray] = {}
        if processor.unk_id() in self._space_mark or self.decode(self.encode(_PROBE)) != _PROBE:
            raise UserError(
                f"{where}: expected a model that gives back spaces, newlines and rare characters; "
                "train one with `tokenization train-text`"
            )

    @classmethod
    def load(cls, source: str | Path | bytes) -> TextTokenizer:
        """From a model file or its bytes.

        Raises:
          UserError: not a model, too many pieces, or one that loses text.
        """
        if isinstance(source, bytes):
            return cls(source)
        return cls(Path(source).read_bytes(), where=str(source))

    @staticmethod
    def train(texts: Iterable[str], path: str | Path, *, num_pieces: int = NUM_TEXT_TOKENS) -> None:
        """Trains a BPE model of at most `num_pieces` on `texts` and writes it to `path`. Same texts, same bytes.

        Raises:
          UserError: when there is no text.
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=_sentences(texts),
                model_writer=model,
                model_type="bpe",
                vocab_size=num_pieces,
                hard_vocab_limit=False,
                character_coverage=0.9995,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                allow_whitespace_only_pieces=True,
                byte_fallback=True,
                user_defined_symbols=["\n"],
                split_digits=True,
                max_sentence_length=_MAX_SENTENCE_BYTES,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError:
            raise UserError("training the text model: expected text to learn from, got none or too little") from None
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, model.getvalue())

    @property
    def num_pieces(self) -> int:
        """Number of pieces of the model, at most 32,000."""
        return self._processor.vocab_size()

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`: uint16 [length], read-only. `decode` gives `text` back exactly."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text. Equal texts are encoded once, and the last few thousand are remembered."""
        new = [text for text in dict.fromkeys(texts) if text not in self._cache]
        if not new:
            return [self._cache[text] for text in texts]
        ids = dict(zip(new, self._encode_all(new), strict=True))
        result = [ids[text] if text in ids else self._cache[text] for text in texts]
        if len(self._cache) + len(ids) > _CACHE_TEXTS:
            self._cache.clear()
        if len(ids) <= _CACHE_TEXTS:
            self._cache.update(ids)
        return result

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """The text of `ids`; invalid UTF-8 that byte pieces may form becomes U+FFFD.

        Raises:
          UserError: when an id is not a piece.
        """
        pieces = [int(i) for i in ids]
        for piece in pieces:
            if not 0 <= piece < self.num_pieces:
                raise UserError(f"token {piece}: expected the id of a text piece in [0, {self.num_pieces})")
        return self._processor.decode(pieces)

    def piece(self, token: int) -> str:
        """How SentencePiece writes a piece, with U+2581 for a space."""
        return self._processor.id_to_piece(int(token))

    def _encode_all(self, texts: Sequence[str]) -> Iterator[np.ndarray]:
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"text: expected valid Unicode, got {text[error.start : error.end]!r}") from None
        plain = self._processor.encode([text.replace(_SPACE_MARK, " ") for text in texts], num_threads=1)
        for text, ids in zip(texts, plain, strict=True):
            if _SPACE_MARK in text:
                parts = [self._processor.encode(part) for part in text.split(_SPACE_MARK)]
                ids = parts[0] + [i for part in parts[1:] for i in (*self._space_mark, *part)]
            array = np.array(ids, dtype=TOKEN_DTYPE)
            array.flags.writeable = False
            yield array

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model"])  # type: ignore[misc]


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines, cut where SentencePiece would drop them for their length."""
    most = _MAX_SENTENCE_BYTES // 4  # characters; UTF-8 needs at most 4 bytes for one
    for text in texts:
        for line in text.replace(_SPACE_MARK, " ").split("\n"):
            for start in range(0, len(line), most):
                yield line[start : start + most]
