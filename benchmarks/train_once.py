"""One training run of a JSON file of settings: what `train.parallel_loss` starts, also by torchrun."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from trainer.config import TrainConfig
from trainer.shards import Dataset
from trainer.train import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    shards, run, config = map(Path, sys.argv[1:])
    train(Dataset.open(shards), run, TrainConfig.from_json(json.loads(config.read_text())))
