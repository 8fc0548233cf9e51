"""The attention of GPUs, uncompiled on this CPU, against the one of CPUs: what is seen, values, gradients."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from episode_store.errors import UserError
from trainer import flex_attention
from trainer.attention import Relative, SegmentedAttention
from trainer.config import ModelConfig, TrainConfig
from trainer.flex_attention import BLOCK_TENSORS, FlexAttention
from trainer.model import Generalist, ModelInput
from trainer.tensors import map_tensors
from trainer.train import _attention

# torch refuses gradients on a CPU, where no fast kernel computes them; its plain formulas, which autograd checks the
# kernels of GPUs against, are there all the same.
allow_gradients = pytest.mark.usefixtures("gradients_on_cpu")


@pytest.fixture
def gradients_on_cpu(monkeypatch):
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *inputs: None)


LENGTHS = (
    [1],
    [128],
    [5, 300, 1, 62, 16],  # longer than a block, shorter, one token; 384 tokens, a whole number of blocks
    [130, 126, 128, 3],
    [700, 68],
)


def block_mask(attention):
    starts = attention.starts
    return BlockMask(
        seq_lengths=(len(starts), len(starts)),
        **dict(zip(BLOCK_TENSORS, attention.blocks, strict=True)),
        BLOCK_SIZE=(128, 128),
        mask_mod=None,
    )


@pytest.mark.parametrize("lengths", LENGTHS)
def test_blocks_are_those_that_torch_finds_in_the_whole_mask(lengths):
    attention = FlexAttention.from_lengths(lengths)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    total = len(document)

    def is_seen(batch, head, query, key):
        return (document[query] == document[key]) & (key <= query)

    expected = create_block_mask(is_seen, None, None, total, total, device="cpu")
    for count, numbers in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices"),
                           ("q_num_blocks", "q_indices"), ("full_q_num_blocks", "full_q_indices")):  # fmt: skip
        found = block_mask(attention)
        assert getattr(found, count).tolist() == getattr(expected, count).tolist()
        for row, many in enumerate(getattr(found, count)[0, 0].tolist()):
            ours, theirs = (getattr(mask, numbers)[0, 0, row, :many].tolist() for mask in (found, expected))
            assert sorted(ours) == sorted(theirs)


@allow_gradients
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("is_relative", [False, True])
def test_values_and_gradients_are_those_of_the_plain_attention(lengths, is_relative):
    results = [values_and_gradients(kind, lengths, is_relative, "cpu") for kind in (SegmentedAttention, FlexAttention)]
    for plain, flex in zip(*results, strict=True):
        torch.testing.assert_close(flex, plain, atol=2e-5, rtol=2e-5)


def values_and_gradients(kind, lengths, is_relative, device):
    """Mixed values, and the gradients of a weighted sum of them."""
    rng = torch.Generator().manual_seed(0)

    def some(*shape):
        return torch.randn(*shape, generator=rng).to(device).requires_grad_()

    heads, size = 2, 16
    attention = map_tensors(kind.from_lengths(lengths), lambda tensor: tensor.to(device))
    asked, relative = [some(sum(lengths), heads, size) for _ in range(3)], None
    inputs = asked[:]
    weights = some(sum(lengths), heads, size).detach()
    if is_relative:
        biases, encodings = [some(heads, size) for _ in range(2)], some(1024, heads, size)
        used = encodings[: attention.num_distances]
        relative = Relative(content_bias=biases[0], position_bias=biases[1], encodings=used)
        asked += [*biases, encodings]
    mixed = attention(*inputs, block=0, relative=relative)
    return [mixed, *torch.autograd.grad((mixed * weights).sum(), asked)]


@allow_gradients
@pytest.mark.parametrize("positions", ["rotary", "relative"])
def test_the_whole_network_learns_the_same(positions):
    lengths = [40, 150, 3, 63]
    total = sum(lengths)
    model = Generalist(
        ModelConfig(width=32, num_blocks=2, num_heads=2, key_size=16, feed_forward_size=64, positions=positions)
    )
    model.initialize(0)
    rng = np.random.default_rng(0)
    inputs = ModelInput(
        tokens=torch.from_numpy(rng.integers(0, 33_025, total)),
        local_positions=torch.from_numpy(rng.integers(-1, 30, total)),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        patches=torch.zeros((0, 16, 16, 3), dtype=torch.uint8),
        patch_slots=torch.zeros(0, dtype=torch.int64),
        patch_index=torch.zeros(0, dtype=torch.int64),
        patch_positions=torch.zeros((0, 2), dtype=torch.int64),
    )
    results = []
    for kind in (SegmentedAttention, FlexAttention):
        model.zero_grad()
        hidden = model(inputs, kind.from_lengths(lengths))
        hidden.square().mean().backward()
        results.append([hidden, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1])
    for plain, flex in zip(*results, strict=True):
        torch.testing.assert_close(flex, plain, atol=1e-5, rtol=1e-4)


@pytest.mark.slow  # a minute of C++
@torch.no_grad()
def test_compiled_it_skips_blocks_and_computes_the_same(monkeypatch):
    compiled = torch.compile(flex_attention.flex_attention)
    monkeypatch.setattr(flex_attention, "flex_attention", compiled)
    torch.manual_seed(0)
    torch._dynamo.utils.counters.clear()
    for lengths in ([5, 300, 1, 62, 16], [130, 126, 128], [3] * 128):
        inputs = [torch.randn(384, 2, 16) for _ in range(3)]
        plain, flex = (kind.from_lengths(lengths)(*inputs, block=0) for kind in (SegmentedAttention, FlexAttention))
        torch.testing.assert_close(flex, plain, atol=2e-5, rtol=2e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # other lengths need no other program


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("is_relative", [False, True])
def test_the_kernel_of_a_gpu_computes_the_same(lengths, is_relative):
    results = [values_and_gradients(kind, lengths, is_relative, "cuda") for kind in (SegmentedAttention, FlexAttention)]
    for plain, flex in zip(*results, strict=True):
        torch.testing.assert_close(flex, plain, atol=5e-3, rtol=5e-3)  # products in tf32


def test_it_is_taken_on_a_gpu_only():
    assert _attention(TrainConfig(), torch.device("cuda")) is SegmentedAttention
    config = TrainConfig(attention="flex")
    assert _attention(config, torch.device("cuda")) is FlexAttention
    with pytest.raises(UserError, match="attention flex: its kernel needs CUDA, got cpu"):
        _attention(config, torch.device("cpu"))


def test_it_moves_as_a_whole():
    attention = FlexAttention.from_lengths([5, 200])
    moved = map_tensors(attention, lambda tensor: tensor.clone())
    assert dataclasses.asdict(moved).keys() == dataclasses.asdict(attention).keys()
    assert moved.num_distances == 256
    assert moved.starts is not attention.starts
