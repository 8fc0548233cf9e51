"""What a token can see, bit by bit."""

import dataclasses

import numpy as np
import pytest
import torch

from trainer import presets
from trainer.attention import KeyValueCache, Relative, SegmentedAttention, causal_attention
from trainer.config import ModelConfig
from trainer.embedding import smooth_bin_rows
from trainer.model import Generalist, ModelInput, num_parameters

CONFIG = ModelConfig(width=32, num_blocks=2, num_heads=2, key_size=16, feed_forward_size=64)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["rotary", "relative"])
def model(request, random_model):
    return random_model(CONFIG, request.param)


def some_input(num_tokens, *, seed=0, patch_slots=(3, 4, 20)):
    rng = np.random.default_rng(seed)
    slots = torch.tensor([slot for slot in patch_slots if slot < num_tokens])
    return ModelInput(
        tokens=torch.from_numpy(rng.integers(0, 33_025, num_tokens)),
        local_positions=torch.from_numpy(rng.integers(-1, 30, num_tokens)),
        positions=torch.arange(num_tokens),
        patches=torch.from_numpy(rng.integers(0, 256, (len(slots), 16, 16, 3)).astype(np.uint8)),
        patch_slots=slots,
        patch_index=torch.arange(len(slots)),
        patch_positions=torch.from_numpy(rng.integers(0, 128, (len(slots), 2))),
    )


@torch.no_grad()
def run(model, inputs, lengths):
    return model(inputs, SegmentedAttention.from_lengths(lengths))


@pytest.mark.parametrize("num_tokens", [40, 600])  # the plain and the fused attention
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_no_token_sees_the_future(model, num_tokens, precision):
    """Changing any later token, position or patch leaves every earlier prediction bit-equal."""
    inputs = some_input(num_tokens, patch_slots=(3, 20, num_tokens - 2))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        before = run(model, inputs, [num_tokens])
        for place in (1, 5, 19, num_tokens // 2, num_tokens - 1):
            tokens, local = inputs.tokens.clone(), inputs.local_positions.clone()
            tokens[place:] = (tokens[place:] + 17) % 33_025
            local[place:] = 400
            patches = inputs.patches.clone()
            patches[inputs.patch_slots >= place] ^= 255
            changed = dataclasses.replace(inputs, tokens=tokens, local_positions=local, patches=patches)
            after = run(model, changed, [num_tokens])
            assert torch.equal(after[:place], before[:place])
            assert not torch.equal(after[place:], before[place:])


def test_no_segment_sees_its_neighbour(model):
    """A segment is computed as if it were alone, and what stands beside it does not matter."""
    lengths = [7, 18, 1, 30, 9]
    inputs = some_input(sum(lengths), patch_slots=(3, 4, 20, 40))
    positions = torch.cat([torch.arange(length) for length in lengths])
    inputs = dataclasses.replace(inputs, positions=positions)
    before = run(model, inputs, lengths)
    for changed_segment in range(len(lengths)):
        start = sum(lengths[:changed_segment])
        end = start + lengths[changed_segment]
        tokens = inputs.tokens.clone()
        tokens[start:end] = (tokens[start:end] + 99) % 33_025
        patches = inputs.patches.clone()
        patches[(inputs.patch_slots >= start) & (inputs.patch_slots < end)] ^= 255
        after = run(model, dataclasses.replace(inputs, tokens=tokens, patches=patches), lengths)
        outside = torch.ones(sum(lengths), dtype=torch.bool)
        outside[start:end] = False
        assert torch.equal(after[outside], before[outside])
        assert not torch.equal(after[start:end], before[start:end])


def test_plain_attention_equals_the_fused_one():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 5, 2, 40, 16)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(causal_attention(query, key, value), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("length", [1, 2, 19, 520])  # the plain and the fused attention
def test_relative_attention_is_the_papers_sum(length):
    """(q_i + u) k_j + (q_i + v) r_(i - j), one query at a time."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, length, 4, generator=generator, dtype=torch.float64)
    u, v = torch.randn(2, 2, 4, generator=generator, dtype=torch.float64)
    encodings = torch.randn(length + 3, 2, 4, generator=generator, dtype=torch.float64)
    relative = Relative(content_bias=u, position_bias=v, encodings=encodings)
    mixed = causal_attention(query, key, value, relative)
    for i in {0, length // 2, length - 1}:
        for head in range(2):
            past = key[1, head, : i + 1]
            distances = encodings[torch.arange(i, -1, -1), head]
            scores = past @ (query[1, head, i] + u[head]) + distances @ (query[1, head, i] + v[head])
            expected = (scores / 2.0).softmax(0) @ value[1, head, : i + 1]
            torch.testing.assert_close(mixed[1, head, i], expected)


@pytest.mark.parametrize("lengths", [[1], [16], [17], [16, 3, 24, 25, 100, 1], [5] * 40])
def test_buckets_lose_no_token(lengths):
    attention = SegmentedAttention.from_lengths(lengths)
    flat = torch.cat([bucket.flatten() for bucket in attention.buckets])
    assert flat[attention.inverse].tolist() == list(range(sum(lengths)))


@torch.no_grad()
def test_cache_gives_what_the_whole_sequence_gives(model):
    """Sequences of different lengths, fed in uneven pieces with padding, equal one pass over each."""
    wholes = [some_input(30, seed=1, patch_slots=()), some_input(22, seed=2, patch_slots=())]
    expected = [run(model, whole, [len(whole.tokens)]) for whole in wholes]
    cache = KeyValueCache(
        num_blocks=2, batch_size=2, capacity=64, num_heads=2, key_size=16, dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip
    fed = [0, 0]
    for sizes in ((10, 4), (1, 1), (7, 16), (12, 1)):
        width = max(sizes)
        positions = cache.extend(torch.tensor([0, 1]), torch.tensor(sizes))
        tokens, local = torch.zeros(2, width, dtype=torch.int64), torch.zeros(2, width, dtype=torch.int64)
        for row, size in enumerate(sizes):
            tokens[row, :size] = wholes[row].tokens[fed[row] : fed[row] + size]
            local[row, :size] = wholes[row].local_positions[fed[row] : fed[row] + size]
        inputs = dataclasses.replace(
            wholes[0], tokens=tokens.flatten(), local_positions=local.flatten(), positions=positions.flatten()
        )
        hidden = model(inputs, cache).view(2, width, -1)
        for row, size in enumerate(sizes):
            torch.testing.assert_close(
                hidden[row, :size], expected[row][fed[row] : fed[row] + size], atol=2e-5, rtol=1e-4
            )
            fed[row] += size


def test_cache_refuses_more_than_it_holds():
    cache = KeyValueCache(
        num_blocks=1, batch_size=1, capacity=8, num_heads=1, key_size=4, dtype=torch.float32, device=torch.device("cpu")
    )
    with pytest.raises(ValueError, match="a cache of 8 tokens cannot hold 9"):
        cache.extend(torch.tensor([0]), torch.tensor([9]))


def test_equal_seeds_give_equal_weights_and_others_do_not():
    models = [Generalist(CONFIG) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        model.initialize(seed)
    first, same, other = (model.embedding.text.weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_neighbouring_bins_start_alike():
    rows = smooth_bin_rows(128, torch.Generator().manual_seed(0))
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(rows[500], rows[501], dim=0) > 0.9
    assert similarity(rows[500], rows[900], dim=0) < 0.5


def test_input_and_output_embedding_are_one_table(model):
    names = [name for name, parameter in model.named_parameters() if parameter.shape[0] > 1000]
    assert names == ["embedding.text.weight", "embedding.bins.weight"]
    assert (model.embedding.text.num_embeddings, model.embedding.bins.num_embeddings) == (32_000, 1_025)
    # 33,025 rows of 32, and the blocks: norms, query-key-value, out, gate and value, out.
    block = 2 * 2 * 32 + 32 * 3 * 32 + 32 * 32 + 32 * 64 + 32 * 32
    if model.config.positions == "relative":
        block += 32 * 32 + 2 * 2 * 16
    assert num_parameters(model.blocks) == 2 * block


@pytest.mark.parametrize(("preset", "published"), [("79m", 79e6), ("364m", 364e6), ("1180m", 1.18e9)])
def test_the_papers_networks_have_the_published_sizes(preset, published):
    config = dataclasses.replace(presets.get(preset).model, positions="relative")
    with torch.device("meta"):
        assert num_parameters(Generalist(config)) == pytest.approx(published, rel=0.02)


def test_stochastic_depth_leaves_whole_sublayers_out_and_keeps_the_mean():
    config = dataclasses.replace(CONFIG, num_blocks=1, stochastic_depth=0.5)
    model = Generalist(config)
    model.initialize(0)
    inputs = some_input(12)
    torch.manual_seed(0)
    with torch.no_grad():
        model.train()
        outcomes = {tuple(run(model, inputs, [12])[0, :2].tolist()) for _ in range(40)}
        model.eval()
        assert torch.equal(run(model, inputs, [12]), run(model, inputs, [12]))
    assert len(outcomes) == 4  # attention in or out, feed-forward in or out


def test_checkpointed_activations_give_the_same_gradients():
    gradients = []
    for checkpointed in (False, True):
        model = Generalist(CONFIG)
        model.initialize(0)
        model.train().checkpoint_activations = checkpointed
        model(some_input(24), SegmentedAttention.from_lengths([24])).square().sum().backward()
        gradients.append(model.blocks[0].query_key_value.weight.grad)
    assert torch.equal(*gradients)
