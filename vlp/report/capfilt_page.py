"""Writes CapFilt's report: score tables as numbers, figures and sample images, in one HTML file."""

import glob
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from markupsafe import Markup

from vlp.data.bad_samples import BadSampleError
from vlp.data.find_tables import ScoreTable, copy_tables, find_tables
from vlp.data.image_decoding import decode_image
from vlp.data.image_encoding import small_jpeg
from vlp.data.score_tables import image_uid, is_same_shard, shard_exists, table_settings
from vlp.data.shard_index import expand_shards, index_shard
from vlp.data.shards import Sample, ShardReader, iterate_samples
from vlp.errors import UserError, WorkError
from vlp.extras import extra
from vlp.files import scratch_folder, write_text
from vlp.remote import is_remote
from vlp.report import score_statistics as statistics
from vlp.report.distributions import COLORS, histogram_svg, kept_svg
from vlp.report.page import data_uri, render
from vlp.report.score_statistics import Connection

with extra("capfilt"):
    from duckdb import Error as DuckDBError

PICTURES_EACH = 4  # sample images per decile
PIXELS = 160  # longer side of an image on the page
STEPS = 6  # calls of `progress`
HIDDEN = (
    "version",
    "path",
    "shard",
    "shard_sha256",
    "settings",
)  # of interest to programs only, or repeated in other entries
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
        scores: score tables, as paths, URLs, globs and folders. Images come from their shards, if these still exist.
            Of a remote shard everything before its last image on the page is read.
        selected: what `vlp capfilt select` wrote from these tables: a folder of shards, or a table (faster).
        failures: the list of failed shards, in JSON lines with `shard`, `error` and optionally `attempts`.
        seed: for sampling images and texts.
        progress: called `STEPS` times with the name of a finished step.

    Raises:
        UserError: no table matches, a file is not a score table, or `selected` or `failures` is not of the right kind.
        WorkError: a table is damaged, or the page cannot be written.
    """
    given_up = _read_failures(failures)
    with scratch_folder(output) as scratch:
        tables = find_tables(scores, scratch / "scores", quiet=True)
        settings, bad = _read_footers(tables)
        progress("settings")
        with _original_names(tables), statistics.open_tables([table.file for table in tables]) as connection:
            progress("images")
            kept = _selection(connection, selected, scratch) if selected else {}
            progress("selection")
            rank, values = statistics.ranking(connection), _values(connection)
            progress("histograms")
            values["repetition"] = statistics.repetition(connection, seed)
            progress("repetition")
            values["sheets"] = _sheets(connection, {table.file: table for table in tables}, seed)
            progress("pictures")
    page = render(
        "capfilt.html.j2",
        tables=len(tables),
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


def _values(connection: Connection) -> dict[str, Any]:
    """Statistics and figures of all tables."""
    return {
        "sources": statistics.by_source(connection),
        "comparison": statistics.synthetic_against_web(connection),
        "kept": _kept(connection),
        "histograms": _histograms(connection),
        "shapes": _shapes(connection),
        "sizes": statistics.frequent_sizes(connection),
        "images": statistics.one_row(connection, "SELECT count(*) FROM images")[0],
    }


def _read_footers(tables: list[ScoreTable]) -> tuple[list[tuple[str, list[tuple[str, int]]]], dict[str, int]]:
    """Read what the tables record: the values of each setting with the number of tables, and bad samples by reason."""
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    bad: Counter[str] = Counter()
    for table in tables:
        settings = table_settings(table.file) or {}
        about = settings.pop("about", {})
        bad.update(about.pop("bad", {}))
        for key, value in {**settings, **about}.items():
            if key not in HIDDEN:
                counted[key][_plain(value)] += 1
    values = [(key.replace("_", " "), counts.most_common()) for key, counts in counted.items()]
    return values, dict(bad.most_common())


@contextmanager
def _original_names(tables: list[ScoreTable]) -> Iterator[None]:
    """Let an error about the copy of a remote table name the table itself."""
    try:
        yield
    except WorkError as error:
        message = str(error)
        for table in tables:
            message = message.replace(table.file, table.path)
        raise WorkError(message) from None


def _selection(connection: Connection, selected: str, scratch: Path) -> dict[str, tuple[int, int]]:
    """How many texts `selected` kept, as `kept_by_selection` counts them."""
    _read_selected(connection, selected, scratch)
    return statistics.kept_by_selection(connection)


def _read_selected(connection: Connection, selected: str, scratch: Path) -> None:
    """Add the texts that `selected` holds to the connection, one shard at a time."""
    if is_remote(selected) and selected.endswith(".parquet"):
        return _read_selected(connection, copy_tables([selected], scratch, quiet=True)[selected], scratch)
    if Path(selected).is_file():
        try:
            return statistics.add_selected(connection, selected)
        except DuckDBError:
            raise UserError(f"{selected} was not written by `vlp capfilt select --table`; check --selected.") from None
    if is_remote(selected):
        shards = expand_shards(f"{selected.rstrip('/')}/*.tar")
    elif Path(selected).is_dir():
        shards = [glob.escape(str(path)) for path in sorted(Path(selected).glob("*.tar"))]  # none if no text was kept
    else:
        raise UserError(f"There is no {selected}; give the folder or table that `vlp capfilt select` wrote.")
    for shard in shards:
        rows = [  # a new shard does not record the original shard of its samples
            {"shard": "", "key": one.key, "uid": image_uid(one.image, one.info), "source": source, "text": text}
            for one in iterate_samples(shard)
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


def _sheets(
    connection: Connection, tables: dict[str, ScoreTable], seed: int
) -> list[tuple[float, float, list[_Picture]]]:
    """The bounds of each decile, and sample images with all their texts; `tables` by their files."""
    found = statistics.deciles(connection, PICTURES_EACH, seed)
    drawn = [image for decile in found for image in decile.drawn]
    texts = statistics.texts_of(connection, drawn)
    addresses: dict[tuple[str, str], str] = {}
    for file in dict.fromkeys(file for file, _ in drawn):
        pictures = _addresses(tables[file], {key for other, key in drawn if other == file})
        addresses |= {(file, key): address for key, address in pictures.items()}
    return [
        (one.low, one.high, [_Picture(addresses.get(image, ""), image[1], texts[image]) for image in one.drawn])
        for one in found
    ]


def _addresses(table: ScoreTable, keys: set[str]) -> dict[str, str]:
    """Small JPEGs of images as data URIs, by key, without those that cannot be read or whose shard has changed."""
    shard = table.shard
    if not shard_exists(shard) or not is_same_shard(shard, table_settings(table.file) or {}):
        return {}
    found: dict[str, str] = {}
    for sample in _samples(shard, keys):
        with suppress(BadSampleError):
            picture = decode_image(sample.image, shortest=PIXELS)
            found[sample.key] = data_uri(small_jpeg(picture, PIXELS), "jpeg")
    return found


def _samples(shard: str, keys: set[str]) -> Iterator[Sample]:
    """The samples with some keys; those that are damaged are left out."""
    if is_remote(shard):
        wanted = set(keys)
        for sample in iterate_samples(shard):
            if sample.key in wanted:
                wanted.discard(sample.key)
                yield sample
            if not wanted:
                return
        return
    index, reader = index_shard(shard), ShardReader(most_open=1)
    for row, key in enumerate(index.keys):
        if key in keys:
            with suppress(BadSampleError):
                yield reader.read(index, row)
    reader.close()
