"""Held-out captions, questions, texts and dialogues: how well the generalist predicts and answers them.

The result, `language.json`, is what report.py shows:

    {"captions": {"num", "metrics": {name: value}, "samples": [{"image_png_base64", "reference", "generated"}]},
     "vqa": {"num", "accuracy", "majority_accuracy", "samples": [{"image_png_base64", "question", ...}]},
     "text": {"num", "bits_per_byte", "unigram_bits_per_byte", "samples": [{"prompt", "generated"}]},
     "dialogue": {"num", "bits_per_byte", "unigram_bits_per_byte", "samples": [{"turns": [{"speaker", "text"}]}]}}
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from episode_store.splits import TRAIN, VALIDATION
from tokenization import image_patches
from tokenization.text import TextTokenizer
from tokenization.token_sequence import TargetKind, TokenSequence
from tokenization.vocabulary import PATCH_PLACEHOLDER, SEPARATOR, VOCABULARY_SIZE
from trainer import checkpoint
from trainer.attention import SegmentedAttention
from trainer.batch import collate
from trainer.config import SamplerConfig
from trainer.decoder import Fragment
from trainer.generate import generate, observation_of
from trainer.loss import BITS_PER_NAT, target_losses
from trainer.model import Generalist
from trainer.precision import choose_device
from trainer.sampler import Piece, assemble
from trainer.shards import Dataset, TaskData

_BATCH = 64
_MAX_ANSWER_TOKENS = 16
_NO_RNG = np.random.default_rng(0)  # a single patch position in 128 hardly matters for bits
_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """How much is evaluated.

    Attributes:
      max_items: held-out questions, captions, texts or replies of each kind.
      num_samples: shown in the report.
      context_tokens: longest text the network sees at once.
      seed: of the choice of items and of sampling.
      temperature: of samples of text and dialogue; captions and answers are the most likely ones.
    """

    max_items: int = 400
    num_samples: int = 8
    context_tokens: int = 256
    seed: int = 0
    temperature: float = 0.7


def evaluate_language(
    dataset: Dataset, run: Path, config: LanguageConfig, source: Path | None = None
) -> dict[str, Any]:
    """Everything for `language.json`, of a checkpoint of `run`, the newest by default.

    Kinds without held-out data are left out.
    """
    model = checkpoint.load_model(run, choose_device("auto"), source)
    text = dataset.text_tokenizer() if dataset.has_text_model else None
    result: dict[str, Any] = {}
    if text is None:
        return result
    held_out = {shard["task_id"] for shard in dataset.info["shards"] if shard["split"] == VALIDATION}
    for task_id in sorted(held_out):
        family = next((tag.removeprefix("family:") for tag in dataset.tasks[task_id].tags if "family:" in tag), "")
        evaluation = _Evaluation(dataset, task_id, model, text, config)
        if family == "caption":
            result["captions"] = evaluation.captions()
        elif family == "vqa":
            result["vqa"] = evaluation.questions()
        elif family in ("text", "dialogue"):
            result[family] = evaluation.texts() if family == "text" else evaluation.dialogues()
    return result


class _Evaluation:
    """One task's held-out data."""

    def __init__(
        self, dataset: Dataset, task_id: str, model: Generalist, text: TextTokenizer, config: LanguageConfig
    ) -> None:
        self._train = dataset.load_task(TRAIN, task_id)
        self._data = dataset.load_task(VALIDATION, task_id)
        self._model, self._text, self._config = model, text, config
        rng = np.random.default_rng(config.seed)
        count = min(config.max_items, self._data.num_timesteps)
        self._steps = np.sort(rng.choice(self._data.num_timesteps, count, replace=False)).tolist()

    def captions(self) -> dict[str, Any]:
        """Captions beside the reference ones, compared by their words and by their bits."""
        references, generated = self._answers()
        overlap = float(np.mean([_word_f1(a, b) for a, b in zip(generated, references, strict=True)]))
        bits, unigram = self._bits_per_byte()
        samples = [
            {"image_png_base64": self._picture(step), "reference": reference, "generated": caption}
            for step, reference, caption in self._shown(references, generated)
        ]
        metrics = {"word F1": overlap, "bits per byte": bits, "bits per byte, unigram model": unigram}
        return {"num": len(references), "metrics": metrics, "samples": samples}

    def questions(self) -> dict[str, Any]:
        """Share of exactly right answers, beside that of the most common answer of the training data."""
        references, generated = self._answers()
        rng = np.random.default_rng(self._config.seed)
        count = min(2_000, self._train.num_timesteps)
        seen = [_action_text(self._train, step, self._text) for step in rng.choice(self._train.num_timesteps, count)]
        majority = collections.Counter(seen).most_common(1)[0][0]
        samples = [
            {
                "image_png_base64": self._picture(step),
                "question": self._question(step),
                "reference": reference,
                "generated": answer,
            }
            for step, reference, answer in self._shown(references, generated)
        ]
        return {
            "num": len(references),
            "accuracy": float(np.mean([a == b for a, b in zip(generated, references, strict=True)])),
            "majority_accuracy": float(np.mean([reference == majority for reference in references])),
            "samples": samples,
        }

    def texts(self) -> dict[str, Any]:
        """Bits a byte, and continuations of titles."""
        bits, unigram = self._bits_per_byte()
        steps = self._steps[: self._config.num_samples]
        contexts = [Fragment.of(observation_of(self._data.window(step, step + 1))) for step in steps]
        generated = self._generate(contexts, 80)
        samples = [
            {"prompt": self._question(step), "generated": text} for step, text in zip(steps, generated, strict=True)
        ]
        return {"num": len(self._steps), "bits_per_byte": bits, "unigram_bits_per_byte": unigram, "samples": samples}

    def dialogues(self) -> dict[str, Any]:
        """Bits a byte of replies, and chats between a held-out person's turns and the generalist."""
        bits, unigram = self._bits_per_byte()
        samples = []
        for episode in range(min(3, self._data.num_episodes)):
            first, last = (int(offset) for offset in self._data.episode_offsets[episode : episode + 2])
            history: list[Fragment] = []
            turns = []
            for step in range(first, min(last, first + 4)):
                observation = Fragment.of(observation_of(self._data.window(step, step + 1)))
                history.append(observation)
                reply = self._generate([Fragment.join(history)], 40)[0]
                history.append(Fragment.of_action([*self._text.encode(reply).tolist(), self._text.end_id]))
                turns += [
                    {"speaker": "person", "text": self._question(step)},
                    {"speaker": "generalist", "text": reply},
                ]
            samples.append({"turns": turns})
        return {"num": len(self._steps), "bits_per_byte": bits, "unigram_bits_per_byte": unigram, "samples": samples}

    def _generate(self, contexts: list[Fragment], max_tokens: int) -> list[str]:
        return generate(
            self._model,
            self._text,
            contexts,
            max_tokens=max_tokens,
            temperature=self._config.temperature,
            seed=self._config.seed,
        )

    def _answers(self) -> tuple[list[str], list[str]]:
        """Reference and most likely answer of every chosen step."""
        generated: list[str] = []
        for start in range(0, len(self._steps), _BATCH):
            windows = [self._data.window(step, step + 1) for step in self._steps[start : start + _BATCH]]
            contexts = [Fragment.of(observation_of(window)) for window in windows]
            generated += generate(self._model, self._text, contexts, max_tokens=_MAX_ANSWER_TOKENS)
        return [_action_text(self._data, step, self._text) for step in self._steps], generated

    def _shown(self, references: list[str], generated: list[str]) -> list[tuple[int, str, str]]:
        everything = list(zip(self._steps, references, generated, strict=True))
        chosen = np.random.default_rng(self._config.seed).permutation(len(everything))[: self._config.num_samples]
        return [everything[index] for index in chosen.tolist()]

    def _picture(self, step: int) -> str:
        window = self._data.window(step, step + 1)
        spec = next(spec for spec in self._data.task.observation_spec.values() if spec.modality == "image")
        pixels = image_patches.unpatchify(
            window.patches[window.patch_index][None], height=spec.shape[0], width=spec.shape[1]
        )[0]
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        return base64.b64encode(buffer.getvalue()).decode()

    def _question(self, step: int) -> str:
        tokens = observation_of(self._data.window(step, step + 1)).tokens
        return self._text.decode(tokens[(tokens != PATCH_PLACEHOLDER) & (tokens != SEPARATOR)])

    @torch.no_grad()
    def _bits_per_byte(self) -> tuple[float, float]:
        """Of the actions' texts: under the network, and under the frequencies of training tokens (plus one)."""
        seen = self._train.tokens[self._train.targets == TargetKind.ACTION]
        counts = np.bincount(seen.astype(np.int64), minlength=VOCABULARY_SIZE) + 1.0
        unigram_nats = -np.log(counts / counts.sum())
        nats = unigram = 0.0
        num_bytes = 0
        for step in self._steps:
            start = int(self._data.timestep_offsets[step])
            end = min(int(self._data.timestep_offsets[step + 1]), start + self._config.context_tokens)
            pieces = [Piece(start=start, end=end)]
            config = SamplerConfig(context_tokens=end - start, text_observation_weight=0.0)
            row = assemble([(0, self._data, pieces)], config=config, rng=_NO_RNG)
            batch = collate([row])
            hidden = self._model(batch.inputs, SegmentedAttention.from_lengths(row.segment_lengths))
            losses = target_losses(self._model, hidden, batch.targets, 0.0)
            of_action = batch.targets.weights > 0
            ids = batch.targets.ids[of_action].numpy()
            nats += float(losses[of_action].sum())
            unigram += float(unigram_nats[ids].sum())
            num_bytes += len(self._text.decode(ids[ids != self._text.end_id]).encode())
        return nats * BITS_PER_NAT / max(num_bytes, 1), unigram * BITS_PER_NAT / max(num_bytes, 1)


def _action_text(data: TaskData, step: int, text: TextTokenizer) -> str:
    window: TokenSequence = data.window(step, step + 1)
    ids = window.tokens[window.targets == TargetKind.ACTION]
    return text.decode(ids[ids != text.end_id])


def _word_f1(generated: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words, as sets."""
    ours, theirs = set(_WORD.findall(generated.lower())), set(_WORD.findall(reference.lower()))
    shared = len(ours & theirs)
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0
