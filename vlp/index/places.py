"""Where images are: files of a folder or members of shards; listed, and read one by one."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vlp.data.bad_samples import BadSample, BadSampleError, BadSamples
from vlp.data.cache import file_stamp, identity, status_stamp
from vlp.data.data_index import stamps_of
from vlp.data.shard_index import IMAGE_EXTENSIONS, WILDCARDS, expand_shards, index_shard, open_shard
from vlp.data.shards import ShardReader, iterate_samples
from vlp.data.video import is_video
from vlp.errors import UserError, WorkError
from vlp.remote import is_remote

FILE = -1  # the offset of an image that is a file of its own
NOT_UTF8 = "name not UTF-8"  # the reason of a file that no table can name
PASSING = ("unreadable file", "unreadable shard", "missing file", "shard changed")  # reasons to try an image again


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image or a video is.

    Attributes:
        key: of the sample, or the path of the file within the folder that was listed.
        path: of the file; of a sample, the path or address of its shard.
        stamp: size and time of change of the file or the shard, see `file_stamp`.
        offset, size: of the encoded image in the shard, in bytes; offset `FILE` is a file of its own, and 0 is a sample
            of a shard that was read in sequence.
    """

    key: str
    path: str
    stamp: str
    offset: int = FILE
    size: int = 0

    @staticmethod
    def of_file(path: str) -> "Place | None":
        """The place of an image or video file by its path; None for the name of anything else.

        Raises:
            UserError: there is no such file.
        """
        if is_remote(path) or (path.rpartition(".")[2].lower() not in IMAGE_EXTENSIONS and not is_video(path)):
            return None
        if not os.path.isfile(path):
            raise UserError(f"There is no file {path}.")
        return Place(os.path.basename(path), path, file_stamp(path) or "")

    @property
    def in_shard(self) -> bool:
        """Whether it is a sample of a shard."""
        return self.offset != FILE

    @property
    def name(self) -> str:
        """The path of a file, or `SHARD#KEY`."""
        return f"{self.path}#{self.key}" if self.in_shard else self.path

    @property
    def is_video(self) -> bool:
        """Whether it is a file with a video's extension."""
        return not self.in_shard and is_video(self.path)

    def bad(self, reason: str) -> BadSample:
        """This place as a bad sample."""
        return BadSample(self.path, self.key, reason) if self.in_shard else BadSample("", self.path, reason)


@dataclass
class Item:
    """An image to read: its place, the encoded image (None for a file, which is not read yet), and its captions."""

    place: Place
    data: bytes | None = None
    captions: list[str] = field(default_factory=list)


@dataclass
class Unit:
    """Images that one process reads: files, or samples of one shard by their rows in its index, int64 [samples]."""

    files: list[Place] = field(default_factory=list)
    shard: str = ""
    stamp: str = ""
    rows: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.rows) if self.shard else len(self.files)


class KeptBad(BadSamples):
    """Bad samples of which any share is allowed, kept in a list."""

    def __init__(self) -> None:
        """There are none yet."""
        super().__init__(max_share=1.0)
        self.samples: list[BadSample] = []

    def add(self, bad: BadSample, counted: bool = False) -> None:
        """Count, name and keep a bad sample."""
        self.samples.append(bad)
        super().add(bad, counted)

    def lasting(self) -> list[BadSample]:
        """Those that another attempt would find bad again."""
        return [one for one in self.samples if one.reason not in PASSING]


def stored_stamp(unit: Unit, bad: BadSample) -> tuple[str, str, str]:
    """Path, key and stamp under which a bad sample of a unit is stored."""
    if unit.shard:
        return unit.shard, bad.key, unit.stamp
    place = next(place for place in unit.files if place.path == bad.key)
    return place.path, place.key, place.stamp


def storable(places: Iterable[Place], bad: BadSamples) -> list[Place]:
    """The files whose names are UTF-8; others are skipped, named in the log, and added to `bad`."""
    kept = []
    for place in places:
        try:
            place.path.encode()
            kept.append(place)
        except UnicodeEncodeError:
            bad.add(place.bad(NOT_UTF8))
    return kept


def list_files(folder: str) -> list[Place]:
    """The images and videos of a folder and its subfolders, sorted by path.

    Raises:
        UserError: the folder cannot be read.
    """
    found: list[Place] = []
    _walk(Path(folder), folder, found)
    return sorted(found, key=lambda place: Path(place.path))


def _walk(root: Path, folder: str, found: list[Place]) -> None:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    if not entry.is_symlink():  # a link may lead back up
                        _walk(root, entry.path, found)
                elif entry.name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS or is_video(entry.name):
                    key = os.path.relpath(entry.path, root)
                    try:
                        stamp = status_stamp(entry.stat())
                    except OSError:
                        stamp = ""  # a broken link: reading it names it
                    found.append(Place(key, os.path.join(folder, entry.name), stamp))
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be read: {error.strerror or error}.") from None


def list_images(images: Sequence[str], bad: BadSamples) -> tuple[dict[str, Place], dict[str, str]]:
    """The files of folders and those that are named, by path, and the stamps of shards, by path.

    Args:
        images: folders with their subfolders, image and video files, or shards.
        bad: gets files whose names no table can hold.

    Raises:
        UserError: there is no such folder, file or shard.
    """
    files: dict[str, Place] = {}
    patterns = []
    for one in images:
        if os.path.isdir(one):
            files |= {place.path: place for place in list_files(one)}
        elif (place := Place.of_file(one)) is not None:
            files[one] = place
        else:
            _check_exists(one)
            patterns.append(one)
    return {place.path: place for place in storable(files.values(), bad)}, list_shards(patterns) if patterns else {}


def no_images(images: Sequence[str], what: str, reasons: Iterable[str]) -> UserError:
    """The error of a call that finds no image; `reasons` are those of the bad ones."""
    listed = ", ".join(sorted(set(reasons)))
    folder = next((one for one in images if os.path.isdir(one) and any(Path(one).glob("*.tar"))), "")
    advice = f"; name its shards as '{folder}/*.tar'" if folder else ""
    found = f" in {' '.join(images)}{f' ({listed})' if listed else ''}"
    return UserError(f"There is no image or video to {what}{found}{advice}.")


def _check_exists(path: str) -> None:
    """Raise UserError for a name of nothing; what a pattern or an address stands for is looked up later."""
    if path and not is_remote(path) and not set(path) & {*WILDCARDS, "{"} and not os.path.exists(path):
        raise UserError(f"There is no folder, file or shard {path}.")


def list_shards(shards: str | list[str]) -> dict[str, str]:
    """The shards' paths or addresses, absolute where they are local, and their stamps.

    Raises:
        UserError: no shard matches, or a shard has no bytes at known places, such as the output of a command.
    """
    paths = list(dict.fromkeys(identity(path) for path in expand_shards(shards)))
    for path in (path for path in paths if path.startswith("pipe:")):
        raise UserError(f"{path} cannot be read at given places; name the address itself, such as s3://bucket/0.tar.")
    return {path: stamp or "" for path, stamp in zip(paths, stamps_of(paths), strict=True)}


def read_in_sequence(images: str, bad: BadSamples) -> Iterator[Item]:
    """The images and videos of a folder, or the images of shards, which may be remote; see `iterate_samples`."""
    if Path(images).is_dir():
        yield from map(Item, list_files(images))
        return
    _check_exists(images)
    for sample in iterate_samples(expand_shards(images), bad):
        bad.total -= 1  # counted again when it is decoded
        yield Item(Place(sample.key, sample.shard, "", 0), sample.image, sample.captions)


def read_unit(unit: Unit, bad: BadSamples) -> Iterator[Item]:
    """The images of a unit in order; unreadable samples are skipped and added to `bad`."""
    if not unit.shard:
        yield from map(Item, unit.files)
        return
    index, reader = index_shard(unit.shard), ShardReader(most_open=1)
    try:
        for row in unit.rows.tolist():
            try:
                sample = reader.read(index, row)
            except BadSampleError as error:
                bad.add(error.sample)
                continue
            offset, size = index.places(row)[0]
            yield Item(Place(sample.key, unit.shard, unit.stamp, offset, size), sample.image, sample.captions)
    finally:
        reader.close()


def read_bytes(place: Place) -> bytes:
    """The encoded image at a place.

    Raises:
        BadSampleError: it has disappeared, or its shard has changed.
    """
    try:
        if not place.in_shard:
            return Path(place.path).read_bytes()
        if place.stamp and not is_remote(place.path) and file_stamp(place.path) not in (place.stamp, None):
            raise BadSampleError("shard changed", place.path, place.key)
        offset, size = (place.offset, place.size) if place.offset else _find_sample(place)
        with open_shard(place.path) as file:
            file.seek(offset)
            data = file.read(size)
    except FileNotFoundError:
        raise BadSampleError("missing file", place.path, place.key) from None
    except (OSError, UserError, WorkError):
        raise BadSampleError("unreadable file", place.path, place.key) from None
    if len(data) < size:
        raise BadSampleError("truncated", place.path, place.key)
    return data


def _find_sample(place: Place) -> tuple[int, int]:
    """Offset and size of the image of a sample in its shard; raises BadSampleError if it has no such sample."""
    index = index_shard(place.path)
    row = next((row for row, key in enumerate(index.keys) if key == place.key), None)
    if row is None:
        raise BadSampleError("missing file", place.path, place.key)
    return index.places(row)[0]
