"""The rolling cache gives what a sliding-window mask over the whole sequence gives, beyond 1,024 tokens."""

import numpy as np
import pytest
import torch

from episode_store.errors import UserError
from tokenization.episode_tokenizer import EpisodeTokenizer
from trainer.attention import KeyValueCache
from trainer.config import ModelConfig
from trainer.decoder import Decoder, Fragment
from trainer.model import ModelInput
from trainer.policy import ActingConfig, GeneralistPolicy, PromptSource

CONFIG = ModelConfig(width=32, num_blocks=3, num_heads=2, key_size=16, feed_forward_size=64)


class SlidingWindow:
    """Attention of one whole sequence, written plainly: [N, N] scores, a mask, a softmax."""

    def __init__(self, window):
        self.num_distances = window

    def __call__(self, query, key, value, *, block, relative=None):
        num = len(query)
        distance = torch.arange(num)[:, None] - torch.arange(num)
        scores = torch.einsum("ihk,jhk->hij", query, key)
        if relative is not None:
            near = distance.clamp(0, self.num_distances - 1)
            scores = torch.einsum("ihk,jhk->hij", query + relative.content_bias, key)
            by_distance = torch.einsum("ihk,dhk->hid", query + relative.position_bias, relative.encodings)
            scores = scores + by_distance.gather(-1, near.expand(len(scores), num, num))
        scores = scores * query.shape[-1] ** -0.5
        scores = scores.masked_fill((distance < 0) | (distance >= self.num_distances), float("-inf"))
        return torch.einsum("hij,jhk->ihk", scores.softmax(-1), value)


@torch.no_grad()
def whole(model, fragment, window):
    """Hidden states [N, D] of a whole sequence."""
    return model(
        ModelInput(
            tokens=torch.from_numpy(fragment.tokens),
            local_positions=torch.from_numpy(fragment.local_positions),
            positions=torch.arange(len(fragment.tokens)),
            patches=torch.from_numpy(fragment.patches),
            patch_slots=torch.from_numpy(fragment.patch_slots),
            patch_index=torch.arange(len(fragment.patches)),
            patch_positions=torch.from_numpy(fragment.patch_positions),
        ),
        SlidingWindow(window),
    )


@pytest.fixture(params=["rotary", "relative"])
def model(request, random_model):
    return random_model(CONFIG, request.param)


def some_fragment(rng, length):
    slots = np.sort(rng.choice(length, length // 10, replace=False))
    return Fragment(
        tokens=rng.integers(0, 33_025, length),
        local_positions=rng.integers(-1, 30, length),
        patches=rng.integers(0, 256, (len(slots), 16, 16, 3)).astype(np.uint8),
        patch_slots=slots,
        patch_positions=rng.integers(0, 128, (len(slots), 2)),
    )


def test_a_rolling_cache_equals_a_sliding_window(model):
    """Rows of other lengths, fed in pieces of 1 to 60 tokens, some of them longer than one pass takes."""
    window, rng = 1_024, np.random.default_rng(0)
    fragments = [some_fragment(rng, length) for length in (2_300, 1_500, 700)]
    expected = [whole(model, fragment, window) for fragment in fragments]
    unlimited = whole(model, fragments[0], len(fragments[0].tokens))
    assert (unlimited[-1] - expected[0][-1]).abs().max() > 1e-2  # what is beyond the window would change it
    decoder = Decoder(model, batch_size=3, capacity=window + 29, precision="fp32", window=window)
    fed, checked = [0, 0, 0], 0
    while any(done < len(fragment.tokens) for done, fragment in zip(fed, fragments, strict=True)):
        rows = [row for row in range(3) if fed[row] < len(fragments[row].tokens)]
        ends = [min(fed[row] + int(rng.integers(1, 61)), len(fragments[row].tokens)) for row in rows]
        hidden = decoder.feed([fragments[row].part(fed[row], end) for row, end in zip(rows, ends, strict=True)], rows)
        for row, end, found in zip(rows, ends, hidden, strict=True):
            torch.testing.assert_close(found, expected[row][end - 1], atol=2e-5, rtol=0)
            fed[row], checked = end, checked + 1
    assert checked > 100


def test_a_pass_that_would_replace_what_it_needs_is_refused():
    cache = KeyValueCache(num_blocks=1, batch_size=1, capacity=12, num_heads=1, key_size=4, dtype=torch.float32,
                          device=torch.device("cpu"), window=8)  # fmt: skip
    rows = torch.tensor([0])
    assert cache.most_at_once == 5
    assert cache.extend(rows, torch.tensor([5])).tolist() == [[0, 1, 2, 3, 4]]
    for _ in range(10):
        last = cache.extend(rows, torch.tensor([5]))
    assert last.tolist() == [[50, 51, 52, 53, 54]]
    with pytest.raises(ValueError, match="a cache of 12 tokens cannot hold 61, 6 of them at once"):
        cache.extend(rows, torch.tensor([6]))


@pytest.mark.parametrize(("task_id", "num_steps", "window"), [("Continuous-v0", 300, 1_024), ("Discrete-v0", 40, 50)])
def test_a_long_episode_is_acted_in_as_if_all_were_recomputed(model, data, task_id, num_steps, window):
    """Greedy actions of three episodes that begin at other steps."""
    tokenizer = EpisodeTokenizer(data[task_id].task)
    acting = ActingConfig(temperature=0.0, bin_temperature=0.0, prompt_steps=2, rolling_tokens=window)
    policy = GeneralistPolicy(model, tokenizer, PromptSource(data[task_id], 2), acting, "test")
    size = {"Discrete-v0": 3, "Continuous-v0": 2}[task_id]
    rng = np.random.default_rng(0)
    seen: dict[int, list[Fragment]] = {}
    begins = {0: 0, 1: num_steps // 10, 2: num_steps // 4}
    for step in range(num_steps):
        for slot, first in begins.items():
            if first == step:
                policy.begin_episode(slot, None, seed=slot)
                seen[slot] = [policy._slots[slot].prompt]
        observations = [{"observation": rng.normal(size=size).astype(np.float32)} for _ in seen]
        policy.act(list(seen), observations)
        for slot in seen:
            seen[slot].append(policy._slots[slot].history[-1])
    layout = tokenizer.action_layout
    for fragments in seen.values():
        sequence = Fragment.join(fragments)
        assert len(sequence.tokens) > window
        hidden = whole(model, sequence, window)
        starts = np.cumsum([len(fragment.tokens) for fragment in fragments])[1:] - len(layout)
        for index, entry in enumerate(layout):
            with torch.no_grad():
                logits = model.text_logits(hidden[starts + index - 1])[:, entry.low : entry.high]
            taken = logits.gather(1, torch.from_numpy(sequence.tokens[starts + index] - entry.low)[:, None])[:, 0]
            assert (logits.max(1).values - taken).max() < 1e-4


def test_an_episode_that_was_away_is_begun_anew_from_what_is_kept(model, data):
    tokenizer = EpisodeTokenizer(data["Discrete-v0"].task)
    acting = ActingConfig(temperature=0.0, rolling_tokens=23)
    policy = GeneralistPolicy(model, tokenizer, PromptSource(data["Discrete-v0"], 2), acting, "test")
    rng = np.random.default_rng(0)
    for slot in (0, 1):
        policy.begin_episode(slot, None, seed=slot)
    one = [{"observation": rng.normal(size=3).astype(np.float32)}]
    policy.act([0, 1], one * 2)
    for _ in range(20):
        policy.act([1], one)
    policy.act([0], one)  # its cache was dropped; its steps were not
    kept = policy._slots[0]
    sequence = Fragment.join([kept.prompt, *kept.history]) if kept.prompt else Fragment.join(kept.history)
    hidden = whole(model, sequence, 23)
    with torch.no_grad():
        assert int(model.text_logits(hidden[-2])[:4].argmax()) == sequence.tokens[-1]
    assert sum(len(fragment.tokens) for fragment in policy._slots[1].history) <= 23 + 5


def test_settings_without_sense_are_told():
    with pytest.raises(UserError, match="acting: top_k -1: expected 0 or more"):
        ActingConfig(top_k=-1)
    with pytest.raises(UserError, match="acting: history_steps 0: expected 1 or more"):
        ActingConfig(history_steps=0)
