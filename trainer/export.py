"""A trained network as a folder that others can use: weights, settings, a program for plain PyTorch, a model card.

model.safetensors   the weights, fp32, named as in `Generalist`
config.json         shape of the network, vocabulary, tasks and their layouts
program.pt2         torch.export: one sequence in, the logits of every next token out; needs torch alone
text.model          the SentencePiece model, where a task has text
README.md           model card: what it learned from, licences, scores, limits
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from episode_store.errors import UserError
from episode_store.files import write_bytes, write_json
from episode_store.spec import Modality
from tokenization.image_patches import NUM_POSITIONS, PATCH_SHAPE
from tokenization.vocabulary import CONTINUOUS_OFFSET, NUM_BINS, NUM_DISCRETE, SEPARATOR, VOCABULARY_SIZE
from trainer import checkpoint, scores_file
from trainer.attention import Relative, shifted_scores
from trainer.model import Generalist, ModelInput, num_parameters
from trainer.shards import TEXT_MODEL_FILE, Dataset

FORMAT = "gato-model-v1"
_EXAMPLE_TOKENS, _EXAMPLE_PATCHES = 12, 3
_RETURN_ADVICE = (
    "It can be asked for a return: before each observation of a control task stands the token of what is still wanted, "
    "in local position 0: it over |`expert_return` - `random_return`| of config.json, as a bin of a continuous value."
)


class _WholeSequence:
    """Attention of one sequence over itself."""

    def __init__(self, num_tokens: int) -> None:
        self.num_distances = num_tokens

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, *, block: int, relative: Relative | None = None
    ) -> Tensor:
        query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))  # [1, H, N, K]
        mask = None
        if relative is not None:
            mask = shifted_scores(relative.scores(query, self.num_distances)) * query.shape[-1] ** -0.5
            mask = mask + torch.full_like(mask[0, 0], float("-inf")).triu(1)
            query = query + relative.content_bias[:, None]
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        return mixed[0].transpose(0, 1)


class Program(nn.Module):
    """What `program.pt2` computes.

    A token and a patch of no meaning are laid behind the sequence, where nothing sees them: so there is always a
    picture to embed, and one program serves sequences with and without.
    """

    def __init__(self, model: Generalist) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, local_positions: Tensor, patches: Tensor, patch_slots: Tensor, patch_positions: Tensor
    ) -> Tensor:
        """Logits [N, 33025].

        Args:
          tokens: int64 [N], ids; any id where a patch is.
          local_positions: int64 [N], place inside the observation, -1 for action tokens.
          patches: uint8 [M, 16, 16, 3].
          patch_slots: int64 [M], places of the patches in [0, N).
          patch_positions: int64 [M, 2], row and column in [0, 128).
        """
        num_tokens, num_patches = tokens.shape[0], patches.shape[0]
        one = torch.zeros(1, dtype=torch.int64, device=tokens.device)
        inputs = ModelInput(
            tokens=torch.cat((tokens, one)),
            local_positions=torch.cat((local_positions, one)),
            positions=torch.arange(num_tokens + 1, device=tokens.device),
            patches=torch.cat((patches, torch.zeros((1, *PATCH_SHAPE), dtype=torch.uint8, device=tokens.device))),
            patch_slots=torch.cat((patch_slots, one + num_tokens)),
            patch_index=torch.arange(num_patches + 1, device=tokens.device),
            patch_positions=torch.cat((patch_positions, torch.stack((one, one), dim=1))),
        )
        hidden = self.model(inputs, _WholeSequence(num_tokens + 1))
        return self.model.text_logits(hidden[:-1])


def export(
    run: Path, dataset: Dataset, output: Path, *, scores: Mapping[str, Any] | None = None, source: Path | None = None
) -> dict[str, Any]:
    """Writes the folder; the settings, which make it complete, come last.

    Args:
      run: of `trainer train`.
      dataset: the shards that it was trained on.
      output: the folder.
      scores: of `scores_file.read`.
      source: the checkpoint; the newest by default.

    Raises:
      UserError: there is no checkpoint, or the scores are of another one.
    """
    source = source or checkpoint.latest(run)
    weights = checkpoint.weights_hash(source)
    if scores and scores["checkpoint"]["weights"] != weights:
        raise UserError(
            f"the scores are of step {scores['checkpoint']['step']} and not of {source}; evaluate that checkpoint first"
        )
    model = checkpoint.load_model(run, torch.device("cpu"), source)
    config = checkpoint.load_config(run)
    state = checkpoint.read_state(source)
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.json").unlink(missing_ok=True)
    write_bytes(output / "model.safetensors", (source / "model.safetensors").read_bytes())
    _write_program(model, output / "program.pt2")
    if dataset.has_text_model:
        shutil.copyfile(dataset.path / TEXT_MODEL_FILE, output / TEXT_MODEL_FILE)
    facts = {
        "format": FORMAT,
        "weights_hash": weights,
        "parameters": num_parameters(model),
        "step": state["step"],
        "tokens_seen": state.get("num_tokens"),
        "model": config.to_json()["model"],
        "vocabulary": {
            "size": VOCABULARY_SIZE,
            "discrete": [0, NUM_DISCRETE],
            "continuous": [CONTINUOUS_OFFSET, CONTINUOUS_OFFSET + NUM_BINS],
            "separator": SEPARATOR,
        },
        "context_tokens": config.sampler.context_tokens,
        "condition_on_return": config.sampler.condition_on_return,
        "tasks": {
            task_id: {**task, "spec": _without_pixel_bounds(task["spec"])}
            for task_id, task in dataset.info["tasks"].items()
        },
    }
    write_bytes(output / "README.md", _card(facts, dataset, scores).encode())
    write_json(output / "config.json", facts)
    return {"output": str(output), "checkpoint": str(source), **{key: facts[key] for key in ("parameters", "step")}}


def _write_program(model: Generalist, path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    example = (
        torch.randint(0, VOCABULARY_SIZE, (_EXAMPLE_TOKENS,), generator=rng),
        torch.arange(_EXAMPLE_TOKENS) - 1,
        torch.zeros((_EXAMPLE_PATCHES, *PATCH_SHAPE), dtype=torch.uint8),
        torch.arange(_EXAMPLE_PATCHES),
        torch.randint(0, NUM_POSITIONS, (_EXAMPLE_PATCHES, 2), generator=rng),
    )
    tokens = torch.export.Dim("tokens", min=1, max=2**20)
    patches = torch.export.Dim("patches", min=0, max=2**20)
    shapes = ({0: tokens}, {0: tokens}, {0: patches}, {0: patches}, {0: patches})
    with torch.no_grad():
        program = torch.export.export(Program(model).eval(), example, dynamic_shapes=shapes)
    partial = path.with_name(f".{path.name}")
    torch.export.save(program, partial)
    partial.replace(path)


def _without_pixel_bounds(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A task's spec whose pictures do not say of every pixel that it is 0 to 255."""
    bare = {
        part: {
            name: {**field, "low": [], "high": []} if field["modality"] == Modality.IMAGE else field
            for name, field in spec[part].items()
        }
        for part in ("observation_spec", "action_spec")
    }
    return {**spec, **bare}


def _card(facts: Mapping[str, Any], dataset: Dataset, scores: Mapping[str, Any] | None) -> str:
    """The model card."""
    tasks = facts["tasks"]
    entries = {entry["task_id"]: entry for entry in dataset.info.get("licences", ())}
    licences = {task_id: entries.get(task_id, {}).get("licence") or "not stated" for task_id in tasks}
    named = ", ".join(sorted({*licences.values()}))
    credits = sorted({line for entry in entries.values() for line in entry["attributions"]})
    lines = [
        "# A generalist agent",
        "",
        f"One transformer of {facts['parameters']:,} parameters, trained for {facts['step']:,} steps on "
        f"{len(tasks)} tasks. Made with the generalist-agent project, after the recipe of Gato (arXiv 2205.06175).",
        "",
        "## Use",
        "",
        "```python",
        "import torch",
        "",
        'program = torch.export.load("program.pt2").module()',
        "tokens = torch.tensor([1, 2, 3])  # an observation: ids of config.json, as its layouts say",
        "none = torch.zeros(0, 16, 16, 3, dtype=torch.uint8)",
        "no = torch.zeros(0, dtype=torch.int64)",
        "logits = program(tokens, torch.arange(3), none, no, no.reshape(0, 2))",
        "```",
        *(["", _RETURN_ADVICE] if facts["condition_on_return"] else []),
        "",
        "## Data",
        "",
        f"Shards {dataset.info.get('fingerprint', '')}. Licences of the data: {named}.",
        "",
        "| task | episodes | licence |",
        "|---|---|---|",
        *(
            f"| {task_id} | {task.get('episodes_kept', '')} | {licences[task_id]} |"
            for task_id, task in sorted(tasks.items())
        ),
        *(["", "Credits:", "", *(f"- {line}" for line in credits)] if credits else []),
        "",
        "## Scores",
        "",
        *(_scores(scores) if scores else ["Not evaluated."]),
        "",
        "## Limits",
        "",
        "It acts in the tasks above and in no others; what it was not shown, it does not know. It was judged in "
        "simulation. Before it moves a real robot, put an action guard between them (bounds, rates, stop on anything "
        "that is not finite). Its texts are made of small data sets and are not facts.",
        "",
    ]
    return "\n".join(lines)


def _scores(scores: Mapping[str, Any]) -> list[str]:
    """Lines of the card."""
    lines = [
        f"100 is the specialist, 0 a random policy; means of the episodes that `trainer evaluate` ran: "
        f"{scores_file.label(scores)}.",
        *(["", f"**{scores_file.DEVELOPMENT}**"] if scores["purpose"] != "test" else []),
        "",
        "| task | episodes | score % | 95% interval |",
        "|---|---|---|---|",
    ]
    for row in scores["scores"]:
        low, high = row["score_interval"]
        count, score = len(row["episode_returns"]), row["normalized_score"]
        lines.append(f"| {row['task_id']} | {count} | {score:.1f} | {low:.1f} to {high:.1f} |")
    if summary := scores["summary"]:
        low, high = summary["interquartile_interval"]
        lines += [
            "",
            f"Mean {summary['mean']:.1f}; interquartile mean of all episodes {summary['interquartile_mean']:.1f} "
            f"({low:.1f} to {high:.1f}).",
        ]
    if scores["language"]:
        lines += ["", "On held-out language:", "", "| what | items | measure | value |", "|---|---|---|---|"]
    for kind, part in scores["language"].items():
        measures = {name.replace("_", " "): value for name, value in part.items() if isinstance(value, float)}
        lines += [
            f"| {kind} | {part['num']} | {name} | {value:.3f} |"
            for name, value in {**measures, **part.get("metrics", {})}.items()
        ]
    return lines
