"""Finds score tables by path, and the shard that each belongs to."""

import re

import pyarrow.parquet as pq

from vlp.data.score_tables import SCHEMA, VERSION, column_kind, has_columns, read_settings
from vlp.data.shard_index import expand_shards
from vlp.errors import UserError

TABLE_NAME = re.compile(r"(.+)\.([^./]+)\.parquet")


def find_tables(patterns: str | list[str]) -> list[str]:
    """Paths of score tables from globs and lists of globs, each once, in order.

    Raises:
        UserError: nothing matches, or a match is remote or not a score table of this format version.
    """
    listed = [patterns] if isinstance(patterns, str) else patterns
    for remote in (pattern for pattern in listed if "://" in pattern):
        raise UserError(f"{remote} is remote; copy or mount the tables, and give their local paths.")
    try:
        found = list(dict.fromkeys(expand_shards(listed)))
    except UserError:
        pattern = " ".join(listed)
        raise UserError(
            f"No score table matches {pattern!r}; correct the path or run `vlp capfilt score` first."
        ) from None
    for path in found:
        shard, name = shard_and_name(path)
        settings = read_settings(shard, name)
        if settings is not None and settings.get("version") != VERSION:
            raise UserError(
                f"{path} has format version {settings.get('version')}, not {VERSION}; score its shard again."
            )
        if settings is None or not has_columns(path):
            raise UserError(f"{path} is not a score table; `vlp capfilt score` writes SHARD.capfilt.parquet.")
    return found


def shard_and_name(table: str) -> tuple[str, str]:
    """The shard of a table, and the table's name: `web/0.capfilt.parquet` -> `web/0.tar`, `capfilt`.

    Raises:
        UserError: the path does not have this form.
    """
    matched = TABLE_NAME.fullmatch(table)
    if not matched:
        raise UserError(f"{table} is not a score table; give files such as SHARD.capfilt.parquet.")
    return f"{matched[1]}.tar", matched[2]


def added_columns(table: str) -> dict[str, str]:
    """The columns of a table besides those of `SCHEMA` that rules can use, with their kinds: "number" or "text"."""
    kinds = {one.name: column_kind(one.type) for one in pq.read_schema(table) if one.name not in SCHEMA.names}
    return {name: kind for name, kind in kinds.items() if kind in ("number", "text")}
