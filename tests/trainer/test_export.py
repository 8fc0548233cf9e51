"""An exported network gives what ours gives, in a process that has torch alone."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from episode_store.errors import UserError
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
    score = {"task_id": "Discrete-v0", "episode_returns": [1.0, 2.0], "normalized_score": 61.25,
             "score_interval": [50.0, 70.0]}  # fmt: skip
    (tmp_path / "scores.json").write_text(json.dumps([score]))
    command = ["export", "--run", str(tmp_path / "run"), "--shards", str(shards), "--output", str(tmp_path / "model")]
    assert cli.main([*command, "--scores", str(tmp_path / "scores.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| Discrete-v0 | 2 | 61.2 | 50.0 to 70.0 |" in card
    facts = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (facts["format"], facts["vocabulary"]["size"]) == ("gato-model-v1", 33_025)
    assert set(facts["tasks"]) == set(Dataset.open(shards).tasks)
    assert cli.main([*command, "--best"]) == 2
    assert "no checkpoint has a validation loss; train with" in capsys.readouterr().err
    (tmp_path / "scores.json").write_text("{")
    assert cli.main([*command, "--scores", str(tmp_path / "scores.json")]) == 2


def test_weights_load_in_ten_lines_without_the_trainer(shards, tmp_path, config):
    """docs/model.md shows the same lines."""
    train(Dataset.open(shards), tmp_path / "run", dataclasses.replace(config, steps=2))
    script = (
        "import json, sys\nfrom safetensors.torch import load_file\n"
        "folder = sys.argv[1]\nweights = load_file(folder + '/model.safetensors')\n"
        "state = json.load(open(folder + '/state.json'))\n"
        "table = weights['embedding.text.weight']\n"
        "print(state['step'], tuple(table.shape), sum(value.numel() for value in weights.values()))\n"
    )
    folder = checkpoint.latest(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(folder)], check=True, capture_output=True, text=True, timeout=120
    )
    model = checkpoint.load_model(tmp_path / "run", torch.device("cpu"))
    assert done.stdout.split(maxsplit=1)[0] == "2"
    assert str(sum(parameter.numel() for parameter in model.parameters())) in done.stdout


def test_export_needs_a_checkpoint(shards, tmp_path):
    with pytest.raises(UserError, match="no checkpoint there"):
        export(tmp_path, Dataset.open(shards), tmp_path / "model")
