"""Acting: with its cache, in any company, the policy does what plain recomputation does."""

import numpy as np
import pytest
import torch

from tokenization.episode_tokenizer import EpisodeTokenizer
from trainer import checkpoint
from trainer.attention import SegmentedAttention
from trainer.decoder import Decoder, Fragment
from trainer.model import Generalist, ModelInput
from trainer.nearest_neighbour import NearestNeighbourPolicy
from trainer.policy import ActingConfig, GeneralistPolicy, PromptSource
from trainer.shards import Dataset


@pytest.fixture
def model(config):
    model = Generalist(config.model)
    model.initialize(1)
    return model.eval()


def make_policy(model, shards, data, task_id, **settings):
    tokenizer = EpisodeTokenizer(data[task_id].task, Dataset.open(shards).text_tokenizer())
    acting = ActingConfig(**settings)
    return GeneralistPolicy(
        model, tokenizer, PromptSource(data[task_id], acting.prompt_steps), acting, "test"
    ), tokenizer


def observations(task_id, rng, num_steps):
    if task_id == "grid/Seen-v0":
        return [
            {"image": rng.integers(0, 256, (32, 48, 3)).astype(np.uint8), "mission": "the red ball"}
            for _ in range(num_steps)
        ]
    size = {"Discrete-v0": 3, "Continuous-v0": 2}[task_id]
    return [{"observation": rng.normal(size=size).astype(np.float32)} for _ in range(num_steps)]


@torch.no_grad()
def plain_hidden(model, fragment):
    """The last hidden state, recomputed from nothing."""
    length = len(fragment.tokens)
    inputs = ModelInput(
        tokens=torch.from_numpy(fragment.tokens),
        local_positions=torch.from_numpy(fragment.local_positions),
        positions=torch.arange(length),
        patches=torch.from_numpy(fragment.patches),
        patch_slots=torch.from_numpy(fragment.patch_slots),
        patch_index=torch.arange(len(fragment.patches)),
        patch_positions=torch.from_numpy(fragment.patch_positions),
    )
    return model(inputs, SegmentedAttention.from_lengths([length]))[-1]


@pytest.mark.parametrize("task_id", ["Discrete-v0", "Continuous-v0", "grid/Seen-v0"])
def test_actions_equal_plain_recomputation(model, shards, data, task_id):
    """Greedy actions over 12 steps, with prompt and a history that is cut twice, against no cache at all."""
    policy, tokenizer = make_policy(
        model, shards, data, task_id, temperature=0.0, bin_temperature=0.0, prompt_steps=2, history_steps=4
    )
    rng = np.random.default_rng(0)
    steps = [observations(task_id, rng, 12) for _ in range(3)]
    for slot in range(3):
        policy.begin_episode(slot, None, seed=slot)
    history = [[] for _ in range(3)]
    prompts = [policy._slots[slot].prompt for slot in range(3)]
    for step in range(12):
        actions = policy.act([0, 1, 2], [steps[slot][step] for slot in range(3)])
        for slot in range(3):
            if len(history[slot]) >= 4:
                history[slot] = history[slot][-2:]
            context = [prompts[slot], *history[slot], Fragment.of(tokenizer.encode_observation(steps[slot][step]))]
            tokens = []
            for entry in tokenizer.action_layout:
                hidden = plain_hidden(model, Fragment.join(context))
                logits = model.text_logits(hidden)
                token = int(logits[entry.low : entry.high].argmax()) + entry.low
                tokens.append(token)
                context.append(Fragment.of_action([token]))
            expected = tokenizer.decode_action(np.array(tokens))
            assert {key: value.tolist() for key, value in actions[slot].items()} == {
                key: value.tolist() for key, value in expected.items()
            }
            history[slot].append(Fragment.join(context[len(history[slot]) + 1 :]))


def test_an_episode_does_not_depend_on_its_company(model, shards, data):
    """Sampled actions of a seed are the same alone, beside others, and when a neighbour ends and another begins."""
    rng = np.random.default_rng(0)
    steps = observations("Discrete-v0", rng, 6)

    def act(slots_by_step):
        policy, _ = make_policy(model, shards, data, "Discrete-v0")
        policy.begin_episode(1, None, seed=11)
        chosen = []
        for step, slots in enumerate(slots_by_step):
            for slot in slots:
                if slot != 1:
                    policy.begin_episode(slot, None, seed=100 + step) if slot not in policy._slots else None
            actions = policy.act(slots, [steps[step]] * len(slots))
            chosen.append(int(actions[slots.index(1)]["action"]))
        return chosen

    alone = act([[1]] * 6)
    assert act([[0, 1, 2], [0, 1, 2], [1, 2], [1, 2], [1, 2, 5], [1]]) == alone


def test_actions_keep_to_the_grammar_of_the_task(model, shards, data):
    policy, _ = make_policy(model, shards, data, "Discrete-v0", temperature=50.0)
    for slot in range(40):
        policy.begin_episode(slot, None, seed=slot)
    actions = policy.act(range(40), observations("Discrete-v0", np.random.default_rng(0), 40))
    assert {int(action["action"]) for action in actions} == {0, 1, 2, 3}


def test_prompts_come_from_the_better_half(data):
    source = PromptSource(data["Discrete-v0"], 2)
    returns = [episode["episode_return"] for episode in data["Discrete-v0"].episodes]
    assert min(returns[episode] for episode in source._episodes) >= np.median(returns)
    assert PromptSource(data["Discrete-v0"], 0).draw(np.random.default_rng(0)) is None


def test_sampling_follows_the_probabilities(model):
    decoder = Decoder(model, batch_size=1, capacity=4, precision="fp32")
    hidden = torch.zeros(4000, 32)
    with torch.no_grad():
        model.embedding.text.weight[:3] = 0
        model.embedding.text.weight[0, 0] = float(np.log(3.0))
    hidden[:, 0] = 1.0
    rngs = [np.random.default_rng(seed) for seed in range(4000)]
    counts = np.bincount(decoder.sample_action(hidden, 0, 3, rngs, 1.0), minlength=3) / 4000
    assert counts == pytest.approx([0.6, 0.2, 0.2], abs=0.03)
    assert (decoder.sample_action(hidden, 0, 3, rngs, 0.0) == 0).all()


def test_top_k_leaves_out_the_others(model):
    decoder = Decoder(model, batch_size=1, capacity=4, precision="fp32")
    with torch.no_grad():
        model.embedding.text.weight[:4] = 0
        model.embedding.text.weight[:4, 0] = torch.tensor([3.0, 1.0, 6.0, 2.0]).log()
    hidden = torch.zeros(4000, 32)
    hidden[:, 0] = 1.0
    rngs = [np.random.default_rng(seed) for seed in range(4000)]
    counts = np.bincount(decoder.sample_action(hidden, 0, 4, rngs, 1.0, 2), minlength=4) / 4000
    assert counts == pytest.approx([1 / 3, 0.0, 2 / 3, 0.0], abs=0.03)
    assert (decoder.sample_action(hidden, 0, 4, rngs, 1.0, 1) == 2).all()
    counts = np.bincount(decoder.sample_action(hidden, 0, 4, rngs, 1.0, 9), minlength=4) / 4000
    assert counts == pytest.approx([3 / 12, 1 / 12, 6 / 12, 2 / 12], abs=0.03)


@pytest.mark.parametrize("task_id", ["Discrete-v0", "Continuous-v0", "grid/Seen-v0"])
def test_nearest_neighbour_knows_what_it_has_seen(shards, data, task_id):
    """Asked for a demonstrated observation, it gives the demonstrated action."""
    from episode_store.store import EpisodeStore

    store = EpisodeStore.open(shards.parent / "store")
    tokenizer = EpisodeTokenizer(data[task_id].task, Dataset.open(shards).text_tokenizer())
    policy = NearestNeighbourPolicy(data[task_id], tokenizer)
    for episode_id in store.table(task_id)["episode_id"].to_pylist()[:4]:
        episode = store.read(episode_id)
        asked = [{key: values[step] for key, values in episode.observations.items()} for step in range(2)]
        for step, action in enumerate(policy.act([0, 1], asked)):
            expected = episode.actions["action"][step]
            np.testing.assert_allclose(action["action"], expected, atol=1 / 1024)


def test_the_model_of_a_run_acts(shards, data, tmp_path, config):
    from trainer.train import train

    train(Dataset.open(shards), tmp_path / "run", config)
    model = checkpoint.load_model(tmp_path / "run", torch.device("cpu"))
    policy, _ = make_policy(model, shards, data, "Continuous-v0")
    policy.begin_episode(0, None, seed=0)
    (action,) = policy.act([0], observations("Continuous-v0", np.random.default_rng(0), 1))
    assert (np.abs(action["action"]) <= 1).all()
