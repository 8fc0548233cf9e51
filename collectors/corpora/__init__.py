"""Real text, captions, question answering and dialogue as episodes."""

from __future__ import annotations

from collections.abc import Collection

from collectors.corpora import chitchat, easy_vqa, openmoji, wikipedia
from collectors.corpora.language import Attribution, corpus_task
from collectors.task import Task

_CORPORA = (chitchat, easy_vqa, openmoji, wikipedia)

TASKS: tuple[Task, ...] = tuple(
    corpus_task(corpus.SPEC, corpus.load, description=corpus.DESCRIPTION) for corpus in _CORPORA
)


def attributions(task_ids: Collection[str] | None = None) -> list[Attribution]:
    """Whose work the named tasks are, in order of id; None: all of them. Ids that are no corpus have none."""
    all_of_them = sorted((corpus.ATTRIBUTION for corpus in _CORPORA), key=lambda attribution: attribution.task_id)
    return [attribution for attribution in all_of_them if task_ids is None or attribution.task_id in task_ids]
