import pytest

from episode_store.errors import UserError
from episode_store.spec import ArraySpec, Modality
from episode_store.task import TaskSpec
from tokenization.timestep import ActionToken, TimestepLayout

TEXT = ArraySpec(modality=Modality.TEXT, dtype="str")
FLOATS = ArraySpec(modality=Modality.CONTINUOUS, shape=(2,))
IMAGE = ArraySpec(modality=Modality.IMAGE, shape=(40, 16, 3), dtype="uint8")


def discrete(*num_values: int) -> ArraySpec:
    return ArraySpec(modality=Modality.DISCRETE, shape=(len(num_values),), dtype="int64", num_values=num_values)


def task(observation: dict[str, ArraySpec], action: dict[str, ArraySpec]) -> TaskSpec:
    return TaskSpec(task_id="ns/task-v0", observation_spec=observation, action_spec=action)


def test_kinds_in_order_and_keys_in_lexicographic_order_inside_each() -> None:
    observation = {"z": TEXT, "b": FLOATS, "a/x": discrete(3), "y": IMAGE, "B": FLOATS, "a": TEXT, "c": IMAGE}
    layout = TimestepLayout.of(task(observation, {"say": TEXT, "move": FLOATS, "jump": discrete(2)}))
    assert layout.observation_text == ("a", "z")
    assert layout.observation_images == (("c", (3, 1)), ("y", (3, 1)))
    assert layout.observation_tensors == ("B", "a/x", "b")
    assert layout.action_text == ("say",)
    assert layout.action_tensors == ("jump", "move")
    assert layout.num_patches == 6
    assert layout.num_observation_values == 5
    assert layout.num_fixed_tokens == 6 + 5 + 1 + 3
    assert layout.has_text


def test_valid_ids_of_action_tokens() -> None:
    layout = TimestepLayout.of(task({}, {"steer": FLOATS, "gear": discrete(6, 2)}))
    assert layout.action_tokens == (
        ActionToken(field="gear", element=0, low=0, high=6),
        ActionToken(field="gear", element=1, low=0, high=2),
        ActionToken(field="steer", element=0, low=32_000, high=33_024),
        ActionToken(field="steer", element=1, low=32_000, high=33_024),
    )


def test_discrete_spaces_of_1024_values_fit_and_one_more_does_not() -> None:
    TimestepLayout.of(task({"cell": discrete(1024)}, {"action": discrete(1024)}))
    with pytest.raises(UserError) as error:
        TimestepLayout.of(task({"cell": discrete(5, 1025)}, {}))
    assert str(error.value) == (
        "task ns/task-v0: observations/cell: expected a discrete space of at most 1024 values, got 1025; "
        "split it into several fields, or declare it continuous"
    )
    with pytest.raises(UserError, match="task ns/task-v0: actions/action: expected a discrete space of at most 1024"):
        TimestepLayout.of(task({}, {"action": discrete(1025)}))


def test_images_that_have_no_patches() -> None:
    four = ArraySpec(modality=Modality.IMAGE, shape=(8, 8, 4), dtype="uint8")
    with pytest.raises(UserError, match=r"observations/frames: expected an image of shape \(height, width, 1 or 3\)"):
        TimestepLayout.of(task({"frames": four}, {}))
    varying = ArraySpec(modality=Modality.IMAGE, shape=(-1, -1, 3), dtype="uint8")
    with pytest.raises(UserError, match=r"observations/frames: its images vary in size, .* scale or pad them"):
        TimestepLayout.of(task({"frames": varying}, {}))
    with pytest.raises(UserError, match="actions/draw: expected text or numbers, got an image"):
        TimestepLayout.of(task({}, {"draw": IMAGE}))
