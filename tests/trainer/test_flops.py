"""Operations counted by hand, and by torch's own counter."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tokenization.vocabulary import VOCABULARY_SIZE
from trainer import presets
from trainer.attention import SegmentedAttention
from trainer.batch import collate
from trainer.config import ModelConfig
from trainer.flops import Work, forward_flops, known_peak, training_flops
from trainer.model import Generalist
from trainer.sampler import Sampler

CONFIG = ModelConfig(width=64, num_blocks=2, num_heads=2, key_size=16, feed_forward_size=96)


def work(**numbers):
    return Work(**{"tokens": 0, "pairs": 0, "text_targets": 0, "control_targets": 0, "patches": 0, **numbers})


def test_operations_by_hand():
    # Query, key, value and out: 4 x 64 x 32; gate and value: 64 x 96; out: 48 x 64.
    assert forward_flops(CONFIG, work(tokens=1)) == 2 * 2 * (4 * 64 * 32 + 64 * 96 + 48 * 64)
    # Scores and mixing: 32 each.
    assert forward_flops(CONFIG, work(pairs=1)) == 2 * 2 * (32 + 32)
    relative = dataclasses.replace(CONFIG, positions="relative")
    assert forward_flops(relative, work(pairs=1)) == 2 * 2 * (32 + 32 + 32)
    assert forward_flops(CONFIG, work(text_targets=1)) == 2 * 64 * VOCABULARY_SIZE
    assert forward_flops(CONFIG, work(control_targets=1)) == 2 * 64 * 2048
    assert training_flops(CONFIG, work(tokens=5)) == 15 * forward_flops(CONFIG, work(tokens=1))


def test_large_networks_need_six_operations_a_weight():
    config = presets.get("1180m").model
    blocks = 24 * (4 * 2048 * 2048 + 2048 * 8192 + 4096 * 2048)
    assert training_flops(config, work(tokens=1)) == 6 * blocks


def test_torch_counts_the_same_but_for_the_padding(data):
    sampler = Sampler(data, presets.get("tiny").sampler, seed=0)
    batch = collate([sampler.sequence(0)])
    model = Generalist(CONFIG)
    model.initialize(0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(batch.inputs, batch.attention)
    ours = forward_flops(CONFIG, dataclasses.replace(batch.work, text_targets=0, control_targets=0))
    padded = sum(bucket.numel() * bucket.shape[1] for bucket in batch.attention.buckets)
    extra = 2 * 2 * (32 + 32) * (padded - batch.work.pairs)
    extra += forward_flops(CONFIG, work(tokens=len(batch.inputs.tokens) - batch.work.tokens))
    assert counter.get_total_flops() == pytest.approx(ours + extra, rel=1e-6)


def test_pairs_of_packed_segments(data):
    sampler = Sampler(data, dataclasses.replace(presets.get("tiny").sampler, context_tokens=96), seed=0)
    rows = [sampler.sequence(number) for number in range(3)]
    counted = 0
    for row in rows:
        lengths = row.segment_lengths if row.num_real == 96 else row.segment_lengths[:-1]
        assert sum(lengths) == row.num_real
        counted += sum(length * (length + 1) // 2 for length in lengths)
    assert collate(rows).work.pairs == counted
    assert isinstance(collate(rows).attention, SegmentedAttention)


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H200", "fp32", 494e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("Tesla T4", "fp16", 65e12),
        ("Something new", "bf16", None),
    ],
)
def test_peaks_are_found_by_name(name, precision, peak):
    assert known_peak(name, precision) == peak
