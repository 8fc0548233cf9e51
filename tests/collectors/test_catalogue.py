"""Every task of the catalogue keeps its promises, whoever made its environment.

`make test-catalogue-sample` runs some tasks, every day others and at least one of each family; `make test-catalogue`
runs all, remembers in a file which ones passed, and goes on there when it is run again. Both need every family.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit

from collectors import catalogue, registry, spaces
from collectors.policies import random_policy
from collectors.rollout import random_value, rollout
from collectors.task import Environment, Task
from episode_store.errors import UserError
from episode_store.spec import Modality
from episode_store.store import EpisodeStore
from episode_store.writer import EpisodeWriter
from tokenization.episode_tokenizer import EpisodeTokenizer
from tokenization.text import TextTokenizer

ROOT = Path(__file__).parents[2]
ALL = [task for task in registry.all_tasks() if not task.is_corpus]
STEPS = 200
# Drawing costs up to a second a frame without a GPU; what pixels add to a task is seen in fewer steps.
PIXEL_STEPS = 20
SAMPLE = 24


def sample(day: datetime.date) -> list[Task]:
    """Tasks of a day: one of each family, and some of all; every day others."""
    rng = np.random.default_rng(day.toordinal())
    families = {task.family: [other for other in ALL if other.family == task.family] for task in ALL}
    chosen = [members[int(rng.integers(len(members)))] for _, members in sorted(families.items())]
    chosen += [ALL[int(place)] for place in rng.choice(len(ALL), SAMPLE - len(chosen), replace=False)]
    return list({task.task_id: task for task in chosen}.values())


def whole_catalogue() -> list[Task]:
    """What `make test-catalogue` still has to do: CATALOGUE names the file of those that passed, CATALOGUE_TASKS and
    CATALOGUE_SHARD="1/4" choose among them."""
    passed = set(Path(os.environ["CATALOGUE"]).read_text().split()) if Path(os.environ["CATALOGUE"]).exists() else set()
    patterns = os.environ.get("CATALOGUE_TASKS", "").split() or None
    shard, shards = (int(number) for number in os.environ.get("CATALOGUE_SHARD", "1/1").split("/"))
    tasks = [task for task in registry.find(patterns) if not task.is_corpus]
    return [task for task in tasks[shard - 1 :: shards] if task.task_id not in passed]


def remember(task: Task) -> None:
    if "CATALOGUE" in os.environ:
        with open(os.environ["CATALOGUE"], "a") as passed:
            passed.write(f"{task.task_id}\n")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    lines = [f"go to the {colour} {thing}" for colour in ("red", "grey", "blue") for thing in ("ball", "key", "door")]
    path = tmp_path_factory.mktemp("text") / "text.model"
    TextTokenizer.train(lines * 4, path, num_pieces=512)
    return TextTokenizer(path.read_bytes())


def check(task: Task, folder: Path, words: TextTokenizer) -> None:
    """The whole contract of a task."""
    steps = PIXEL_STEPS if task.make_env and task.make_env.pixels and task.variant_of else STEPS
    env = task.environment()
    try:
        first, again, other = (walk(env, seed, steps) for seed in (3, 3, 4))
        assert_same(first, again)
        assert len(other) > 1
        limited = TimeLimit(env, steps)
        (episode,) = rollout(task, random_policy(task), seeds=[5], environments=[limited])
    finally:
        env.close()
    spec = task.spec()
    episode.validate(spec)
    assert catalogue.spaces()[task.task_id] == catalogue.measure(task)
    with EpisodeWriter(folder) as writer:
        writer.add_task(spec)
        writer.add_episode(episode)
    store = EpisodeStore.open(folder)
    (episode_id,) = store.episode_ids
    read = store.read(episode_id)
    assert read.content_hash() == episode.content_hash()
    tokenizer = EpisodeTokenizer(spec, words if catalogue.spaces()[task.task_id].has_text else None)
    sequence = tokenizer.encode(read)
    for step in (0, read.num_steps - 1):
        tokens = sequence.tokens[sequence.timestep_offsets[step] : sequence.timestep_offsets[step + 1]]
        decoded = tokenizer.decode_action(tokens[len(tokens) - len(tokenizer.action_layout or ()) :])
        for key, values in decoded.items():
            field, taken = spec.action_spec[key], read.actions[key][step]
            if field.modality == Modality.DISCRETE:
                np.testing.assert_array_equal(values, taken)
            else:
                # A bin is 1/512 of half the range wide.
                width = np.subtract(field.high, field.low) / 1024 if field.is_bounded else np.inf
                assert (np.abs(np.ravel(values) - np.ravel(taken)) <= width + 1e-6).all()
        env_action = spaces.unflatten_action(env.action_space, decoded)
        assert env.action_space.contains(env_action)


def walk(env, seed: int, steps: int) -> list[tuple]:
    """(observation, reward, ended) of each step of random actions, over as many episodes as fit."""
    rng = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    assert env.observation_space.contains(observation)
    trace = [(observation, 0.0, False)]
    for step in range(steps):
        observation, reward, terminated, truncated, _ = env.step(random_value(env.action_space, rng))
        assert env.observation_space.contains(observation), f"step {step}"
        assert np.isfinite(reward)
        trace.append((observation, reward, terminated or truncated))
        if terminated or truncated:
            observation, _ = env.reset(seed=seed + step)
    return trace


def assert_same(left: list[tuple], right: list[tuple]) -> None:
    assert len(left) == len(right)
    for (one, reward, ended), (two, reward_again, ended_again) in zip(left, right, strict=True):
        assert (reward, ended) == (reward_again, ended_again)
        for key, value in flat(one).items():
            np.testing.assert_array_equal(value, flat(two)[key], err_msg=key)


def flat(observation, name: str = "") -> dict:
    if isinstance(observation, dict):
        return {k: v for key, value in observation.items() for k, v in flat(value, f"{name}/{key}").items()}
    if isinstance(observation, tuple):
        return {k: v for place, value in enumerate(observation) for k, v in flat(value, f"{name}/{place}").items()}
    return {name: observation}


@pytest.mark.catalogue
@pytest.mark.parametrize(
    "task", [] if "CATALOGUE" in os.environ else sample(datetime.date.today()), ids=lambda task: task.task_id
)
def test_sample_keeps_the_contract(task: Task, tmp_path: Path, words: TextTokenizer) -> None:
    check(task, tmp_path / "store", words)
    draw_once(task)


@pytest.mark.catalogue
@pytest.mark.parametrize("task", whole_catalogue() if "CATALOGUE" in os.environ else [], ids=lambda task: task.task_id)
def test_every_task_keeps_the_contract(task: Task, tmp_path: Path, words: TextTokenizer) -> None:
    check(task, tmp_path / "store", words)
    draw_once(task)
    remember(task)


def draw_once(task: Task) -> None:
    """A picture, where the task has a twin in pixels or is seen as pixels."""
    is_seen = any(other.variant_of == task.task_id and "rgb" in other.tags for other in ALL)
    if not is_seen:
        return
    env = task.environment(render_mode="rgb_array")
    try:
        env.reset(seed=1)
        picture = env.render()
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.std() > 0
    finally:
        env.close()


def test_more_than_604_tasks_are_counted_once_each() -> None:
    number = catalogue.counts(registry.all_tasks())
    assert number["total"]["counted"] > 870
    assert number["total"]["counted"] == sum(catalogue.is_counted(task) for task in registry.all_tasks())
    known = {task.task_id: task for task in registry.all_tasks()}
    for task in known.values():
        if task.variant_of:
            assert catalogue.is_counted(known[task.variant_of]), task.task_id
    # What is counted is made differently from every other task that is counted.
    made = [(str(task.make_env.to_json()), task.family) for task in ALL if catalogue.is_counted(task) and task.make_env]
    assert len(set(made)) == len(made)


def test_every_task_has_its_spaces_kept() -> None:
    lacking = [task.task_id for task in ALL if task.task_id not in catalogue.spaces()]
    assert lacking == []
    gone = set(catalogue.spaces()) - {task.task_id for task in ALL}
    assert gone == set()


def test_tokens_by_hand() -> None:
    known = catalogue.spaces()
    assert known["CartPole-v1"].tokens_per_step == 4 + 1 + 1
    assert known["Humanoid-v5"].tokens_per_step == 348 + 1 + 17
    assert known["atari/Pong-v5"].tokens_per_step == 20 + 1 + 1
    assert known["babyai/GoToObj-v0"].tokens == "52 + words"  # 49 cells, a direction, the separator, an action


def test_pixels_are_multiples_of_a_patch() -> None:
    for task in ALL:
        if task.make_env and task.make_env.pixels:
            assert all(side % 16 == 0 for side in task.make_env.pixels), task.task_id


def test_the_documented_table_is_the_catalogue() -> None:
    page = (ROOT / "docs" / "catalogue.md").read_text()
    table = page.partition("<!-- catalogue -->\n")[2].partition("<!-- /catalogue -->")[0]
    assert table == catalogue.markdown(registry.all_tasks())


def test_extras_exist_and_are_what_the_families_name() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {task.make_env.extra for task in ALL if task.make_env} <= set(extras)


def blocked_packages() -> Iterator[tuple[str, str, str]]:
    for family in sorted({task.family for task in ALL}):
        task = next(task for task in ALL if task.family == family)
        assert task.make_env
        if task.make_env.extra not in ("collect", "toy"):
            yield family, task.task_id, task.make_env.extra


@pytest.mark.slow
@pytest.mark.parametrize(("family", "task_id", "extra"), blocked_packages())
def test_a_family_without_its_package_names_its_extra(family: str, task_id: str, extra: str, tmp_path: Path) -> None:
    blocked = ("ale_py", "Box2D", "dm_control", "envpool", "gymnasium_robotics", "metaworld", "minigrid", "mujoco")
    blocked = (*blocked, "robosuite")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r})); "
        "from collectors.cli import main; "
        f"sys.exit(main(['collect', '--agent', 'random', '--tasks', {task_id!r}, '--store', sys.argv[1]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert f"pip install 'generalist-agent[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_libraries_of_the_system_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Environment(env_id="BigfishEasy-v0", package="envpool", module="broken_for_the_test", extra="procgen")

    def fail(name: str) -> None:
        if name == "broken_for_the_test":
            raise ImportError("libQt5Gui.so.5: cannot open; on Debian: apt-get install libqt5gui5")

    monkeypatch.setattr("collectors.task.importlib.import_module", fail)
    with pytest.raises(UserError, match=r"envpool is installed but cannot be loaded .*apt-get install libqt5gui5"):
        environment()


@pytest.mark.slow
def test_listing_imports_no_environment() -> None:
    code = (
        "import sys; from collectors.cli import main; main(['list', '--json']); "
        "heavy = 'torch gymnasium mujoco minigrid metaworld ale_py dm_control robosuite envpool'.split(); "
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    assert len(json.loads(done.stdout)) == len(registry.all_tasks())
