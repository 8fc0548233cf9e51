"""The file of a specialist: the tensors of the agent and its optimizer, and a JSON header. Nothing is pickled.

What an off-policy agent remembers lies beside it in a file of its own, for as long as it trains.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError

from episode_store.errors import UserError
from episode_store.files import write_bytes

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

FORMAT = "gato-specialist-v1"
_REPLAY_FORMAT = "gato-replay-v1"


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a file holds."""

    header: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def save(path: Path, model: BaseAlgorithm, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the agent, whole or not at all; returns the header: `facts` and the agent's progress."""
    tensors: dict[str, torch.Tensor] = {}
    parameters = _take_tensors(model.get_parameters(), "", tensors, {})
    # SAC's and TQC's entropy coefficient is in no state_dict.
    _, variables = model._get_torch_save_params()
    for name in variables:
        tensors[f"variable/{name}"] = getattr(model, name).detach().cpu().clone()
    for name, statistics in _statistics(model):
        for part in ("mean", "var", "count"):
            values = np.asarray(getattr(statistics, part), np.float64)
            tensors[f"normalize/{name}/{part}"] = torch.from_numpy(values.copy())
    header = {
        **facts,
        "num_timesteps": model.num_timesteps,
        "num_updates": model._n_updates,
        "parameters": parameters,
    }
    write_bytes(path, safetensors.torch.save(tensors, {"specialist": json.dumps(header)}))
    return header


def load(path: Path, expected: Mapping[str, Any]) -> Saved:
    """The agent in a file.

    Args:
      path: of the file.
      expected: facts that its header must have.

    Raises:
      UserError: it is something else, or damaged, or another agent's.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("specialist", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is no specialist of this project, or damaged ({error}): delete it") from None
    for name, value in expected.items():
        if header.get(name) != value:
            raise UserError(
                f"{path}: expected a specialist with {name} {value!r}, got {header.get(name)!r}: delete it, or give "
                "another --output"
            )
    return Saved(header, tensors)


def restore(model: BaseAlgorithm, saved: Saved) -> None:
    """Puts what was saved into a newly built agent of the same recipe."""
    model.set_parameters(_put_tensors(saved.header["parameters"], saved.tensors))
    model.num_timesteps = saved.header["num_timesteps"]
    model._n_updates = saved.header["num_updates"]
    _, variables = model._get_torch_save_params()
    for name in variables:
        getattr(model, name).data.copy_(saved.tensors[f"variable/{name}"])
    for name, statistics in _statistics(model):
        for part in ("mean", "var", "count"):
            values = saved.tensors[f"normalize/{name}/{part}"].numpy()
            setattr(statistics, part, values if values.ndim else float(values))


def replay_path(path: Path) -> Path:
    """Where the experience of the agent at `path` lies while it trains."""
    return path.with_suffix(".replay")


def save_replay(path: Path, model: BaseAlgorithm) -> None:
    """Writes what an off-policy agent remembers, whole or not at all; nothing for another agent."""
    buffer = getattr(model, "replay_buffer", None)
    if buffer is None:
        return
    rows = buffer.buffer_size if buffer.full else buffer.pos
    arrays = {key: np.ascontiguousarray(values[:rows]) for key, values in _replay_arrays(buffer).items()}
    facts = {"format": _REPLAY_FORMAT, "pos": int(buffer.pos), "full": bool(buffer.full)}
    write_bytes(replay_path(path), safetensors.numpy.save(arrays, {"replay": json.dumps(facts)}))


def restore_replay(path: Path, model: BaseAlgorithm) -> None:
    """Gives an off-policy agent back what it remembered; without a file it begins with nothing.

    Raises:
      UserError: the file is damaged, or another agent's.
    """
    path, buffer = replay_path(path), getattr(model, "replay_buffer", None)
    if buffer is None or not path.exists():
        return
    arrays = _replay_arrays(buffer)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            facts = json.loads((file.metadata() or {}).get("replay", "{}"))
            saved = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it, and the agent gathers experience again") from None
    rows = buffer.buffer_size if facts.get("full") else facts.get("pos")
    fits = facts.get("format") == _REPLAY_FORMAT and set(saved) == set(arrays)
    if not fits or any(
        (len(saved[key]), saved[key].shape[1:], saved[key].dtype) != (rows, values.shape[1:], values.dtype)
        for key, values in arrays.items()
    ):
        raise UserError(f"{path} is not the experience of this agent: delete it, and it is gathered again")
    for key, values in arrays.items():
        values[:rows] = saved[key]
    buffer.pos, buffer.full = facts["pos"], facts["full"]
    if hasattr(buffer, "_current_ep_start"):
        # Hindsight: the episode that was cut has no end to learn from.
        buffer._current_ep_start[:] = buffer.pos


def _replay_arrays(buffer: Any) -> dict[str, np.ndarray]:
    """Every array of a replay buffer that has a row a step."""
    arrays = {}
    for name, value in vars(buffer).items():
        members = value.items() if isinstance(value, dict) else [("", value)]
        for key, array in members:
            if isinstance(array, np.ndarray) and array.dtype != object and array.shape[:1] == (buffer.buffer_size,):
                arrays[f"{name}/{key}"] = array
    return arrays


def _statistics(model: BaseAlgorithm) -> list[tuple[str, Any]]:
    normalize = model.get_vec_normalize_env()
    if normalize is None:
        return []
    observed = [("observation", normalize.obs_rms)] if normalize.norm_obs else []
    return [*observed, ("return", normalize.ret_rms)]


def _take_tensors(tree: Any, key: str, tensors: dict[str, torch.Tensor], places: dict[Any, str]) -> Any:
    """A JSON skeleton of a nested state; its tensors go to `tensors`. Keys that are numbers are marked.

    Agents that see pictures have one network under several names: `places` has the first name of what lies where.
    """
    if isinstance(tree, torch.Tensor):
        first = places.setdefault((tree.data_ptr(), tree.shape, tree.stride()), key) if tree.numel() else key
        if first == key:
            tensors[key] = tree.detach().cpu().contiguous()
        return {"$tensor": first}
    if isinstance(tree, Mapping):
        return {
            f"#{name}" if isinstance(name, int) else name: _take_tensors(value, f"{key}/{name}", tensors, places)
            for name, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [_take_tensors(value, f"{key}/{place}", tensors, places) for place, value in enumerate(tree)]
    return tree


def _put_tensors(skeleton: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(skeleton, dict):
        if set(skeleton) == {"$tensor"}:
            return tensors[skeleton["$tensor"]]
        return {
            int(name[1:]) if name.startswith("#") else name: _put_tensors(value, tensors)
            for name, value in skeleton.items()
        }
    if isinstance(skeleton, list):
        return [_put_tensors(value, tensors) for value in skeleton]
    return skeleton
