"""Training: resumed runs are exact, broken input is told in one line."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from episode_store.errors import UserError
from trainer import checkpoint
from trainer import train as train_module
from trainer.batch import StalledLoaderError, batches, collate
from trainer.config import TrainConfig, override
from trainer.loss import target_losses
from trainer.model import Generalist
from trainer.optim import learning_rate
from trainer.sampler import Sampler
from trainer.shards import Dataset
from trainer.train import train


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(run):
    return load_file(checkpoint.latest(run) / "model.safetensors")


def test_trains_and_logs(shards, tmp_path, config):
    summary = train(Dataset.open(shards), tmp_path / "run", dataclasses.replace(config, steps=30))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert set(rows[-1]) >= {"loss", "learning_rate", "gradient_norm", "tokens_per_second", "task_losses"}
    assert summary["steps"] == 30
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert len(checkpoint.list_checkpoints(tmp_path / "run")) == 2


def test_a_resumed_run_ends_with_the_same_bits(shards, tmp_path, config):
    dataset = Dataset.open(shards)
    train(dataset, tmp_path / "whole", config)
    train(dataset, tmp_path / "cut", config)
    # As if it had been killed after step 4: the later checkpoint never came to be.
    shutil.rmtree(checkpoint.latest(tmp_path / "cut"))
    train(dataset, tmp_path / "cut", config)
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_resumed_run_keeps_its_precision(shards, tmp_path, config, monkeypatch):
    """ "auto" is measured once; another measurement on resuming would change the numbers."""
    monkeypatch.setattr("trainer.precision._product_seconds", lambda dtype: {torch.bfloat16: 2.0}.get(dtype, 1.0))
    automatic = dataclasses.replace(config, precision="auto")
    assert train(Dataset.open(shards), tmp_path / "run", automatic)["precision"] == "fp32"
    shutil.rmtree(checkpoint.latest(tmp_path / "run"))
    monkeypatch.setattr("trainer.precision._product_seconds", lambda dtype: {torch.bfloat16: 0.5}.get(dtype, 1.0))
    assert train(Dataset.open(shards), tmp_path / "run", automatic)["precision"] == "fp32"


@pytest.mark.slow
def test_a_compiled_network_learns_what_the_plain_one_learns(shards, tmp_path, config):
    # Compiling takes a minute or more, whatever the size, and the second batch compiled anew.
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_blocks=1), batch_size=1, steps=2)
    for run, compiled in (("plain", False), ("compiled", True)):
        train(Dataset.open(shards), tmp_path / run, dataclasses.replace(config, compile=compiled))
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("plain", "compiled")
    ]
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    checkpoint.load_model(tmp_path / "compiled", torch.device("cpu"))


@pytest.mark.slow
def test_killed_for_real_it_ends_with_the_same_bits(shards, tmp_path, config):
    config = dataclasses.replace(config, steps=60, checkpoint_every_steps=5)
    script = tmp_path / "run.py"
    script.write_text(
        "import json, sys, torch\nfrom pathlib import Path\nfrom trainer.config import TrainConfig\n"
        "from trainer.shards import Dataset\nfrom trainer.train import train\ntorch.set_num_threads(1)\n"
        "train(Dataset.open(sys.argv[1]), Path(sys.argv[2]), TrainConfig.from_json(json.loads(sys.argv[3])))\n"
    )
    command = [sys.executable, str(script), str(shards)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    settings = json.dumps(config.to_json())
    subprocess.run([*command, str(tmp_path / "whole"), settings], check=True, capture_output=True, env=environment)
    for kill in range(20):
        process = subprocess.Popen(
            [*command, str(tmp_path / "cut"), settings], stderr=subprocess.DEVNULL, env=environment
        )
        deadline = time.monotonic() + 60
        before = len(checkpoint.list_checkpoints(tmp_path / "cut"))
        latest = before and checkpoint.latest(tmp_path / "cut")
        while process.poll() is None and time.monotonic() < deadline:
            found = checkpoint.list_checkpoints(tmp_path / "cut")
            if found and found[-1] != latest and kill < 4:
                time.sleep(0.02 * kill)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        if process.wait() == 0:
            break
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_another_setting_is_not_mixed_in(shards, tmp_path, config):
    train(Dataset.open(shards), tmp_path / "run", config)
    with pytest.raises(UserError, match="begun with batch_size=2, now 3; use the same settings to resume"):
        train(Dataset.open(shards), tmp_path / "run", dataclasses.replace(config, batch_size=3))


def test_a_run_older_than_a_setting_goes_on(shards, tmp_path, config):
    train(Dataset.open(shards), tmp_path / "run", dataclasses.replace(config, steps=4))
    file = tmp_path / "run" / "config.json"
    settings = json.loads(file.read_text()) | {"steps": 6}
    del settings["attention"], settings["sampler"]["condition_on_return"]
    file.write_text(json.dumps(settings))
    state = checkpoint.latest(tmp_path / "run") / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"total_steps": 6}))
    assert train(Dataset.open(shards), tmp_path / "run", config)["steps"] == 6


def test_a_budget_shortens_the_schedule(shards, tmp_path, config):
    config = dataclasses.replace(config, steps=100_000, budget_seconds=1.0, checkpoint_every_steps=50)
    summary = train(Dataset.open(shards), tmp_path / "run", config)
    assert 50 <= summary["steps"] < 5_000
    assert checkpoint.read_state(checkpoint.latest(tmp_path / "run"))["total_steps"] == summary["steps"]


def test_a_checkpoint_of_another_vocabulary_is_told(shards, tmp_path, config):
    train(Dataset.open(shards), tmp_path / "run", config)
    file = checkpoint.latest(tmp_path / "run") / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "vocabulary_size": 32_000}))
    with pytest.raises(UserError, match="another vocabulary: expected 33025 ids, got 32000"):
        checkpoint.load_model(tmp_path / "run", torch.device("cpu"))


def test_a_damaged_checkpoint_is_told(shards, tmp_path, config):
    train(Dataset.open(shards), tmp_path / "run", config)
    file = checkpoint.latest(tmp_path / "run") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        checkpoint.load_model(tmp_path / "run", torch.device("cpu"))


def test_a_full_disk_is_told_and_loses_nothing(shards, tmp_path, config):
    """A process that may write no file larger than 100 kB stands for a disk that is full."""
    train(Dataset.open(shards), tmp_path / "run", dataclasses.replace(config, steps=2))
    before = checkpoint.latest(tmp_path / "run")
    script = (
        "import resource, signal, sys, torch\nfrom pathlib import Path\nfrom trainer import checkpoint\n"
        "from trainer.model import Generalist\nfrom trainer.optim import Optimizer\n"
        "from episode_store.errors import UserError\n"
        "run = Path(sys.argv[1])\nconfig = checkpoint.load_config(run)\nmodel = Generalist(config.model)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    checkpoint.save(run, checkpoint.snapshot(model, Optimizer(model, config.optimizer)), {'step': 9})\n"
        "except UserError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")], capture_output=True, text=True, check=True
    )
    assert "the checkpoint could not be written" in done.stdout
    assert checkpoint.latest(tmp_path / "run") == before
    assert not list((tmp_path / "run" / "checkpoints").glob(".partial-*"))


def test_weights_of_another_shape_are_told(tmp_path, shards, config):
    train(Dataset.open(shards), tmp_path / "run", config)
    other = Generalist(dataclasses.replace(config.model, width=64))
    with pytest.raises(UserError, match=r"weights do not fit this model: .* expected \(.*\), got \("):
        checkpoint.load_weights(checkpoint.latest(tmp_path / "run"), other)


def test_a_run_without_checkpoint_is_told(tmp_path):
    with pytest.raises(UserError, match="no checkpoint there; train first"):
        checkpoint.latest(tmp_path)


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_a_shard_cut_short_is_told(shards, tmp_path, config, cut):
    shutil.copytree(shards, tmp_path / "shards")
    file = next((tmp_path / "shards").glob("Discrete*.tar"))
    file.write_bytes(file.read_bytes()[: int(cut * file.stat().st_size) // 512 * 512])
    with pytest.raises(UserError, match=rf"{file.name}.*(damaged|cut short|missing|expected)"):
        train(Dataset.open(tmp_path / "shards"), tmp_path / "run", config)


def test_a_flipped_bit_in_a_shard_is_told(shards, tmp_path, config):
    shutil.copytree(shards, tmp_path / "shards")
    file = next((tmp_path / "shards").glob("Discrete*.tar"))
    content = bytearray(file.read_bytes())
    content[content.index(b"NUMPY") + 200] ^= 4
    file.write_bytes(content)
    with pytest.raises(UserError, match=file.name):
        train(Dataset.open(tmp_path / "shards"), tmp_path / "run", config)


def test_a_folder_without_shards_is_told(tmp_path):
    with pytest.raises(UserError, match="no finished shards; run `beam_jobs build-shards"):
        Dataset.open(tmp_path)


def test_schedule_by_hand():
    config = TrainConfig().optimizer
    assert learning_rate(0, 1000, config) == pytest.approx(2e-3 / 100)
    assert learning_rate(99, 1000, config) == pytest.approx(2e-3)
    assert learning_rate(550, 1000, config) == pytest.approx(2e-3 * (0.1 + 0.9 * 0.5))
    assert learning_rate(1000, 1000, config) == pytest.approx(2e-4)


def test_settings_from_the_command_line():
    config = override(TrainConfig(), {"model.width": "64", "sampler.prompt_share": "0.5", "precision": "bf16"})
    assert (config.model.width, config.sampler.prompt_share, config.precision) == (64, 0.5, "bf16")
    with pytest.raises(UserError, match=r"--set model\.widht: unknown setting"):
        override(config, {"model.widht": "64"})
    with pytest.raises(UserError, match=r"--set model\.width: expected a int, got 'big'"):
        override(config, {"model.width": "big"})
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_parts_of_a_batch_add_up_to_the_whole(shards, tmp_path, config):
    config = dataclasses.replace(config, steps=6, batch_size=4)
    train(Dataset.open(shards), tmp_path / "whole", config)
    train(Dataset.open(shards), tmp_path / "parts", dataclasses.replace(config, accumulation_steps=3))
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "parts")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    with pytest.raises(UserError, match="expected a row or more for each of the 1 ranks and each of the 5 acc"):
        train(Dataset.open(shards), tmp_path / "more", dataclasses.replace(config, accumulation_steps=5))


def test_dropout_draws_the_same_after_a_resume(shards, tmp_path, config):
    model = dataclasses.replace(config.model, dropout=0.2, stochastic_depth=0.3)
    config = dataclasses.replace(config, model=model, checkpoint_activations=True)
    train(Dataset.open(shards), tmp_path / "whole", config)
    train(Dataset.open(shards), tmp_path / "cut", config)
    shutil.rmtree(checkpoint.latest(tmp_path / "cut"))
    train(Dataset.open(shards), tmp_path / "cut", config)
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_the_best_checkpoint_stays(shards, tmp_path, config, monkeypatch):
    losses = iter([3.0, 1.0, 2.5, 2.0, 1.5])
    monkeypatch.setattr("trainer.train._validation_loss", lambda *_: next(losses))
    config = dataclasses.replace(config, steps=5, checkpoint_every_steps=1, keep_checkpoints=1)
    summary = train(Dataset.open(shards), tmp_path / "run", config)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path / "run")] == ["step-00000002", "step-00000005"]
    assert checkpoint.best(tmp_path / "run").name == "step-00000002"
    assert summary["validation_loss"] == 1.5


def test_held_out_loss_is_that_of_the_weights(shards, tmp_path, config):
    config = dataclasses.replace(config, steps=4, validation_sequences=5, checkpoint_every_steps=2)
    summary = train(Dataset.open(shards), tmp_path / "run", config)
    model = checkpoint.load_model(tmp_path / "run", torch.device("cpu"))
    sampler = Sampler(Dataset.open(shards).load("validation"), config.sampler, config.seed)
    batch = collate([sampler.sequence(number) for number in range(5)])
    with torch.no_grad():
        losses = target_losses(model, model(batch.inputs, batch.attention), batch.targets, 0.0)
    expected = float((losses * batch.targets.weights).sum() / batch.targets.weights.sum())
    assert summary["validation_loss"] == pytest.approx(expected, abs=1e-5)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "validation_loss" in row] == [2, 4]


def test_a_loss_that_is_not_finite_names_its_task(shards, tmp_path, config, monkeypatch):
    real = train_module.target_losses
    broken_task = sorted(Dataset.open(shards).tasks)[1]

    def broken(model, hidden, targets, sigma):
        losses = real(model, hidden, targets, sigma)
        return torch.where(targets.tasks == 1, torch.nan * losses, losses) if broken.on else losses

    broken.on = True
    monkeypatch.setattr(train_module, "target_losses", broken)
    config = dataclasses.replace(config, batch_size=8)
    with pytest.raises(train_module.NonFiniteLossError, match=f"step 1: loss nan.*in task {broken_task}, in the gr"):
        train(Dataset.open(shards), tmp_path / "stopped", config)
    skipping = dataclasses.replace(config, non_finite="skip", steps=40)
    with pytest.raises(train_module.NonFiniteLossError, match="step 10: "):  # ten in a row are too many
        train(Dataset.open(shards), tmp_path / "hopeless", skipping)
    monkeypatch.setattr(train_module, "learning_rate", lambda step, *_: setattr(broken, "on", step == 3) or 1e-3)
    summary = train(Dataset.open(shards), tmp_path / "skipped", dataclasses.replace(config, non_finite="skip", steps=6))
    assert summary["skipped_steps"] == 1
    rows = [json.loads(line) for line in (tmp_path / "skipped" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "skipped" in row] == [4]
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "skipped").values())


def test_a_damaged_shard_is_skipped_where_asked(shards, tmp_path, config):
    shutil.copytree(shards, tmp_path / "shards")
    file = next((tmp_path / "shards").glob("Discrete*.tar"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=file.name):
        train(Dataset.open(tmp_path / "shards"), tmp_path / "stopped", config)
    config = dataclasses.replace(config, damaged_shards="skip")
    summary = train(Dataset.open(tmp_path / "shards"), tmp_path / "run", config)
    (told,) = summary["damaged_shards"]
    assert file.name in told
    for other in (tmp_path / "shards").glob("*.tar"):
        other.write_bytes(b"")
    with pytest.raises(UserError, match="every train shard is damaged"):
        train(Dataset.open(tmp_path / "shards"), tmp_path / "none", config)


def test_damaged_shards_are_told_wherever_one_looks(shards, tmp_path, config, capsys):
    shutil.copytree(shards, tmp_path / "shards")
    file = next((tmp_path / "shards").glob("Discrete*train*.tar"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-512])
    config, run = dataclasses.replace(config, damaged_shards="skip"), tmp_path / "run"

    def resume():
        if run.exists():
            shutil.rmtree(checkpoint.latest(run))
        train(Dataset.open(tmp_path / "shards"), run, config)
        return capsys.readouterr().err

    def events(kind):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [row["step"] for row in rows if kind in row]

    said = resume()
    assert f"{file}: shard damaged (expected {len(whole)} bytes" in said
    assert "trainer: step 1: every shard of Discrete-v0 is damaged: the task is not trained\n" in said
    assert (events("damaged_shard"), events("lost_task"), events("changed_damage")) == ([1], [1], [])
    assert checkpoint.read_state(checkpoint.latest(run))["damaged_shards"] == [file.name]
    # A resumed run tells it again, and where the damage is another one, that the samples are.
    assert "damaged shards were" not in resume()
    file.write_bytes(whole)
    said = resume()
    assert (
        f"trainer: step 5: damaged shards were ['{file.name}'] when the checkpoint was written and are [] now: "
        "the samples are no longer those of an undisturbed run\n" in said
    )
    assert events("changed_damage") == [5]


def test_a_stalled_loader_is_told(monkeypatch):
    class Stuck:
        def sequence(self, number):
            time.sleep(3.0)

    source = batches(Stuck(), batch_size=1, first_step=0, steps_ahead=1, timeout_seconds=0.2)
    with pytest.raises(StalledLoaderError, match=r"no batch for 0\.2 seconds"):
        next(source)


def test_closing_waits_for_the_batch_that_is_being_made(data, config):
    """A thread that still uses torch when the interpreter ends would abort it."""
    sampler, began = Sampler(data, config.sampler, seed=0), threading.Event()

    class Slow:
        def sequence(self, number):
            if number == 1:
                began.set()
                time.sleep(1.5)
            return sampler.sequence(number)

    before = set(threading.enumerate())
    source = batches(Slow(), batch_size=1, first_step=0, steps_ahead=1)
    next(source)
    assert began.wait(10)
    source.close()
    assert set(threading.enumerate()) <= before


def test_batches_made_ahead_are_those_made_in_time(data, config):
    sampler = Sampler(data, config.sampler, seed=0)
    one = batches(sampler, batch_size=3, first_step=5, steps_ahead=0, parts=2)
    other = batches(sampler, batch_size=3, first_step=5, steps_ahead=2, parts=2)
    for _ in range(4):
        for a, b in zip(next(one), next(other), strict=True):
            assert torch.equal(a.inputs.tokens, b.inputs.tokens)
            assert a.work == b.work
    other.close()


def test_wrong_names_are_told(shards, tmp_path, config):
    for change, told in (
        ({"non_finite": "ignore"}, "non_finite 'ignore': expected stop or skip"),
        ({"sharding": "zero"}, "sharding 'zero': expected ddp or fsdp"),
        ({"model": dataclasses.replace(config.model, positions="alibi")}, "positions 'alibi': expected rotary or rel"),
    ):
        with pytest.raises(UserError, match=told):
            train(Dataset.open(shards), tmp_path / "run", dataclasses.replace(config, **change))
