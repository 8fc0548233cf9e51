"""Checkpoints: safetensors for tensors, JSON for the rest, each folder complete or absent.

<run>/config.json                       the resolved settings
<run>/checkpoints/step-00001200/
    model.safetensors                   weights in fp32
    optimizer.safetensors               moments, "<parameter>.exp_avg" and so on
    state.json                          step, schedule, random state; written last inside the folder
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from episode_store.errors import UserError
from episode_store.files import sync_file, write_json
from tokenization.vocabulary import VOCABULARY_SIZE
from trainer.config import TrainConfig
from trainer.model import Generalist
from trainer.optim import Optimizer

FORMAT = "gato-checkpoint-v1"
CONFIG_FILE = "config.json"
_NAME = re.compile(r"step-(\d{8})")


def save(
    run: Path, *, step: int, model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Writes a checkpoint and removes all but the last `keep`."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    for leftover in folder.glob(".partial-*"):  # of a run that was killed
        shutil.rmtree(leftover)
    partial = folder / f".partial-{os.getpid()}"
    partial.mkdir()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[id(parameter)]}.{key}": value
        for parameter, slots in optimizer.slots().items()
        for key, value in slots.items()
    }
    try:
        for file, tensors in (("model", model.state_dict()), ("optimizer", moments)):
            on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            save_file(on_cpu, partial / f"{file}.safetensors")
    except safetensors.SafetensorError as error:
        shutil.rmtree(partial)
        raise UserError(
            f"{final}: the checkpoint could not be written ({error}); free some space and run the same command again, "
            "it goes on from the checkpoint before"
        ) from None
    write_json(partial / "state.json", {"format": FORMAT, "vocabulary_size": VOCABULARY_SIZE, "step": step, **state})
    for path in partial.iterdir():
        sync_file(path)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    sync_file(folder)
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / "state.json").is_file())


def latest(run: Path) -> Path:
    """The newest checkpoint of a run.

    Raises:
      UserError: when there is none.
    """
    found = list_checkpoints(run)
    if not found:
        raise UserError(f"{run}: no checkpoint there; train first with `trainer train --output {run}`")
    return found[-1]


def read_state(checkpoint: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint.

    Raises:
      UserError: when it is not a checkpoint of this project, or of another vocabulary.
    """
    file = checkpoint / "state.json"
    try:
        state = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{checkpoint}: not a checkpoint: no state.json in it") from None
    except ValueError as error:
        raise UserError(f"{file}: damaged ({error}); remove {checkpoint} to use the one before it") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{file}: expected format {FORMAT}")
    if state.get("vocabulary_size") != VOCABULARY_SIZE:
        raise UserError(
            f"{checkpoint}: checkpoint of another vocabulary: expected {VOCABULARY_SIZE} ids, "
            f"got {state.get('vocabulary_size')}; it cannot be used with these shards"
        )
    return state


def weights_hash(checkpoint: Path) -> str:
    """32 hex digits that name a checkpoint's weights."""
    with (checkpoint / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def load_config(run: Path) -> TrainConfig:
    """The settings a run was made with."""
    try:
        settings = json.loads((run / CONFIG_FILE).read_text())
        settings.pop("shards", None)  # which data, recorded beside the settings
        return TrainConfig.from_json(settings)
    except FileNotFoundError:
        raise UserError(f"{run}: not a training run: no {CONFIG_FILE} in it") from None
    except ValueError as error:
        raise UserError(f"{run / CONFIG_FILE}: damaged ({error})") from None


def load_weights(checkpoint: Path, model: Generalist) -> None:
    """Puts a checkpoint's weights into a model.

    Raises:
      UserError: when the file is damaged or its tensors do not fit.
    """
    tensors = _load(checkpoint / "model.safetensors")
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    got = {name: tuple(value.shape) for name, value in tensors.items()}
    if expected != got:
        name = next(name for name in sorted({*expected, *got}) if expected.get(name) != got.get(name))
        raise UserError(
            f"{checkpoint}: weights do not fit this model: {name}: expected {expected.get(name)}, got {got.get(name)}"
        )
    model.load_state_dict(tensors)


def load_optimizer(checkpoint: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Puts a checkpoint's moments into an optimizer of the same model."""
    slots: dict[torch.Tensor, dict[str, torch.Tensor]] = {}
    parameters = dict(model.named_parameters())
    for name, value in _load(checkpoint / "optimizer.safetensors").items():
        owner, _, key = name.rpartition(".")
        if owner not in parameters:
            raise UserError(f"{checkpoint}: optimizer state of {owner}, which this model does not have")
        # The step counter stays on the CPU.
        slots.setdefault(parameters[owner], {})[key] = value if key == "step" else value.to(parameters[owner].device)
    optimizer.load_slots(slots)


def load_model(run: Path, device: torch.device, checkpoint: Path | None = None) -> Generalist:
    """The model of a run, in evaluation mode."""
    checkpoint = checkpoint or latest(run)
    read_state(checkpoint)
    model = Generalist(load_config(run).model)
    load_weights(checkpoint, model)
    return model.to(device).eval()


def _load(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path.parent}: not a checkpoint: no {path.name} in it") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); remove {path.parent} to use the one before it") from None
