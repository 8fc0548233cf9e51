"""The page: whole, well-formed, self-contained, escaped, and never in need of a file that is not there."""

import base64
import html.parser
import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from beam_jobs.return_filter import ReturnFilter, corpus_report, filter_task
from episode_store.errors import UserError
from trainer import report, scores_file, videos
from trainer.report_charts import Curve, ScoreBar, histogram, line_chart, score_bars
from trainer.report_html import number

HOSTILE = '<script>alert("1")</script>&amp;'
TASKS = {  # task id: expert, random, generalist, spread, nearest neighbour
    "CartPole-v1": (500.0, 22.1, 498.7, 6.0, 431.0),
    "Pendulum-v1": (-171.2, -1226.0, -198.4, 90.0, -420.5),
    "Acrobot-v1": (-82.0, -498.1, -91.3, 20.0, -120.1),
    "LunarLander-v3": (251.0, -180.2, 205.1, 80.0, 40.3),
    "FrozenLake-v1": (0.74, 0.016, 0.7, 0.4, 0.71),
    "Taxi-v4": (7.9, -768.0, 5.1, 9.0, -90.0),
    "InvertedPendulum-v5": (1000.0, 6.1, 441.0, 300.0, 202.0),
    "babyai/GoToLocal-v0": (0.93, 0.31, 0.84, 0.2, 0.52),
    "babyai/GoToRedBallGrey-rgb-v0": (0.95, 0.2, 0.71, 0.3, 0.11),
    "metaworld/drawer-close-v3": (4200.0, 1405.0, 4178.0, 210.0, 4011.0),
    "metaworld/reach-v3": (4850.0, 770.0, 4790.0, 300.0, 4020.0),
    "minigrid/Empty-Random-5x5-rgb-v0": (0.96, 0.5, 0.97, 0.02, None),
}
CORPORA = ("caption/openmoji-v0", "dialogue/chitchat-v0", "text/wikipedia-v0", "vqa/easy-vqa-v0")


def scores(purpose="test"):
    rng = np.random.default_rng(0)
    rows = [
        {
            "task_id": task_id,
            "episode_returns": (mean + spread * rng.standard_normal(50)).tolist(),
            "expert_return": expert,
            "random_return": random,
            "nearest_neighbour_return": neighbour,
            "normalized_score": 0.0,
            "score_interval": (0.0, 0.0),
        }
        for task_id, (expert, random, mean, spread, neighbour) in TASKS.items()
    ]
    facts = {"format": scores_file.FORMAT, "purpose": purpose, "seed": 3, "episodes": 50, "acting": {}, "shards": "",
             "yardsticks": None, "checkpoint": {"step": 3000, "weights": ""}}  # fmt: skip
    summary = {"interquartile_mean": 93.25, "interquartile_interval": [92.5, 94.0]}
    return {**facts, "scores": rows, "summary": summary, "language": {}}


def dataset():
    rng = np.random.default_rng(1)
    reports, licences = [], []
    for task_id, (expert, random, *_) in TASKS.items():
        progress = rng.beta(5, 1.2, 400)
        returns = random + (expert - random) * progress
        normalized = ReturnFilter.parse("normalized")
        _, facts = filter_task(task_id, returns, ["a"] * 400, return_filter=normalized, random_return=random)
        reports.append(facts.to_json())
        licences.append({"task_id": task_id, "licence": "MIT", "attributions": []})
    for task_id in CORPORA:
        facts = corpus_report(task_id, np.zeros(1200), num_duplicates=1198, num_rejected=0)
        reports.append(facts.to_json())
        line = f"OpenMoji, {HOSTILE}, CC-BY-SA-4.0, https://openmoji.example (openmoji==15; drawn at 64 pixels)"
        licences.append({"task_id": task_id, "licence": "CC-BY-SA-4.0", "attributions": [line] * 5})
    shards = [{"num_tokens": 1_250_000, "num_episodes": 2_400}] * 3
    return {
        "seed": 0,
        "fingerprint": "0f" * 32,
        "text_model_sha256": "1e" * 32,
        "shards": shards,
        "filter_report": reports,
        "licences": licences,
    }


def metrics():
    rng = np.random.default_rng(2)
    for step in range(10, 3001, 10):
        decay = 0.6 + 6.5 * math.exp(-step / 260)
        losses = {
            task_id: (decay * (0.05 + 0.12 * index) * math.exp(0.1 * rng.standard_normal()))
            for index, task_id in enumerate([*TASKS, *CORPORA])
        }
        yield {
            "step": step,
            "loss": decay * math.exp(0.04 * rng.standard_normal()),
            "learning_rate": 1e-3,
            "gradient_norm": 1.0,
            "tokens_per_second": 21_000 + 900 * rng.standard_normal(),
            "targets_per_second": 9_000.0,
            "data_wait_share": 0.01,
            "task_losses": losses,
        }


def picture(color):
    buffer = io.BytesIO()
    image = Image.new("RGB", (64, 64), "white")
    image.paste(color, (16, 16, 48, 48))
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def language():
    drawings = [
        {"image_png_base64": picture(color), "reference": f"{color} square", "generated": f"{other} square"}
        for color, other in (("red", "red"), ("green", "green"), ("blue", "teal"), ("orange", HOSTILE))
    ]
    questions = [{**sample, "question": "what color is the shape?"} for sample in drawings]
    turns = [
        {"speaker": "person", "text": "Hi! How was your weekend?"},
        {"speaker": "generalist", "text": "It was good, I went to the beach with my friends. And yours?"},
        {"speaker": "person", "text": "I mostly slept."},
        {"speaker": "generalist", "text": f"That sounds nice too. {HOSTILE}"},
    ]
    return {
        "captions": {"num": 137, "metrics": {"exactly right": 0.21, "CIDEr": 0.83}, "samples": drawings},
        "vqa": {"num": 9670, "accuracy": 0.874, "majority_accuracy": 0.31, "samples": questions},
        "text": {
            "bits_per_byte": 2.31,
            "unigram_bits_per_byte": 3.05,
            "samples": [{"prompt": "Lake Victoria", "generated": " is one of the African Great Lakes, and the river"}],
        },
        "dialogue": {"bits_per_byte": 1.93, "unigram_bits_per_byte": 2.88, "samples": [{"turns": turns}] * 2},
    }


def frames(count=40, side=96):
    yy, xx = np.mgrid[:side, :side]
    moving = [(xx - 8 - t) ** 2 + (yy - side // 2) ** 2 < 100 for t in range(count)]
    return np.stack([np.where(disc[..., None], (40, 90, 200), (245, 245, 240)).astype(np.uint8) for disc in moving])


@pytest.fixture
def run(tmp_path):
    for folder in ("shards", "train", "videos"):
        (tmp_path / folder).mkdir()
    (tmp_path / "scores.json").write_text(json.dumps(scores()))
    (tmp_path / "shards/dataset.json").write_text(json.dumps(dataset()))
    lines = [json.dumps(row) for row in metrics()]
    (tmp_path / "train/metrics.jsonl").write_text("\n".join([*lines, lines[0][:30]]))
    (tmp_path / "train/config.json").write_text(json.dumps({"seed": 7, "steps": 3000, "note": HOSTILE}))
    folder = tmp_path / "train/checkpoints/step-00003000"
    folder.mkdir(parents=True)
    save_file(
        {"a": np.zeros((1000, 1200), np.float32), "b": np.zeros(50_000, np.float32)}, folder / "model.safetensors"
    )
    (folder / "state.json").write_text("{}")
    (tmp_path / "language.json").write_text(json.dumps(language()))
    timings = {"collect": 148.2, "shards": 61.0, "train": 541.7, "evaluate": 102.4, "report": 0.8}
    (tmp_path / "timings.json").write_text(json.dumps(timings))
    entries = []
    for task_id in ("CartPole-v1", "Acrobot-v1"):
        for role in ("generalist", "specialist"):
            name = f"{task_id}-{role}.webp"
            (tmp_path / "videos" / name).write_bytes(videos.encode(frames(), max_frames=90))
            entry = {"task_id": task_id, "role": role, "seed": 1, "file": name, "error": None}
            entries.append(entry | {"episode_return": 481.0, "num_steps": 481})
    refused = {"task_id": "Reacher-v5", "role": "generalist", "seed": 1, "file": None, "error": f"no EGL {HOSTILE}"}
    (tmp_path / "videos/videos.json").write_text(json.dumps([*entries, refused]))
    return tmp_path


class Page(html.parser.HTMLParser):
    """Checks that tags match and collects what the page would load."""

    VOID = frozenset({"meta", "link", "img", "input", "br", "source"})

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.text, self.ids, self.targets = [], [], "", [], []
        self.counts = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "srcset", "data", "poster") or (name == "href" and tag != "a"):
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)
            if name == "href" and value.startswith("#"):
                self.targets.append(value[1:])

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data


def read(run):
    path = report.build_report(run)
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_whole_page_is_well_formed_and_loads_nothing(run):
    text, page = read(run)
    assert "Left out" not in page.text
    assert page.loads
    assert all(load.startswith("data:") for load in page.loads)
    assert not re.search(r"url\(|@import|<script[^>]+src", text)
    assert set(page.targets) <= set(page.ids)
    assert not list(run.glob(".report*"))


def test_what_was_read_is_escaped(run):
    text, page = read(run)
    assert page.counts["script"] == 1
    assert page.text.count(HOSTILE) >= 7
    assert '<a href="https://openmoji.example"' in text


def test_facts_are_on_the_page(run):
    _, page = read(run)
    for fact in (
        "11 of 12",
        "14 min 14 s",
        "3.8 M",
        "1.2 Mweights",
        "no EGL",
        "copies are left out (1,198)",
        "and 2 more",
    ):
        assert fact in page.text
    for task_id in TASKS:
        assert task_id in page.text
    # Sorted by score: the first row of the table is the best task.
    assert page.text.index("minigrid/Empty-Random") < page.text.index("InvertedPendulum-v5")


def test_scores_say_what_they_are_of(run):
    _, page = read(run)
    assert "step 3,000, 50 episodes a task on test seeds (seed 3)" in page.text
    assert "interquartile mean of all episodes 93.2%, 95% interval 92.5 to 94" in page.text
    assert "development" not in page.text.lower()
    (run / "scores.json").write_text(json.dumps(scores("develop")))
    _, page = read(run)
    assert "step 3,000, 50 episodes a task on DEVELOPMENT seeds (seed 3)" in page.text
    assert "they are of development seeds, and no result" in page.text
    assert "of the specialists' score, on average of development seeds" in page.text


def test_the_same_run_gives_the_same_page(run):
    def page():
        return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", report.build_report(run).read_text())

    assert page() == page()


@pytest.mark.parametrize(
    "name",
    ["scores.json", "shards/dataset.json", "train/metrics.jsonl", "language.json", "timings.json",
     "videos/videos.json", "videos/CartPole-v1-generalist.webp", "train/config.json"],
)  # fmt: skip
@pytest.mark.parametrize("content", [None, "[1, {", "[3]", '{"captions": 3}'])
def test_missing_and_damaged_inputs_cost_their_part_only(run, name, content):
    (run / name).unlink()
    if content is not None:
        (run / name).write_text(content)
    _, page = read(run)
    assert {"scores", "videos", "language", "training", "filter", "reproduce"} <= set(page.ids)
    assert "make demo" in page.text


def test_an_empty_run_says_what_makes_each_part(tmp_path):
    _, page = read(tmp_path)
    assert "Left out: there is no scores.json yet; `trainer evaluate` writes it." in page.text
    assert "Left out: there is no train/metrics.jsonl yet; `trainer train` writes it." in page.text


def test_no_run_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no such folder; check --run, or make one with `make demo`"):
        report.build_report(tmp_path / "nowhere")


def test_a_specialist_no_better_than_random_is_told(run):
    rows = scores()
    rows["scores"][0]["expert_return"] = rows["scores"][0]["random_return"]
    (run / "scores.json").write_text(json.dumps(rows))
    _, page = read(run)
    assert "Left out" in page.text
    assert "expert return 22.1 is not above random return 22.1" in page.text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (500.0, "500"), (-171.23, "−171.2"), (0.9312, "0.931"), (1.5, "1.50"), (-1226.4, "−1,226"),
     (None, "–"), (math.nan, "–")],
)  # fmt: skip
def test_number(value, text):
    assert number(value) == text


def test_score_bars_keep_their_scale():
    bars = [ScoreBar(name="a", score=50.0, interval=(40.0, 60.0), neighbour=-1000.0)]
    markup = score_bars(bars)
    # -50 to 110: 0 is at 31.25%, 50 at 62.5%.
    assert '<rect class="score" x="31.25%" width="31.25%"' in markup
    assert '<rect class="neighbour" x="0.00%" width="31.25%"' in markup
    Page(markup)


def test_histogram_stacks_kept_and_dropped():
    markup = histogram([0.0, 1.0, 2.0], [0, 4], [1, 0], {"threshold": 1.0, "random": None})
    assert markup.count('<rect class="kept"') == 2
    assert "return 0 to 1: 0 kept, 1 dropped" in markup
    assert '<line class="mark threshold" x1="50.00%"' in markup


def test_line_chart_survives_odd_values():
    steps = np.arange(1000.0)
    values = np.where(steps % 7 == 0, np.nan, steps)
    for logarithmic in (False, True):
        markup = line_chart(steps, [Curve(name=HOSTILE, color="red", values=values)], logarithmic=logarithmic)
        assert "nan" not in markup
        assert markup.count('class="hover"') == 143  # means of 7
        Page(markup)
    for empty in (np.full(1000, np.nan), np.zeros(0)):
        assert "Too few points" in line_chart(steps[: len(empty)], [Curve(name="a", color="red", values=empty)])
    constant = line_chart(steps, [Curve(name="a", color="red", values=np.full(1000, 5.0))], logarithmic=True)
    Page(constant)
