"""A policy that is asked for a return: what it is told, and that it acts on it."""

import dataclasses
import json
import threading
import urllib.request

import numpy as np
import pytest
import torch

from beam_jobs.build_shards import build_locally
from beam_jobs.plan import BuildConfig
from beam_jobs.return_filter import FilterRule, ReturnFilter
from beam_jobs.stores import Source
from episode_store.episode import Episode
from episode_store.errors import UserError
from episode_store.spec import ArraySpec, Modality
from episode_store.task import TaskSpec
from episode_store.writer import EpisodeWriter
from tokenization.episode_tokenizer import EpisodeTokenizer
from tokenization.return_tokens import ReturnRange
from trainer import checkpoint, cli
from trainer.config import ModelConfig, OptimizerConfig, SamplerConfig, TrainConfig
from trainer.evaluate import generalist_policy
from trainer.model import Generalist
from trainer.policy import ActingConfig, GeneralistPolicy, PromptSource
from trainer.serve import PolicyServer, ServeConfig, Service
from trainer.shards import Dataset
from trainer.train import train

ARMS = TaskSpec(
    task_id="TwoArms-v0",
    observation_spec={"observation": ArraySpec(modality=Modality.CONTINUOUS, shape=(1,))},
    action_spec={"action": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(2,))},
)
NUM_PULLS = 6


class TwoArms:
    """Arm 1 pays one, arm 0 nothing; what is observed says nothing."""

    def reset(self, seed):
        self._rng = np.random.default_rng(seed)
        self._pulls = 0
        return self._observation()

    def step(self, action):
        self._pulls += 1
        return self._observation(), float(action), self._pulls == NUM_PULLS

    def _observation(self):
        return {"observation": self._rng.normal(size=1).astype(np.float32)}


def run_episode(policy, seed):
    """Return of one episode in a plain loop."""
    env, total, over = TwoArms(), 0.0, False
    observation = env.reset(seed)
    policy.begin_episode(0, env, seed)
    while not over:
        (action,) = policy.act([0], [observation])
        observation, reward, over = env.step(int(action["action"]))
        policy.rewarded(0, reward)
        total += reward
    return total


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Players of every skill: each pulls the better arm with a probability of its own."""
    folder = tmp_path_factory.mktemp("arms")
    rng = np.random.default_rng(0)
    with EpisodeWriter(folder / "store") as writer:
        writer.add_task(ARMS)
        for _ in range(200):
            pulls = (rng.random(NUM_PULLS) < rng.random()).astype(np.int64)
            observations = {"observation": rng.normal(size=(NUM_PULLS + 1, 1)).astype(np.float32)}
            writer.add_episode(
                Episode(
                    task_id=ARMS.task_id,
                    observations=observations,
                    actions={"action": pulls},
                    rewards=pulls.astype(np.float64),
                    terminated=True,
                    truncated=False,
                )
            )
    build_locally(
        BuildConfig(
            sources=(Source(name="store", store=folder / "store"),),
            output=folder / "shards",
            text_model=None,
            task_ids=(ARMS.task_id,),
            return_filter=ReturnFilter(rule=FilterRule.NONE),
            random_returns={ARMS.task_id: NUM_PULLS / 2},
        )
    )
    return folder / "shards"


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    """A run that learns the condition in seconds."""
    folder = tmp_path_factory.mktemp("arms-run")
    config = TrainConfig(
        model=ModelConfig(width=32, num_blocks=2, num_heads=2, key_size=16, feed_forward_size=64),
        sampler=SamplerConfig(context_tokens=64, long_segment_tokens=30, condition_on_return=True),
        optimizer=OptimizerConfig(warmup_steps=10, learning_rate=5e-3, matrix_optimizer="muon"),
        batch_size=8, steps=150, checkpoint_every_steps=150, precision="fp32", device="cpu",
    )  # fmt: skip
    train(Dataset.open(shards), folder, config)
    return folder


def test_the_token_tells_what_is_still_missing(shards):
    dataset = Dataset.open(shards)
    data = dataset.load_task("train", ARMS.task_id)
    assert data.return_range == ReturnRange(random=3.0, expert=dataset.info["tasks"][ARMS.task_id]["expert_return"])
    model = Generalist(ModelConfig(width=32, num_blocks=2, num_heads=2, key_size=16, feed_forward_size=64))
    model.initialize(0)
    tokenizer = EpisodeTokenizer(ARMS)
    trained = SamplerConfig(condition_on_return=True)
    acting = ActingConfig(target_return=5.0, history_steps=9)
    prompts = PromptSource.of(data, acting, trained)
    policy = GeneralistPolicy(model.eval(), tokenizer, prompts, acting, "test")
    missing = {0: 5.0, 1: 5.0}
    rng = np.random.default_rng(0)
    for slot in missing:
        policy.begin_episode(slot, None, slot)
    for reward in (1.0, 0.0, -2.5, 4.0):
        shown = [{"observation": rng.normal(size=1).astype(np.float32)} for _ in missing]
        actions = policy.act([0, 1], shown)
        for slot, observation in enumerate(shown):
            tokens = policy._slots[slot].history[-1].tokens.tolist()
            wanted = int(data.return_range.to_ids(np.array([missing[slot]]))[0])
            observed = tokenizer.encode_observation(observation).tokens.tolist()
            assert tokens == [wanted, *observed, int(actions[slot]["action"])]
            assert policy._slots[slot].history[-1].local_positions.tolist() == [0, 1, 2, -1]
        policy.rewarded(1, reward)  # the other's neighbour earns nothing
        missing[1] -= reward


def test_what_is_asked_for_by_default_is_the_expert(shards):
    data = Dataset.open(shards).load_task("train", ARMS.task_id)
    trained = SamplerConfig(condition_on_return=True)
    expert = data.return_range.expert
    assert PromptSource.of(data, ActingConfig(), trained).wanted == expert
    more = PromptSource.of(data, ActingConfig(return_scale=1.2), trained).wanted
    assert more == pytest.approx(3.0 + 1.2 * (expert - 3.0))
    assert PromptSource.of(data, ActingConfig(target_return=-7.0), trained).wanted == -7.0
    assert PromptSource.of(data, ActingConfig(), SamplerConfig()).wanted is None
    low = PromptSource.of(data, ActingConfig(target_return=0.0), trained)
    returns = np.array([episode["episode_return"] for episode in data.episodes])
    assert returns[low._episodes].max() <= np.median(returns)
    unknown = dataclasses.replace(data, return_range=ReturnRange(random=0.0, expert=np.nan))
    with pytest.raises(UserError, match="do not say what the expert gets: give --target-return"):
        PromptSource.of(unknown, ActingConfig(), trained)


def test_it_gets_what_it_is_asked_for(shards, run):
    """It never saw a player that was told what to get; the condition alone steers it."""
    torch.manual_seed(0)
    dataset = Dataset.open(shards)
    found = {}
    for target in (0.0, 3.0, 6.0):
        policy = generalist_policy(run, dataset, ARMS.task_id, ActingConfig(target_return=target, history_steps=6))
        found[target] = np.mean([run_episode(policy, seed) for seed in range(20)])
    assert found[0.0] < 1.0
    assert found[3.0] == pytest.approx(3.0, abs=1.0)
    assert found[6.0] > 5.0


def test_a_network_without_the_condition_cannot_be_asked(shards, run, tmp_path, capsys):
    config = checkpoint.load_config(run)
    plain = dataclasses.replace(config, steps=1, sampler=dataclasses.replace(config.sampler, condition_on_return=False))
    train(Dataset.open(shards), tmp_path / "plain", plain)
    command = ["evaluate", "--shards", str(shards), "--output", str(tmp_path), "--no-language"]
    for more, sentence in (
        (["--run", str(tmp_path / "plain"), "--return-scale", "1.2"], "was not trained with sampler.condition_on_ret"),
        (["--run", str(run), "--return-scale", "1", "--target-return", "3"], "both say what to ask for; give one"),
        (["--run", str(run), "--target-return", "nan"], "expected finite numbers"),
    ):
        assert cli.main([*command, *more]) == 2
        assert sentence in capsys.readouterr().err


def test_a_server_is_told_the_rewards(shards, run):
    acting = ActingConfig(target_return=4.0, history_steps=6)
    server = PolicyServer(Service(run, Dataset.open(shards), [ARMS.task_id], acting), ServeConfig(port=0))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def ask(path, body):
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.url + path, json.dumps(body).encode() if body else None, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    try:
        assert ask("/schema", None)["asks_for_return"] is True
        session = ask("/sessions", {"task_id": ARMS.task_id})["session"]
        env, reward, over = TwoArms(), 0.0, False
        observation = env.reset(0)
        total = 0.0
        while not over:
            shown = {"observation": observation["observation"].tolist()}
            action = ask(f"/sessions/{session}/act", {"observation": shown, "reward": reward})["action"]["action"]
            observation, reward, over = env.step(action)
            total += reward
        assert total == run_episode(generalist_policy(run, Dataset.open(shards), ARMS.task_id, acting), 0)
    finally:
        server.shutdown()
        server.server_close()
