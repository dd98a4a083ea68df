"""Training texts from score tables: draw one of an image's texts by source and score."""

import math
import random
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlp.config import TextChoiceConfig
from vlp.data.bad_samples import NO_TEXT, NO_TEXT_CHOSEN, NOT_SCORED, BadSampleError, FilteredSampleError
from vlp.data.score_tables import check_table, open_table, table_path
from vlp.data.shard_index import ShardIndex
from vlp.data.transforms import UNWANTED, clean_caption
from vlp.errors import UserError, WorkError

SOURCES = ("web", "human", "synthetic")


@dataclass
class Text:
    """One text of an image. `score` is the one that the choice reads, nan where the table has none."""

    source: str
    text: str
    score: float


class TextReader:
    """Reads the texts of any sample from its shard's table, keeping the tables that were used last in memory."""

    def __init__(self, most_kept: int = 16) -> None:
        """`most_kept` is the most tables that are kept."""
        self.most_kept = most_kept
        self.tables: OrderedDict[tuple[str, str, str, str], ShardTexts | None] = OrderedDict()  # the last one used last

    def read(self, index: ShardIndex, row: int, choice: TextChoiceConfig) -> list[Text]:
        """The texts of the sample in a row of a shard's index, in the table's order.

        Raises:
            BadSampleError: the table cannot be read.
        """
        name = (index.path, choice.table, choice.tables, choice.score)
        table = self.tables.pop(name) if name in self.tables else read_texts(index, choice)
        self.tables[name] = table
        if len(self.tables) > self.most_kept:
            self.tables.popitem(last=False)
        if table is None:
            raise BadSampleError("unreadable score table")
        return table.of(row)


class ShardTexts:
    """The texts of one shard as columns, ordered by the rows of its index.

    Attributes:
        rows: int64 [texts], ascending: the row of each text's sample; the number of samples where the shard has no such
            sample, or the text's source is unknown.
        sources: int8 [texts], into `SOURCES`.
        scores: float [texts]; nan where there is none.
    """

    def __init__(self, table: pa.Table, index: ShardIndex, score: str):
        self.samples = len(index.keys)
        sources = pc.index_in(table["source"], value_set=pa.array(SOURCES)).fill_null(-1).to_numpy()
        rows = (
            pc.index_in(table["key"].cast(pa.string()), value_set=index.keys.arrow()).fill_null(self.samples).to_numpy()
        )
        rows = np.where(sources < 0, self.samples, rows)
        order = np.argsort(rows, kind="stable")
        self.rows = rows[order]
        self.starts = np.searchsorted(self.rows, np.arange(self.samples + 1))
        self.texts = table["text"].combine_chunks().take(pa.array(order)).fill_null("")
        self.sources = sources[order].astype(np.int8)
        self.scores = table[score].to_numpy()[order]

    def of(self, row: int) -> list[Text]:
        """The texts of the sample in a row of the index."""
        span = range(self.starts[row], self.starts[row + 1])
        return [Text(SOURCES[self.sources[i]], self.texts[i].as_py(), float(self.scores[i])) for i in span]

    def usable(self, choice: TextChoiceConfig) -> np.ndarray:
        """Whether `choose_texts` finds a text for each sample: bool [samples]."""
        limits = np.full(len(SOURCES), -np.inf)
        for limit, sources in ((choice.floor, SOURCES), (choice.fallback, ("web",))):
            for source in sources if limit is not None else ():
                limits[SOURCES.index(source)] = max(limits[SOURCES.index(source)], limit)
        allowed = ~np.isnan(self.scores)
        if choice.sampling == 0:
            allowed |= np.isneginf(limits)[self.sources]
        with np.errstate(invalid="ignore"):
            allowed &= ~(self.scores < limits[self.sources])
        worded = pc.not_equal(pc.utf8_trim_whitespace(pc.replace_substring_regex(self.texts, UNWANTED.pattern, "")), "")
        allowed &= worded.to_numpy(zero_copy_only=False)
        has = [self._have(allowed & (self.sources == number)) for number in range(len(SOURCES))]
        result = np.any([has[number] & (getattr(choice, name) > 0) for number, name in enumerate(SOURCES)], axis=0)
        if choice.fallback is not None and choice.web > 0:
            web, synthetic = SOURCES.index("web"), SOURCES.index("synthetic")
            result |= self._have(self.sources == web) & ~has[web] & has[synthetic]
        return result

    def unscored(self) -> int:
        """The number of samples that have no text in the table."""
        return int((self.starts[1:] == self.starts[:-1]).sum())

    def _have(self, texts: np.ndarray) -> np.ndarray:
        """Whether each sample has one of the texts of a mask: bool [texts] -> bool [samples]."""
        return np.bincount(self.rows[texts], minlength=self.samples + 1)[: self.samples] > 0


def read_texts(index: ShardIndex, choice: TextChoiceConfig) -> ShardTexts | None:
    """The texts of a shard; None where its table is missing or damaged."""
    columns = read_columns(index.path, choice)
    return None if columns is None else ShardTexts(columns, index, choice.score)


def read_columns(shard: str, choice: TextChoiceConfig) -> pa.Table | None:
    """The columns of a shard's table that a choice reads; None where the table is missing or damaged."""
    try:
        with open_table(table_path(shard, choice.table, choice.tables)) as file:
            # Arrow's pool of threads does not survive the fork of the loader's workers.
            return file.read(["key", "source", "text", choice.score], use_threads=False)
    except (OSError, pa.ArrowException, UserError, WorkError):
        return None


def choose_texts(texts: list[Text], choice: TextChoiceConfig, rng: random.Random, most: int = 1) -> list[str]:
    """Draw distinct texts of an image; `rng` decides everything.

    First a source is drawn by its chance among those that have a usable text, then one of its texts. Texts that are
    only punctuation, and texts below the floor, are not usable; nor are web texts below `fallback`. An image that loses
    all its web texts to `fallback` adds the chance of web texts to that of synthetic ones. Further texts are drawn in
    the same way from those that are left, until there are `most` or none is left.

    Raises:
        FilteredSampleError: there is no text, none is usable, or only texts of sources with chance 0.
    """
    if not texts:
        raise FilteredSampleError(NOT_SCORED)
    usable = {source: [text for text in texts if text.source == source and _usable(text, choice)] for source in SOURCES}
    chances = {source: getattr(choice, source) for source in SOURCES}
    if choice.fallback is not None and not usable["web"] and any(text.source == "web" for text in texts):
        chances["synthetic"] += chances["web"]
    if not any(usable[source] and chances[source] for source in SOURCES):
        raise FilteredSampleError(NO_TEXT_CHOSEN if any(clean_caption(text.text) for text in texts) else NO_TEXT)
    drawn: list[str] = []
    while len(drawn) < most:
        weights = [chances[source] if usable[source] else 0.0 for source in SOURCES]
        if not any(weights):
            break
        drawn.append(_draw(usable[rng.choices(SOURCES, weights)[0]], choice.sampling, rng))
        usable = {source: [text for text in usable[source] if text.text != drawn[-1]] for source in SOURCES}
    return drawn


def _draw(texts: list[Text], sampling: float, rng: random.Random) -> str:
    """One of a source's texts: any, or by score at the temperature `sampling`."""
    if sampling == 0:
        return rng.choice(texts).text
    best = max(text.score for text in texts)
    return rng.choices(texts, [math.exp((text.score - best) / sampling) for text in texts])[0].text


def _usable(text: Text, choice: TextChoiceConfig) -> bool:
    limits = [choice.floor, choice.fallback if text.source == "web" else None]
    if any(limit is not None and not text.score >= limit for limit in limits):
        return False  # also without a score
    return not (choice.sampling and math.isnan(text.score)) and bool(clean_caption(text.text))


def check_choice(shard: str, choice: TextChoiceConfig) -> None:
    """Make sure, without reading its rows, that a shard's table can serve a choice.

    Raises:
        UserError: the shard has no table, was changed after it was scored, or its texts lack the score that is read.
    """
    check_table(shard, choice.table, choice.tables)
    reads_score = choice.floor is not None or choice.fallback is not None or choice.sampling > 0
    if reads_score and not _has_scores(shard, choice):
        raise UserError(f"The table of {shard} has no {choice.score} scores; set texts.score to another.")


def _has_scores(shard: str, choice: TextChoiceConfig) -> bool:
    """Whether any text may have the score, by the statistics in the table's footer; also True for an empty table."""
    with open_table(table_path(shard, choice.table, choice.tables)) as file:
        metadata = file.metadata
    column = metadata.schema.names.index(choice.score)
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    counts = [(group.num_rows, group.column(column).statistics) for group in groups]
    return not metadata.num_rows or any(known is None or known.null_count < rows for rows, known in counts)
