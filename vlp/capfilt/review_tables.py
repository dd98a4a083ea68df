"""Score tables in memory for review: counts of a rule in a fraction of a second, and rows in a chosen order."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from keyword import iskeyword
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pyarrow as pa

from vlp.capfilt.query import DUPLICATES, layered, lowest_kept, other_tables, texts_sql
from vlp.capfilt.rules import SPACES, SelectionRules, Top, parse_rules
from vlp.data.find_tables import ScoreTable, added_columns, find_tables
from vlp.data.score_tables import is_readable
from vlp.data.sql import connect, parquet_files, quote, quote_name
from vlp.data.text_choice import SOURCES
from vlp.errors import UserError, WorkError
from vlp.extras import extra
from vlp.files import remove

with extra("capfilt"):
    import duckdb

ORDERS = ("sample", "near", "above", "below", "highest", "lowest", "disagreement")
SCORES = ("itm", "itc", "clip", "nll")
LOWER_IS_BETTER = ("nll",)
LOADED = ("itm", "itc", "clip", "nll", "tokens")  # columns read at the start
LISTED = 1000  # rows of an order
FEW = 20  # labels
MOST_RULES = 1000  # compiled rules in memory
WORDED = f"trim(text, {quote(SPACES)}) <> ''"
ROW_BITS = 32  # of a row's id, below the number of its table
KEY_COLUMNS = "SELECT id, image, 0 AS file_index, image AS key, source, caption_id, id AS file_row_number"
TEXT_KEY_COLUMNS = "SELECT id, image, file_index, key, source, caption_id, id AS file_row_number"


@dataclass(frozen=True)
class RowOrder:
    """An order in which rows are shown.

    Attributes:
        kind: one of `ORDERS`: "sample" is random; "near", "above" and "below" start at the threshold; "disagreement"
            starts with the largest difference between the ranks of two scores.
        score: the column to sort by.
        threshold: of `score`.
        source: the source of the texts; empty: all.
        second: the other score of a disagreement.
        seed: of the random sample.
    """

    kind: str = "sample"
    score: str = "itm"
    threshold: float = 0.5
    source: str = ""
    second: str = ""
    seed: int = 0

    def name(self) -> str:
        """The order as a label records it: its kind, and the columns that it sorts by."""
        if self.kind == "sample":
            return "sample"
        return " ".join([self.kind, self.score, *([self.second] if self.kind == "disagreement" else [])])


@dataclass
class RuleCounts:
    """What a rule keeps. `texts` and `all_texts` are by source, and leave out empty texts."""

    images: int = 0
    all_images: int = 0
    texts: dict[str, int] = field(default_factory=dict)
    all_texts: dict[str, int] = field(default_factory=dict)


class ReviewTables:
    """Score tables whose numbers are held in memory. Several threads may use it at once.

    A row's id is the number of its table times 2**32, plus its row in the table.
    """

    def __init__(self, scores: str | list[str], also: Mapping[str, str | list[str]] | None = None):
        """Read the tables; a million rows take a few seconds. Raises what `find_tables` does."""
        self.scratch = Path(mkdtemp(prefix="vlp-review-"))
        try:
            self._open(scores, also or {})
        except BaseException:
            remove(self.scratch)
            raise

    def _open(self, scores: str | list[str], also: Mapping[str, str | list[str]]) -> None:
        self.tables = find_tables(scores, self.scratch / "scores", quiet=True)
        self.also = {name: find_tables(given, self.scratch / f"also {name}", True) for name, given in also.items()}
        self.added = added_columns(self.tables[0])
        self.kinds = {name: added_columns(given[0]) for name, given in self.also.items()}
        self.connection = connect(self.scratch)
        self.lock = threading.Lock()
        self.rules: dict[str, SelectionRules] = {}  # by their text
        self.cuts: dict[Top, float | None] = {}
        self.populations: dict[tuple[str, str], np.ndarray] = {}
        self.numbers = [name for name, kind in self.added.items() if kind == "number" and _can_be_used(name)]
        columns = parse_rules(" and ".join(f"{name} == 0" for name in (*LOADED, *self.numbers)), {}, self.added)
        identity = {"identity": "hash(coalesce(uid, ''), text)"}
        read = texts_sql(self.tables, SelectionRules(columns=columns.columns | identity), {})
        named = ", ".join(quote_name(name) for name in [*columns.columns, "identity"])
        try:
            self.connection.execute(
                f"CREATE TABLE rows AS SELECT file_index::BIGINT * {1 << ROW_BITS} + file_row_number AS id, "
                f"file_index, key, source, caption_id, {named} FROM ({read})"
            )
        except duckdb.Error as error:
            raise self._damage(error) from None
        self.connection.execute(
            "CREATE TABLE images AS SELECT file_index, key, min(id) AS image FROM rows GROUP BY file_index, key"
        )
        self.connection.execute(
            "CREATE OR REPLACE TABLE rows AS SELECT image, rows.* FROM rows JOIN images USING (file_index, key)"
        )
        self.connection.execute("DROP TABLE images")
        self.columns = {*columns.columns, "source", "key", "caption_id"}
        totals = self.connection.execute("SELECT source, count(*) FROM rows GROUP BY source").fetchall()
        self.totals = dict(sorted(totals, key=lambda one: _source_place(one[0])))
        ((self.images,),) = self.connection.execute("SELECT count(DISTINCT image) FROM rows").fetchall()

    def close(self) -> None:
        """Free the memory and the temporary files."""
        self.connection.close()
        remove(self.scratch)

    def scores(self) -> dict[str, tuple[float, float]]:
        """The lowest and highest value of each number that some text has: the scores, then added columns."""
        names = [*SCORES, *self.numbers]
        ends = ", ".join(f"min({quote_name(name)}), max({quote_name(name)})" for name in names)
        (row,) = self._cursor().execute(f"SELECT {ends} FROM rows").fetchall()
        pairs = zip(names, row[::2], row[1::2], strict=True)
        return {name: (low, high) for name, low, high in pairs if low is not None}

    def counts(self, rule: str) -> RuleCounts:
        """What a rule keeps.

        Raises:
            UserError: the rule is invalid, as in `parse_rules`.
        """
        kept = f"{self._cuts_sql(rule)}, kept AS MATERIALIZED (SELECT source, image FROM {self._kept(rule)})"
        rows = self._query(
            f"{kept} SELECT source, count(*) FROM kept GROUP BY source "
            "UNION ALL SELECT '', count(DISTINCT image) FROM kept"
        )
        found = dict(rows)
        images = found.pop("", 0)
        return RuleCounts(images, self.images, {one: found.get(one, 0) for one in self.totals}, dict(self.totals))

    def kept(self, rule: str, image: int) -> set[int]:
        """The ids of an image's rows that a rule keeps; raises as `counts` does."""
        rows = self._query(f"{self._cuts_sql(rule)} SELECT id FROM {self._kept(rule, f'image = {int(image)}')}")
        return {number for (number,) in rows}

    def order(self, order: RowOrder) -> np.ndarray:
        """The ids of the first `LISTED` rows of an order, int64.

        Raises:
            UserError: there is no such order or score.
        """
        self._check(order)
        where = f"source = {quote(order.source)}" if order.source else "true"
        if order.kind == "sample":
            sql = f"SELECT id FROM rows WHERE {where} ORDER BY hash(id, {int(order.seed)}), id LIMIT {LISTED}"
            return self._ids(sql)
        self._add_columns(self._rules(f"{order.score} == 0 and {order.second or order.score} == 0"))
        score = quote_name(order.score)
        where = f"{where} AND {score} IS NOT NULL"
        if order.kind == "disagreement":
            second = quote_name(order.second)
            ranks = ", ".join(
                f"percent_rank() OVER (ORDER BY {name}) AS {alias}"
                for name, alias in ((_better_first(order.score), "one"), (_better_first(order.second), "other"))
            )
            inner = f"SELECT id, {ranks} FROM rows WHERE {where} AND {second} IS NOT NULL"
            return self._ids(f"SELECT id FROM ({inner}) ORDER BY abs(one - other) DESC, id LIMIT {LISTED}")
        if order.kind in ("highest", "lowest"):
            way = "DESC" if order.kind == "highest" else "ASC"
            return self._ids(f"SELECT id FROM rows WHERE {where} ORDER BY {score} {way}, hash(id), id LIMIT {LISTED}")
        sides = [
            f"(SELECT id, {side} AS side, row_number() OVER (ORDER BY {score} {way}, hash(id)) AS place FROM rows "
            f"WHERE {where} AND {score} {sign} {order.threshold!r} QUALIFY place <= {LISTED})"
            for kind, side, sign, way in (("above", 0, ">=", "ASC"), ("below", 1, "<", "DESC"))
            if order.kind in (kind, "near")
        ]
        return self._ids(f"SELECT id FROM ({' UNION ALL '.join(sides)}) ORDER BY place, side LIMIT {LISTED}")

    def table_of(self, row: int) -> ScoreTable:
        """The table that holds a row; raises UserError if there is none."""
        number = row >> ROW_BITS
        if not 0 <= number < len(self.tables):
            raise UserError(f"There is no row {row} in these tables.")
        return self.tables[number]

    def texts(self, row: int) -> list[dict[str, Any]]:
        """All texts of a row's image with the columns of its table, `id` and `image`; web texts come first.

        Raises:
            UserError: there is no such row.
        """
        table = self.table_of(row)
        found = self._query(f"SELECT image, key FROM rows WHERE id = {int(row)}")
        if not found:
            raise UserError(f"There is no row {row} in these tables.")
        ((image, key),) = found
        first = (row >> ROW_BITS) << ROW_BITS
        sql = f"SELECT file_row_number, * FROM {parquet_files([table.file])} WHERE key = ? AND {WORDED}"
        try:
            listed = self._cursor().sql(sql, params=[key]).to_arrow_table().to_pylist()
        except duckdb.Error as error:
            raise self._damage(error) from None
        rows = [{"id": first + one.pop("file_row_number"), "image": image, **one} for one in listed]
        return sorted(rows, key=lambda one: (_source_place(one["source"]), one["caption_id"] or 0, one["id"]))

    def text(self, row: int) -> dict[str, Any]:
        """A row as in `texts`; raises UserError if there is no such row."""
        (found,) = (one for one in self.texts(row) if one["id"] == row)
        return found

    def image_of(self, row: int) -> int:
        """The number of a row's image, which is the lowest id of its rows; raises UserError if there is no such row."""
        found = self._query(f"SELECT image FROM rows WHERE id = {int(row)}")
        if not found:
            raise UserError(f"There is no row {row} in these tables.")
        return found[0][0]

    def row_of(self, shard: str, key: str, source: str, caption_id: int) -> int | None:
        """The id of a text by the file name of its shard, the key, the source and its number; None if there is none."""
        numbers = [number for number, one in enumerate(self.tables) if Path(one.shard).name == shard]
        sql = "SELECT id FROM rows WHERE list_contains(?, file_index) AND key = ? AND source = ? AND caption_id = ?"
        found = self._cursor().execute(sql, [numbers, key, source, caption_id]).fetchone()
        return None if found is None else found[0]

    def population(self, score: str, source: str) -> np.ndarray:
        """All values of a score among the texts of a source, ascending: float64 [texts]."""
        name = (score, source)
        if name not in self.populations:
            self._add_columns(self._rules(f"{score} == 0"))
            sql = f"SELECT {quote_name(score)} AS score FROM rows WHERE score IS NOT NULL AND source = {quote(source)}"
            found = self._cursor().execute(sql).fetchnumpy()["score"]
            self.populations[name] = np.sort(np.asarray(found, np.float64))
        return self.populations[name]

    def find(self, labels: pa.Table, score: str) -> pa.Table:
        """Match labels with rows: their `place` in `labels`, and `id`, `source` and `score` of the row."""
        self._add_columns(self._rules(f"{score} == 0"))
        names = pa.table(
            {
                "shard": [Path(one.shard).name for one in self.tables],
                "file_index": pa.array(range(len(self.tables)), pa.uint64()),
            }
        )
        numbered = labels.append_column("place", pa.array(range(len(labels)), pa.int64()))
        few = "true"
        if len(labels) <= FEW:  # constants spare reading the rows of other shards
            named = set(labels["shard"].to_pylist())
            numbers = [number for number, one in enumerate(self.tables) if Path(one.shard).name in named]
            few = f"rows.file_index IN ({', '.join(map(str, numbers)) or -1})"
        cursor = self._cursor()
        cursor.register("given_labels", numbered)
        cursor.register("shard_names", names)
        return cursor.sql(
            f"SELECT place, id, rows.source, {quote_name(score)} AS score FROM given_labels "
            "JOIN shard_names USING (shard) JOIN rows ON rows.file_index = shard_names.file_index "
            "AND rows.key = given_labels.key AND rows.source = given_labels.source "
            f"AND identity = hash(coalesce(given_labels.uid, ''), given_labels.text) WHERE {few} ORDER BY place, id"
        ).to_arrow_table()

    def _check(self, order: RowOrder) -> None:
        if order.kind not in ORDERS:
            raise UserError(f"There is no order {order.kind!r}; choose one of: {', '.join(ORDERS)}.")
        if order.source and order.source not in self.totals:
            raise UserError(f"No text has the source {order.source!r}; these tables have: {', '.join(self.totals)}.")
        if order.kind == "disagreement" and not order.second:
            raise UserError("A disagreement needs two scores, such as itm and itc; name the second one (--second).")
        if not np.isfinite(order.threshold):
            raise UserError(f"The threshold {order.threshold} is not a number.")

    def _rules(self, rule: str) -> SelectionRules:
        rules = self.rules.get(rule)
        if rules is None:
            if len(self.rules) >= MOST_RULES:
                self.rules.clear()
            self.rules[rule] = rules = parse_rules(rule, self.kinds, self.added)
        return rules

    def _kept(self, rule: str, where: str = "true") -> str:
        """SQL of the rows that a rule keeps, in a relation; needs `_cuts_sql` before it."""
        rules = self._rules(rule)
        return f"({layered(self._relation(rules, where), rules)}) WHERE {rules.condition}"

    def _relation(self, rules: SelectionRules, where: str = "true") -> str:
        self._add_columns(rules)
        start = TEXT_KEY_COLUMNS if "key" in rules.columns else KEY_COLUMNS
        named = [quote_name(name) for name in rules.columns if name not in ("key", "source", "caption_id")]
        return f"{', '.join([start, *named])} FROM rows WHERE {where}"

    def _cuts_sql(self, rule: str) -> str:
        """The start of a query: the table `cuts` of a rule."""
        rules, cuts = self._rules(rule), []
        for top in rules.tops:
            if top not in self.cuts:
                self.cuts[top] = lowest_kept(self._cursor(), [self._relation(rules)], top)
            cuts.append(self.cuts[top])
        values = [f"({number}, {'NULL' if cut is None else repr(cut)}::DOUBLE)" for number, cut in enumerate(cuts)]
        return f"WITH cuts(number, cut) AS (VALUES {', '.join(values or ['(-1, NULL::DOUBLE)'])})"

    def _add_columns(self, rules: SelectionRules) -> None:
        """Read the columns of rules that are not in memory yet."""
        with self.lock:
            missing = {name: sql for name, sql in rules.columns.items() if name not in self.columns}
            if not missing:
                return
            wanted = SelectionRules(columns=missing)
            others = other_tables(self.tables, wanted, self._also_of(missing), self.scratch)
            named = ", ".join(f"more.{quote_name(name)}" for name in missing)
            more = texts_sql(self.tables, wanted, others)
            try:
                self.connection.execute(
                    f"CREATE OR REPLACE TABLE rows AS SELECT rows.*, {named} FROM rows LEFT JOIN (SELECT "
                    f"file_index::BIGINT * {1 << ROW_BITS} + file_row_number AS more_id, * FROM ({more})) AS more "
                    "ON rows.id = more.more_id"
                )
            except duckdb.Error as error:
                raise self._damage(error) from None
            self.columns |= set(missing)

    def _also_of(self, missing: Mapping[str, str]) -> dict[str, list[ScoreTable]]:
        """The other tables whose columns are missing."""
        names = {name.partition(".")[0] for name in missing if "." in name}
        return {name: given for name, given in self.also.items() if name in names and name != DUPLICATES}

    def _ids(self, sql: str) -> np.ndarray:
        return np.asarray(self._cursor().execute(sql).fetchnumpy()["id"], np.int64)

    def _query(self, sql: str) -> list[tuple[Any, ...]]:
        return self._cursor().execute(sql).fetchall()

    def _cursor(self) -> "duckdb.DuckDBPyConnection":
        """A connection of its own for this call, as several threads cannot share one."""
        return self.connection.cursor()

    def _damage(self, error: Exception) -> WorkError:
        damaged = next((table for table in self.tables if not is_readable(table.file)), None)
        if damaged:
            return WorkError(f"{damaged.path} is damaged or missing; score its shard again.")
        return WorkError(f"The score tables cannot be read: {str(error).splitlines()[0].rstrip('.')}.")


def _can_be_used(name: str) -> bool:
    """Whether rules can name a column."""
    return name.isidentifier() and not iskeyword(name)


def _better_first(name: str) -> str:
    return f"{quote_name(name)} DESC" if name in LOWER_IS_BETTER else quote_name(name)


def _source_place(source: str) -> tuple[int, str]:
    """Web texts first, then human and synthetic ones, then those of unknown sources."""
    return (SOURCES.index(source) if source in SOURCES else len(SOURCES), str(source))
