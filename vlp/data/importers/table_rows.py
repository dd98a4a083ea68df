"""The joined rows of one shard as rows of a score table: one for each text of an image."""

from collections import Counter
from typing import Any

import pyarrow as pa

from vlp.data.importers.table_columns import TableColumns
from vlp.data.score_tables import SCHEMA


def rows_of_texts(joined: pa.Table, columns: TableColumns, schema: pa.Schema) -> pa.Table:
    """The score table of a shard.

    Args:
        joined: the columns key and uid of the samples, and `table.NAME` of the tables; a row a sample.
        schema: of the tables.
    """
    rows: dict[str, list[Any]] = {name: [] for name in ("key", "uid", "source", "caption_id", "text", "clip")}
    parents: list[int] = []  # of each row, the place of its sample in `joined`
    texts = [
        (one, joined[f"table.{one.name}"], joined[f"table.{one.clip}"] if one.clip else None) for one in columns.texts
    ]
    uids = joined[f"table.{columns.uid}"] if columns.uid else joined["uid"]
    for place, (key, uid) in enumerate(zip(joined["key"].to_pylist(), uids.to_pylist(), strict=True)):
        found: dict[tuple[str, str], float | None] = {}  # in order, each text of a source once
        for column, values, clips in texts:
            for text, clip in _pairs(values[place].as_py(), clips[place].as_py() if clips is not None else None):
                found.setdefault((column.source, text), clip)
        numbers: Counter[str] = Counter()
        for (source, text), clip in (found or {("web", ""): None}).items():
            parents.append(place)
            for name, value in zip(rows, (key, uid or "", source, numbers[source], text, clip), strict=True):
                rows[name].append(value)
            numbers[source] += 1
    arrays = [pa.array(rows[one.name], one.type) if one.name in rows else _nulls(one, len(parents)) for one in SCHEMA]
    table = pa.Table.from_arrays(arrays, schema=SCHEMA)
    for new, old in columns.scores.items():
        values = joined[f"table.{old}"].take(pa.array(parents, pa.int64()))
        table = table.append_column(new, values.cast(_stored_type(schema.field(old).type)))
    return table


def _nulls(field: pa.Field, rows: int) -> pa.Array:
    return pa.nulls(rows, field.type)


def _stored_type(type: pa.DataType) -> pa.DataType:
    return pa.int8() if pa.types.is_boolean(type) else type


def _pairs(texts: Any, clips: Any) -> list[tuple[str, float | None]]:
    """Texts that are not empty with their cosines, from a text or a list of texts."""
    listed = texts if isinstance(texts, list) else [texts]
    cosines = clips if isinstance(clips, list) else [clips] * len(listed)
    cosines = cosines if len(cosines) == len(listed) else [None] * len(listed)
    return [(text.strip(), clip) for text, clip in zip(listed, cosines, strict=True) if text and text.strip()]
