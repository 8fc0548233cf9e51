"""Conditions over the episode table, as a user types them: a small part of Python's expressions, never run.

    episode_return > 100 and task_id == 'CartPole-v1'
    not truncated and num_steps < 50 or seed in (1, 2, 3)
    episode_return / num_steps >= 0.5 and agent_id.startswith('ppo')
    success is None

Names are columns. There are numbers, texts, True, False, None; `and or not`, comparisons (`a < b < c` too), `in`,
`is None`, `+ - * /`, and of texts `.startswith`, `.endswith`, `.contains`. As in SQL a comparison with a missing
value chooses nothing.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from episode_store.errors import UserError
from episode_store.layout import near
from episode_store.segment import INDEX_SCHEMA

MAX_CHARACTERS = 10_000
_MAX_DEPTH = 100

# What a part of a condition is for a table: a column of values, or one value.
_Values = Any
_Part = Callable[[pa.Table], _Values]

_NUMBER, _TEXT, _BOOL, _NULL = "a number", "a text", "True or False", "None"
_COMPARISONS: dict[type[ast.cmpop], Callable[..., _Values]] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}
_ARITHMETIC: dict[type[ast.operator], Callable[..., _Values]] = {
    ast.Add: pc.add,
    ast.Sub: pc.subtract,
    ast.Mult: pc.multiply,
    ast.Div: pc.divide,
}
_TEXT_METHODS: dict[str, Callable[..., Any]] = {
    "startswith": pc.starts_with,
    "endswith": pc.ends_with,
    "contains": pc.match_substring,
}


class Condition:
    """A parsed condition.

    Attributes:
      columns: the names in it.
    """

    def __init__(self, text: str) -> None:
        """Parses.

        Raises:
          UserError: it is not a condition; says where.
        """
        self._text = text
        if len(text) > MAX_CHARACTERS:
            raise UserError(f"condition: {len(text)} characters, expected at most {MAX_CHARACTERS}")
        self.columns: list[str] = []
        self._depth = 0
        try:
            tree = ast.parse(text.strip(), mode="eval").body
            self._part, kind = self._value(tree)
        except SyntaxError as error:
            raise UserError(f"condition {text!r}: cannot be understood: {error.msg}") from None
        except (RecursionError, MemoryError, ValueError, OverflowError):
            raise UserError(
                "condition: cannot be understood: too deep, or a character or number beyond bounds"
            ) from None
        if kind != _BOOL:
            raise UserError(f"condition {text!r}: expected something true or false, got {kind}")

    def mask(self, table: pa.Table) -> pa.ChunkedArray:
        """Which rows it chooses, as bools, null where a value is missing.

        Args:
          table: has `columns`; texts may be dictionaries, which are then compared once for each distinct text.

        Raises:
          UserError: the values cannot be compared after all.
        """
        try:
            result = self._part(table)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(f"condition {self._text!r}: {str(error).splitlines()[0]}") from None
        if isinstance(result, pa.Scalar):
            return pa.chunked_array([pa.repeat(result, table.num_rows)])
        return result

    def _fail(self, node: ast.AST, problem: str) -> UserError:
        part = ast.get_source_segment(self._text.strip(), node) or type(node).__name__
        return UserError(f"condition {self._text!r}: {part!r}: {problem}")

    def _value(self, node: ast.expr) -> tuple[_Part, str]:
        """The part a node stands for, and its kind."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise RecursionError
        try:
            return self._value_of(node)
        finally:
            self._depth -= 1

    def _value_of(self, node: ast.expr) -> tuple[_Part, str]:
        if isinstance(node, ast.Constant):
            return self._constant(node)
        if isinstance(node, ast.Name):
            return self._column(node)
        if isinstance(node, ast.BoolOp):
            join = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
            return _joined(join, [self._expect(part, _BOOL) for part in node.values]), _BOOL
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return _call(pc.invert, self._expect(node.operand, _BOOL)), _BOOL
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return _call(pc.negate, self._expect(node.operand, _NUMBER)), _NUMBER
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            # As numbers with a fraction: whole ones would be divided without rest.
            sides = [
                _call(functools.partial(pc.cast, target_type=pa.float64(), safe=False), self._expect(side, _NUMBER))
                for side in (node.left, node.right)
            ]
            return _call(_ARITHMETIC[type(node.op)], *sides), _NUMBER
        if isinstance(node, ast.Compare):
            left, parts = node.left, []
            for operator, right in zip(node.ops, node.comparators, strict=True):
                parts.append(self._comparison(node, left, operator, right))
                left = right
            return _joined(pc.and_kleene, parts), _BOOL
        if isinstance(node, ast.Call):
            return self._method(node), _BOOL
        raise self._fail(node, f"is not allowed in a condition ({type(node).__name__})")

    def _constant(self, node: ast.Constant) -> tuple[_Part, str]:
        value = node.value
        if value is None:
            return lambda table: pa.scalar(None), _NULL
        if isinstance(value, bool):
            kind = _BOOL
        elif isinstance(value, int | float):
            kind = _NUMBER
            if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
                raise self._fail(node, "is beyond 64 bits")
        elif isinstance(value, str):
            kind = _TEXT
        else:
            raise self._fail(node, f"is not allowed in a condition ({type(value).__name__})")
        scalar = pa.scalar(value)
        return lambda table: scalar, kind

    def _column(self, node: ast.Name) -> tuple[_Part, str]:
        name = node.id
        if name not in INDEX_SCHEMA.names:
            raise self._fail(node, f"no such column{near(name, INDEX_SCHEMA.names)}")
        if name not in self.columns:
            self.columns.append(name)
        stored = INDEX_SCHEMA.field(name).type
        kind = _TEXT if pa.types.is_string(stored) else _BOOL if pa.types.is_boolean(stored) else _NUMBER
        return lambda table: table[name], kind

    def _expect(self, node: ast.expr, kind: str) -> _Part:
        part, got = self._value(node)
        if got != kind:
            raise self._fail(node, f"expected {kind}, got {got}")
        return part

    def _comparison(self, node: ast.Compare, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> _Part:
        if isinstance(operator, ast.In | ast.NotIn):
            found = self._membership(left, right)
            return _call(pc.invert, found) if isinstance(operator, ast.NotIn) else found
        value, kind = self._value(left)
        other, other_kind = self._value(right)
        if isinstance(operator, ast.Is | ast.IsNot) and _NULL not in (kind, other_kind):
            raise self._fail(node, "`is` compares with None only; use ==")
        if _NULL in (kind, other_kind):
            if not isinstance(operator, ast.Eq | ast.NotEq | ast.Is | ast.IsNot):
                raise self._fail(node, "None has no order")
            test = pc.is_valid if isinstance(operator, ast.NotEq | ast.IsNot) else pc.is_null
            return _call(test, other if kind == _NULL else value)
        if kind != other_kind:
            raise self._fail(node, f"compares {kind} with {other_kind}")
        return _call(_COMPARISONS[type(operator)], value, other)

    def _membership(self, left: ast.expr, right: ast.expr) -> _Part:
        value, kind = self._value(left)
        if not isinstance(right, ast.Tuple | ast.List | ast.Set) or not right.elts:
            raise self._fail(right, "expected values in parentheses, such as (1, 2)")
        return _joined(pc.or_kleene, [_call(pc.equal, value, self._expect(element, kind)) for element in right.elts])

    def _method(self, node: ast.Call) -> _Part:
        method = node.func
        if not isinstance(method, ast.Attribute) or method.attr not in _TEXT_METHODS or node.keywords:
            raise self._fail(node, f"the functions are .{', .'.join(_TEXT_METHODS)} of a text, each of one text")
        if len(node.args) != 1 or not isinstance(node.args[0], ast.Constant) or not isinstance(node.args[0].value, str):
            raise self._fail(node, "expected one text in the brackets")
        function = functools.partial(_TEXT_METHODS[method.attr], pattern=node.args[0].value)
        return _call(function, self._expect(method.value, _TEXT))


def _call(function: Callable[..., Any], *parts: _Part) -> _Part:
    """The function of the parts' values."""
    return lambda table: _apply(function, [part(table) for part in parts])


def _apply(function: Callable[..., Any], values: list[_Values]) -> _Values:
    coded = [isinstance(value, pa.ChunkedArray) and pa.types.is_dictionary(value.type) for value in values]
    if sum(coded) == 1 and all(one or isinstance(value, pa.Scalar) for one, value in zip(coded, values, strict=True)):
        # A column of texts that repeat: once for each distinct text.
        place = coded.index(True)
        chunks = []
        for chunk in values[place].chunks:
            distinct = function(*values[:place], chunk.dictionary, *values[place + 1 :])
            chunks.append(distinct.take(chunk.indices))
        return pa.chunked_array(chunks, type=pa.bool_())
    return function(*(value.cast(pa.string()) if one else value for one, value in zip(coded, values, strict=True)))


def _joined(function: Callable[..., Any], parts: list[_Part]) -> _Part:
    """`and` or `or` of many parts, one after another."""

    def evaluate(table: pa.Table) -> _Values:
        result = parts[0](table)
        for part in parts[1:]:
            result = _apply(function, [result, part(table)])
        return result

    return evaluate
