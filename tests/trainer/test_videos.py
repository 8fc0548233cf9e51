"""Films are small, whole at both ends, and a task that cannot be drawn costs a line, not the report."""

import dataclasses
import io
import json

import gymnasium
import numpy as np
import pytest
from PIL import Image

from collectors import registry
from collectors.headless import RenderingUnavailable
from collectors.policies import random_policy
from trainer import videos


def film(data):
    """Frames as uint8 [F, height, width, 3] and their durations in milliseconds."""
    with Image.open(io.BytesIO(data)) as image:
        frames, durations = [], []
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
        return np.stack(frames), durations


def ramp(count, height=50, width=100):
    """Every frame brighter than the one before."""
    return np.broadcast_to(np.linspace(0, 250, count)[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


def test_a_long_episode_is_thinned_evenly_between_its_ends():
    frames, durations = film(videos.encode(ramp(501), max_frames=11))
    assert len(frames) == 11
    assert np.abs(frames[:, 25, 50, 0].astype(int) - np.linspace(0, 250, 11)).max() < 8
    assert durations[-1] > durations[0] == 250


def test_a_short_episode_runs_slowly_and_a_long_one_fast():
    assert film(videos.encode(ramp(4), max_frames=90))[1] == [250, 250, 250, 1200]
    blinking = np.concatenate([ramp(2)] * 45)  # the encoder would merge frames that look alike
    assert film(videos.encode(blinking, max_frames=90))[1] == [67] * 89 + [1200]


def test_pictures_shrink_and_keep_their_shape():
    frames, _ = film(videos.encode(ramp(3, 200, 320), max_frames=90))
    assert frames.shape == (3, 100, 160, 3)


def test_noise_is_made_to_fit():
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 160, 3)).astype(np.uint8)
    assert len(videos.encode(noise, max_frames=90)) <= videos.MAX_BYTES


def test_record_videos_films_each_role_from_the_same_seed(tmp_path):
    task = registry.get("CartPole-v1")
    policies = {"generalist": random_policy(task), "specialist": random_policy(task)}
    for _ in range(2):  # again: replaced, not doubled
        entries = videos.record_videos(task, policies, 3, tmp_path)
    assert json.loads((tmp_path / "videos.json").read_text()) == entries
    assert [entry["file"] for entry in entries] == ["CartPole-v1-generalist.webp", "CartPole-v1-specialist.webp"]
    assert entries[0]["num_steps"] == entries[0]["episode_return"] == entries[1]["episode_return"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*(entry["file"] for entry in entries), "videos.json"]


class Blind(gymnasium.Wrapper):
    """Cannot be drawn."""

    def render(self):
        raise RuntimeError("no screen")


def test_what_cannot_be_drawn_is_a_line(tmp_path):
    task = registry.get("CartPole-v1")
    blind = dataclasses.replace(task, make_env=dataclasses.replace(task.make_env, wrappers=(Blind,)))
    with pytest.raises(RenderingUnavailable, match="no screen"):
        videos.record_video(blind, random_policy(task), 3, tmp_path / "a.webp")
    (entry,) = videos.record_videos(blind, {"generalist": random_policy(task)}, 3, tmp_path)
    assert entry["file"] is None
    assert entry["error"].startswith("CartPole-v1 cannot be drawn here (RuntimeError: no screen)")
    assert [path.name for path in tmp_path.iterdir()] == ["videos.json"]
