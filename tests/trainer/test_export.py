"""An exported network gives what ours gives, in a process that has torch alone."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from episode_store.errors import UserError
from episode_store.task import TaskSpec
from trainer import checkpoint, cli
from trainer.attention import SegmentedAttention
from trainer.batch import collate
from trainer.export import export
from trainer.sampler import Sampler
from trainer.shards import Dataset
from trainer.train import train

# What a stranger writes: no module of this project.
STRANGER = """
import sys
import numpy as np
import torch
given = np.load(sys.argv[2])
program = torch.export.load(sys.argv[1]).module()
names = ("tokens", "local_positions", "patches", "patch_slots", "patch_positions")
np.save(sys.argv[3], program(*[torch.from_numpy(given[name]) for name in names]).detach().numpy())
assert not {"trainer", "tokenization", "episode_store"} & set(sys.modules)
"""


def scores(run, purpose="test"):
    """A file of `trainer evaluate`."""
    source = checkpoint.latest(run)
    row = {"task_id": "Discrete-v0", "episode_returns": [1.0, 2.0], "normalized_score": 61.25,
           "score_interval": [50.0, 70.0], "expert_return": 2.0, "random_return": 0.0,
           "nearest_neighbour_return": 1.0}  # fmt: skip
    return {
        "format": "gato-scores-v1", "purpose": purpose, "seed": 0, "episodes": 2, "acting": {}, "shards": "",
        "yardsticks": None, "checkpoint": {"step": 2, "weights": checkpoint.weights_hash(source)}, "scores": [row],
        "summary": {"mean": 61.25, "interquartile_mean": 60.5, "interquartile_interval": [50.5, 70.5]},
        "language": {"captions": {"num": 7, "metrics": {"word F1": 0.25}},
                     "vqa": {"num": 9, "accuracy": 0.5, "majority_accuracy": 0.3}},
    }  # fmt: skip


@pytest.mark.parametrize("positions", ["rotary", "relative"])
def test_a_stranger_computes_the_same_logits(shards, tmp_path, config, positions):
    dataset = Dataset.open(shards)
    config = dataclasses.replace(config, steps=2, model=dataclasses.replace(config.model, positions=positions))
    train(dataset, tmp_path / "run", config)
    export(tmp_path / "run", dataset, tmp_path / "model")
    model = checkpoint.load_model(tmp_path / "run", torch.device("cpu"))
    for task_id in ("grid/Seen-v0", "Discrete-v0"):  # with pictures and without
        sampler = Sampler({task_id: dataset.load_task("train", task_id)}, config.sampler, seed=0)
        row = sampler.sequence(0)
        length = row.segment_lengths[0]
        inside = row.patch_slots < length
        np.savez(
            tmp_path / "given.npz", tokens=row.tokens[:length], local_positions=row.local_positions[:length],
            patches=row.patches[row.patch_index[inside]], patch_slots=row.patch_slots[inside],
            patch_positions=row.patch_positions[inside],
        )  # fmt: skip
        script = [sys.executable, "-I", "-c", STRANGER]
        paths = [tmp_path / "model" / "program.pt2", tmp_path / "given.npz", tmp_path / "logits.npy"]
        subprocess.run([*script, *map(str, paths)], check=True, timeout=300)
        batch = collate([row])
        with torch.no_grad():
            hidden = model(batch.inputs, SegmentedAttention.from_lengths(row.segment_lengths))
            expected = model.text_logits(hidden[:length]).numpy()
        np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=1e-4)


def test_the_card_says_what_it_is(shards, tmp_path, config, capsys):
    train(Dataset.open(shards), tmp_path / "run", dataclasses.replace(config, steps=2))
    (tmp_path / "scores.json").write_text(json.dumps(scores(tmp_path / "run")))
    command = ["export", "--run", str(tmp_path / "run"), "--shards", str(shards), "--output", str(tmp_path / "model")]
    assert cli.main([*command, "--scores", str(tmp_path / "scores.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2
    card = (tmp_path / "model" / "README.md").read_text()
    assert "step 2, 2 episodes a task on test seeds (seed 0)" in card
    assert "| Discrete-v0 | 2 | 61.2 | 50.0 to 70.0 |" in card
    assert "Mean 61.2; interquartile mean of all episodes 60.5 (50.5 to 70.5)." in card
    assert "| captions | 7 | word F1 | 0.250 |" in card
    assert "| vqa | 9 | majority accuracy | 0.300 |" in card
    assert "development" not in card
    facts = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (facts["format"], facts["vocabulary"]["size"]) == ("gato-model-v1", 33_025)
    assert set(facts["tasks"]) == set(Dataset.open(shards).tasks)
    assert cli.main([*command, "--best"]) == 2
    assert "no checkpoint has a validation loss; train with" in capsys.readouterr().err
    (tmp_path / "scores.json").write_text(json.dumps(scores(tmp_path / "run", purpose="develop")))
    assert cli.main([*command, "--scores", str(tmp_path / "scores.json")]) == 0
    assert "they are of development seeds, and no result" in (tmp_path / "model" / "README.md").read_text()


def test_the_card_has_licences_credits_and_counts(shards, tmp_path, config):
    train(Dataset.open(shards), tmp_path / "run", dataclasses.replace(config, steps=2))
    dataset = Dataset.open(shards)
    credit = "A Book, its author, CC-BY-SA-4.0, https://book.example (book==1)"
    licences = [{"task_id": "Discrete-v0", "licence": "MIT", "attributions": []},
                {"task_id": "text/story-v0", "licence": "CC-BY-SA-4.0", "attributions": [credit]}]  # fmt: skip
    export(tmp_path / "run", dataclasses.replace(dataset, info={**dataset.info, "licences": licences}), tmp_path / "m")
    card = (tmp_path / "m" / "README.md").read_text()
    assert "Licences of the data: CC-BY-SA-4.0, MIT, not stated." in card
    assert "| Discrete-v0 | 12 | MIT |" in card
    assert f"| text/story-v0 | {dataset.info['tasks']['text/story-v0']['episodes_kept']} | CC-BY-SA-4.0 |" in card
    assert f"- {credit}" in card
    files = {path.name for path in (tmp_path / "m").iterdir()}
    assert set(re.findall(r"\b\w+\.(?:md|py|json|pt2)\b", card)) <= files


def test_pixels_need_no_bounds_in_the_settings(shards, tmp_path, config):
    train(Dataset.open(shards), tmp_path / "run", dataclasses.replace(config, steps=2))
    dataset = Dataset.open(shards)
    task = dataset.info["tasks"]["grid/Seen-v0"]
    image = task["spec"]["observation_spec"]["image"] | {"low": [0.0] * 4608, "high": [255.0] * 4608}
    spec = {**task["spec"], "observation_spec": {**task["spec"]["observation_spec"], "image": image}}
    tasks = {**dataset.info["tasks"], "grid/Seen-v0": {**task, "spec": spec}}
    export(tmp_path / "run", dataclasses.replace(dataset, info={**dataset.info, "tasks": tasks}), tmp_path / "model")
    facts = json.loads((tmp_path / "model" / "config.json").read_text())["tasks"]
    assert TaskSpec.from_json(facts["grid/Seen-v0"]["spec"]).observation_spec["image"].shape == (32, 48, 3)
    assert facts["Continuous-v0"]["spec"]["action_spec"]["action"]["low"] == [-1.0, -1.0]
    assert (tmp_path / "model" / "config.json").stat().st_size < 20_000


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "scores.json: not JSON"),
        ("[]", "scores.json: expected scores of the generalist in format gato-scores-v1; `trainer evaluate` writes"),
        ('{"CartPole-v1": {}}', "scores.json: expected scores of the generalist in format gato-scores-v1"),
        ('{"format": "gato-scores-v1", "scores": []}', "scores.json: damaged; run `trainer evaluate` again"),
        ("other", "the scores are of step 2 and not of "),
        (None, "scores.json: is a folder, expected a file"),
    ],
)
def test_wrong_scores_are_told_before_anything_is_written(content, told, shards, tmp_path, config, capsys):
    train(Dataset.open(shards), tmp_path / "run", dataclasses.replace(config, steps=2))
    if content is None:
        (tmp_path / "scores.json").mkdir()
    else:
        other = {**scores(tmp_path / "run"), "checkpoint": {"step": 2, "weights": "0" * 32}}
        (tmp_path / "scores.json").write_text(json.dumps(other) if content == "other" else content)
    words = ["export", "--run", str(tmp_path / "run"), "--shards", str(shards), "--output", str(tmp_path / "model")]
    capsys.readouterr()
    assert cli.main([*words, "--scores", str(tmp_path / "scores.json")]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_weights_load_in_ten_lines_without_the_trainer(shards, tmp_path, config):
    """Those of docs/model.md."""
    train(Dataset.open(shards), tmp_path / "run", dataclasses.replace(config, steps=2))
    page = (Path(__file__).parents[2] / "docs" / "model.md").read_text()
    (script,) = (block for block in re.findall(r"```text\n(.*?)```", page, re.S) if "load_file" in block)
    script = script.replace("runs/demo/train", str(tmp_path / "run"))
    done = subprocess.run([sys.executable, "-I", "-c", script], check=True, capture_output=True, text=True, timeout=120)
    model = checkpoint.load_model(tmp_path / "run", torch.device("cpu"))
    assert done.stdout.split(maxsplit=1)[0] == "2"
    assert str(sum(parameter.numel() for parameter in model.parameters())) in done.stdout


def test_export_needs_a_checkpoint(shards, tmp_path):
    with pytest.raises(UserError, match="no checkpoint there"):
        export(tmp_path, Dataset.open(shards), tmp_path / "model")
