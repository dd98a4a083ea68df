"""Finds the rows of score tables that satisfy selection rules, with duckdb, a few tables at a time."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq

from vlp.capfilt.rules import SPACES, SelectionRules, Top
from vlp.data.find_tables import ScoreTable, copy_tables, shard_id
from vlp.data.score_tables import SCHEMA, is_same_shard, read_settings, shard_exists, table_path
from vlp.data.sql import MOST_MEMORY, connect, parquet_files, quote, quote_name
from vlp.errors import UserError
from vlp.extras import extra
from vlp.remote import is_remote

with extra("capfilt"):
    import duckdb

ROWS_AT_ONCE = 500_000  # rows of the tables that one query reads
SCORED_BY = {  # the model that gives each score
    "itm": "a BLIP filter",
    "itc": "a BLIP filter",
    "clip": "a CLIP filter",
    "nll": "a captioner",
    "tokens": "a BLIP filter",
}
DUPLICATES = ""  # the name of the tables of duplicates among the other tables, whose own names are never empty


def select_rows(
    tables: list[ScoreTable], rules: SelectionRules, also: dict[str, list[ScoreTable]], spill: Path
) -> Iterator[tuple[ScoreTable, np.ndarray]]:
    """Find the rows whose texts satisfy the rules. Empty texts never do.

    Memory does not grow with the number of tables: `best` needs one image at a time, and `top` sorts all scores on
    disk where they do not fit in memory.

    Args:
        also: other tables, by the name that rules use. Rows are joined on shard path, key, source, caption_id and text,
            for columns that are not in `SCHEMA` on shard path and key; columns without a matching row are null.
        spill: a folder for duckdb's temporary files.

    Yields:
        Every table in order, with the numbers of its selected rows, int64 ascending.

    Raises:
        UserError: the rules use `duplicate` and a shard has no table of duplicates, or the tables of `also` belong to
            other shards.
    """
    others = other_tables(tables, rules, also, spill)
    groups = list(_groups(tables))
    memory = min(psutil.virtual_memory().total // 2, MOST_MEMORY)
    with connect(spill, memory) as connection:
        relations = [texts_sql(group, rules, others) for group in groups]
        connection.execute("CREATE TABLE cuts (number INTEGER, cut DOUBLE)")
        for number, top in enumerate(rules.tops):
            connection.execute("INSERT INTO cuts VALUES (?, ?)", [number, lowest_kept(connection, relations, top)])
        for group, relation in zip(groups, relations, strict=True):
            found = connection.execute(
                f"SELECT file_index, file_row_number FROM ({layered(relation, rules)}) "
                f"WHERE {rules.condition} ORDER BY ALL"
            ).fetchnumpy()
            numbers, rows = found["file_index"], found["file_row_number"].astype(np.int64)
            ends = np.searchsorted(numbers, np.arange(len(group)), side="right")
            yield from zip(group, np.split(rows, ends[:-1]), strict=True)


def check_values(tables: list[ScoreTable], rules: SelectionRules, also: dict[str, list[ScoreTable]]) -> None:
    """Make sure that each column of the rules has a value in some row, for rules that no text satisfies.

    Raises:
        UserError: a column is null in all rows, such as a score of models that were not there.
    """
    for name in rules.columns:
        other, _, column = name.rpartition(".")
        if _is_null([table.file for table in (also[other] if other else tables)], column):
            advice = f"score the shards with {SCORED_BY[column]}, or " if column in SCORED_BY else ""
            raise UserError(f"No text has a value of {name}; {advice}leave it out of the rules.")


def _is_null(files: list[str], column: str) -> bool:
    """Whether a column is in some of the files, and null in all of their rows."""
    rows = 0
    for file in files:
        if column in pq.read_schema(file).names:
            values = pq.read_table(file, columns=[column])[column]
            if values.null_count < len(values):
                return False
            rows += len(values)
    return rows > 0


def _groups(tables: list[ScoreTable]) -> Iterator[list[ScoreTable]]:
    """Runs of consecutive tables with about `ROWS_AT_ONCE` rows in total."""
    group, rows = [], 0
    for table in tables:
        more = pq.read_metadata(table.file).num_rows
        if group and rows + more > ROWS_AT_ONCE:
            yield group
            group, rows = [], 0
        group, rows = [*group, table], rows + more
    yield group


def other_tables(
    tables: list[ScoreTable], rules: SelectionRules, also: dict[str, list[ScoreTable]], spill: Path
) -> dict[str, dict[str, str]]:
    """Local files of the other tables that rules may use, by name and by `shard_id`; raises as `select_rows` does."""
    shards = [shard_id(table.shard) for table in tables]
    others = {name: {shard_id(one.shard): one.file for one in others} for name, others in also.items()}
    for name, paths in others.items():
        if not set(shards) & set(paths):
            raise UserError(f"No table given as {name} belongs to a shard of the score tables; check --also.")
    if "duplicate" in rules.columns:
        others[DUPLICATES] = _duplicates_tables(shards, spill / "duplicates")
    return others


def layered(relation: str, rules: SelectionRules) -> str:
    """SQL that adds the columns of the rules' `layers` to a relation; an image's texts must all be in it."""
    for name, sql in rules.layers:
        relation = f"SELECT *, {sql} AS {name} FROM ({relation})"
    return relation


def texts_sql(group: list[ScoreTable], rules: SelectionRules, others: dict[str, dict[str, str]]) -> str:
    """SQL of the rows of a group whose text is not empty, with the columns that the rules use.

    Args:
        others: see `other_tables`.
    """
    shards, files = [shard_id(table.shard) for table in group], [table.file for table in group]
    joins = []
    for name, paths in others.items():
        given = {number: paths[shard] for number, shard in enumerate(shards) if shard in paths}
        if name == DUPLICATES:
            joins.append(_join(files, given, ["key"], {"duplicate": "duplicate_of IS NOT NULL"}))
            continue
        named = [column.removeprefix(f"{name}.") for column in rules.columns if column.startswith(f"{name}.")]
        of_texts = {f"{name}.{column}": quote_name(column) for column in named if column in SCHEMA.names}
        of_images = {f"{name}.{column}": f"max({quote_name(column)})" for column in named if column not in SCHEMA.names}
        if of_texts:
            joins.append(_join(files, given, ["key", "source", "caption_id", "text"], of_texts))
        if of_images:
            joins.append(_join(files, given, ["key"], of_images, "GROUP BY ALL"))
    kept = {"key": "key", "source": "source", "caption_id": "caption_id"} | rules.columns
    columns = ", ".join(f'{sql} AS "{name}"' for name, sql in kept.items())
    return (
        f"SELECT file_index, file_row_number, {columns} FROM (SELECT file_index, file_row_number, * "
        f"FROM {parquet_files(files)}) {' '.join(joins)} WHERE trim(text, {quote(SPACES)}) <> ''"
    )


def _join(files: list[str], given: dict[int, str], keys: list[str], fields: dict[str, str], end: str = "") -> str:
    """SQL that adds columns of other tables to the rows of a group.

    Args:
        files: the tables of the group.
        given: the path of the other table by the place of its shard in the group.
        keys: the columns to join on, besides the shard.
        fields: SQL of the columns to add, by name.
        end: a clause after the other tables, such as GROUP BY ALL.
    """
    numbers = list(given)
    columns = ", ".join([*keys, *(f"{sql} AS {quote_name(alias)}" for alias, sql in fields.items())])
    if numbers:
        place = f"list_extract({numbers}::UBIGINT[], file_index::BIGINT + 1) AS file_index"
        other = f"SELECT {place}, {columns} FROM {parquet_files(list(given.values()))} {end}"
    else:
        nulls = ", ".join(f"NULL AS {quote_name(alias)}" for alias in fields)
        other = f"SELECT file_index, {', '.join(keys)}, {nulls} FROM {parquet_files(files)} WHERE false"
    return f"LEFT JOIN ({other}) USING ({', '.join(['file_index', *keys])})"


def lowest_kept(connection: duckdb.DuckDBPyConnection, relations: list[str], top: Top) -> float | None:
    """The lowest score among the best share of the texts in relations; None if no text has the score."""
    where = f"AND source = '{top.source}'" if top.source else ""
    connection.execute("CREATE OR REPLACE TEMP TABLE top_scores (score DOUBLE)")
    for relation in relations:
        scores = f"SELECT {top.score} AS score, source FROM ({relation})"
        connection.execute(f"INSERT INTO top_scores SELECT score FROM ({scores}) WHERE score IS NOT NULL {where}")
    ((count,),) = connection.execute("SELECT count(*) FROM top_scores").fetchall()
    before = math.ceil(top.share * count) - 1
    found = connection.execute("SELECT score FROM top_scores ORDER BY score DESC LIMIT 1 OFFSET ?", [max(before, 0)])
    (cut,) = found.fetchone() or (None,)
    connection.execute("DROP TABLE top_scores")
    return cut


def _duplicates_tables(shards: list[str], copies: Path) -> dict[str, str]:
    """Local files of the tables of duplicates, by shard; those that are remote are copied."""
    for shard in shards:
        settings = read_settings(shard, "duplicates")
        if settings is None:
            raise UserError(f"{shard} has no table of duplicates; run `vlp capfilt duplicates` on all shards first.")
        if shard_exists(shard) and not is_same_shard(shard, settings):
            raise UserError(f"{shard} has changed since its duplicates were found; run `vlp capfilt duplicates` again.")
    tables = {shard: table_path(shard, "duplicates") for shard in shards}
    copied = copy_tables([table for table in tables.values() if is_remote(table)], copies)
    return {shard: copied.get(table, table) for shard, table in tables.items()}
