"""Finds score tables by path or URL, the shard that each belongs to, and local copies of those that are remote."""

import glob
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from vlp.data.byte_stream import copy_remote
from vlp.data.score_tables import (
    NAME,
    SCHEMA,
    VERSION,
    column_kind,
    has_columns,
    schema_settings,
    shard_exists,
    table_schema,
)
from vlp.data.shard_index import expand_shards
from vlp.errors import UserError
from vlp.files import write_errors
from vlp.log import Progress
from vlp.remote import is_remote

TABLE_NAME = re.compile(r"(.+)\.([^./]+)\.parquet")
FETCHED_AT_ONCE = 16


@dataclass(frozen=True)
class ScoreTable:
    """A score table.

    Attributes:
        path: its path or URL.
        file: the local file to read: `path`, or a copy of a remote table with the same name.
        shard: the path or URL of its shard.
    """

    path: str
    file: str
    shard: str


def table_patterns(given: str | list[str]) -> list[str]:
    """Paths, URLs and globs of score tables as they are; for a folder, the glob of its tables SHARD.capfilt.parquet.

    Raises:
        UserError: a folder has no such table.
    """
    patterns: list[str] = []
    for one in [given] if isinstance(given, str) else given:
        pattern = f"{glob.escape(one.rstrip('/'))}/*.{NAME}.parquet" if os.path.isdir(one) else one
        if pattern != one and not glob.glob(pattern):
            raise _no_table(pattern)
        patterns.append(pattern)
    return patterns


def _no_table(pattern: str) -> UserError:
    return UserError(f"No score table matches {pattern!r}; correct the path or run `vlp capfilt score` first.")


def find_tables(given: str | list[str], copies: Path, quiet: bool = False) -> list[ScoreTable]:
    """Score tables, each once, in order.

    Args:
        given: paths, URLs, globs and folders, see `table_patterns`.
        copies: a folder into which remote tables are copied; it is made where it is missing.
        quiet: whether to show no progress of copying.

    Raises:
        UserError: nothing matches, or a match is not a score table of this format version.
        WorkError: a remote table cannot be copied.
    """
    listed = table_patterns(given)
    try:
        found = list(dict.fromkeys(expand_shards(listed)))
    except UserError as error:
        if any(map(is_remote, listed)) and "No shard matches" not in str(error):
            raise  # such as a lack of credentials
        raise _no_table(" ".join(listed)) from None
    files = copy_tables([path for path in found if is_remote(path)], copies, quiet)
    return [open_score_table(path, files.get(path, path)) for path in found]


def open_score_table(path: str, file: str = "") -> ScoreTable:
    """The table of a path; `file` is the local copy of a remote one.

    Raises:
        UserError: it is not a score table of this format version.
    """
    shard, _ = shard_and_name(path)
    schema = table_schema(file or path)
    settings = schema_settings(schema)
    if settings is not None and settings.get("version") != VERSION:
        raise UserError(f"{path} has format version {settings.get('version')}, not {VERSION}; score its shard again.")
    if schema is None or settings is None or not has_columns(schema):
        raise UserError(f"{path} is not a score table; `vlp capfilt score` writes SHARD.capfilt.parquet.")
    return ScoreTable(path, file or path, shard_of(path, settings.get("path")) or shard)


def shard_of(table: str, recorded: str | None) -> str:
    """The shard of a table: the one next to it if there is one, as in a copied data set, else the recorded one."""
    beside, _ = shard_and_name(table)
    if recorded is None or shard_id(recorded) == shard_id(beside) or shard_exists(beside):
        return beside
    return recorded if shard_exists(recorded) else beside


def shard_id(shard: str) -> str:
    """A name of a shard that does not depend on the current folder."""
    return shard if is_remote(shard) else os.path.abspath(shard)


def shard_and_name(table: str) -> tuple[str, str]:
    """The shard that is next to a table, and the table's name: `web/0.capfilt.parquet` -> `web/0.tar`, `capfilt`.

    Raises:
        UserError: the path does not have this form.
    """
    matched = TABLE_NAME.fullmatch(table)
    if not matched:
        raise UserError(f"{table} is not a score table; give files such as SHARD.capfilt.parquet.")
    return f"{matched[1]}.tar", matched[2]


def added_columns(table: ScoreTable) -> dict[str, str]:
    """The columns of a table besides those of `SCHEMA` that rules can use, with their kinds: "number" or "text".

    SQL would read a column named like one of `SCHEMA` in other case as that one, so rules cannot name it.
    """
    schema = pq.read_schema(table.file)
    kinds = {one.name: column_kind(one.type) for one in schema if one.name.lower() not in SCHEMA.names}
    return {name: kind for name, kind in kinds.items() if kind in ("number", "text")}


def copy_tables(urls: list[str], copies: Path, quiet: bool = False) -> dict[str, str]:
    """Copy remote tables into a folder, many at once; returns the path of each copy, by URL.

    Raises:
        UserError: a table is missing, or the access to it is denied.
        FullDiskError, WorkError: the disk is full; a table cannot be copied for another reason.
    """
    places = {url: str(copies / f"{number:06d}" / url.rpartition("/")[2]) for number, url in enumerate(urls)}
    with (
        Progress("tables", len(urls), quiet=quiet or not urls) as progress,
        write_errors(copies),
        ThreadPoolExecutor(FETCHED_AT_ONCE) as pool,
    ):
        for place in places.values():
            os.makedirs(os.path.dirname(place))
        for _ in pool.map(copy_remote, places, places.values()):
            progress.add("fetch")
    return places
