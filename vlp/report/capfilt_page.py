"""CapFilt's page: what score tables hold, as numbers, curves and pictures, in one HTML file that opens from disk."""

import io
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from markupsafe import Markup

from vlp.data.score_tables import VERSION, is_same_shard, read_settings
from vlp.data.shards import BadSampleError, ShardIndex, ShardReader, decode_image, expand_shards, index_shard
from vlp.errors import UserError
from vlp.report import score_statistics as statistics
from vlp.report.distributions import COLOURS, histogram_svg, kept_svg
from vlp.report.page import data_uri, render, write_page
from vlp.report.score_statistics import Connection

PICTURES_EACH = 4  # images drawn of each decile
PIXELS = 160  # longer side of a picture on the page
VALUES_SHOWN = 3  # of a setting that differs between tables
TITLES = {
    "itm": "ITM probability",
    "itc": "ITC cosine",
    "clip": "CLIP cosine",
    "nll": "negative log-likelihood a token (nats)",
    "tokens": "tokens",
}
ASPECTS = {-2.0: "1:4", -1.0: "1:2", 0.0: "1:1", 1.0: "2:1", 2.0: "4:1"}  # by log2 of width / height


@dataclass
class _Tables:
    """What the footers of the tables say."""

    shards: dict[str, str | None]  # of each table's path: its shard, None where that is gone or was changed
    settings: list[tuple[str, list[tuple[str, int]]]]  # name, and each value with how many tables have it
    bad: dict[str, int]  # bad samples by reason


@dataclass
class _Picture:
    """An image on the page with its texts; `address` is empty where the image cannot be shown."""

    address: str
    key: str
    texts: list[dict] = field(default_factory=list)


def write_capfilt_report(scores: str | list[str], output: str, failures: str = "", seed: int = 0) -> None:
    """Write the page.

    Args:
        scores: score tables, as paths and patterns. Pictures come from the shards beside them, where they still are.
        failures: a file of JSON lines, one a shard that was given up: `shard`, `error`, `attempts`.
        seed: of the images and texts that are drawn.

    Raises:
        UserError: no table matches, a file is none, or `failures` is not such a file.
        WorkError: a table is damaged.
    """
    paths = expand_shards(scores)
    tables, given_up = _read_footers(paths), _read_failures(failures)
    with statistics.open_tables(paths) as connection:
        rank = statistics.ranking(connection)
        values = {
            "sources": statistics.by_source(connection),
            "rank": TITLES[rank],
            "duel": statistics.synthetic_against_web(connection),
            "kept": _kept(connection),
            "histograms": _histograms(connection),
            "shapes": _shapes(connection),
            "sizes": statistics.frequent_sizes(connection),
            "repetition": statistics.repetition(connection, seed),
            "sheets": _sheets(connection, tables.shards, seed),
            "images": connection.execute("SELECT count(*) FROM images").fetchone()[0],
        }
    without = sum(shard is None for shard in tables.shards.values())
    page = render(
        "capfilt.html.j2",
        tables=len(paths),
        without_shard=without,
        settings=tables.settings,
        bad=tables.bad,
        failures=given_up,
        failures_file=failures,
        colours=COLOURS,
        titles=TITLES,
        sample=statistics.SAMPLE,
        seed=seed,
        **values,
    )
    write_page(page, output)


def _read_footers(paths: list[str]) -> _Tables:
    shards: dict[str, str | None] = {}
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    bad: Counter[str] = Counter()
    for path in paths:
        stem, _, name = path.removesuffix(".parquet").rpartition(".")
        shard = f"{stem}.tar"
        said = read_settings(shard, name) if path.endswith(".parquet") and stem else None
        if said is None:
            raise UserError(f"{path} is not a score table; `vlp capfilt score` writes them.")
        if said.pop("version", None) != VERSION:
            raise UserError(f"{path} is a score table of another version; score its shard again.")
        state, about = {key: said.pop(key, "") for key in ("shard", "shard_sha256")}, said.pop("about", {})
        shards[path] = shard if Path(shard).exists() and is_same_shard(shard, state) else None
        bad.update(about.pop("bad", {}))
        for key, value in {**said, **about}.items():
            counted[key][_plain(value)] += 1
    settings = [(key.replace("_", " "), counts.most_common()) for key, counts in counted.items()]
    return _Tables(shards, settings, dict(bad.most_common()))


def _plain(value: object) -> str:
    """A setting in words: JSON is taken apart, whether or not it lies in a string."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return "; ".join(map(_plain, value)) or "none"
    return json.dumps(value) if isinstance(value, bool | None) else str(value) or "none"


def _read_failures(path: str) -> list[dict]:
    if not path:
        return []
    try:
        lines = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
        return [{name: line[name] for name in ("shard", "error", "attempts")} for line in lines]
    except FileNotFoundError:
        raise UserError(f"There is no file {path} of failed shards.") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} must hold a JSON object a line, each with shard, error and attempts.") from None


def _histograms(connection: Connection) -> list[Markup]:
    """A figure for every score that some text has."""
    figures = []
    for name, title in TITLES.items():
        found = statistics.histogram(connection, name, *((0.0, 1.0) if name == "itm" else ()))
        figures += [Markup(histogram_svg(found, title))] if found else []
    return figures


def _kept(connection: Connection) -> list[tuple[str, Markup, statistics.Kept]]:
    found = [(TITLES[name], statistics.kept_by_threshold(connection, name)) for name in statistics.JUDGEMENTS]
    return [(title, Markup(kept_svg(kept, f"threshold of {title}")), kept) for title, kept in found if kept]


def _shapes(connection: Connection) -> list[Markup]:
    """Figures of the captions' lengths and the images' sizes."""
    words = statistics.histogram(connection, f"len({statistics.WORDS})")
    shorter = statistics.image_histogram(connection, "least(width, height)")
    aspect = statistics.image_histogram(connection, "log2(width / height)", -2.05, 2.05)
    figures = [histogram_svg(words, "words a text")] if words else []
    figures += [histogram_svg(shorter, "shorter side of the image (pixels)")] if shorter else []
    figures += [histogram_svg(aspect, "width : height", ASPECTS)] if aspect else []
    return [Markup(figure) for figure in figures]


def _sheets(
    connection: Connection, shards: dict[str, str | None], seed: int
) -> list[tuple[float, float, list[_Picture]]]:
    """For each decile its bounds, and some of its images with all their texts."""
    found = statistics.deciles(connection, PICTURES_EACH, seed)
    texts = statistics.texts_of(connection, [image for decile in found for image in decile.drawn])
    reader, index_of = ShardReader(), lru_cache(maxsize=16)(index_shard)
    sheets = []
    for decile in found:
        pictures = []
        for table, key in decile.drawn:
            shard = shards[table]
            address = _address(reader, index_of(shard), key) if shard else ""
            pictures.append(_Picture(address, key, texts[table, key]))
        sheets.append((decile.low, decile.high, pictures))
    reader.close()
    return sheets


def _address(reader: ShardReader, index: ShardIndex, key: str) -> str:
    """A small JPEG of an image as an address; "" where it cannot be read."""
    try:
        picture = decode_image(reader.read(index, index.keys.index(key)).image, shortest=PIXELS)
    except (BadSampleError, ValueError):
        return ""
    picture.thumbnail((PIXELS, PIXELS))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85)
    return data_uri(data.getvalue(), "jpeg")
