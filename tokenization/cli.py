"""`tokenization show` and `tokenization train-text`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from episode_store.command_line import (
    CommandLine,
    add_holdout,
    add_output,
    add_store,
    add_tasks,
    positive_int,
    print_json,
    print_table,
    progress,
)
from episode_store.errors import UserError
from episode_store.spec import Modality
from episode_store.splits import TRAIN, split_of
from episode_store.store import EpisodeStore
from episode_store.task import TaskSpec
from tokenization.describe import describe
from tokenization.episode_tokenizer import EpisodeTokenizer
from tokenization.text import TextTokenizer


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    command = CommandLine("tokenization", "Shows what the network sees of an episode, and trains the text model.")
    show = command.verb(
        "show",
        _show,
        help="prints one episode token by token: position, id, what it means, whether it is a target",
        example="tokenization show --store runs/demo/store --tasks CartPole-v1 --steps 2",
    )
    add_store(show)
    add_tasks(show)
    show.add_argument("--episode", metavar="ID", help="an episode's id, or its beginning (the first of --tasks)")
    show.add_argument("--text-model", metavar="FILE", help="the text model; needed for tasks with text")
    show.add_argument("--steps", type=positive_int, metavar="N", help="only the first N timesteps (all)")

    train = command.verb(
        "train-text",
        _train_text,
        help="trains the text model (SentencePiece, at most 32,000 pieces) on the texts of a store",
        example="tokenization train-text --store runs/demo/store --tasks 'text/*' --output runs/demo/text.model",
    )
    add_store(train)
    add_tasks(train)
    add_output(train, "the model file to write")
    add_holdout(train)
    return command.main(arguments)


def _show(namespace: argparse.Namespace) -> int:
    store = EpisodeStore.open(namespace.store)
    episode_id = _choose_episode(store, namespace.episode, namespace.tasks)
    episode = store.read(episode_id)
    text = TextTokenizer.load(namespace.text_model) if namespace.text_model else None
    task = store.tasks[episode.task_id]
    if text is None and _text_fields(task):
        raise UserError(f"task {task.task_id} has text: give the model with --text-model, as `train-text` writes it")
    tokenizer = EpisodeTokenizer(task, text)
    sequence = tokenizer.encode(episode, episode_id=episode_id)
    shown = sequence.window(0, namespace.steps) if namespace.steps else sequence
    descriptions = describe(shown, tokenizer)
    facts: dict[str, Any] = {
        "task_id": sequence.task_id,
        "episode_id": episode_id,
        "num_steps": sequence.num_steps,
        "num_tokens": sequence.num_tokens,
        "num_targets": sequence.num_targets,
        "num_patches": len(sequence.patch_index),
        "num_unique_patches": len(sequence.patches),
        "episode_return": sequence.episode_return,
    }
    if namespace.json:
        print_json(facts | {"tokens": [description.to_json() for description in descriptions]})
        return 0
    print(
        f"episode {episode_id} of {sequence.task_id}: {sequence.num_steps} timesteps, {sequence.num_tokens} tokens, "
        f"{sequence.num_targets} targets, {len(sequence.patch_index)} image patches ({len(sequence.patches)} different)"
    )
    rows = [
        [d.position, d.timestep, "patch" if d.token is None else d.token, d.local_position, d.target, d.meaning]
        for d in descriptions
    ]
    print_table(rows, ["position", "timestep", "id", "local", "target", "meaning"])
    if len(descriptions) < sequence.num_tokens:
        print(f"... {sequence.num_tokens - len(descriptions)} more tokens; leave out --steps to see them")
    return 0


def _train_text(namespace: argparse.Namespace) -> int:
    store = EpisodeStore.open(namespace.store)
    task_ids = [task_id for task_id in store.find_tasks(namespace.tasks) if _text_fields(store.tasks[task_id])]
    if not task_ids:
        raise UserError(f"{namespace.store}: expected tasks with text fields, got none; collect a text task first")
    counter = _Counter()
    TextTokenizer.train(_texts(store, task_ids, counter, namespace.holdout), namespace.output)
    model = TextTokenizer.load(Path(namespace.output))
    result = {
        "output": str(namespace.output),
        "num_pieces": model.num_pieces,
        "sha256": model.model_sha256,
        "tasks": task_ids,
        "num_texts": counter.texts,
        "num_characters": counter.characters,
    }
    if namespace.json:
        print_json(result)
    else:
        print(
            f"{namespace.output}: {model.num_pieces} pieces from {counter.texts} texts "
            f"({counter.characters / 1e6:.1f} million characters) of {len(task_ids)} tasks, sha256 {model.model_sha256}"
        )
    return 0


@dataclasses.dataclass
class _Counter:
    texts: int = 0
    characters: int = 0


def _texts(store: EpisodeStore, task_ids: Sequence[str], counter: _Counter, holdout: float) -> Iterator[str]:
    """Every text of the tasks' training episodes, the same one within an episode once."""
    for task_id in task_ids:
        fields = _text_fields(store.tasks[task_id])
        table = store.table(task_id)
        columns = [table[name].to_pylist() for name in ("episode_id", "num_steps", "split_group", "content_hash")]
        is_corpus = store.tasks[task_id].is_corpus
        for episode_id, num_steps, group, content_hash in progress(
            zip(*columns, strict=True), description=f"reading {task_id}", total=table.num_rows, unit="episodes"
        ):
            split = split_of(is_corpus=is_corpus, split_group=group, content_hash=content_hash, holdout=holdout)
            if split != TRAIN:
                continue
            window = store.read_window(episode_id, 0, num_steps, columns=fields)
            for values in (*window.observations.values(), *window.actions.values()):
                for text in dict.fromkeys(values):
                    counter.texts += 1
                    counter.characters += len(text)
                    yield str(text)


def _text_fields(task: TaskSpec) -> list[str]:
    """Column names of the text fields."""
    groups = (("observations", task.observation_spec), ("actions", task.action_spec))
    return [
        f"{group}/{key}" for group, specs in groups for key, spec in specs.items() if spec.modality == Modality.TEXT
    ]


def _choose_episode(store: EpisodeStore, episode: str | None, tasks: Sequence[str] | None) -> str:
    if episode:
        return store.find_episode(episode)
    for task_id in store.find_tasks(tasks):
        table = store.table(task_id)
        if table.num_rows:
            return str(table["episode_id"][0].as_py())
    raise UserError(f"{store.path}: expected an episode to show, got none; collect some first")
