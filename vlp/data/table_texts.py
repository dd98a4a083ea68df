"""Texts from score tables by the key of a sample, for shards that are read in sequence."""

from collections import OrderedDict

import pyarrow as pa
import pyarrow.compute as pc

from vlp.config import TextChoiceConfig
from vlp.data.bad_samples import BadSampleError
from vlp.data.text_choice import SOURCES, Text, read_columns


class TableTexts:
    """Reads the texts of samples from the tables of their shards, keeping the tables that were used last in memory."""

    def __init__(self, most_kept: int):
        """`most_kept` is the most tables that are kept."""
        self.most_kept = most_kept
        self.tables: OrderedDict[tuple[str, str, str, str], _Table | None] = OrderedDict()  # the last one used last

    def read(self, shard: str, key: str, choice: TextChoiceConfig) -> list[Text]:
        """The texts of a sample, in the table's order; none if the table does not have the key.

        Raises:
            BadSampleError: the table cannot be read.
        """
        name = (shard, choice.table, choice.tables, choice.score)
        if name in self.tables:
            table = self.tables.pop(name)
        else:
            columns = read_columns(shard, choice)
            table = None if columns is None else _Table(columns, choice.score)
        self.tables[name] = table
        if len(self.tables) > self.most_kept:
            self.tables.popitem(last=False)
        if table is None:
            raise BadSampleError("unreadable score table")
        return table.of(key)


class _Table:
    """The texts of one shard as columns; `rows` holds the rows of each key."""

    def __init__(self, columns: pa.Table, score: str):
        columns = columns.filter(pc.is_in(columns["source"], value_set=pa.array(SOURCES)))
        self.rows: dict[str, list[int]] = {}
        for row, key in enumerate(columns["key"].to_pylist()):
            self.rows.setdefault(key, []).append(row)
        self.sources, self.texts = columns["source"].to_pylist(), columns["text"].combine_chunks().fill_null("")
        self.scores = columns[score].to_numpy()

    def of(self, key: str) -> list[Text]:
        rows = self.rows.get(key, [])
        return [Text(self.sources[row], self.texts[row].as_py(), float(self.scores[row])) for row in rows]
