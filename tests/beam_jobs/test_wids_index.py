"""The index by hand, and the real wids reader on a finished folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from beam_jobs.build_shards import build_locally
from beam_jobs.plan import BuildConfig
from beam_jobs.wids_index import wids_index
from episode_store.archives import Archive, fetch

# The last WebDataset that has wids. It is a module of the wheel, read out of it: nothing is installed.
WIDS = Archive(
    name="webdataset",
    version="0.2.111",
    file_name="webdataset-0.2.111-py3-none-any.whl",
    sha256="57a70eb5d7029303ce2262d900ee3f16443bb5e9cf25f634775ce972859bcee4",
    num_bytes=85_514,
)
READ = """
import io, json, sys
import numpy as np
import wids
dataset = wids.ShardListDataset(sys.argv[1], transformations=[], keep=True)
steps = 0
for number in range(len(dataset)):
    sample = dataset[number]
    tokens = np.load(io.BytesIO(sample[".tokens.npy"].read()), allow_pickle=False)
    offsets = np.load(io.BytesIO(sample[".timestep_offsets.npy"].read()), allow_pickle=False)
    assert offsets[-1] == len(tokens)
    steps += len(offsets) - 1
print(json.dumps([len(dataset), steps]))
"""


def test_the_index_by_hand() -> None:
    shards = [
        {"file": "a.tar", "split": "train", "md5": "0f", "num_samples": 3, "bytes": 10, "sha256": "no matter"},
        {"file": "b.tar", "split": "validation", "md5": "1e", "num_samples": 1, "bytes": 20, "sha256": "no matter"},
    ]
    assert wids_index(shards, "train") == {
        "__kind__": "wids-shard-index-v1",
        "wids_version": 1,
        "shardlist": [{"url": "a.tar", "md5sum": "0f", "nsamples": 3, "filesize": 10}],
    }


@pytest.mark.slow
def test_the_real_reader_opens_a_finished_folder(make_config: Callable[..., BuildConfig]) -> None:
    config = make_config()
    manifest, _ = build_locally(config)
    for split in ("train", "validation"):
        shards = [shard for shard in manifest["shards"] if shard["split"] == split]
        done = subprocess.run(
            [sys.executable, "-c", READ, str(config.output / f"wids-{split}.json")],
            env={**os.environ, "PYTHONPATH": str(fetch(WIDS))},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == [
            sum(shard["num_samples"] for shard in shards),
            sum(shard["num_timesteps"] for shard in shards),
        ]
