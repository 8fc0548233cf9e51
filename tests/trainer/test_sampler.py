"""What training sequences hold, and that they are a pure function of their number."""

import dataclasses

import numpy as np
import pytest

from episode_store.errors import UserError
from episode_store.store import EpisodeStore
from tokenization.episode_tokenizer import EpisodeTokenizer
from tokenization.token_sequence import TargetKind
from tokenization.vocabulary import PATCH_PLACEHOLDER, SEPARATOR
from trainer.config import SamplerConfig
from trainer.sampler import Piece, Sampler, assemble

CONFIG = SamplerConfig(context_tokens=96, long_segment_tokens=64)
ARRAYS = ("tokens", "local_positions", "positions", "patches", "patch_positions", "target_slots", "target_ids")


def test_sequence_is_a_pure_function_of_its_number(data):
    one, two = Sampler(data, CONFIG, seed=3), Sampler(data, CONFIG, seed=3)
    two.sequence(5)  # what was drawn before does not matter
    for number in (0, 7, 10**9):
        a, b = one.sequence(number), two.sequence(number)
        assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS)
        assert a.segment_lengths == b.segment_lengths
    other = Sampler(data, CONFIG, seed=4).sequence(7)
    assert not np.array_equal(other.tokens, one.sequence(7).tokens)


def test_sequences_are_full_and_their_segments_add_up(data):
    sampler = Sampler(data, CONFIG, seed=0)
    rows = [sampler.sequence(number) for number in range(200)]
    assert all(sum(row.segment_lengths) == CONFIG.context_tokens == len(row.tokens) for row in rows)
    assert np.mean([row.num_real for row in rows]) >= 0.95 * CONFIG.context_tokens
    for row in rows:
        starts = np.cumsum([0, *row.segment_lengths])[:-1]
        assert (row.positions[starts] == 0).all()
        # No target is predicted from another segment.
        segment = np.repeat(np.arange(len(row.segment_lengths)), row.segment_lengths)
        assert (segment[row.target_slots] == segment[row.target_slots + 1]).all()
        assert (row.target_slots + 1 < row.num_real).all()


def test_targets_are_the_tokens_after_their_slots(data):
    sampler = Sampler(data, CONFIG, seed=0)
    for number in range(50):
        row = sampler.sequence(number)
        assert np.array_equal(row.tokens[row.target_slots + 1], row.target_ids)
        assert SEPARATOR not in row.target_ids
        assert PATCH_PLACEHOLDER not in row.tokens


def test_a_segment_by_hand(data):
    task = data["Discrete-v0"]  # 3 values, separator, action: 5 tokens a step
    pieces = [Piece(start=5, end=10), Piece(start=20, end=30)]
    row = assemble([(7, task, pieces)], config=SamplerConfig(context_tokens=20), rng=np.random.default_rng(0))
    assert row.tokens.tolist() == [*task.tokens[5:10].tolist(), *task.tokens[20:30].tolist(), 0, 0, 0, 0, 0]
    assert row.positions[:15].tolist() == list(range(15))
    assert row.local_positions[:10].tolist() == [0, 1, 2, 3, -1, 0, 1, 2, 3, -1]
    assert row.segment_lengths == [15, 5]
    assert row.target_slots.tolist() == [3, 8, 13]
    assert row.target_tasks.tolist() == [7, 7, 7]
    assert row.target_is_text.tolist() == [False] * 3
    assert row.num_real == 15


def test_patches_and_instructions(data):
    task = data["grid/Seen-v0"]
    first, second = task.timestep_offsets[1:3].tolist()
    config = SamplerConfig(context_tokens=second - first, text_observation_weight=0.5)
    row = assemble([(0, task, [Piece(start=first, end=second)])], config=config, rng=np.random.default_rng(0))
    kinds = task.targets[first:second]
    num_text = int((kinds == TargetKind.OBSERVATION_TEXT).sum())
    assert row.patch_slots.tolist() == list(range(num_text, num_text + 6))
    assert (row.tokens[row.patch_slots] == 0).all()
    assert row.patches[row.patch_index].shape == (6, 16, 16, 3)
    # The first token of a segment has nothing before it; the other text tokens count half, the action whole.
    assert row.target_weights.tolist() == [0.5] * (num_text - 1) + [1.0]
    assert row.target_is_text.tolist() == [True] * (num_text - 1) + [False]
    assert ((row.patch_positions >= 0) & (row.patch_positions < 128)).all()


def test_without_weight_instructions_are_no_targets(data):
    task = data["grid/Seen-v0"]
    end = int(task.timestep_offsets[1])
    config = SamplerConfig(context_tokens=end, text_observation_weight=0.0)
    row = assemble([(0, task, [Piece(start=0, end=end)])], config=config, rng=np.random.default_rng(0))
    assert row.target_is_text.tolist() == [False]


def test_weights_are_shares_of_the_tokens(data):
    weights = {"Discrete-v0": 3.0, "Continuous-*": 1.0, "*": 0.0}
    sampler = Sampler(data, dataclasses.replace(CONFIG, task_weights=weights), seed=0)
    targets = np.zeros(len(sampler.task_ids))
    for number in range(400):
        targets += np.bincount(sampler.sequence(number).target_tasks, minlength=len(targets))
    targets = dict(zip(sampler.task_ids, targets, strict=True))
    assert targets["grid/Seen-v0"] == targets["text/story-v0"] == 0
    # One target in 5 tokens against two in 5.
    assert targets["Discrete-v0"] / (targets["Continuous-v0"] / 2) == pytest.approx(3.0, rel=0.15)


def test_actions_that_cost_more_tokens_weigh_more(data):
    config = dataclasses.replace(CONFIG, action_weight_exponent=0.5, text_observation_weight=0.25)
    sampler = Sampler(data, config, seed=0)
    # Five tokens a step, of which one is an action, or two; what a corpus says keeps its weight.
    expected = {"Discrete-v0": {5.0**0.5}, "Continuous-v0": {2.5**0.5}, "text/story-v0": {0.25, 1.0}}
    found: dict[str, set[float]] = {}
    for number in range(40):
        row = sampler.sequence(number)
        for task, weight in zip(row.target_tasks.tolist(), row.target_weights.tolist(), strict=True):
            found.setdefault(sampler.task_ids[task], set()).add(weight)
    for task_id, weights in expected.items():
        assert found[task_id] == {float(np.float32(weight)) for weight in weights}
    assert 0.25 in found["grid/Seen-v0"]
    assert max(found["grid/Seen-v0"]) > 2.0


def test_a_quarter_of_the_segments_is_prompted(data):
    weights = {"Discrete-v0": 1.0, "*": 0.0}
    config = dataclasses.replace(CONFIG, task_weights=weights, short_segment_share=1.0)
    sampler = Sampler(data, config, seed=0)
    rng = np.random.default_rng(0)
    task = data["Discrete-v0"]
    segments = [sampler._segment(task, rng) for _ in range(2000)]
    prompted = [segment for segment in segments if len(segment) == 2]
    assert len(prompted) / len(segments) == pytest.approx(0.25, abs=0.04)
    episode_of = np.repeat(np.arange(task.num_episodes), np.diff(task.episode_offsets))
    step_of = {int(offset): step for step, offset in enumerate(task.timestep_offsets[:-1])}
    ends = 0
    for prompt, segment in prompted:
        assert episode_of[step_of[prompt.start]] != episode_of[step_of[segment.start]]
        last = task.timestep_offsets[task.episode_offsets[episode_of[step_of[prompt.start]] + 1]]
        ends += prompt.end == last
    assert ends / len(prompted) > 0.5  # half by choice, some by chance


def test_too_small_a_context_is_told(data):
    with pytest.raises(UserError, match=r"task grid/Seen-v0: a timestep has \d+ tokens, more than"):
        Sampler(data, dataclasses.replace(CONFIG, context_tokens=8), seed=0)


def test_nothing_to_learn_is_told(data):
    with pytest.raises(UserError, match="every task has weight 0"):
        Sampler(data, dataclasses.replace(CONFIG, task_weights={"*": 0.0}), seed=0)


def test_observations_are_predicted_where_wanted(data):
    task = data["Discrete-v0"]  # 3 values, separator, action: 5 tokens a step
    config = SamplerConfig(context_tokens=10, observation_weight=0.25)
    row = assemble([(0, task, [Piece(start=0, end=10)])], config=config, rng=np.random.default_rng(0))
    # The first token has none before it; the separators, in place 3 and 8, are never asked for.
    assert (row.target_slots + 1).tolist() == [1, 2, 4, 5, 6, 7, 9]
    assert row.target_ids.tolist() == task.tokens[[1, 2, 4, 5, 6, 7, 9]].tolist()
    assert row.target_weights.tolist() == [0.25, 0.25, 1.0, 0.25, 0.25, 0.25, 1.0]
    assert not row.target_is_text.any()
    seen = data["grid/Seen-v0"]
    end = int(seen.timestep_offsets[1])
    config = SamplerConfig(context_tokens=end, observation_weight=0.25, text_observation_weight=0.0)
    row = assemble([(0, seen, [Piece(start=0, end=end)])], config=config, rng=np.random.default_rng(0))
    assert row.target_weights.tolist() == [1.0]  # neither words nor pictures are numbers


def test_past_actions_are_hidden_but_still_asked_for(data):
    task = data["Continuous-v0"]  # 2 values, separator, 2 actions: 5 tokens a step
    config = SamplerConfig(context_tokens=15, past_action_dropout=1.0)
    row = assemble([(0, task, [Piece(start=0, end=15)])], config=config, rng=np.random.default_rng(0))
    assert row.tokens.tolist() == [
        *task.tokens[:3].tolist(), SEPARATOR, SEPARATOR,
        *task.tokens[5:8].tolist(), SEPARATOR, SEPARATOR,
        *task.tokens[10:15].tolist(),
    ]  # fmt: skip
    # The second value of a hidden action cannot see the first, so it is not asked for; the last action is whole.
    assert (row.target_slots + 1).tolist() == [3, 8, 13, 14]
    assert row.target_ids.tolist() == task.tokens[[3, 8, 13, 14]].tolist()
    half = dataclasses.replace(config, past_action_dropout=0.5)
    rows = [assemble([(0, task, [Piece(start=0, end=15)])], config=half, rng=np.random.default_rng(seed))
            for seed in range(200)]  # fmt: skip
    assert np.mean([row.tokens[3] == SEPARATOR for row in rows]) == pytest.approx(0.5, abs=0.12)


def test_pictures_are_jittered_and_nothing_else(data):
    task = data["grid/Seen-v0"]
    end = int(task.timestep_offsets[2])
    pieces = [(0, task, [Piece(start=0, end=end)])]
    plain = assemble(pieces, config=SamplerConfig(context_tokens=end), rng=np.random.default_rng(0))
    config = SamplerConfig(context_tokens=end, image_jitter=0.2)
    changed = assemble(pieces, config=config, rng=np.random.default_rng(0))
    assert np.array_equal(plain.tokens, changed.tokens)
    change, brightness = np.random.default_rng(0).uniform(-0.2, 0.2, 2)
    expected = (plain.patches.astype(np.float64) - 127.5) * (1.0 + change) + 127.5 + 255.0 * brightness
    assert np.abs(changed.patches - expected.clip(0, 255)).max() <= 0.51
    assert not np.array_equal(plain.patches, changed.patches)


def test_each_step_has_the_return_of_the_rest_of_its_episode(shards, data):
    """Also in windows and prompts: by the observation before it, against the rewards in the store."""
    store = EpisodeStore.open(shards.parent / "store")
    task = data["Discrete-v0"]
    tokenizer, expected = EpisodeTokenizer(task.task), {}
    for episode_id in store.table("Discrete-v0")["episode_id"].to_pylist():
        episode = store.read(episode_id)
        steps = tokenizer.encode(episode).tokens.reshape(-1, 5).tolist()
        for step, tokens in enumerate(steps):
            expected[tuple(tokens)] = int(task.return_range.to_ids(episode.rewards[step:].sum(keepdims=True))[0])
    weights = {"Discrete-v0": 1.0, "*": 0.0}
    config = dataclasses.replace(CONFIG, condition_on_return=True, task_weights=weights)
    sampler = Sampler(data, config, seed=0)
    places = np.array([0, 1, 2, 3, 4, -1])
    for number in range(50):
        row = sampler.sequence(number)
        steps = row.tokens[: row.num_real].reshape(-1, 6)  # a return, 3 values, separator, action
        assert (row.local_positions[: row.num_real].reshape(-1, 6) == places).all()
        assert [expected[tuple(step)] for step in steps[:, 1:].tolist()] == steps[:, 0].tolist()
        assert len(np.unique(steps[:, 0])) > 1
        assert (row.target_slots + 1).tolist() == list(range(5, row.num_real, 6))
    observed = Sampler(data, dataclasses.replace(config, observation_weight=0.5), seed=0).sequence(0)
    assert set((observed.target_slots % 6).tolist()) == {0, 1, 2, 4}  # what is wished for is not predicted


def test_returns_change_nothing_where_they_are_not_wanted(data):
    without = {key: dataclasses.replace(task, returns_to_go=np.empty(0, "f4")) for key, task in data.items()}
    with_them, old = Sampler(data, CONFIG, seed=3), Sampler(without, CONFIG, seed=3)
    for number in range(20):
        a, b = with_them.sequence(number), old.sequence(number)
        assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS)
    with pytest.raises(UserError, match="needs the returns-to-go of shards of format gato-shards-v3; run"):
        Sampler(without, dataclasses.replace(CONFIG, condition_on_return=True), seed=3)


def test_patches_stay_beside_their_instructions(data):
    plain, task = data["grid/Seen-v0"], data["grid/Seen-v0"].with_return_tokens()
    for step in (0, 3):
        one, other = plain.window(step, step + 1), task.window(step, step + 1)
        assert other.tokens.tolist()[1:] == one.tokens.tolist()
        assert np.array_equal(other.patches[other.patch_index], one.patches[one.patch_index])
    assert data["text/story-v0"].with_return_tokens() is data["text/story-v0"]
