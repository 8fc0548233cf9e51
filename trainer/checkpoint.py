"""Checkpoints: safetensors for tensors, JSON for the rest, each folder complete or absent.

<run>/config.json                       the resolved settings
<run>/checkpoints/step-00001200/
    model.safetensors                   weights in fp32
    optimizer.safetensors               moments, "<parameter>.exp_avg" and so on
    state.json                          step, scale of fp16, checksums (XXH3) of the two above, ...; written last
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
import xxhash
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from episode_store.errors import UserError
from episode_store.files import sync_file, write_json
from tokenization.vocabulary import VOCABULARY_SIZE
from trainer.config import TrainConfig
from trainer.model import Generalist
from trainer.optim import Optimizer
from trainer.tensors import whole

FORMAT = "gato-checkpoint-v1"
CONFIG_FILE = "config.json"
STATE_FILE = "state.json"
_NAME = re.compile(r"step-(\d{8})")


class Writer:
    """Writes checkpoints in a thread while training goes on; one at a time.

    Raises:
      UserError: `keep` is less than 1.
    """

    def __init__(self, run: Path, *, keep: int) -> None:
        _check_keep(keep)
        self._run, self._keep = run, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()

    def write(self, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """Begins to write; waits for the checkpoint before.

        Raises:
          UserError: the one before could not be written.
        """
        self.wait()
        self._thread = threading.Thread(target=self._work, args=(tensors, state), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until all is written.

        Raises:
          UserError: it could not be.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _work(self, tensors: Tensors, state: Mapping[str, Any]) -> None:
        try:
            save(self._run, tensors, state, keep=self._keep)
        except BaseException as error:  # noqa: BLE001 - handed to the training thread, which raises it
            self._error = error


# File of a checkpoint -> name -> tensor.
Tensors = Mapping[str, Mapping[str, torch.Tensor]]


def snapshot(model: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """Copies of weights and moments on the CPU, whole also where ranks hold parts of them (then all ranks call it)."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[id(parameter)]}.{key}": value
        for parameter, slots in optimizer.slots().items()
        for key, value in slots.items()
    }
    return {
        "model": {name: _copied(value) for name, value in model.state_dict().items()},
        "optimizer": {name: _copied(value) for name, value in moments.items()},
    }


def _copied(value: torch.Tensor) -> torch.Tensor:
    return whole(value).detach().to("cpu", copy=True).contiguous()


def save(run: Path, tensors: Tensors, state: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Writes a checkpoint, then removes all but the last `keep` and the one with the lowest validation loss.

    Args:
      run: its folder.
      tensors: of `snapshot`.
      state: JSON; "step" names the checkpoint.
      keep: how many stay, at least 1.

    Raises:
      UserError: it could not be written, or `keep` is less than 1.
    """
    _check_keep(keep)
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{state['step']:08d}"
    for leftover in folder.glob(".partial-*"):  # of a run that was killed
        shutil.rmtree(leftover)
    partial = folder / f".partial-{os.getpid()}"
    partial.mkdir()
    try:
        for file, values in tensors.items():
            save_file(dict(values), partial / f"{file}.safetensors")
        facts = {"format": FORMAT, "vocabulary_size": VOCABULARY_SIZE}
        facts["checksums"] = {path.name: _checksum(path) for path in sorted(partial.iterdir())}
        write_json(partial / STATE_FILE, {**facts, **state})
        mode = (partial / STATE_FILE).stat().st_mode
        for path in partial.iterdir():
            path.chmod(mode)  # safetensors makes files for their owner alone, whatever the umask
            sync_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        shutil.rmtree(partial)
        raise UserError(
            f"{final}: the checkpoint could not be written ({error}); free some space and run the same command again, "
            "it goes on from the checkpoint before"
        ) from None
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    sync_file(folder)
    kept = list_checkpoints(run)[-keep:]
    lowest = best(run)
    for old in list_checkpoints(run):
        if old not in kept and old != lowest:
            shutil.rmtree(old)
    return final


def _check_keep(keep: int) -> None:
    if keep < 1:
        raise UserError(f"keep_checkpoints {keep}: expected 1 or more")


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def best(run: Path) -> Path | None:
    """The checkpoint with the lowest validation loss; None where none was measured."""
    losses = {path: read_state(path).get("validation_loss") for path in list_checkpoints(run)}
    measured = {path: loss for path, loss in losses.items() if loss is not None}
    return min(measured, key=lambda path: measured[path], default=None)


def list_checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / STATE_FILE).is_file())


def latest(run: Path) -> Path:
    """The newest checkpoint of a run.

    Raises:
      UserError: when there is none.
    """
    found = list_checkpoints(run)
    if not found:
        raise UserError(f"{run}: no checkpoint there; train first with `trainer train --output {run}`")
    return found[-1]


def choose(run: Path, *, prefer_best: bool) -> Path:
    """The newest checkpoint of a run, or the one with the lowest validation loss.

    Raises:
      UserError: when there is none.
    """
    newest = latest(run)
    if not prefer_best:
        return newest
    lowest = best(run)
    if lowest is None:
        raise UserError(f"{run}: no checkpoint has a validation loss; train with --set validation_sequences=64")
    return lowest


def read_state(checkpoint: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint.

    Raises:
      UserError: when it is not a checkpoint of this project, or of another vocabulary.
    """
    file = checkpoint / STATE_FILE
    try:
        state = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{checkpoint}: not a checkpoint: no state.json in it") from None
    except ValueError as error:
        raise UserError(f"{file}: damaged ({error}); {_before(file)}") from None
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
        if isinstance(settings, dict):
            settings.pop("shards", None)  # which data, recorded beside the settings
        return TrainConfig.from_json(settings)
    except FileNotFoundError:
        raise UserError(f"{run}: not a training run: no {CONFIG_FILE} in it") from None
    except ValueError as error:
        raise UserError(f"{run / CONFIG_FILE}: damaged ({error})") from None
    except UserError as error:
        raise UserError(f"{run / CONFIG_FILE}: {error}") from None


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
        slots.setdefault(parameters[owner], {})[key] = value if key == "step" else _like(value, parameters[owner])
    optimizer.load_slots(slots)


def _like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A moment where its parameter is, cut as it is."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value


def load_model(run: Path, device: torch.device, checkpoint: Path | None = None) -> Generalist:
    """The model of a run, in evaluation mode."""
    checkpoint = checkpoint or latest(run)
    read_state(checkpoint)
    model = Generalist(load_config(run).model)
    load_weights(checkpoint, model)
    return model.to(device).eval()


def _load(path: Path) -> dict[str, torch.Tensor]:
    written = read_state(path.parent).get("checksums", {}).get(path.name)  # older checkpoints have none
    try:
        if written not in (None, _checksum(path)):
            raise UserError(f"{path}: damaged (not the bytes that were written); {_before(path)}")
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path.parent}: not a checkpoint: no {path.name} in it") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); {_before(path)}") from None


def _before(path: Path) -> str:
    return f"remove {path.parent} to use the one before it"
