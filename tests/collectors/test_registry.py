"""Finding tasks, and what is said when there is none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from collectors import registry
from collectors.seeds import Purpose, episode_seeds, place_of, purpose_of
from collectors.task import Environment, Task
from episode_store.errors import UserError


def test_get_suggests_near_names() -> None:
    with pytest.raises(UserError, match=r"^unknown task 'cartpole-v1': did you mean CartPole-v1 or CartPole-rgb-v1\?$"):
        registry.get("cartpole-v1")
    with pytest.raises(UserError, match=r"did you mean metaworld/reach-v3"):
        registry.get("reach-v3")
    with pytest.raises(UserError, match="unknown task 'qqqqqq': `collectors list` shows all"):
        registry.get("qqqqqq")


def test_find_takes_patterns_families_and_tags() -> None:
    assert len(registry.find(["metaworld/*"])) == 100  # each with its twin in pixels
    assert {task.family for task in registry.find(["toy_text"])} == {"toy_text"}
    assert {task.task_id for task in registry.find(["rgb"])} >= {
        "babyai/GoToRedBallGrey-rgb-v0",
        "minigrid/Empty-Random-5x5-rgb-v0",
    }
    assert len(registry.find(["Taxi-v4", "Taxi-v*"])) == 1
    assert registry.find(None) == registry.all_tasks()
    with pytest.raises(UserError, match="unknown task"):
        registry.find(["Taxi-v4", "nothing/*"])


def test_missing_package_names_the_extra() -> None:
    task = Task(
        task_id="no/Such-v0",
        family="no",
        make_env=Environment(env_id="Such-v0", module="no_such_package", extra="grid"),
    )
    with pytest.raises(
        UserError, match=r"Such-v0: no_such_package is not installed: pip install 'generalist-agent\[grid\]'"
    ):
        task.spec()


def test_the_catalogue_needs_no_environment_package() -> None:
    code = (
        "import sys; from collectors import registry; registry.all_tasks(); "
        "heavy = ('torch', 'stable_baselines3', 'gymnasium', 'mujoco', 'minigrid', 'metaworld'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_ranges_of_seeds_do_not_meet() -> None:
    for purpose in Purpose:
        seeds = episode_seeds(purpose, seed=3, count=1000)
        assert len(set(seeds)) == 1000
        assert {purpose_of(seed) for seed in seeds} == {purpose}
        assert all(0 <= seed < 2**31 for seed in seeds)
    assert episode_seeds(Purpose.TEST, seed=3, count=5, first=2) == episode_seeds(Purpose.TEST, seed=3, count=7)[2:]
    assert episode_seeds(Purpose.TEST, seed=3, count=5) != episode_seeds(Purpose.TEST, seed=4, count=5)
    for place in (0, 5, 999):
        (number,) = episode_seeds(Purpose.TRAIN, seed=3, count=1, first=place)
        assert place_of(number, Purpose.TRAIN, seed=3) == place
    assert purpose_of(7) is None
    assert purpose_of(None) is None
