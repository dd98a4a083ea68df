"""Tables of web-scale collections (LAION, COYO, DataComp, Recap-DataComp) joined to shards: a table for each shard.

No image is copied. duckdb joins and sorts, on disk where memory is short, so that any number of rows can be joined to
any number of shards; Python holds one shard's rows at a time.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from keyword import iskeyword
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlp.data.bad_samples import NAMED_PER_REASON, BadSamples
from vlp.data.importers.datacompdr import write_rows
from vlp.data.importers.table_columns import (
    JOINS,
    TableColumns,
    guess_columns,
    possible_joins,
)
from vlp.data.importers.table_files import check_tables
from vlp.data.importers.table_rows import rows_of_texts
from vlp.data.score_tables import image_uid, read_settings, shard_state, write_beside
from vlp.data.shard_index import expand_shards, index_shard
from vlp.data.shards import iterate_samples
from vlp.data.sql import connect, parquet_files, quote_name
from vlp.errors import UserError
from vlp.files import scratch_folder
from vlp.log import ReportProgress, no_progress

ROWS_AT_ONCE = 50_000  # rows that are read from duckdb at once
EXACT_CASE = ("key", "url")  # uid and sha256 are hexadecimal, in either case

log = logging.getLogger("vlp")


@dataclass
class JoinCounts:
    """What a join matched."""

    on: str = ""
    rows: int = 0  # of the tables
    rows_without_sample: int = 0
    samples: int = 0  # of the shards
    samples_without_row: int = 0
    samples_with_several_rows: int = 0  # the first row was used
    texts: int = 0  # written
    scores: list[str] = field(default_factory=list)  # columns that rules can name


@dataclass
class _SampleNames:
    """What names the samples of one shard: keys, uids ("" where unknown), and the values to join on."""

    keys: list[str]
    uids: list[str]
    values: list[str | None]


def import_tables(
    tables: str | list[str],
    shards: str | list[str],
    name: str,
    on: str = "",
    texts: dict[str, str] | None = None,
    progress: ReportProgress = no_progress,
) -> JoinCounts:
    """Write a score table `SHARD.name.parquet` beside each shard, with the texts and scores of the images' rows.

    The columns are those of `SCHEMA` without itm and itc, and the tables' own numbers and strings. An image with
    several texts has several rows; one without a text has a row with an empty text.

    Args:
        tables: parquet files with equal columns, or shards of DataCompDR, whose synthetic captions are taken.
        name: the name of the new tables.
        on: the column to join on, which is also a field of the samples' JSON, or "key"; empty: uid, sha256, key or
            url, the first that both have.
        texts: sources ("web", "human", "synthetic") of columns of texts; the others are guessed.

    Raises:
        UserError: a table is of another kind, there is nothing to join on, or no row belongs to a sample.
        WorkError: the disk is full.
    """
    paths, given = expand_shards(shards), expand_shards(tables)
    _check_name(paths, name)
    with scratch_folder(f"{paths[0].removesuffix('.tar')}.{name}.parquet") as spill, connect(spill) as connection:
        files = [_as_table(path, spill, number) for number, path in enumerate(given)]
        schema = check_tables(files)
        join = _find_join(schema, on, paths[0], given[0])
        columns = guess_columns(schema, join, texts or {}, given[0])
        counts = JoinCounts(on=join, scores=list(columns.scores))
        named = ", ".join(f"{one.name} ({one.source})" for one in columns.texts)
        log.info("joining on %s; texts: %s", join, named or "none")
        connection.execute(
            "CREATE TABLE samples (shard INTEGER, row INTEGER, key VARCHAR, uid VARCHAR, value UHUGEINT)"
        )
        states = []
        for number, shard in enumerate(paths):
            states.append(shard_state(shard))
            _insert(connection, number, _read_names(shard, join.lower() if join.lower() in JOINS else join), join)
            progress("read shards", 1)
        _count_rows(connection, files, join, counts)
        for number, joined in _join(connection, files, columns, len(paths), counts):
            rows = rows_of_texts(joined, columns, schema)
            counts.texts += pc.sum(pc.not_equal(rows["text"], ""), min_count=0).as_py()
            settings = {"imported": [Path(file).name for file in given], "on": join}
            write_beside(paths[number], rows, settings, states[number], name, {"tables": given})
            progress("write tables", 1)
    return counts


def _as_table(path: str, folder: Path, number: int) -> str:
    """A table's path; a shard of DataCompDR is first written as a table into `folder`."""
    if not path.endswith(".tar"):
        return path
    table = folder / f"{number}.parquet"
    write_rows(path, table)
    return str(table)


def _check_name(shards: list[str], name: str) -> None:
    """Raise a UserError if rules cannot use the name, or tables of this name were made otherwise."""
    if not name.isidentifier() or iskeyword(name) or name == "duplicates":
        raise UserError(f"Rules cannot use the name {name!r} for tables; take a word such as laion for --name.")
    for shard in shards:
        stored = read_settings(shard, name)
        if stored is not None and "imported" not in stored:
            raise UserError(f"{shard} has a table {name} of `vlp capfilt score`; take another --name.")


def _find_join(schema: pa.Schema, on: str, shard: str, table: str) -> str:
    """The column of the tables to join on."""
    if on:
        if on not in schema.names:
            raise UserError(f"{table} has no column {on!r} to join on; its columns are {', '.join(schema.names)}.")
        return on
    possible = possible_joins(schema)
    known = {"sha256", "key"}  # what every sample has
    beside = _neighbour(shard)
    if beside is not None:
        known |= set(pq.read_schema(beside).names)
    sample = next(iterate_samples([shard]), None)
    known |= set(sample.info) if sample else set()
    for name, column in possible.items():
        if name in known:
            return column
    raise UserError(
        f"{table} has none of the columns uid, sha256, key and url that the samples of {shard} have as well; name the "
        f"column to join on with --on (the columns are {', '.join(schema.names)})."
    )


def _neighbour(shard: str) -> str | None:
    """The parquet file that img2dataset writes beside a shard, where it is readable."""
    path = f"{shard.removesuffix('.tar')}.parquet"
    try:
        return path if "key" in pq.read_schema(path).names else None
    except (OSError, pa.ArrowException):
        return None


def _read_names(shard: str, join: str) -> _SampleNames:
    """What names the samples of a shard, without reading the images where that is possible."""
    if join == "key":
        keys = list(index_shard(shard).keys)
        return _SampleNames(keys, [""] * len(keys), list(keys))
    beside = _neighbour(shard)
    if beside is not None and join in (names := pq.read_schema(beside).names):
        keys = list(index_shard(shard).keys)
        stored = pq.read_table(beside, columns=list(dict.fromkeys(["key", join, *(["uid"] if "uid" in names else [])])))
        places = pc.index_in(pa.array(keys, pa.string()), value_set=stored["key"].cast(pa.string()).combine_chunks())
        found = stored.take(places)
        uids = found["uid"].cast(pa.string()).fill_null("").to_pylist() if "uid" in names else [""] * len(keys)
        return _SampleNames(keys, uids, found[join].cast(pa.string()).to_pylist())
    names = _SampleNames([], [], [])
    for sample in iterate_samples([shard], BadSamples(max_share=1.0)):
        value = sample.info.get(join, sample.info.get(join.lower()))
        if value is None and join == "sha256":
            value = hashlib.sha256(sample.image).hexdigest()
        names.keys.append(sample.key)
        names.uids.append(image_uid(sample.image, sample.info))
        names.values.append(None if value is None else str(value))
    return names


def _insert(connection: Any, number: int, names: _SampleNames, join: str) -> None:
    values = pa.array(names.values, pa.string())
    part = pa.table({"row": np.arange(len(names.keys)), "key": names.keys, "uid": names.uids, "value": values})
    connection.register("part", part)
    connection.execute(f"INSERT INTO samples SELECT {number}, row, key, uid, {_hash('value', join)} FROM part")
    connection.unregister("part")


def _hash(column: str, join: str) -> str:
    """SQL of a 128-bit number that stands for a value to join on."""
    text = f"{column}::VARCHAR"
    return f"md5_number({text if join.lower() in EXACT_CASE else f'lower({text})'})"


def _count_rows(connection: Any, files: list[str], join: str, counts: JoinCounts) -> None:
    """Count the rows of the tables and those without a sample; name the first few of them."""
    column = quote_name(join)
    rows = f"SELECT {column} AS name, {_hash(column, join)} AS value FROM {parquet_files(files)}"
    counts.rows = sum(pq.read_metadata(file).num_rows for file in files)
    ((counts.rows_without_sample, first),) = connection.execute(
        f"SELECT count(*), min(name::VARCHAR, {NAMED_PER_REASON}) FROM ({rows}) ANTI JOIN samples USING (value)"
    ).fetchall()
    ((counts.samples,),) = connection.execute("SELECT count(*) FROM samples").fetchall()
    if counts.rows_without_sample == counts.rows:
        raise UserError(
            f"None of the {counts.rows} rows belongs to one of the {counts.samples} samples by {join} (such as "
            f"{(first or ['nothing'])[0]}); join on another column with --on, or name other shards."
        )
    if first:
        log.warning("%d rows have no sample, such as %s", counts.rows_without_sample, ", ".join(first))


def _join(
    connection: Any, files: list[str], columns: TableColumns, shards: int, counts: JoinCounts
) -> Iterator[tuple[int, pa.Table]]:
    """Each shard in order, with the joined rows of its samples, one a sample, in the shard's order."""
    column = quote_name(columns.join)
    # Columns are renamed before the join, so that one named `value` is not taken for what the rows are joined on.
    read = "".join(f"{quote_name(name)} AS {quote_name(f'table.{name}')}, " for name in columns.read)
    value = f"{_hash(column, columns.join)} AS value"
    rows = f"SELECT {read}file_index, file_row_number, {value} FROM {parquet_files(files)}"
    sizes = dict(connection.execute("SELECT shard, count(*) FROM samples GROUP BY shard").fetchall())
    reader = connection.sql(
        "SELECT s.shard, s.row, s.key, s.uid, t.* EXCLUDE (file_index, file_row_number, value) "
        f"FROM ({rows}) t JOIN samples s USING (value) "
        "ORDER BY s.shard, s.row, t.file_index, t.file_row_number"
    ).to_arrow_reader(ROWS_AT_ONCE)
    number, waiting = 0, []
    for batch in reader:
        part = pa.Table.from_batches([batch])
        while len(part):
            end = int(np.searchsorted(part["shard"].to_numpy(), number, side="right"))
            waiting.append(part[:end])
            part = part[end:]
            if len(part):  # the shard is complete
                yield number, _one_a_sample(pa.concat_tables(waiting), sizes.get(number, 0), counts)
                number, waiting = number + 1, []
    empty = pa.Table.from_batches([], reader.schema)
    for left in range(number, shards):
        yield left, _one_a_sample(pa.concat_tables([empty, *waiting]), sizes.get(left, 0), counts)
        waiting = []


def _one_a_sample(joined: pa.Table, samples: int, counts: JoinCounts) -> pa.Table:
    """The first row of each sample; counts samples with several rows or none."""
    rows = joined["row"].to_numpy()
    first = np.ones(len(rows), dtype=bool)
    first[1:] = rows[1:] != rows[:-1]
    counts.samples_with_several_rows += len(np.unique(rows[~first]))
    counts.samples_without_row += samples - int(first.sum())
    return joined.filter(pa.array(first))
