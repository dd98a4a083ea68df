"""Writes CapFilt's report: score tables as numbers, figures and sample images, in one HTML file."""

import glob
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
from markupsafe import Markup

from vlp.data.bad_samples import BadSampleError
from vlp.data.find_tables import find_tables, shard_and_name
from vlp.data.image_decoding import decode_image
from vlp.data.score_tables import image_uid, is_same_shard, read_settings
from vlp.data.shard_index import ShardIndex, index_shard
from vlp.data.shards import ShardReader, iterate_samples
from vlp.errors import UserError
from vlp.extras import extra
from vlp.files import write_text
from vlp.report import score_statistics as statistics
from vlp.report.distributions import COLORS, histogram_svg, kept_svg
from vlp.report.page import data_uri, render
from vlp.report.score_statistics import Connection

with extra("capfilt"):
    from duckdb import Error as DuckDBError

PICTURES_EACH = 4  # sample images per decile
PIXELS = 160  # longer side of an image on the page
STEPS = 6  # calls of `progress`
HIDDEN = ("version", "shard", "shard_sha256", "settings")  # of interest to programs only, or repeated in other entries
SELECTED = pa.schema([(name, pa.string()) for name in ("shard", "key", "uid", "source", "text")])
TITLES = {
    "itm": "ITM probability",
    "itc": "ITC cosine",
    "clip": "CLIP cosine",
    "nll": "negative log-likelihood per token (nats)",
    "tokens": "tokens",
}
ASPECTS = {-2.0: "1:4", -1.0: "1:2", 0.0: "1:1", 1.0: "2:1", 2.0: "4:1"}  # by log2 of width / height


@dataclass
class _Picture:
    """An image on the page with its texts; `address` is a data URI, empty if the image cannot be read."""

    address: str
    key: str
    texts: list[dict] = field(default_factory=list)


def write_capfilt_report(
    scores: str | list[str],
    output: str,
    selected: str = "",
    failures: str = "",
    seed: int = 0,
    progress: Callable[[str], None] = lambda what: None,
) -> None:
    """Write the page.

    Args:
        scores: score tables, as paths and patterns. Images come from the shards next to them, if these still exist.
        selected: what `vlp capfilt select` wrote from these tables: a folder of shards, or a table (faster).
        failures: the list of failed shards, in JSON lines with `shard`, `error` and optionally `attempts`.
        seed: for sampling images and texts.
        progress: called `STEPS` times with the name of a finished step.

    Raises:
        UserError: no table matches, a file is not a score table, or `selected` or `failures` is not of the right kind.
        WorkError: a table is damaged, or the page cannot be written.
    """
    paths = find_tables(scores)
    settings, bad = _read_footers(paths)
    given_up = _read_failures(failures)
    progress("settings")
    with statistics.open_tables(paths) as connection:
        progress("images")
        kept = _selection(connection, selected) if selected else {}
        progress("selection")
        rank = statistics.ranking(connection)
        values = {
            "sources": statistics.by_source(connection),
            "comparison": statistics.synthetic_against_web(connection),
            "kept": _kept(connection),
            "histograms": _histograms(connection),
            "shapes": _shapes(connection),
            "sizes": statistics.frequent_sizes(connection),
            "images": statistics.one_row(connection, "SELECT count(*) FROM images")[0],
        }
        progress("histograms")
        values["repetition"] = statistics.repetition(connection, seed)
        progress("repetition")
        values["sheets"] = _sheets(connection, seed)
        progress("pictures")
    page = render(
        "capfilt.html.j2",
        tables=len(paths),
        rank=TITLES[rank],
        settings=settings,
        bad=bad,
        selected=selected,
        selection=kept,
        failures=given_up,
        failures_file=failures,
        colors=COLORS,
        sample=statistics.SAMPLE,
        seed=seed,
        **values,
    )
    write_text(output, page)


def _read_footers(paths: list[str]) -> tuple[list[tuple[str, list[tuple[str, int]]]], dict[str, int]]:
    """Read what the tables record: the values of each setting with the number of tables, and bad samples by reason."""
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    bad: Counter[str] = Counter()
    for path in paths:
        settings = read_settings(*shard_and_name(path)) or {}
        about = settings.pop("about", {})
        bad.update(about.pop("bad", {}))
        for key, value in {**settings, **about}.items():
            if key not in HIDDEN:
                counted[key][_plain(value)] += 1
    values = [(key.replace("_", " "), counts.most_common()) for key, counts in counted.items()]
    return values, dict(bad.most_common())


def _selection(connection: Connection, selected: str) -> dict[str, tuple[int, int]]:
    """How many texts `selected` kept, as `kept_by_selection` counts them."""
    _read_selected(connection, selected)
    return statistics.kept_by_selection(connection)


def _read_selected(connection: Connection, selected: str) -> None:
    """Add the texts that `selected` holds to the connection, one shard at a time."""
    if Path(selected).is_file():
        try:
            return statistics.add_selected(connection, selected)
        except DuckDBError:
            raise UserError(f"{selected} was not written by `vlp capfilt select --table`; check --selected.") from None
    if not Path(selected).is_dir():
        raise UserError(f"There is no {selected}; give the folder or table that `vlp capfilt select` wrote.")
    for shard in sorted(Path(selected).glob("*.tar")):  # empty if no text satisfied the rules
        rows = [  # a new shard does not record the original shard of its samples
            {"shard": "", "key": one.key, "uid": image_uid(one.image, one.info), "source": source, "text": text}
            for one in iterate_samples(glob.escape(str(shard)))
            for text, source in zip(one.captions, one.sources, strict=True)
        ]
        statistics.add_selected(connection, pa.Table.from_pylist(rows, SELECTED))


def _plain(value: object) -> str:
    """A setting as plain text; JSON, also within a string, is flattened."""
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
        lines = [json.loads(line) for line in Path(path).read_text("utf-8").split("\n") if line.strip()]
        return [{"attempts": "", **line, "shard": line["shard"], "error": line["error"]} for line in lines]
    except OSError:
        raise UserError(f"{path} cannot be read; give the list of failed shards, or leave out --failures.") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is not a list of failed shards; each line must be a JSON object with shard and error."
        ) from None


def _histograms(connection: Connection) -> list[Markup]:
    """A figure for each score that occurs."""
    figures = []
    for name, title in TITLES.items():
        found = statistics.histogram(connection, name, *((0.0, 1.0) if name == "itm" else ()))
        figures += [Markup(histogram_svg(found, title))] if found else []
    return figures


def _kept(connection: Connection) -> list[tuple[str, Markup, statistics.Kept]]:
    found = [(TITLES[name], statistics.kept_by_threshold(connection, name)) for name in statistics.MATCH_SCORES]
    return [(title, Markup(kept_svg(kept, f"threshold of {title}")), kept) for title, kept in found if kept]


def _shapes(connection: Connection) -> list[Markup]:
    """Figures of text lengths and image sizes."""
    words = statistics.histogram(connection, f"len({statistics.WORDS})")
    shorter = statistics.image_histogram(connection, "least(width, height)")
    aspect = statistics.image_histogram(connection, "log2(width / height)", -2.05, 2.05)
    figures = [histogram_svg(words, "words per text")] if words else []
    figures += [histogram_svg(shorter, "shorter side of the image (pixels)")] if shorter else []
    figures += [histogram_svg(aspect, "width : height", ASPECTS)] if aspect else []
    return [Markup(figure) for figure in figures]


def _sheets(connection: Connection, seed: int) -> list[tuple[float, float, list[_Picture]]]:
    """The bounds of each decile, and sample images with all their texts."""
    found = statistics.deciles(connection, PICTURES_EACH, seed)
    texts = statistics.texts_of(connection, [image for decile in found for image in decile.drawn])
    reader, index_of = ShardReader(), lru_cache(maxsize=16)(_index)
    sheets = []
    for decile in found:
        drawn = [(key, index_of(table), texts[table, key]) for table, key in decile.drawn]
        pictures = [_Picture(_address(reader, index, key), key, own) for key, index, own in drawn]
        sheets.append((decile.low, decile.high, pictures))
    reader.close()
    return sheets


def _index(table: str) -> ShardIndex | None:
    """The index of a table's shard; None if the shard is missing or has changed."""
    shard, name = shard_and_name(table)
    if not Path(shard).exists() or not is_same_shard(shard, read_settings(shard, name) or {}):
        return None
    return index_shard(shard)


def _address(reader: ShardReader, index: ShardIndex | None, key: str) -> str:
    """A small JPEG of an image as a data URI; "" if the image cannot be read."""
    if index is None:
        return ""
    try:
        picture = decode_image(reader.read(index, index.keys.index(key)).image, shortest=PIXELS)
    except (BadSampleError, ValueError):
        return ""
    picture.thumbnail((PIXELS, PIXELS))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85)
    return data_uri(data.getvalue(), "jpeg")
