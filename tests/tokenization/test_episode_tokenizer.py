import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from episode_store.episode import EXPLORATORY, Episode, EpisodeMetadata
from episode_store.errors import EpisodeError, UserError
from episode_store.spec import ArraySpec, FieldValues, Modality
from episode_store.task import TaskSpec
from episode_store.testing import random_episode
from tokenization import mu_law
from tokenization.episode_tokenizer import EpisodeTokenizer
from tokenization.text import TextTokenizer
from tokenization.timestep import ActionToken
from tokenization.token_sequence import observation_positions
from tokenization.vocabulary import PATCH_PLACEHOLDER

P = PATCH_PLACEHOLDER
TEXT = ArraySpec(modality=Modality.TEXT, dtype="str")


def make_episode(
    task: TaskSpec, observations: dict[str, FieldValues], actions: dict[str, FieldValues], **facts
) -> Episode:
    num_steps = len(next(iter(actions.values())))
    return Episode(
        task_id=task.task_id,
        observations=observations,
        actions=actions,
        rewards=np.ones(num_steps),
        terminated=True,
        truncated=False,
        **facts,
    )


CART_POLE = TaskSpec(
    task_id="CartPole-v1",
    observation_spec={"state": ArraySpec(modality=Modality.CONTINUOUS, shape=(4,))},
    action_spec={"action": ArraySpec(modality=Modality.DISCRETE, shape=(), dtype="int64", num_values=(2,))},
)


def test_a_whole_episode_written_out_by_hand() -> None:
    states = [[0.0, 1.0, -1.0, 0.1], [10.0, 256.0, -256.0, 300.0], [9.0, 9.0, 9.0, 9.0]]
    episode = make_episode(
        CART_POLE,
        {"state": np.array(states, np.float32)},
        {"action": np.array([1, 0])},
        metadata=EpisodeMetadata(agent_id="ppo"),
    )
    sequence = EpisodeTokenizer(CART_POLE).encode(episode)
    # The last observation has no action and no tokens.
    assert sequence.tokens.tolist() == [
        *[32_512, 32_744, 32_279, 32_632, 33_024, 1],
        *[32_860, 33_023, 32_000, 33_023, 33_024, 0],
    ]
    assert sequence.targets.tolist() == [0, 0, 0, 0, 0, 1] * 2
    assert sequence.timestep_offsets.tolist() == [0, 6, 12]
    assert observation_positions(sequence.tokens, sequence.timestep_offsets).tolist() == [0, 1, 2, 3, 4, -1] * 2
    assert (sequence.tokens.dtype, sequence.targets.dtype) == (np.uint16, np.uint8)
    assert sequence.timestep_offsets.dtype == np.int64
    assert (sequence.patches.shape, sequence.patch_index.shape) == ((0, 16, 16, 3), (0,))
    assert (sequence.task_id, sequence.agent_id, sequence.episode_return) == ("CartPole-v1", "ppo", 2.0)
    assert (sequence.returns_to_go.dtype, sequence.returns_to_go.tolist()) == (np.float32, [2.0, 1.0])
    assert sequence.content_hash == episode.content_hash()
    assert sequence.episode_id == episode.episode_id()


ROBOT = TaskSpec(
    task_id="test/robot-v0",
    observation_spec={
        "torques": ArraySpec(modality=Modality.CONTINUOUS, shape=(2,), dtype="float64", low=(-1, -1), high=(1, 1)),
        "camera": ArraySpec(modality=Modality.IMAGE, shape=(80, 64, 3), dtype="uint8"),
        "Zone": ArraySpec(modality=Modality.DISCRETE, shape=(2, 1), dtype="int32", low=(0, -5), num_values=(4, 10)),
        "mission": TEXT,
    },
    action_spec={
        "reply": TEXT,
        "arm": ArraySpec(modality=Modality.CONTINUOUS, shape=(2,), dtype="float32", low=(-1, 0), high=(1, 10)),
        "Grip": ArraySpec(modality=Modality.DISCRETE, shape=(), dtype="int64", num_values=(3,)),
    },
)


def robot_episode() -> Episode:
    camera = np.zeros((3, 80, 64, 3), np.uint8)
    camera[:, 32:48, 16:32] = 9  # patch 9 of every frame
    camera[1, 0:16, 0:16] = 7  # patch 0 of the second frame
    return make_episode(
        ROBOT,
        {
            "mission": ["the import", "the", "the import"],
            "camera": camera,
            "Zone": np.array([[[3], [-5]], [[0], [4]], [[0], [0]]], np.int32),
            "torques": np.array([[1.0, -1.0], [0.0, 10.0], [0.0, 0.0]]),
        },
        {
            "reply": ["", "of the"],
            "Grip": np.array([2, 1]),
            "arm": np.array([[-1.0, 10.0], [0.5, 0.0]], np.float32),
        },
        step_columns={EXPLORATORY: np.array([False, True])},
    )


def test_a_whole_timestep_written_out_by_hand(text: TextTokenizer) -> None:
    the, import_, of, space_the = (int(text.encode(word)[0]) for word in ("the", " import", "of", " the"))
    sequence = EpisodeTokenizer(ROBOT, text).encode(robot_episode())
    first = [
        *[the, import_],  # mission
        *[P] * 20,  # camera, 5 rows of 4 patches
        *[3, 0],  # Zone, upper case before lower; its second value starts at -5
        *[32_744, 32_279],  # torques: observations are always companded
        33_024,
        text.end_id,  # reply, an empty text: only its end
        2,  # Grip
        *[32_000, 33_023],  # arm: scaled from its bounds, not companded
    ]
    second = [the, *[P] * 20, 0, 9, 32_512, 32_860, 33_024, of, space_the, text.end_id, 1, 32_768, 32_000]
    assert sequence.tokens.tolist() == first + second
    assert sequence.timestep_offsets.tolist() == [0, len(first), len(first) + len(second)]
    # The second step was a disturbance: its action is no target, its text still is.
    assert sequence.targets.tolist() == [2, 2, *[0] * 25, 1, 1, 1, 1, 2, *[0] * 31]
    assert sequence.patch_index.tolist() == [0] * 9 + [1] + [0] * 10 + [2] + [0] * 8 + [1] + [0] * 10
    assert [int(patch.max()) for patch in sequence.patches] == [0, 9, 7]
    assert sequence.patch_intervals.shape == (40, 4)
    assert sequence.patch_intervals[9].tolist() == sequence.patch_intervals[29].tolist() == [51, 77, 32, 64]
    positions = observation_positions(sequence.tokens, sequence.timestep_offsets)
    assert positions.tolist() == [*range(27), -1, -1, -1, -1, *range(26), -1, -1, -1, -1, -1, -1]


def test_actions_come_back(text: TextTokenizer) -> None:
    tokenizer = EpisodeTokenizer(ROBOT, text)
    sequence = tokenizer.encode(robot_episode())
    action = tokenizer.decode_action(sequence.tokens[57:])
    assert action["reply"] == "of the"
    assert np.asarray(action["Grip"]).dtype == np.int64
    assert int(np.asarray(action["Grip"])) == 1
    assert np.asarray(action["arm"]).dtype == np.float32
    assert np.asarray(action["arm"]).tolist() == pytest.approx([0.5 + 1 / 1024, 10 / 2048])
    assert tokenizer.action_layout is None
    assert tokenizer.tokens_per_step is None


def test_text_that_was_cut_before_its_end(text: TextTokenizer) -> None:
    task = TaskSpec(task_id="chat-v0", observation_spec={"text": TEXT}, action_spec={"text": TEXT})
    tokenizer = EpisodeTokenizer(task, text)
    ids = text.encode("of the import")
    assert tokenizer.decode_action(ids) == {"text": "of the import"}
    assert tokenizer.decode_action([*ids, text.end_id]) == {"text": "of the import"}


def test_action_layout() -> None:
    tokenizer = EpisodeTokenizer(CART_POLE)
    assert tokenizer.action_layout == (ActionToken(field="action", element=0, low=0, high=2),)
    assert tokenizer.tokens_per_step == 6


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([2], r"action of CartPole-v1: action\[0\]: expected an id in \[0, 2\), got 2"),
        ([33_024], r"action of CartPole-v1: action\[0\]: expected an id in \[0, 2\), got 33024"),
        ([], "action of CartPole-v1: expected 1 tokens, got 0"),
        ([1, 1], "action of CartPole-v1: expected 1 tokens, got 2"),
    ],
)
def test_tokens_that_are_no_action(ids: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        EpisodeTokenizer(CART_POLE).decode_action(np.array(ids))


def test_one_observation_has_the_tokens_of_the_episode_up_to_the_separator(text: TextTokenizer) -> None:
    tokenizer = EpisodeTokenizer(ROBOT, text)
    episode = robot_episode()
    whole = tokenizer.encode(episode)
    observations = [{key: values[step] for key, values in episode.observations.items()} for step in range(2)]
    one = tokenizer.encode_observation(observations[1])
    assert one.tokens.tolist() == whole.tokens[31:57].tolist()
    assert one.targets.tolist() == whole.targets[31:57].tolist()
    assert one.num_steps == 1
    assert np.array_equal(one.patches[one.patch_index], whole.patches[whole.patch_index[20:]])
    assert np.array_equal(one.patch_intervals, whole.patch_intervals[20:])
    both = tokenizer.encode_observations(observations)
    assert both.timestep_offsets.tolist() == [0, 27, 53]
    assert both.window(1, 2).tokens.tolist() == one.tokens.tolist()
    scalars = EpisodeTokenizer(
        TaskSpec(
            task_id="lake-v0",
            observation_spec={"cell": ArraySpec(modality=Modality.DISCRETE, dtype="int64", num_values=(16,))},
            action_spec={},
        )
    )
    assert scalars.encode_observation({"cell": 7}).tokens.tolist() == [7, 33_024]


def test_images_of_several_fields_follow_each_other_in_every_timestep() -> None:
    small = ArraySpec(modality=Modality.IMAGE, shape=(16, 16, 1), dtype="uint8")
    wide = ArraySpec(modality=Modality.IMAGE, shape=(10, 30, 3), dtype="uint8")
    task = TaskSpec(task_id="eyes-v0", observation_spec={"b": small, "a": wide}, action_spec=CART_POLE.action_spec)
    left, right = np.full((3, 10, 30, 3), 1, np.uint8), np.full((3, 16, 16, 1), 2, np.uint8)
    episode = make_episode(task, {"a": left, "b": right}, {"action": np.array([0, 1])})
    sequence = EpisodeTokenizer(task).encode(episode)
    assert sequence.tokens.tolist() == [P, P, P, 33_024, 0, P, P, P, 33_024, 1]
    assert [int(sequence.patches[row].max()) for row in sequence.patch_index] == [1, 1, 2] * 2
    assert sequence.patch_index.tolist() == [0, 1, 2] * 2
    assert sequence.patch_intervals.tolist() == [[0, 128, 0, 64], [0, 128, 64, 128], [0, 128, 0, 128]] * 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_refused_with_its_place(bad: float) -> None:
    states = np.zeros((4, 4), np.float32)
    states[2, 3] = bad
    episode = make_episode(CART_POLE, {"state": states}, {"action": np.array([0, 1, 1])})
    with pytest.raises(EpisodeError) as error:
        EpisodeTokenizer(CART_POLE).encode(episode)
    assert str(error.value) == (
        f"episode of CartPole-v1: observations/state: step 2, element (3,): expected a finite number, got {bad}"
    )


def test_other_broken_episodes() -> None:
    tokenizer = EpisodeTokenizer(CART_POLE)
    actions = {"action": np.array([0, 1])}
    with pytest.raises(EpisodeError, match=r"observations/state: expected shape \(2, 4\), got \(3, 5\)"):
        tokenizer.encode(make_episode(CART_POLE, {"state": np.zeros((3, 5))}, actions))
    with pytest.raises(EpisodeError, match=r"observations: expected a field 'state', got \['pixels'\]"):
        tokenizer.encode(make_episode(CART_POLE, {"pixels": np.zeros((3, 5))}, actions))
    with pytest.raises(EpisodeError, match=r"actions/action: step 1, element 0: expected a value in \[0, 2\), got 2"):
        tokenizer.encode(make_episode(CART_POLE, {"state": np.zeros((3, 4))}, {"action": np.array([0, 2])}))
    with pytest.raises(EpisodeError, match="episode of test/robot-v0: expected task CartPole-v1"):
        tokenizer.encode(robot_episode())


def test_text_needs_a_model(text: TextTokenizer) -> None:
    with pytest.raises(UserError, match=r"task test/robot-v0: fields \['mission', 'reply'\] are text: expected a text"):
        EpisodeTokenizer(ROBOT)


def test_a_tokenizer_travels_by_pickle(text: TextTokenizer) -> None:
    tokenizer = pickle.loads(pickle.dumps(EpisodeTokenizer(ROBOT, text)))  # noqa: S301
    assert tokenizer.encode(robot_episode()).num_tokens == 63


SPECS = st.one_of(
    st.just(TEXT),
    st.builds(
        lambda shape, dtype: ArraySpec(modality=Modality.CONTINUOUS, shape=tuple(shape), dtype=dtype),
        st.lists(st.integers(0, 3), max_size=3),
        st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int64"]),
    ),
    st.builds(
        lambda count, low, width: ArraySpec(
            modality=Modality.CONTINUOUS,
            shape=(count,),
            dtype="float64",
            low=(low,) * count,
            high=(low + width,) * count,
        ),
        st.integers(1, 4),
        st.floats(-100, 100),
        st.floats(0.01, 100),
    ),
    st.builds(
        lambda sizes, start: ArraySpec(
            modality=Modality.DISCRETE,
            shape=(len(sizes),),
            dtype="int64",
            low=(start,) * len(sizes),
            num_values=tuple(sizes),
        ),
        st.lists(st.integers(1, 1024), min_size=1, max_size=4),
        st.integers(-1000, 1000),
    ),
)
IMAGES = st.builds(
    lambda height, width, channels: ArraySpec(modality=Modality.IMAGE, shape=(height, width, channels), dtype="uint8"),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 3]),
)
KEYS = st.text("abAB/_0", min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(KEYS, SPECS | IMAGES, max_size=4),
    st.dictionaries(KEYS, SPECS, max_size=3),
    st.integers(1, 6),
    st.integers(0, 1 << 32),
)
def test_property_any_task_tokenizes_and_its_actions_come_back(
    text: TextTokenizer, observation: dict[str, ArraySpec], action: dict[str, ArraySpec], num_steps: int, seed: int
) -> None:
    task = TaskSpec(task_id="any-v0", observation_spec=observation, action_spec=action)
    episode = random_episode(task, np.random.default_rng(seed), num_steps, exploratory=True)
    episode.validate(task)
    tokenizer = EpisodeTokenizer(task, text)
    sequence = tokenizer.encode(episode)
    assert len(sequence.targets) == sequence.num_tokens == sequence.timestep_offsets[-1]
    assert sequence.num_steps == num_steps
    assert int((sequence.tokens == P).sum()) == len(sequence.patch_index) == len(sequence.patch_intervals)
    allowed = (sequence.tokens <= 33_024) | (sequence.tokens == P)
    assert allowed.all()
    assert sequence.tokens.tolist() == tokenizer.encode(episode).tokens.tolist()
    for step in range(num_steps):
        tokens = sequence.tokens[sequence.timestep_offsets[step] : sequence.timestep_offsets[step + 1]]
        (separator,) = np.flatnonzero(tokens == 33_024)
        one = tokenizer.encode_observation({key: values[step] for key, values in episode.observations.items()})
        assert one.tokens.tolist() == tokens[: separator + 1].tolist()
        decoded = tokenizer.decode_action(tokens[separator + 1 :])
        for key, spec in task.action_spec.items():
            assert_within_half_a_bin(decoded[key], episode.actions[key][step], spec)


def assert_within_half_a_bin(decoded: np.ndarray | str, original: np.ndarray | str, spec: ArraySpec) -> None:
    if spec.modality != Modality.CONTINUOUS:
        assert np.array_equal(decoded, original)
        return
    assert isinstance(decoded, np.ndarray)
    assert decoded.dtype == np.dtype(spec.dtype)
    assert decoded.shape == spec.shape
    value, truth = decoded.astype(np.float64).reshape(-1), np.asarray(original).astype(np.float64).reshape(-1)
    if spec.is_bounded:
        assert (np.abs(value - truth) <= (np.array(spec.high) - np.array(spec.low)) / 2048 * (1 + 1e-6)).all()
    elif decoded.dtype.kind == "f":
        ulp = 1e-3 if spec.dtype == "float16" else 1e-6  # of the dtype that the centre was cast to
        assert (np.abs(mu_law.encode(value) - mu_law.encode(truth)) <= 1 / 1024 + ulp).all()
    else:
        # Half a bin and the rounding to a whole number, both around the value.
        width = (np.abs(truth) + 0.01) * (np.exp(mu_law.LOG_RANGE / 1024) - 1)
        assert (np.abs(value - np.clip(truth, -256, 256)) <= width * 1.02 + 0.5).all()
