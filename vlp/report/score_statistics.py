"""Statistics of any number of score tables, computed by duckdb: counts, histograms, thresholds, repetition."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import pyarrow as pa

from vlp.data.score_tables import is_readable
from vlp.data.sql import quote
from vlp.data.text_choice import SOURCES
from vlp.errors import WorkError
from vlp.extras import extra

with extra("capfilt"):
    import duckdb

SCORES = ("itm", "itc", "clip", "nll")
MATCH_SCORES = ("itm", "itc", "clip")  # higher is better; the first that occurs ranks the images
MEMORY = "2GB"  # duckdb uses temporary files beyond it
LONGEST = 200  # words of a text that are read: n-grams of n words take memory for n * n words
SAMPLE = 200_000  # texts per source whose n-grams are counted
FOR_QUANTILES = 2_000_000  # texts of the images from which quantiles are estimated; duckdb holds them in memory
BINS = 40
TOP = 10  # listed captions and n-grams
WORDS = r"regexp_extract_all(lower(text), '[^\s.,!?\"()*#:;~]+')"
# A key may occur in several shards: also compare the image's uid, and the shard's name if the selection records it.
SHARD = r"regexp_replace(parse_filename(filename), '\.[^.]*\.parquet$', '.tar')"
IS_SELECTED = " OR ".join(
    f"({shard}, key, uid, source, text) IN (SELECT (shard, key, uid, source, text) FROM selected)"
    for shard in ("''", SHARD)
)
Connection = duckdb.DuckDBPyConnection


@dataclass
class Histogram:
    """Counts of values in equal bins from `low` to `high`; the outer bins include all values beyond."""

    low: float
    high: float
    counts: dict[str, list[int]]  # by source, one count per bin


@dataclass
class Kept:
    """How many texts score at least each threshold."""

    thresholds: list[float]
    counts: dict[str, list[int]]  # by source


@dataclass
class Decile:
    """A tenth of the images by the score of their best own text, with a sample of them."""

    low: float
    high: float
    drawn: list[tuple[str, str]]  # the sample: path of the table, key


@dataclass
class Repetition:
    """How often texts repeat, in a sample of about `SAMPLE` texts per source."""

    sampled: dict[str, int]  # texts by source
    captions: list[tuple[str, float]]  # the most frequent synthetic captions, and their share of all of them
    fourgrams: list[tuple[str, float]]  # the most frequent synthetic 4-grams, and their share of all of them
    distinct: dict[str, list[float | None]]  # by source: the share of distinct n-grams, n = 1 to 4


@contextmanager
def open_tables(paths: list[str]) -> Iterator[Connection]:
    """Open the tables in duckdb: a view `texts` with one row per text, and a table `images` with one row per image.

    Raises:
        WorkError: a table is damaged, also if a query inside the block finds it.
    """
    with TemporaryDirectory() as folder, duckdb.connect() as connection:
        try:
            connection.execute(f"SET memory_limit = '{MEMORY}'")
            connection.execute(f"SET temp_directory = {quote(folder)}")
            connection.read_parquet(list(map(_literal, paths)), filename=True).create_view("stored")
            finite = ", ".join(f"CASE WHEN isfinite({name}) THEN {name}::DOUBLE END AS {name}" for name in SCORES)
            connection.execute(f"CREATE VIEW texts AS SELECT * REPLACE ({finite}) FROM stored")
            columns = "shard VARCHAR, key VARCHAR, uid VARCHAR, source VARCHAR, text VARCHAR"
            connection.execute(f"CREATE TABLE selected ({columns})")
            (total,) = one_row(connection, "SELECT count(*) FROM stored")
            # Sample keys by their hash, so that the same tables give the same page.
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
            reason = str(error).splitlines()[0].rstrip(".")
            damaged = next((path for path in paths if not is_readable(path)), None)
            if damaged:
                raise WorkError(f"{damaged} cannot be read: {reason}; score its shard again.") from None
            raise WorkError(f"The score tables cannot be read: {reason}.") from None


def add_selected(connection: Connection, rows: pa.Table | str) -> None:
    """Add texts that a selection kept: rows with shard, key, uid, source and text, or the path of a parquet file with
    these columns. An unknown shard is ""."""
    found = connection.read_parquet(_literal(rows)) if isinstance(rows, str) else connection.from_arrow(rows)
    found.project("parse_filename(shard), key, uid, source, text").insert_into("selected")


def kept_by_selection(connection: Connection) -> dict[str, tuple[int, int]]:
    """The numbers of selected texts and of all texts by source; and of images with a selected text, and all images."""
    query = f"SELECT *, ({IS_SELECTED}) AS kept FROM texts"
    rows = connection.execute(f"SELECT source, count(*) FILTER (kept), count(*) FROM ({query}) GROUP BY source")
    found = {source: (kept, total) for source, kept, total in rows.fetchall()}
    images = f"SELECT bool_or(kept) AS kept FROM ({query}) GROUP BY filename, key"
    found["images"] = one_row(connection, f"SELECT count(*) FILTER (kept), count(*) FROM ({images})")
    return {name: found[name] for name in ("images", *SOURCES) if name in found}


def ranking(connection: Connection) -> str:
    """The score that ranks the images: the first of `MATCH_SCORES` that occurs."""
    counts = one_row(connection, f"SELECT {', '.join(f'count({name})' for name in MATCH_SCORES)} FROM texts")
    return next((name for name, count in zip(MATCH_SCORES, counts, strict=True) if count), MATCH_SCORES[0])


def by_source(connection: Connection) -> dict[str, dict[str, float | None]]:
    """For each source that occurs: the number of `texts`, of `images` that have one, and the mean of all scores and of
    `tokens`."""
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
    """The histogram by source of an SQL expression over `texts`; None if it is null everywhere.

    By default the bins span all values except the lowest and highest thousandth; integers get bins of integer width.
    """
    return _histogram(connection, "texts", "source", value, low, high)


def image_histogram(
    connection: Connection, value: str, low: float | None = None, high: float | None = None
) -> Histogram | None:
    """The histogram of an SQL expression over the images of known size; `counts` has the single key "images"."""
    return _histogram(connection, "(FROM images WHERE width > 0 AND height > 0)", "'images'", value, low, high)


def _histogram(
    connection: Connection, table: str, group: str, value: str, low: float | None, high: float | None
) -> Histogram | None:
    # If no sampled key has the value, use the extremes of all values.
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
    """How many texts of each source `BINS` + 1 thresholds keep; None if no text has the score.

    The thresholds span 0 to 1 for ITM, and the range of the values, rounded outwards to hundredths, for other scores.
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
    """Compare the best synthetic with the best web text of each image that has both: the number of such `images`, the
    share where the synthetic text is `better`, where they are `equal`, and the mean `difference` (synthetic - web)."""
    query = "count(*), avg((synthetic > web)::INT), avg((synthetic = web)::INT), avg(synthetic - web)"
    row = one_row(connection, f"SELECT {query} FROM images WHERE web IS NOT NULL AND synthetic IS NOT NULL")
    return dict(zip(("images", "better", "equal", "difference"), row, strict=True))


def deciles(connection: Connection, each: int, seed: int) -> list[Decile]:
    """Images in tenths, lowest first, by their best web text (else human, else synthetic), with `each` sample images
    per tenth. Equal scores stay together, so there may be fewer than ten."""
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
    """All texts of images given as (path of the table, key): source, text, scores, tokens, and whether it is `kept`."""
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
    """Count frequent captions and n-grams, in lower case and without punctuation."""
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
    """The most frequent sizes as "WIDTH×HEIGHT", and their share of all images of known size."""
    return connection.execute(
        "SELECT concat(width, '×', height) AS size, count(*) / sum(count(*)) OVER () AS share FROM images "
        f"WHERE width > 0 AND height > 0 GROUP BY size ORDER BY share DESC, size LIMIT {TOP}"
    ).fetchall()


def _grams(n: int) -> str:
    """A query for all n-grams of `n` words of the sampled texts."""
    slices = f"list_transform(range(1, len(words) - {n - 2}), lambda i: array_to_string(words[i:i + {n - 1}], ' '))"
    return f"SELECT source, unnest({slices}) AS gram FROM sampled"


def _literal(path: str) -> str:
    """A path as a duckdb pattern, with wildcard characters escaped."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def one_row(connection: Connection, query: str) -> tuple:
    """The single row of an aggregate. All rows are fetched, because duckdb runs no other query before that."""
    (row,) = connection.execute(query).fetchall()
    return row
