"""The history of a run survives a kill at any moment."""

import json

import pytest
import torch

from trainer.metrics import Metrics
from trainer.parallel import Ranks

RANKS = Ranks(rank=0, size=1, device=torch.device("cpu"))


def test_a_kill_after_a_resume_costs_nothing(tmp_path):
    """What is on the disk right after opening is what a kill would leave."""
    with Metrics(tmp_path, [], 0, RANKS, None) as metrics:
        for step in (1, 2, 3):
            metrics.add_event(step=step)
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text() + '{"step": 4, "lo')  # cut short by a kill
    with Metrics(tmp_path, [], 2, RANKS, None) as metrics:
        assert file.read_text() == '{"step": 1}\n{"step": 2}\n'
        metrics.add_event(step=3, again=True)
        metrics.flush()
        assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 2, 3]


def test_a_number_that_json_lacks_is_never_written(tmp_path):
    with Metrics(tmp_path, [], 0, RANKS, None) as metrics, pytest.raises(ValueError, match="not JSON compliant"):
        metrics.add_event(step=1, loss=float("inf"))
