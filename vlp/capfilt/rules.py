"""The language of rules, from an expression such as `itm >= 0.5 and words >= 3` to the SQL that says which texts stay.

    itm >= 0.5 and 3 <= words <= 40            comparisons of columns, numbers and strings; and, or, not; + - * /
    not duplicate and aspect <= 3              `duplicate` is true or false itself
    web(itm >= 0.5) or synthetic(top(itc, 0.3))    web(RULE) is `source == "web" and RULE`
    itm >= 0.5 and best(1)                     the best text of each image among those with itm >= 0.5
    itm + other.itm >= 1                       columns of other tables

A comparison with a value that is missing or not a number is false (and `not` of it true). Numbers are compared in
double precision. `top(score, share)` holds for the best share of all texts that have the score, of that source where
it stands inside web(...), human(...) or synthetic(...); texts that equal the last of them stay too. `best(n, by)`
keeps at most n texts an image, the best by a score (itm where none is named) among the texts that have it and satisfy
the rest of the same `and`; ties go by source, then caption_id. Nested `and`s count as one, with or without
parentheses, and so does a web(...) in an `and`; below an `or` or a `not` a new one begins.
"""

import ast
import difflib
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from fractions import Fraction

import pyarrow as pa

from vlp.data.score_tables import SCHEMA
from vlp.errors import UserError

SOURCES = ("web", "human", "synthetic")
LONGEST = 4000  # characters; what is nested deeper than SQL allows is longer
SPACES = "".join(letter for letter in map(chr, range(0x3001)) if letter.isspace())  # where Python splits words
COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "=", ast.NotEq: "<>"}
OPERATIONS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


@dataclass(frozen=True)
class Top:
    """One `top`: the SQL of its score, the share of the texts to keep, and the source it is about (None: all)."""

    score: str
    share: Fraction
    source: str | None


@dataclass
class Rules:
    """Rules as SQL over a relation that has file_index, file_row_number, key, source, caption_id and `columns`.

    Attributes:
        condition: whether a text stays; names the layers' columns, and the table `cuts(number, cut)`.
        layers: columns to add one upon the other, as (name, SQL).
        tops: the scores whose cuts the table `cuts` must hold, by their place in this list.
        columns: the SQL of each column that is named, by name.
    """

    condition: str = ""
    layers: list[tuple[str, str]] = field(default_factory=list)
    tops: list[Top] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)


def parse_rules(text: str, others: Collection[str] = ()) -> Rules:
    """Compile rules.

    Args:
        others: names of other tables, whose columns may be named as `NAME.column`.

    Raises:
        UserError: the text is no expression of this language; the sentence says where.
    """
    if not text.strip():
        raise UserError("The rules are empty; write an expression, such as itm >= 0.5.")
    if len(text) > LONGEST:
        raise UserError(f"The rules have {len(text)} characters; {LONGEST} are allowed.")
    try:
        tree = ast.parse(f"(\n{text}\n)", mode="eval")  # brackets, so that rules may have several lines
        return _Compiler(others).compile(tree.body)
    except SyntaxError as error:
        raise UserError(f"The rules {text[:80]!r} cannot be read: {error.msg}.") from None
    except (RecursionError, MemoryError, ValueError):  # the last: null bytes
        raise UserError(f"The rules {text[:80]!r} cannot be read: they are nested too deeply or no text.") from None


def quote(text: str) -> str:
    """A string of SQL."""
    return "'" + text.replace("'", "''") + "'"


def _known_columns() -> dict[str, tuple[str, str]]:
    """Kind ("text", "number" or "truth") and SQL of every column that a rule may name."""
    wider = "width / nullif(height, 0)"
    return {one.name: _stored(one.name, one.name) for one in SCHEMA} | {
        "words": ("number", f"len(regexp_extract_all(text, {quote(f'[^{SPACES}]+')}))::DOUBLE"),
        "aspect": ("number", f"CASE WHEN width > height THEN {wider} ELSE height / nullif(width, 0) END"),
        "shortest": ("number", "CASE WHEN width < height THEN width WHEN height <= width THEN height END::DOUBLE"),
        "duplicate": ("truth", "coalesce(duplicate, false)"),
    }


def _stored(column: str, name: str) -> tuple[str, str]:
    """Kind of a table's column, and SQL that reads it under a name."""
    if pa.types.is_string(SCHEMA.field(column).type):
        return "text", f'"{name}"'
    return "number", f"nullif(\"{name}\"::DOUBLE, 'nan'::DOUBLE)"


class _Compiler:
    """Walks the tree of an expression. Only what is named here passes; all else is refused."""

    def __init__(self, others: Collection[str]):
        self.others = others
        self.known = _known_columns()
        self.rules = Rules()

    def compile(self, tree: ast.expr) -> Rules:
        self.rules.condition = self.truth(tree, None)
        return self.rules

    def truth(self, node: ast.expr, within: str | None) -> str:
        """SQL that is true or false, never null; `within` is the source that the node speaks of."""
        parts: list[str] = []
        bests: list[tuple[ast.Call, str | None]] = []
        self._gather(node, within, parts, bests)
        if len(bests) > 1:
            raise UserError(f"Two best(...) stand in one `and`, {_said(node)}; one is allowed.")
        return _conjunction([*parts, *(self._best(call, where, parts) for call, where in bests)])

    def _gather(self, node: ast.expr, within: str | None, parts: list[str], bests: list) -> None:
        """Take an `and` apart: SQL of its parts, and its calls of best."""
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            for value in node.values:
                self._gather(value, within, parts, bests)
            return
        name = _called(node)
        if name in SOURCES:
            (rule,) = _arguments(node, f"{name}(RULE)", 1, 1)
            if within not in (None, name):
                raise UserError(f"{name}(...) stands inside {within}(...); no text is of both.")
            parts.append(f"source = '{name}'")
            self._gather(rule, name, parts, bests)
        elif name == "best":
            bests.append((node, within))
        else:
            parts.append(self._part(node, name, within))

    def _part(self, node: ast.expr, name: str, within: str | None) -> str:
        if isinstance(node, ast.BoolOp):
            return f"({' OR '.join(self.truth(value, within) for value in node.values)})"
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return f"(NOT {self.truth(node.operand, within)})"
        if isinstance(node, ast.Compare):
            return self._comparison(node)
        if name == "top":
            return self._top(node, within)
        if name:
            raise UserError(f"There is no {name}(...) in rules{_near(name, ('top', 'best', *SOURCES))}")
        kind, sql = self._value(node)
        if kind != "truth":
            raise UserError(f"{_said(node)} is a {kind}, not true or false; compare it, as in itm >= 0.5.")
        return sql

    def _comparison(self, node: ast.Compare) -> str:
        values, parts = [self._value(value) for value in (node.left, *node.comparators)], []
        for operator, (left, one), (right, other) in zip(node.ops, values, values[1:], strict=False):
            if left != right or left == "truth":
                raise UserError(f"{_said(node)} compares a {left} with a {right}; compare numbers, or texts.")
            sign = COMPARISONS.get(type(operator))
            if sign is None or (left == "text" and sign not in ("=", "<>")):
                allowed = "== and !=" if left == "text" else ", ".join(("<", "<=", ">", ">=", "==", "!="))
                raise UserError(f"{_said(node)} is not a comparison that rules know; a {left} takes {allowed}.")
            parts.append(f"coalesce({one} {sign} {other}, false)")
        return _conjunction(parts)

    def _top(self, node: ast.expr, within: str | None) -> str:
        score, share = _arguments(node, "top(SCORE, SHARE)", 2, 2)
        value = share.value if isinstance(share, ast.Constant) else None
        if type(value) not in (int, float) or not 0 < value <= 1:
            raise UserError(f"{_said(node)} needs a share above 0 and at most 1, as in top(itc, 0.3).")
        sql = self._number(score)
        self.rules.tops.append(Top(sql, Fraction(repr(value)), within))
        return f"coalesce({sql} >= (SELECT cut FROM cuts WHERE number = {len(self.rules.tops) - 1}), false)"

    def _best(self, node: ast.expr, within: str | None, rest: list[str]) -> str:
        """A window over the texts that satisfy the rest, in two columns of their own."""
        count, *by = _arguments(node, "best(N, SCORE)", 1, 2)
        value = count.value if isinstance(count, ast.Constant) else None
        if type(value) is not int or not 1 <= value < 2**31:
            raise UserError(f"{_said(node)} needs a whole number of texts from 1 on, as in best(1).")
        score = self._number(by[0] if by else ast.Name("itm"))
        number = len(self.rules.layers) // 2
        inside = [f"source = '{within}'"] if within else []
        self.rules.layers += [
            (f"rest{number}", _conjunction([*rest, *inside, f"{score} IS NOT NULL"])),
            (
                f"best{number}",
                f"rest{number} AND row_number() OVER (PARTITION BY file_index, key, rest{number} "
                f"ORDER BY {score} DESC, source, caption_id, file_row_number) <= {value}",
            ),
        ]
        return f"best{number}"

    def _number(self, node: ast.expr) -> str:
        kind, sql = self._value(node)
        if kind != "number":
            raise UserError(f"{_said(node)} is a {kind} where rules need a number.")
        return sql

    def _value(self, node: ast.expr) -> tuple[str, str]:
        """Kind and SQL of what stands in a comparison; a number may be null, and is never nan."""
        if isinstance(node, ast.Constant):
            return self._constant(node)
        if isinstance(node, ast.Name):
            return self._column(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            return self._other_column(node.value.id, node.attr)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
            left, right = self._number(node.left), self._number(node.right)
            divisor = f"nullif({right}, 0)" if isinstance(node.op, ast.Div) else right
            return "number", f"nullif({left} {OPERATIONS[type(node.op)]} {divisor}, 'nan'::DOUBLE)"
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            return "number", f"({'-' if isinstance(node.op, ast.USub) else '+'} {self._number(node.operand)})"
        raise UserError(f"{_said(node)} is not part of the language of rules.")

    def _constant(self, node: ast.Constant) -> tuple[str, str]:
        value = node.value
        if isinstance(value, str) and value.isprintable():
            return "text", quote(value)
        if type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value):
            return "number", f"'{float(value)!r}'::DOUBLE"
        raise UserError(f"{_said(node)} is neither a number nor a text that rules can hold.")

    def _column(self, name: str) -> tuple[str, str]:
        if name not in self.known:
            raise UserError(f"There is no column {name} in rules{_near(name, self.known)}")
        kind, self.rules.columns[name] = self.known[name]
        return kind, f'"{name}"'

    def _other_column(self, table: str, name: str) -> tuple[str, str]:
        if table not in self.others:
            raise UserError(f"There are no other tables {table}{_near(table, self.others)}")
        if name not in SCHEMA.names:
            raise UserError(f"There is no column {table}.{name} in rules{_near(name, SCHEMA.names)}")
        kind, self.rules.columns[f"{table}.{name}"] = _stored(name, f"{table}.{name}")
        return kind, f'"{table}.{name}"'


def _conjunction(parts: list[str]) -> str:
    return f"({' AND '.join(parts)})" if parts else "true"


def _called(node: ast.expr) -> str:
    """The name of the function that a node calls; "" for any other node."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def _arguments(node: ast.expr, form: str, least: int, most: int) -> list[ast.expr]:
    if node.keywords or not least <= len(node.args) <= most:
        raise UserError(f"{_said(node)} is not of the form {form}.")
    return node.args


def _said(node: ast.expr) -> str:
    text = " ".join(ast.unparse(node).split())
    return f"`{text if len(text) <= 80 else text[:77] + '...'}`"


def _near(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known) or 'none, as --also names none'}."
