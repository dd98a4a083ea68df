"""Selection rules: compiles an expression such as `itm >= 0.5 and words >= 3` to SQL.

    itm >= 0.5 and 3 <= words <= 40            comparisons of columns, numbers and strings; and, or, not; + - * /
    not duplicate and aspect <= 3              `duplicate` is true or false
    web(itm >= 0.5) or synthetic(top(itc, 0.3))    web(RULE) means `source == "web" and RULE`
    itm >= 0.5 and best(1)                     the best text of each image among those with itm >= 0.5
    itm + other.itm >= 1                       columns of other tables
    laion.punsafe < 0.1                        such as those of imported tables, which have columns of their own

A comparison with a missing value or NaN is false (and its `not` true). Numbers are compared in double precision.
`top(score, share)` is true for the best share of all texts that have the score, or of one source's texts inside
web(...), human(...) or synthetic(...); ties with the last of them are included. `best(n, score)` keeps at most n texts
per image: the best by the score (itm by default) among those that have it and satisfy the rest of the same `and`.
Ties are broken by source, then by caption_id. Nested `and`s form one group, with or without parentheses, and web(...)
belongs to the group around it; `or` and `not` start a new group.
"""

import ast
import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from vlp.data.score_tables import SCHEMA, column_kind
from vlp.data.sql import quote, quote_name
from vlp.data.text_choice import SOURCES
from vlp.errors import UserError

LONGEST = 4000  # characters; shorter rules cannot nest deeper than duckdb allows
SPACES = "".join(letter for letter in map(chr, range(0x3001)) if letter.isspace())  # as in Python's str.split
COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "=", ast.NotEq: "<>"}
OPERATIONS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


@dataclass(frozen=True)
class Top:
    """One call of `top`: the SQL of its score, the share of texts to keep, and the source that it ranks (None: all)."""

    score: str
    share: Fraction
    source: str | None


@dataclass
class SelectionRules:
    """Rules as SQL over a relation with the columns file_index, file_row_number, key, source, caption_id and `columns`.

    Attributes:
        condition: true for the texts to keep; uses the columns of `layers` and the table `cuts(number, cut)`.
        layers: columns to add, as (name, SQL); each may use those before it.
        tops: the calls of `top`; the table `cuts` must hold the lowest score to keep for each, by its index here.
        columns: the SQL of each column that the rules use, by name.
    """

    condition: str = ""
    layers: list[tuple[str, str]] = field(default_factory=list)
    tops: list[Top] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)


def parse_rules(
    text: str, others: Mapping[str, Mapping[str, str]] | None = None, added: Mapping[str, str] | None = None
) -> SelectionRules:
    """Compile rules.

    Args:
        others: other tables, whose columns the rules may use as `NAME.column`: by name, the kind ("number" or "text")
            of each column that they have besides those of `SCHEMA`.
        added: the kinds of the columns that the score tables have besides those of `SCHEMA`.

    Raises:
        UserError: the text is not an expression of this language; the message quotes the part that is wrong.
    """
    if not text.strip():
        raise UserError("The rules are empty; write an expression, such as itm >= 0.5.")
    if len(text) > LONGEST:
        raise UserError(f"The rules have {len(text)} characters; at most {LONGEST} are allowed.")
    try:
        tree = ast.parse(f"(\n{text}\n)", mode="eval")  # parentheses allow line breaks
        return _Compiler(others or {}, added or {}).compile(tree.body)
    except SyntaxError as error:
        raise UserError(
            f"The rules {text[:80]!r} are not a valid expression: {_where(text, error)}; "
            "write one such as itm >= 0.5 and words < 30."
        ) from None
    except (RecursionError, MemoryError, ValueError):  # ValueError: null bytes
        raise UserError(
            f"The rules {text[:80]!r} are nested too deeply or contain null bytes; write a simpler expression."
        ) from None


def _where(text: str, error: SyntaxError) -> str:
    """What is wrong with a rule, and at which character."""
    lines, line = text.split("\n"), (error.lineno or 0) - 2  # the first line is a parenthesis
    inside = 0 <= line < len(lines) and 0 < (error.offset or 0) <= len(lines[line])
    place = (
        f"at its character {sum(len(one) + 1 for one in lines[:line]) + (error.offset or 0)}"
        if inside
        else "at its end"
    )
    return f"{error.msg.rstrip('.')} {place}"


def _known_columns() -> dict[str, tuple[str, str]]:
    """Kind ("text", "number" or "truth") and SQL of every column that rules may use."""
    wider = "width / nullif(height, 0)"
    return {one.name: (column_kind(one.type), _stored(column_kind(one.type), one.name)) for one in SCHEMA} | {
        "words": ("number", f"len(regexp_extract_all(text, {quote(f'[^{SPACES}]+')}))::DOUBLE"),
        "aspect": ("number", f"CASE WHEN width > height THEN {wider} ELSE height / nullif(width, 0) END"),
        "shortest": ("number", "CASE WHEN width < height THEN width WHEN height <= width THEN height END::DOUBLE"),
        "duplicate": ("truth", "coalesce(duplicate, false)"),
    }


def _stored(kind: str, name: str) -> str:
    """SQL that reads a column of a kind; a number is null instead of NaN."""
    return f"{quote_name(name)}::VARCHAR" if kind == "text" else f"nullif({quote_name(name)}::DOUBLE, 'nan'::DOUBLE)"


class _Compiler:
    """Compiles the syntax tree of an expression. Every kind of node that is not handled here is refused."""

    def __init__(self, others: Mapping[str, Mapping[str, str]], added: Mapping[str, str]):
        self.others = others
        self.known = {name: (kind, _stored(kind, name)) for name, kind in added.items()} | _known_columns()
        self.rules = SelectionRules()

    def compile(self, tree: ast.expr) -> SelectionRules:
        self.rules.condition = self.truth(tree, None)
        return self.rules

    def truth(self, node: ast.expr, within: str | None) -> str:
        """SQL that is true or false, never null; `within` is the source whose web(...) or the like encloses it."""
        parts: list[str] = []
        bests: list[tuple[ast.Call, str | None]] = []
        self._gather(node, within, parts, bests)
        if len(bests) > 1:
            raise UserError(f"{_quoted(node)} has two best(...) in one `and`; only one is allowed.")
        return _conjunction([*parts, *(self._best(call, where, parts) for call, where in bests)])

    def _gather(self, node: ast.expr, within: str | None, parts: list[str], bests: list) -> None:
        """Split an `and` group: append the SQL of its parts to `parts`, and its calls of best to `bests`."""
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            for value in node.values:
                self._gather(value, within, parts, bests)
            return
        name = _function_name(node)
        if name in SOURCES:
            (rule,) = _arguments(node, f"{name}(RULE)", 1, 1)
            if within not in (None, name):
                raise UserError(f"{name}(...) is inside {within}(...), but no text has both sources.")
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
            raise UserError(f"There is no {name}(...) in rules{_suggestion(name, ('top', 'best', *SOURCES))}")
        kind, sql = self._value(node)
        if kind != "truth":
            raise UserError(f"{_quoted(node)} is a {kind}, not true or false; compare it, as in itm >= 0.5.")
        return sql

    def _comparison(self, node: ast.Compare) -> str:
        values, parts = [self._value(value) for value in (node.left, *node.comparators)], []
        for operator, (left, one), (right, other) in zip(node.ops, values, values[1:], strict=False):
            if left != right or left == "truth":
                raise UserError(f"{_quoted(node)} compares a {left} with a {right}; both must be numbers or texts.")
            sign = COMPARISONS.get(type(operator))
            if sign is None or (left == "text" and sign not in ("=", "<>")):
                allowed = "== and !=" if left == "text" else ", ".join(("<", "<=", ">", ">=", "==", "!="))
                raise UserError(f"{_quoted(node)} is not a comparison that rules support; a {left} takes {allowed}.")
            parts.append(f"coalesce({one} {sign} {other}, false)")
        return _conjunction(parts)

    def _top(self, node: ast.expr, within: str | None) -> str:
        score, share = _arguments(node, "top(SCORE, SHARE)", 2, 2)
        value = share.value if isinstance(share, ast.Constant) else None
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
            raise UserError(f"{_quoted(node)} needs a share above 0 and at most 1, as in top(itc, 0.3).")
        sql = self._number(score)
        self.rules.tops.append(Top(sql, Fraction(repr(value)), within))
        return f"coalesce({sql} >= (SELECT cut FROM cuts WHERE number = {len(self.rules.tops) - 1}), false)"

    def _best(self, node: ast.expr, within: str | None, rest: list[str]) -> str:
        """Two columns: whether a text satisfies the rest of the `and`, and whether it is among the best of those."""
        count, *by = _arguments(node, "best(N, SCORE)", 1, 2)
        value = count.value if isinstance(count, ast.Constant) else None
        if type(value) is not int or not 1 <= value < 2**31:
            raise UserError(f"{_quoted(node)} needs a positive whole number of texts, as in best(1).")
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
            raise UserError(f"{_quoted(node)} is a {kind}, but rules need a number here.")
        return sql

    def _value(self, node: ast.expr) -> tuple[str, str]:
        """Kind and SQL of an operand of a comparison. A number may be null but is never NaN."""
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
        raise UserError(f"{_quoted(node)} is not allowed in rules.")

    def _constant(self, node: ast.Constant) -> tuple[str, str]:
        value = node.value
        if isinstance(value, str) and value.isprintable():
            return "text", quote(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
            return "number", f"'{float(value)!r}'::DOUBLE"
        raise UserError(f"{_quoted(node)} is not a number or text that rules can use.")

    def _column(self, name: str) -> tuple[str, str]:
        if name not in self.known:
            raise UserError(f"There is no column {name} in rules{_suggestion(name, self.known)}")
        kind, self.rules.columns[name] = self.known[name]
        return kind, f'"{name}"'

    def _other_column(self, table: str, name: str) -> tuple[str, str]:
        if table not in self.others:
            raise UserError(f"There are no tables named {table}{_suggestion(table, self.others)}")
        kinds = {**self.others[table], **{one.name: column_kind(one.type) for one in SCHEMA}}
        if name not in kinds:
            raise UserError(f"There is no column {table}.{name} in rules{_suggestion(name, kinds)}")
        self.rules.columns[f"{table}.{name}"] = _stored(kinds[name], f"{table}.{name}")
        return kinds[name], f'"{table}.{name}"'


def _conjunction(parts: list[str]) -> str:
    return f"({' AND '.join(parts)})" if parts else "true"


def _function_name(node: ast.expr) -> str:
    """The name of the function that a node calls; "" if it is not a call."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def _arguments(node: ast.expr, form: str, least: int, most: int) -> list[ast.expr]:
    if not isinstance(node, ast.Call) or node.keywords or not least <= len(node.args) <= most:
        raise UserError(f"{_quoted(node)} does not have the form {form}.")
    return node.args


def _quoted(node: ast.expr) -> str:
    text = " ".join(ast.unparse(node).split())
    return f"`{text if len(text) <= 80 else text[:77] + '...'}`"


def _suggestion(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known) or 'none; name tables with --also'}."
