"""Transformers of others with our layers, width, heads, context and vocabulary, each in its own code.

nanoGPT is no package: `--nanogpt` names a folder with its model.py. Hugging Face's models are those of the package
`transformers` (requirements/peers-train.txt).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from tokenization.vocabulary import VOCABULARY_SIZE
from trainer.config import ModelConfig

# Set by `python -m benchmarks --nanogpt FOLDER`.
nanogpt_folder: Path | None = None

# Loss of tokens [B, T] and labels [B, T], -1 where nothing is asked.
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def peers(shape: ModelConfig, context: int) -> tuple[dict[str, tuple[torch.nn.Module, Loss]], list[str]]:
    """Name -> network and its loss; and which are not at hand."""
    found: dict[str, tuple[torch.nn.Module, Loss]] = {}
    missing = []
    if nanogpt_folder is None:
        missing.append("nanoGPT: give the folder of its model.py with --nanogpt")
    else:
        found["nanoGPT"] = _nanogpt(nanogpt_folder, shape, context)
    if importlib.util.find_spec("transformers") is None:
        missing.append("Hugging Face: pip install -r requirements/peers-train.txt")
    else:
        found |= dict(_hugging_face(shape, context))
    return found, missing


def _nanogpt(folder: Path, shape: ModelConfig, context: int) -> tuple[torch.nn.Module, Loss]:
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    model = module.GPT(
        module.GPTConfig(
            block_size=context,
            vocab_size=VOCABULARY_SIZE,
            n_layer=shape.num_blocks,
            n_head=shape.num_heads,
            n_embd=shape.width,
            dropout=0.0,
            bias=False,
        )
    )
    return model, lambda tokens, labels: model(tokens, labels)[1]


def _hugging_face(shape: ModelConfig, context: int) -> Iterator[tuple[str, tuple[torch.nn.Module, Loss]]]:
    import transformers

    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY_SIZE,
            n_positions=context,
            n_embd=shape.width,
            n_layer=shape.num_blocks,
            n_head=shape.num_heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
    )
    yield "Hugging Face GPT-2", (gpt2, _loss_of(gpt2))
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY_SIZE,
            max_position_embeddings=context,
            hidden_size=shape.width,
            intermediate_size=shape.feed_forward_size // 2,
            num_hidden_layers=shape.num_blocks,
            num_attention_heads=shape.num_heads,
            tie_word_embeddings=True,
            use_cache=False,
        )
    )
    yield "Hugging Face Llama", (llama, _loss_of(llama))


def _loss_of(model: Any) -> Loss:
    def loss(tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=tokens).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-1)

    return loss
