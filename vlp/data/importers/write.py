"""Write imported samples as shards: counted, bad ones named and skipped, the folder whole or absent."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vlp.data.bad_samples import BadSample, BadSampleError, BadSamples
from vlp.data.image_decoding import decode_pixels
from vlp.data.shard_index import IMAGE_EXTENSIONS
from vlp.data.shard_writer import ShardWriter
from vlp.errors import UserError
from vlp.files import writing_shards
from vlp.log import ReportProgress, no_progress

log = logging.getLogger("vlp")


@dataclass
class ImportedSample:
    """An encoded image with its captions, of which there may be none, and the JSON of the new sample."""

    key: str
    image: bytes
    extension: str
    captions: list[str]
    info: dict


class Importer(Protocol):
    """A data set in another format: its size, and a generator of its samples and of those that are bad."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[ImportedSample | BadSample]: ...


@dataclass
class ImportCounts:
    """What an import wrote and skipped; bad samples by reason."""

    samples: int = 0
    without_text: int = 0  # of `samples`
    bad: dict[str, int] = field(default_factory=dict)


def write_imported(
    importer: Importer,
    output: str,
    samples_per_shard: int = 1000,
    max_bad_share: float = 0.1,
    progress: ReportProgress = no_progress,
) -> ImportCounts:
    """Write the samples of an importer as shards in the folder `output`. Every image is decoded once as a check.

    Raises:
        UserError: the output exists, or there is no good sample.
        WorkError: too many samples are bad, or the disk is full.
    """
    if samples_per_shard < 1:
        raise UserError(f"A shard must hold at least one sample, not {samples_per_shard}.")
    bad, counts, keys = BadSamples(max_bad_share), ImportCounts(), set()
    with writing_shards(output) as folder, ShardWriter(folder, samples_per_shard) as writer:
        for one in importer:
            if isinstance(one, ImportedSample):
                problem = "duplicate key" if one.key in keys else _problem(one)
                if problem is None:
                    text = one.captions[0] if one.captions else None
                    writer.write(one.key, one.image, one.extension, text, {**one.info, "captions": one.captions})
                    keys.add(one.key)
                    counts.samples += 1
                    counts.without_text += not one.captions
                    bad.seen()
                else:
                    bad.add(BadSample(str(one.info.get("uid", "")), one.key, problem))
            else:
                bad.add(one)
            progress("import", 1)
        bad.finish()
        if not counts.samples:
            raise UserError(f"There is no sample to import to {output}.")
    counts.bad = dict(bad.counts)
    return counts


def _problem(sample: ImportedSample) -> str | None:
    """Why a sample cannot be written; None where it can."""
    try:
        "".join([sample.key, *sample.captions]).encode()
        decode_pixels(sample.image)
    except UnicodeEncodeError:
        return "text not UTF-8"
    except BadSampleError as error:
        return error.reason
    return None


def read_image(folder: Path, name: str) -> tuple[bytes, str]:
    """An image file inside a folder, and its extension.

    Raises:
        BadSampleError: there is none of this name, it is outside the folder, or it has another extension.
    """
    path, extension = folder / name, name.rpartition(".")[2].lower()
    try:
        if extension in IMAGE_EXTENSIONS and path.resolve().is_relative_to(folder.resolve()) and path.is_file():
            return path.read_bytes(), extension
    except (OSError, ValueError):  # ValueError: a name that no file can have
        pass
    raise BadSampleError("no image")
