import numpy as np

from episode_store.episode import Episode
from episode_store.spec import ArraySpec, Modality
from episode_store.task import TaskSpec
from tokenization.describe import describe
from tokenization.episode_tokenizer import EpisodeTokenizer
from tokenization.text import TextTokenizer

TEXT = ArraySpec(modality=Modality.TEXT, dtype="str")
TASK = TaskSpec(
    task_id="test/robot-v0",
    observation_spec={
        "state": ArraySpec(modality=Modality.CONTINUOUS, shape=(3,)),
        "cell": ArraySpec(modality=Modality.DISCRETE, shape=(1, 2), dtype="int64", low=(5, 0), num_values=(9, 9)),
        "camera": ArraySpec(modality=Modality.IMAGE, shape=(16, 32, 3), dtype="uint8"),
        "mission": TEXT,
    },
    action_spec={
        "action": ArraySpec(modality=Modality.DISCRETE, shape=(), dtype="int64", num_values=(4,)),
        "arm": ArraySpec(modality=Modality.CONTINUOUS, shape=(1,), low=(-1,), high=(1,)),
        "say": TEXT,
    },
)


def test_every_token_in_words(text: TextTokenizer) -> None:
    episode = Episode(
        task_id=TASK.task_id,
        observations={
            "state": np.array([[0.0312, -1.0, 300.0]] * 2, np.float32),
            "cell": np.array([[[7, 3]]] * 2),
            "camera": np.zeros((2, 16, 32, 3), np.uint8),
            "mission": ["the import"] * 2,
        },
        actions={"action": np.array([2]), "arm": np.array([[0.5]], np.float32), "say": ["of"]},
        rewards=np.zeros(1),
        terminated=True,
        truncated=False,
    )
    tokenizer = EpisodeTokenizer(TASK, text)
    descriptions = describe(tokenizer.encode(episode), tokenizer)
    assert [description.meaning for description in descriptions] == [
        "observation/mission 'the'",
        "observation/mission '▁import'",
        "observation/camera patch row 0 column 0",
        "observation/camera patch row 0 column 1",
        "observation/cell[0, 0] = 7",
        "observation/cell[0, 1] = 3",
        "observation/state[0] ~ 0.03127",
        "observation/state[1] ~ -0.9941",
        "observation/state[2] ~ 253.5",
        "separator",
        "action/say 'of'",
        "action/say end of text",
        "action = 2",
        "action/arm[0] ~ 0.501",
    ]
    assert [description.position for description in descriptions] == list(range(14))
    assert [description.local_position for description in descriptions] == [*range(10), -1, -1, -1, -1]
    assert [description.target for description in descriptions] == ["observation_text"] * 2 + ["none"] * 8 + [
        "action"
    ] * 4
    assert descriptions[2].token is None
    assert descriptions[4].token == 2
    assert descriptions[9].to_json() == {
        "position": 9,
        "timestep": 0,
        "token": 33_024,
        "meaning": "separator",
        "local_position": 9,
        "target": "none",
    }
    observation = {key: values[0] for key, values in episode.observations.items()}
    assert len(describe(tokenizer.encode_observation(observation), tokenizer)) == 10
