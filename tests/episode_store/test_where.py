"""Conditions: what they mean, and that nothing in them is ever run."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from episode_store.errors import UserError
from episode_store.where import Condition

TABLE = pa.table(
    {
        "task_id": ["A-v0", "B-v0", "meta/C-v1", "A-v0"],
        "num_steps": pa.array([10, 20, 30, 40], pa.int32()),
        "episode_return": [1.0, -2.5, 100.0, 0.0],
        "truncated": [True, False, False, True],
        "seed": pa.array([1, None, 3, 4], pa.int64()),
        "success": pa.array([True, None, False, None], pa.bool_()),
    }
)


def chosen(text: str, table: pa.Table = TABLE) -> list[int]:
    """Places of the rows that a condition chooses."""
    return [row for row, value in enumerate(Condition(text).mask(table).to_pylist()) if value]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("episode_return > 0.5", [0, 2]),
        ("episode_return > 0 and task_id == 'A-v0'", [0]),
        ("task_id == 'A-v0' or num_steps >= 30", [0, 2, 3]),
        ("not truncated", [1, 2]),
        ("truncated", [0, 3]),
        ("10 < num_steps <= 30", [1, 2]),
        ("task_id in ('A-v0', 'meta/C-v1')", [0, 2, 3]),
        ("num_steps not in [10, 40]", [1, 2]),
        ("seed in (1, 4)", [0, 3]),
        ("seed is None", [1]),
        ("None is not seed", [0, 2, 3]),
        ("seed == None", [1]),
        ("success == True", [0]),
        ("success != True", [2]),
        ("not success", [2]),
        ("success is None or not success", [1, 2, 3]),
        ("seed > 0 or num_steps == 20", [0, 1, 2, 3]),
        ("task_id.startswith('meta/')", [2]),
        ("task_id.endswith('-v0') and not task_id.contains('A')", [1]),
        ("task_id < 'B'", [0, 3]),
        ("'A-v0' == task_id", [0, 3]),
        ("task_id == task_id", [0, 1, 2, 3]),
        ("episode_return / num_steps > 3", [2]),
        ("num_steps / 3 > 3.3", [0, 1, 2, 3]),
        ("num_steps * 2 - 20 == -episode_return", [3, 0][:0]),
        ("num_steps + 2.5 == 22.5", [1]),
        ("-episode_return == 2.5", [1]),
        ("True", [0, 1, 2, 3]),
        ("1 > 2", []),
        (" num_steps\t>= 40 ", [3]),
    ],
)
def test_what_a_condition_chooses(text: str, rows: list[int]) -> None:
    """On plain columns and on texts as dictionaries alike."""
    assert chosen(text) == rows
    coded = TABLE.set_column(0, "task_id", TABLE["task_id"].dictionary_encode())
    halves = pa.concat_tables([coded.slice(0, 1), coded.slice(1)])
    assert chosen(text, halves) == rows


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "cannot be understood"),
        ("episode_return >", "cannot be understood: invalid syntax"),
        ("returns > 3", "'returns': no such column"),
        ("episode_retrun > 3", "no such column; did you mean 'episode_return'?"),
        ("num_steps", "expected something true or false, got a number"),
        ("num_steps == 'x'", "compares a number with a text"),
        ("truncated == 1", "compares True or False with a number"),
        ("seed > None", "None has no order"),
        ("seed is 3", "`is` compares with None only"),
        ("num_steps and truncated", "'num_steps': expected True or False, got a number"),
        ("task_id + 'x' == 'y'", "'task_id': expected a number, got a text"),
        ("task_id in 'abc'", "expected values in parentheses"),
        ("task_id in ()", "expected values in parentheses"),
        ("task_id in (1,)", "'1': expected a text, got a number"),
        ("num_steps ** 2 > 1", "is not allowed in a condition (BinOp)"),
        ("num_steps == 99999999999999999999", "is beyond 64 bits"),
        ("task_id.upper() == 'X'", "the functions are .startswith, .endswith, .contains"),
        ("task_id.startswith(task_id)", "expected one text in the brackets"),
        ("task_id.startswith('a', 1)", "expected one text in the brackets"),
        ("__import__('os').system('touch /tmp/x') == 0", "the functions are"),
        ("(lambda: 1)() == 1", "the functions are"),
        ("[x for x in (1,)] == 1", "is not allowed in a condition (ListComp)"),
        ("task_id.__class__ == 1", "is not allowed in a condition (Attribute)"),
        ("task_id[0] == 'A'", "is not allowed in a condition (Subscript)"),
        ("f'{task_id}' == 'A'", "is not allowed in a condition (JoinedStr)"),
        ("(num_steps := 3) == 3", "is not allowed in a condition (NamedExpr)"),
        ("b'x' == task_id", "is not allowed in a condition (bytes)"),
        ("truncated; truncated", "cannot be understood"),
        ("(" * 500 + "truncated" + ")" * 500, "cannot be understood"),
        ("not " * 2000 + "truncated", "cannot be understood: too deep"),
        ("-" * 3000 + "1 > 0", "cannot be understood"),
        ("truncated" + " " * 10_000, "expected at most 10000"),
        ("task_id == '\ud800'", "cannot be understood"),
        ("truncated\0", "cannot be understood"),
    ],
)
def test_what_is_no_condition(text: str, problem: str) -> None:
    """One line that says which part and why."""
    with pytest.raises(UserError) as caught:
        Condition(text).mask(TABLE)
    assert problem in str(caught.value)


def test_a_long_list_of_values_is_fine() -> None:
    """A thousand ids."""
    assert chosen(f"num_steps in ({', '.join(map(str, range(31, 1500)))})") == [3]


@given(text=st.text(max_size=60) | st.text("()[]{}'\"<>=!+-*/.,: abnotrue1_sed", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_condition_or_an_error(text: str) -> None:
    """Nothing else comes out."""
    try:
        mask = Condition(text).mask(TABLE)
    except UserError:
        return
    assert len(mask) == 4


@given(limit=st.floats(-200, 200), steps=st.integers(-50, 50), joined=st.sampled_from(["and", "or"]))
@settings(max_examples=60, deadline=None)
def test_numbers_mean_what_they_do_in_python(limit: float, steps: int, joined: str) -> None:
    """Against NumPy."""
    left = TABLE["episode_return"].to_numpy() >= limit
    right = TABLE["num_steps"].to_numpy() < steps
    expected = left & right if joined == "and" else left | right
    assert chosen(f"episode_return >= {limit!r} {joined} num_steps < {steps}") == np.flatnonzero(expected).tolist()
