"""Settings from outside: each has a range, what is set on the command line wins, a mistake costs one line."""

import dataclasses
import json

import pytest
import torch

from episode_store.errors import UserError
from trainer import checkpoint, cli, presets
from trainer import config as config_module
from trainer.config import TrainConfig, check, override
from trainer.sampler import Sampler, _weight
from trainer.shards import Dataset


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("checkpoint_every_steps=0", "0: expected a whole number, at least 1"),
        ("log_every_steps=0", "0: expected a whole number, at least 1"),
        ("keep_checkpoints=0", "0: expected a whole number, at least 1"),
        ("keep_checkpoints=-1", "-1: expected a whole number, at least 1"),
        ("validation_sequences=-1", "-1: expected a whole number, at least 0"),
        ("batch_size=-5", "-5: expected a whole number, at least 1"),
        ("accumulation_steps=0", "0: expected a whole number, at least 1"),
        ("seed=-1", "-1: expected a whole number, from 0 to 4294967295"),
        ("sampler.prompt_steps=0", "0: expected a whole number, at least 1"),
        ("sampler.short_segment_steps=0", "0: expected a whole number, at least 1"),
        ("sampler.image_jitter=-1", "-1.0: expected from 0 to 1"),
        ("sampler.prompt_share=5", "5.0: expected from 0 to 1"),
        ("sampler.past_action_dropout=7", "7.0: expected from 0 to 1"),
        ("sampler.task_weights.*=-1", "expected a number of 0 or more for each task"),
        ("model.width=-5", "-5: expected a whole number, at least 1"),
        ("model.key_size=33", "33: expected a whole number, a multiple of 2, at least 2"),
        ("model.num_heads=0", "0: expected a whole number, at least 1"),
        ("model.patch_channels=33", "33: expected a whole number, a multiple of 32, at least 32"),
        ("model.dropout=2", "2.0: expected from 0 to below 1"),
        ("model.stochastic_depth=1", "1.0: expected from 0 to below 1"),
        ("model.positions=alibi", "'alibi': expected rotary or relative"),
        ("optimizer.learning_rate=nan", "nan: expected at least 0"),
        ("optimizer.learning_rate=inf", "inf: expected at least 0"),
        ("optimizer.learning_rate=-1", "-1.0: expected at least 0"),
        ("precision=fp8", "'fp8': expected auto or fp32 or bf16 or fp16"),
        ("attention=all", "'all': expected segmented or flex"),
        ("sharding=zero", "'zero': expected ddp or fsdp"),
        ("steps.more=1", "unknown setting; known: "),
        ("model.width.more=1", "unknown setting; known: "),
    ],
)
@pytest.mark.parametrize("verb", ["train", "plan"])
def test_nonsense_is_told_before_anything_is_read(verb, assignment, told, capsys, tmp_path):
    words = ["--shards", str(tmp_path / "none"), "--output", str(tmp_path / "run")] if verb == "train" else []
    assert cli.main([verb, *words, "--set", assignment]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert assignment.partition("=")[0].partition(".*")[0] in said
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("assignment", ["precision=fp16", "device=cuda"])
def test_what_this_machine_cannot_do_is_told_before_anything_is_read(assignment, capsys, tmp_path):
    words = ["train", "--shards", str(tmp_path / "none"), "--output", str(tmp_path / "run"), "--set", assignment]
    assert cli.main(words) == 2
    assert "GPU" in capsys.readouterr().err


def test_every_setting_has_a_rule():
    ruled = {*config_module._RANGES, *config_module._CHOICES}
    values = config_module.by_name(TrainConfig().to_json())
    unruled = {name for name, value in values.items() if name not in ruled}
    assert unruled == {
        "sampler.task_weights",
        "sampler.condition_on_return",
        "tf32",
        "compile",
        "checkpoint_activations",
    }
    assert ruled <= set(values)


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_presets_pass(name):
    check(presets.get(name))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[]", "TrainConfig: expected a JSON object, got list"),
        ('{"model": []}', "ModelConfig: expected a JSON object, got list"),
        ('{"batch_size": "many"}', "batch_size 'many': expected a whole number, at least 1"),
        ('{"batch_size": true}', "batch_size True: expected a whole number, at least 1"),
        ('{"compile": 1}', "compile 1: expected true or false"),
        ('{"sampler": {"task_weights": [1]}}', "sampler.task_weights [1]: expected a number of 0 or more for each"),
        ('{"colour": 1}', "unknown settings ['colour']"),
    ],
)
def test_a_damaged_config_of_a_run_is_told(content, told, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError) as error:
        checkpoint.load_config(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'config.json'}: ")
    assert told in str(error.value)


def test_settings_come_back_as_they_were():
    config = override(TrainConfig(), {"budget_seconds": "5", "sampler.task_weights.a*": "2"})
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_weight_of_the_command_line_wins():
    config = override(
        presets.get("demo"), {"sampler.task_weights.babyai/GoToObj-v0": "0", "sampler.task_weights.*": "3"}
    )
    weights = config.sampler.task_weights
    assert list(weights)[:2] == ["babyai/GoToObj-v0", "*"]
    assert _weight("babyai/GoToObj-v0", weights, 1.0) == 0.0
    assert _weight("Taxi-v4", weights, 1.0) == 3.0
    assert weights["Taxi-v4"] == 0.4  # what was there is behind
    again = override(config, {"sampler.task_weights.Taxi-v4": "7"})
    assert next(iter(again.sampler.task_weights.items())) == ("Taxi-v4", 7.0)


def test_a_weight_of_no_task_is_told(shards, tmp_path, capsys):
    words = ["train", "--shards", str(shards), "--output", str(tmp_path / "run"), "--steps", "1"]
    assert cli.main([*words, "--set", "sampler.task_weights.grid/*=1", "sampler.task_weights.Gird*=2"]) == 2
    assert f"--set sampler.task_weights.Gird*: no task of {shards} matches; there are Cont" in capsys.readouterr().err


def test_held_out_data_that_are_not_there_are_told(shards, tmp_path, config):
    dataset = Dataset.open(shards)
    control = [shard for shard in dataset.info["shards"] if shard["split"] == "train"]
    dataset = dataclasses.replace(dataset, info={**dataset.info, "shards": control})
    with pytest.raises(UserError, match="no held-out data for validation_sequences; only corpora are held out"):
        dataset.load("validation")
    with pytest.raises(UserError, match="the shards hold no training data"):
        Sampler({}, config.sampler, seed=0)


def test_a_manifest_of_another_form_is_told(tmp_path):
    (tmp_path / "dataset.json").write_text("[]")
    with pytest.raises(UserError, match=r"dataset\.json: expected a JSON object, got list"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--minutes", "nan"], "expected a number of 0 or more, got 'nan'"),
        (["--minutes", "inf"], "expected a number of 0 or more, got 'inf'"),
        (["--seed", "-1"], "expected a number from 0 to 2147483647, got -1"),
    ],
)
def test_flags_without_sense_are_told(flags, told, shards, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["train", "--shards", str(shards), "--output", str(tmp_path / "run"), *flags])
    assert exit.value.code == 2
    assert told in capsys.readouterr().err


def test_an_output_that_is_a_file_is_told(shards, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        assert cli.main(["train", "--shards", str(shards), "--output", str(output)]) == 2
        assert f"{tmp_path / 'file'}" in (said := capsys.readouterr().err)
        assert "what should be a folder of this path is a file" in said
