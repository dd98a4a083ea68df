"""Write imported samples as shards: counted, bad ones named and skipped, the folder whole or absent."""

import os
import sqlite3
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vlp.data.bad_samples import NO_SECOND_IMAGE, BadSample, BadSampleError, BadSamples
from vlp.data.image_decoding import decode_pixels
from vlp.data.pairs import RIGHT_EXTENSIONS
from vlp.data.shard_index import IMAGE_EXTENSIONS
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import Sample
from vlp.errors import UserError, WorkError
from vlp.files import writing, writing_shards
from vlp.log import ReportProgress, no_progress

OTHER_FORMATS = ("gif", "bmp", "tif", "tiff", "heic", "heif", "avif")  # images that shards do not hold
LEFT_OUT = (*IMAGE_EXTENSIONS, *OTHER_FORMATS, "jpe", "jfif")  # extensions that keys do without
MEMORY_OF_KEYS = 64 * 2**20  # bytes; the other keys are on disk
CHECKED_AHEAD = 4  # images per thread that are held while they are decoded


@dataclass
class ImportedSample:
    """An encoded image with its captions, of which there may be none, and the JSON of the new sample.

    Attributes:
        extra: further members of the sample, by extension.
        sources: the source of each caption ("web", "human" or "synthetic"); empty: they are not recorded.
    """

    key: str
    image: bytes
    extension: str
    captions: list[str]
    info: dict
    extra: dict[str, bytes] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)


class NotDownloaded(BadSample):
    """A sample that the data set itself records as failed; it does not count toward `max_bad_share`."""


class Importer(Protocol):
    """A data set in another format: its size, and a generator of its samples and of those that are bad."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[ImportedSample | BadSample]: ...


@dataclass
class ImportCounts:
    """What an import wrote and skipped.

    Attributes:
        without_text: of `samples`.
        bad, not_downloaded: by reason.
    """

    samples: int = 0
    without_text: int = 0
    bad: dict[str, int] = field(default_factory=dict)
    not_downloaded: dict[str, int] = field(default_factory=dict)


def write_imported(
    importer: Importer,
    output: str,
    samples_per_shard: int = 1000,
    max_bad_share: float = 0.1,
    progress: ReportProgress = no_progress,
    files: Mapping[str, bytes] | None = None,
) -> ImportCounts:
    """Write the samples of an importer as shards in the folder `output`. Every image is decoded once as a check.

    Args:
        files: further files to write beside the shards, by name.

    Raises:
        UserError: the output exists, or there is no good sample.
        WorkError: too many samples are bad, or a disk is full.
    """
    if samples_per_shard < 1:
        raise UserError(f"A shard must hold at least one sample, not {samples_per_shard}.")
    bad, counts = BadSamples(max_bad_share), ImportCounts()
    with (
        writing_shards(output) as folder,
        ShardWriter(folder, samples_per_shard) as writer,
        closing(KnownKeys()) as keys,
    ):
        for one, problem in _checked(importer):
            if isinstance(one, NotDownloaded):
                bad.add_filtered(one)
            elif isinstance(one, BadSample):
                bad.add(one)
            elif problem is not None or not keys.add(one.key):
                bad.add(BadSample(str(one.info.get("uid", "")), one.key, problem or "duplicate key"))
            else:
                text = one.captions[0] if one.captions else None
                info = {**one.info, "captions": _captions(one)}
                writer.write(one.key, one.image, one.extension, text, info, one.extra)
                counts.samples += 1
                counts.without_text += not one.captions
                bad.seen()
            progress("import", 1)
        bad.finish()
        if not counts.samples:
            raise UserError(f"There is no sample to import to {output}.")
        for name, content in (files or {}).items():
            with writing(f"{folder}/{name}") as temporary:
                temporary.write_bytes(content)
    counts.bad, counts.not_downloaded = dict(bad.counts), dict(bad.filtered)
    return counts


class KnownKeys:
    """The keys of the samples so far, on disk where they are many: a set of 400 million takes about 40 GB."""

    def __init__(self) -> None:
        # sqlite removes a file without a name by itself, even where the process is killed.
        self.table = sqlite3.connect("", isolation_level=None)
        self.table.execute(f"PRAGMA cache_size = -{MEMORY_OF_KEYS // 1024}")
        self.table.execute("CREATE TABLE keys (key BLOB PRIMARY KEY) WITHOUT ROWID")
        self.table.execute("BEGIN")  # otherwise each key would be written to the file at once

    def add(self, key: str) -> bool:
        """Add a key, and tell whether it is new.

        Raises:
            WorkError: the disk is full.
        """
        name = key.encode("utf-8", "surrogatepass")
        try:
            return self.table.execute("INSERT OR IGNORE INTO keys VALUES (?)", [name]).rowcount == 1
        except sqlite3.OperationalError as error:
            raise WorkError(
                f"The keys of the samples cannot be kept in the folder for temporary files ({error}); "
                "free some space or set TMPDIR, and rerun the command."
            ) from None

    def close(self) -> None:
        """Remove the file."""
        self.table.close()


def _checked(importer: Importer) -> Iterator[tuple[ImportedSample | BadSample, str | None]]:
    """What an importer yields, in its order, each with the problem of its image; threads decode the images ahead."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    waiting: deque[tuple[ImportedSample | BadSample, Future[str | None] | None]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for one in importer:
            waiting.append((one, pool.submit(_problem, one) if isinstance(one, ImportedSample) else None))
            if len(waiting) > CHECKED_AHEAD * threads:
                first, problem = waiting.popleft()
                yield first, problem and problem.result()
        for first, problem in waiting:
            yield first, problem and problem.result()


def _captions(sample: ImportedSample) -> list[str] | list[dict[str, str]]:
    """The captions as the JSON of a sample lists them."""
    if not sample.sources:
        return sample.captions
    return [{"text": text, "source": source} for text, source in zip(sample.captions, sample.sources, strict=True)]


def _problem(sample: ImportedSample) -> str | None:
    """Why a sample cannot be written; None where it can."""
    try:
        "".join([sample.key, *sample.captions]).encode()
        decode_pixels(sample.image)
    except UnicodeEncodeError:
        return "text not UTF-8"
    except BadSampleError as error:
        return error.reason
    try:
        for name in RIGHT_EXTENSIONS:
            if name in sample.extra:
                decode_pixels(sample.extra[name])
    except BadSampleError:
        return NO_SECOND_IMAGE
    return None


def read_image(folder: Path, *names: str) -> tuple[bytes, str]:
    """An image file inside a folder, and its extension; that of a file without one comes from its first bytes.

    Args:
        names: where the file may be; the first that exists is read.

    Raises:
        BadSampleError: there is none of these names, it is outside the folder, or it is no jpg, png or webp file.
    """
    for name in names:
        path, extension = folder / name, name.rpartition(".")[2].lower()
        try:
            if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
                continue
            with path.open("rb") as file:
                if extension not in IMAGE_EXTENSIONS:
                    extension = _recognise_image(file.read(12))
                    file.seek(0)
                if extension:
                    return file.read(), extension
        except (OSError, ValueError):  # ValueError: a name that no file can have
            pass
    raise BadSampleError("no image")


def _recognise_image(start: bytes) -> str:
    """The extension of an image from its first twelve bytes; "" for other files."""
    for extension, mark in (("jpg", b"\xff\xd8\xff"), ("png", b"\x89PNG\r\n\x1a\n")):
        if start.startswith(mark):
            return extension
    return "webp" if start[:4] == b"RIFF" and start[8:] == b"WEBP" else ""


def make_key(name: str) -> str:
    """The key of a sample from the name of its image: without an image's extension, and without dots and slashes."""
    start, _, end = name.rpartition(".")  # ids such as 2101.00001 have a dot, too
    stem = start if start and end.lower() in LEFT_OUT else name
    return stem.strip("/").replace("/", "_").replace(".", "_")  # a key ends at the first dot of a member's name


def told_sources(sample: Sample) -> list[str]:
    """The sources of a sample's captions, [] where its JSON does not tell them."""
    return sample.sources if set(sample.sources) - {"web"} else []


def clean_captions(texts: Any) -> list[str]:
    """Captions from a string, a list of strings, or None: stripped, each once, in order.

    Raises:
        BadSampleError: it is something else.
    """
    listed = texts if isinstance(texts, list) else [] if texts is None else [texts]
    if not all(isinstance(text, str) for text in listed):
        raise BadSampleError("bad row")
    return list(dict.fromkeys(text.strip() for text in listed if text.strip()))
