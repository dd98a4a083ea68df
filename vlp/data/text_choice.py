"""Training texts from score tables: which text of an image a sample gets, by source and score."""

import math
import random
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlp.config import TextChoiceConfig
from vlp.data.bad_samples import BadSampleError
from vlp.data.score_tables import check_table, table_path
from vlp.data.shard_index import ShardIndex
from vlp.data.shards import OPEN_FILES
from vlp.data.transforms import clean_caption
from vlp.errors import UserError

SOURCES = ("web", "human", "synthetic")


@dataclass
class Text:
    """One text of an image. `score` is that of the choice, nan where the table has none."""

    source: str
    text: str
    score: float


class TextReader:
    """Reads the texts of any sample from its shard's table, keeping the tables of the last few shards."""

    def __init__(self) -> None:
        self.tables: OrderedDict[tuple[str, str, str], _ShardTexts | None] = OrderedDict()

    def read(self, index: ShardIndex, row: int, choice: TextChoiceConfig) -> list[Text]:
        """The texts of the sample in a row of a shard's index, in the table's order.

        Raises:
            BadSampleError: the table cannot be read, or has no text of the sample.
        """
        name = (index.path, choice.table, choice.score)
        table = self.tables.pop(name) if name in self.tables else _load(index, choice)
        self.tables[name] = table  # the newest stands last
        if len(self.tables) > OPEN_FILES:
            self.tables.popitem(last=False)
        if table is None:
            raise BadSampleError("unreadable score table")
        texts = table.of(row)
        if not texts:
            raise BadSampleError("not in its score table")
        return texts


class _ShardTexts:
    """The texts of one shard as columns, ordered by the rows of its index."""

    def __init__(self, table: pa.Table, index: ShardIndex, score: str):
        nowhere = len(index.keys)  # where rows go whose image the shard lacks, or whose source is none of ours
        sources = pc.index_in(table["source"], value_set=pa.array(SOURCES)).fill_null(-1).to_numpy()
        rows = pc.index_in(table["key"], value_set=pa.array(index.keys, pa.string())).fill_null(nowhere).to_numpy()
        rows = np.where(sources < 0, nowhere, rows)
        order = np.argsort(rows, kind="stable")
        self.starts = np.searchsorted(rows[order], np.arange(nowhere + 1))
        self.texts = table["text"].combine_chunks().take(pa.array(order))
        self.sources = sources[order].astype(np.int8)
        self.scores = table[score].to_numpy()[order]

    def of(self, row: int) -> list[Text]:
        """The texts of the sample in a row of the index."""
        span = range(self.starts[row], self.starts[row + 1])
        return [Text(SOURCES[self.sources[i]], self.texts[i].as_py() or "", float(self.scores[i])) for i in span]


def _load(index: ShardIndex, choice: TextChoiceConfig) -> _ShardTexts | None:
    """The table of a shard; None where it was removed or damaged since `check_texts` saw it."""
    try:
        with pq.ParquetFile(table_path(index.path, choice.table)) as file:
            # Workers are forked, and a pool of threads does not come along.
            columns = file.read(["key", "source", "text", choice.score], use_threads=False)
    except (OSError, pa.ArrowException):
        return None
    return _ShardTexts(columns, index, choice.score)


def choose_text(texts: list[Text], choice: TextChoiceConfig, rng: random.Random) -> str:
    """Draw one of an image's texts; `rng` decides everything.

    A source is drawn by its chance among those that have a usable text, then one of its texts. Texts of nothing but
    punctuation, and below the floor, are not usable. Web texts below `fallback` are not either; where that leaves an
    image none of its web texts, a synthetic text has the chance of the web besides its own.

    Raises:
        BadSampleError: no text is usable, or only texts of sources with chance 0.
    """
    usable = {source: [text for text in texts if text.source == source and _usable(text, choice)] for source in SOURCES}
    chances = {source: getattr(choice, source) for source in SOURCES}
    if choice.fallback is not None and not usable["web"] and any(text.source == "web" for text in texts):
        chances["synthetic"] += chances["web"]
    weights = [chances[source] if usable[source] else 0.0 for source in SOURCES]
    if not any(weights):
        raise BadSampleError("no text chosen")
    drawn = usable[rng.choices(SOURCES, weights)[0]]
    if choice.sampling == 0:
        return rng.choice(drawn).text
    best = max(text.score for text in drawn)
    return rng.choices(drawn, [math.exp((text.score - best) / choice.sampling) for text in drawn])[0].text


def _usable(text: Text, choice: TextChoiceConfig) -> bool:
    limits = [choice.floor, choice.fallback if text.source == "web" else None]
    if any(limit is not None and not text.score >= limit for limit in limits):
        return False  # also without a score
    return not (choice.sampling and math.isnan(text.score)) and bool(clean_caption(text.text))


def check_texts(shards: list[str], choice: TextChoiceConfig) -> None:
    """Make sure, from their footers alone, that the shards' tables can serve a choice.

    Raises:
        UserError: a shard has no table, was changed after it was scored, or its texts lack the score that is read.
    """
    reads_score = choice.floor is not None or choice.fallback is not None or choice.sampling > 0
    for shard in shards:
        check_table(shard, choice.table)
        if reads_score and not _has_scores(shard, choice):
            raise UserError(f"The table of {shard} has no {choice.score} scores; set texts.score to another.")


def _has_scores(shard: str, choice: TextChoiceConfig) -> bool:
    """Whether any text has the score, as far as the footer's statistics tell; also where there is no text at all."""
    metadata = pq.read_metadata(table_path(shard, choice.table))
    column = metadata.schema.names.index(choice.score)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    counts = [(group.num_rows, group.column(column).statistics) for group in groups]
    return not metadata.num_rows or any(known is None or known.null_count < rows for rows, known in counts)
