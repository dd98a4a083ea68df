"""Which data results were measured on: sizes and times of all files, so that changed data are evaluated again."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from vlp.data.cache import file_stamp, identity
from vlp.data.labelled_images import files_beside
from vlp.data.shard_index import expand_shards
from vlp.evaluation.find_data import FoundData
from vlp.files import files_below, read_json, write_json

STAMPS = "data.json"  # the stamps of the data of finished evaluations, by the name of their file of results


def data_stamp(data: FoundData) -> str:
    """A digest of the paths, sizes and times of the files that an evaluation reads, as 16 hexadecimal digits."""
    test = list(_files(data.shards))
    classes = [str(file) for file in files_beside(test[0]).values()] if test else []
    parts = (test, _files(data.train), classes, _files(filter(None, (data.annotations, data.videos))))
    digest = hashlib.sha256()
    for part in parts:
        for file in part:
            digest.update(f"{identity(file)} {file_stamp(file)}\n".encode("utf-8", "backslashreplace"))
        digest.update(b"\n")
    return digest.hexdigest()[:16]


def _files(places: Iterable[str]) -> Iterator[str]:
    """The files of these paths and patterns, and all files below folders, in a fixed order."""
    for place in places:
        if os.path.isdir(place):
            yield from (str(folder / name) for folder, names in files_below(place).items() for name in names)
        else:
            yield from expand_shards(place)


def has_results(path: Path, stamp: str) -> bool:
    """Whether there are results in this file, of data with this stamp."""
    return path.exists() and _stamps_beside(path).get(path.name) == stamp


def keep_stamp(path: Path, stamp: str) -> None:
    """Note the stamp that the data of these results had before the evaluation, so that changes during it show."""
    write_json(path.with_name(STAMPS), {**_stamps_beside(path), path.name: stamp})


def _stamps_beside(path: Path) -> dict[str, str]:
    stamps = path.with_name(STAMPS)
    return read_json(stamps) if stamps.exists() else {}
