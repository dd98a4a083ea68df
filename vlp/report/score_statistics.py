"""What score tables say as a whole: counts, histograms, thresholds, repetition; in SQL, however many they are."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from vlp.errors import WorkError
from vlp.extras import extra

with extra("capfilt"):
    import duckdb

SOURCES = ("web", "human", "synthetic")
SCORES = ("itm", "itc", "clip", "nll")
JUDGEMENTS = ("itm", "itc", "clip")  # higher is better; the first that the tables hold ranks their images
MEMORY = "2GB"  # beyond it duckdb goes on in temporary files
LONGEST = 200  # words of a text that are read: n-grams of n words take memory for n * n words
SAMPLE = 200_000  # texts of a source whose n-grams are counted
FOR_QUANTILES = 2_000_000  # texts from whose images quantiles are taken, which duckdb holds in memory
BINS = 40
TOP = 10  # captions and n-grams that are listed
WORDS = r"regexp_extract_all(lower(text), '[^\s.,!?\"()*#:;~]+')"
# A key may occur in several shards. The image's uid tells them apart, and the shard's name where the selection has it.
SHARD = r"regexp_replace(parse_filename(filename), '\.[^.]*\.parquet$', '.tar')"
IS_SELECTED = " OR ".join(
    f"({shard}, key, uid, source, text) IN (SELECT (shard, key, uid, source, text) FROM selected)"
    for shard in ("''", SHARD)
)
Connection = duckdb.DuckDBPyConnection


@dataclass
class Histogram:
    """How often values fall into equal bins from `low` to `high`; the outermost also hold what lies beyond them."""

    low: float
    high: float
    counts: dict[str, list[int]]  # by source, a number a bin


@dataclass
class Kept:
    """How many texts score at least each threshold."""

    thresholds: list[float]
    counts: dict[str, list[int]]  # by source


@dataclass
class Decile:
    """A tenth of the images by their best text of their own, and some of them drawn."""

    low: float
    high: float
    drawn: list[tuple[str, str]]  # path of the table, key


@dataclass
class Repetition:
    """How much texts repeat each other, over a sample of at most about `SAMPLE` texts of a source."""

    sampled: dict[str, int]
    captions: list[tuple[str, float]]  # the most frequent synthetic ones, and their share of the synthetic texts
    fourgrams: list[tuple[str, float]]  # the same of four words in a row, as a share of all such
    distinct: dict[str, list[float | None]]  # by source: share of different n-grams among all, n = 1 to 4


@contextmanager
def open_tables(paths: list[str]) -> Iterator[Connection]:
    """The tables as a view `texts`, a row a text, and a table `images`, a row an image.

    Raises:
        WorkError: a table is damaged; also from queries inside the block.
    """
    with TemporaryDirectory() as folder, duckdb.connect() as connection:
        try:
            connection.execute(f"SET memory_limit = '{MEMORY}'")
            connection.execute(f"SET temp_directory = '{folder}'")
            connection.read_parquet(list(map(_literal, paths)), filename=True).create_view("stored")
            finite = ", ".join(f"CASE WHEN isfinite({name}) THEN {name}::DOUBLE END AS {name}" for name in SCORES)
            connection.execute(f"CREATE VIEW texts AS SELECT * REPLACE ({finite}) FROM stored")
            columns = "shard VARCHAR, key VARCHAR, uid VARCHAR, source VARCHAR, text VARCHAR"
            connection.execute(f"CREATE TABLE selected ({columns})")
            (total,) = one_row(connection, "SELECT count(*) FROM stored")
            # Keys are drawn by their hash, so that the same tables make the same page.
            connection.execute(
                "CREATE MACRO few(key) AS hash(key) / 18446744073709551615.0 <= "
                f"{FOR_QUANTILES / max(total, FOR_QUANTILES)}::DOUBLE"
            )
            rank = ranking(connection)
            has = ", ".join(f"bool_or(source = '{source}') AS has_{source}" for source in SOURCES)
            best = ", ".join(f"max({rank}) FILTER (source = '{source}') AS {source}" for source in SOURCES)
            connection.execute(
                "CREATE TABLE images AS SELECT filename, key, max(width) AS width, max(height) AS height, "
                f"{has}, {best} FROM texts GROUP BY filename, key"
            )
            yield connection
        except duckdb.Error as error:
            said = str(error).splitlines()[0].rstrip(".")
            damaged = next((path for path in paths if not _is_readable(path)), None)
            if damaged:
                raise WorkError(f"{damaged} cannot be read: {said}; score its shard again.") from None
            raise WorkError(f"The score tables cannot be read: {said}.") from None


def add_selected(connection: Connection, rows: pa.Table | str) -> None:
    """Take note of texts that a selection kept: rows with shard, key, uid, source and text, or the path of a parquet of
    such. The shard is "" where its name is not known."""
    found = connection.read_parquet(_literal(rows)) if isinstance(rows, str) else connection.from_arrow(rows)
    found.project("parse_filename(shard), key, uid, source, text").insert_into("selected")


def kept_by_selection(connection: Connection) -> dict[str, tuple[int, int]]:
    """Texts that are among the selected ones, and all texts, by source; under "images" those with a text that is."""
    query = f"SELECT *, ({IS_SELECTED}) AS kept FROM texts"
    rows = connection.execute(f"SELECT source, count(*) FILTER (kept), count(*) FROM ({query}) GROUP BY source")
    found = {source: (kept, total) for source, kept, total in rows.fetchall()}
    images = f"SELECT bool_or(kept) AS kept FROM ({query}) GROUP BY filename, key"
    found["images"] = one_row(connection, f"SELECT count(*) FILTER (kept), count(*) FROM ({images})")
    return {name: found[name] for name in ("images", *SOURCES) if name in found}


def ranking(connection: Connection) -> str:
    """The score that puts images in order: ITM, or what comes next where no text has it."""
    counts = one_row(connection, f"SELECT {', '.join(f'count({name})' for name in JUDGEMENTS)} FROM texts")
    return next((name for name, count in zip(JUDGEMENTS, counts, strict=True) if count), JUDGEMENTS[0])


def by_source(connection: Connection) -> dict[str, dict[str, float | None]]:
    """For each source that occurs: `texts`, `images` with one, and the mean of every score and of `tokens`."""
    names = (*SCORES, "tokens")
    rows = connection.execute(
        f"SELECT source, count(*), {', '.join(f'avg({name})' for name in names)} FROM texts GROUP BY source"
    ).fetchall()
    images = one_row(
        connection, f"SELECT {', '.join(f'count(*) FILTER (has_{source})' for source in SOURCES)} FROM images"
    )
    found = {source: dict(zip(("texts", *names), rest, strict=True)) for source, *rest in rows}
    return {
        source: {**found[source], "images": count}
        for source, count in zip(SOURCES, images, strict=True)
        if source in found
    }


def histogram(
    connection: Connection, value: str, low: float | None = None, high: float | None = None
) -> Histogram | None:
    """How an SQL expression over `texts` is distributed, by source; None where it is null everywhere.

    Without `low` and `high` the bins span all values but the outermost thousandths; whole numbers get bins of whole
    numbers.
    """
    return _histogram(connection, "texts", "source", value, low, high)


def image_histogram(
    connection: Connection, value: str, low: float | None = None, high: float | None = None
) -> Histogram | None:
    """The same over the images whose size is known; `counts` has the one key "images"."""
    return _histogram(connection, "(FROM images WHERE width > 0 AND height > 0)", "'images'", value, low, high)


def _histogram(
    connection: Connection, table: str, group: str, value: str, low: float | None, high: float | None
) -> Histogram | None:
    # Where no text has the value from which quantiles are taken, the ends are those of all.
    ends = ", ".join(
        f"coalesce(quantile_cont({value}, {share}) FILTER (few(key)), {end}({value}))"
        for share, end in ((0.001, "min"), (0.999, "max"))
    )
    query = f"SELECT any_value(typeof({value})), {ends} FROM {table}"
    kind, lowest, highest = one_row(connection, query)
    if lowest is None:
        return None
    low, high, bins = lowest if low is None else low, highest if high is None else high, BINS
    if kind in ("INTEGER", "BIGINT"):
        low, high = math.floor(low), math.ceil(high) + 1
        width = math.ceil((high - low) / BINS)
        bins = math.ceil((high - low) / width)
        high = low + bins * width
    elif low == high:
        high = low + 1
    place = f"floor(({value} - $low) / ($high - $low) * $bins)"
    rows = connection.execute(
        f"SELECT {group} AS name, greatest(least({place}, $bins - 1), 0)::INT AS bin, count(*) "
        f"FROM {table} WHERE {value} IS NOT NULL GROUP BY ALL",
        {"low": float(low), "high": float(high), "bins": bins},
    ).fetchall()
    counts = {name: [0] * bins for name in (*SOURCES, "images") if any(row[0] == name for row in rows)}
    for name, place, count in rows:
        counts[name][place] = count
    return Histogram(low, high, counts)


def kept_by_threshold(connection: Connection, score: str) -> Kept | None:
    """How many texts of each source a threshold keeps, at `BINS` + 1 thresholds; None where no text has the score.

    ITM's go from 0 to 1, the others' from the lowest hundredth of their values to the highest.
    """
    low, high = one_row(connection, f"SELECT min({score}), max({score}) FROM texts")
    if low is None:
        return None
    low, high = (0.0, 1.0) if score == "itm" else (math.floor(low * 100) / 100, math.ceil(high * 100) / 100)
    thresholds = [round(low + (high - low) * step / BINS, 4) for step in range(BINS + 1)]
    columns = ", ".join(f"count(*) FILTER ({score} >= {threshold}::DOUBLE)" for threshold in thresholds)
    rows = connection.execute(f"SELECT source, {columns} FROM texts GROUP BY source").fetchall()
    counts = {source: list(kept) for source, *kept in rows}
    return Kept(thresholds, {source: counts[source] for source in SOURCES if source in counts})


def synthetic_against_web(connection: Connection) -> dict[str, float | None]:
    """Over images that have both: `images`, the share where the best synthetic text scores above the best web text
    (`better`), the share where they are `equal`, and the mean `difference` (synthetic less web)."""
    query = "count(*), avg((synthetic > web)::INT), avg((synthetic = web)::INT), avg(synthetic - web)"
    row = one_row(connection, f"SELECT {query} FROM images WHERE web IS NOT NULL AND synthetic IS NOT NULL")
    return dict(zip(("images", "better", "equal", "difference"), row, strict=True))


def deciles(connection: Connection, each: int, seed: int) -> list[Decile]:
    """The images in tenths, lowest first, with some of each drawn, by the best text that they came with: of the web,
    else a human one, else a synthetic one. Equal scores stay together, so that there may be fewer than ten."""
    ranked = "(SELECT filename, key, coalesce(web, human, synthetic) AS best FROM images WHERE best IS NOT NULL)"
    inner = [step / 10 for step in range(1, 10)]
    (edges,) = one_row(connection, f"SELECT quantile_cont(best, {inner}) FILTER (few(key)) FROM {ranked}")
    if edges is None:
        return []
    number = " + ".join(f"(best >= {edge!r}::DOUBLE)::INT" for edge in edges)
    rows = connection.execute(
        f"SELECT {number} AS decile, min(best), max(best), "
        f"min_by([filename, key], md5(concat_ws(' ', $seed, parse_filename(filename), key)), {each}) "
        f"FROM {ranked} GROUP BY decile ORDER BY decile",
        {"seed": seed},
    ).fetchall()
    return [Decile(low, high, [tuple(one) for one in drawn]) for _, low, high, drawn in rows]


def texts_of(connection: Connection, images: list[tuple[str, str]]) -> dict[tuple[str, str], list[dict]]:
    """All texts of some images (path of the table, key): source, text, scores, tokens, and whether they are `kept`."""
    names = ("source", "text", *SCORES, "tokens", "kept")
    rows = connection.execute(
        f"SELECT filename, key, {', '.join(names[:-1])}, ({IS_SELECTED}) AS kept FROM texts "
        "WHERE filename IN $files AND key IN $keys ORDER BY source DESC, caption_id",
        {"files": [file for file, _ in images], "keys": [key for _, key in images]},
    ).fetchall()
    found: dict[tuple[str, str], list[dict]] = {image: [] for image in images}
    for file, key, *rest in rows:
        if (file, key) in found:
            found[file, key].append(dict(zip(names, rest, strict=True)))
    return found


def repetition(connection: Connection, seed: int) -> Repetition:
    """Frequent captions and n-grams, in lower case and without punctuation."""
    connection.execute(
        f"CREATE TABLE sampled AS SELECT source, ({WORDS})[1:{LONGEST}] AS words FROM texts "
        f"JOIN (SELECT source, count(*) AS texts FROM texts GROUP BY source) AS of_source USING (source) "
        f"WHERE hash($seed, filename, key, caption_id) / 18446744073709551616.0 < {SAMPLE} / of_source.texts",
        {"seed": seed},
    )
    sampled = dict(connection.execute("SELECT source, count(*) FROM sampled GROUP BY source").fetchall())
    captions, fourgrams = (
        connection.execute(
            f"SELECT gram, count(*) / sum(count(*)) OVER () AS share FROM ({grams}) WHERE source = 'synthetic' "
            f"GROUP BY gram ORDER BY share DESC, gram LIMIT {TOP}"
        ).fetchall()
        for grams in ("SELECT source, array_to_string(words, ' ') AS gram FROM sampled", _grams(4))
    )
    distinct = [
        dict(
            connection.execute(
                f"SELECT source, count(DISTINCT gram) / count(*) FROM ({_grams(n)}) GROUP BY source"
            ).fetchall()
        )
        for n in range(1, 5)
    ]
    known = [source for source in SOURCES if source in sampled]
    shares = {source: [one.get(source) for one in distinct] for source in known}
    return Repetition({source: sampled[source] for source in known}, captions, fourgrams, shares)


def frequent_sizes(connection: Connection) -> list[tuple[str, float]]:
    """The most frequent sizes as "WIDTH×HEIGHT" and their share of the images whose size is known."""
    return connection.execute(
        "SELECT concat(width, '×', height) AS size, count(*) / sum(count(*)) OVER () AS share FROM images "
        f"WHERE width > 0 AND height > 0 GROUP BY size ORDER BY share DESC, size LIMIT {TOP}"
    ).fetchall()


def _grams(n: int) -> str:
    """A query for every `n` words in a row of every sampled text."""
    slices = f"list_transform(range(1, len(words) - {n - 2}), lambda i: array_to_string(words[i:i + {n - 1}], ' '))"
    return f"SELECT source, unnest({slices}) AS gram FROM sampled"


def _literal(path: str) -> str:
    """A pattern for duckdb that only this very path fits, wildcards among its letters or not."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def _is_readable(path: str) -> bool:
    try:
        pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException):
        return False
    return True


def one_row(connection: Connection, query: str) -> tuple:
    """The one row of an aggregate; what follows it is fetched too, as duckdb does nothing else before."""
    (row,) = connection.execute(query).fetchall()
    return row
