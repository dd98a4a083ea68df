"""Parts of an index: files of some thousand images each with vectors, places, captions and thumbnails.

A part is one Arrow file, which is mapped into memory: reading a row touches only its pages. It never changes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from vlp.errors import UserError
from vlp.files import writing
from vlp.index.places import Place

ENDING = ".arrow"
BAD = "vlp.bad"  # the key of the metadata with the bad samples, JSON
COLUMNS = [
    ("key", pa.string()),
    ("path", pa.string()),
    ("stamp", pa.string()),
    ("offset", pa.int64()),
    ("size", pa.int64()),
    ("caption", pa.string()),  # the sample's first one; null without
    ("frames", pa.int32()),  # 1 for an image
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("thumbnail", pa.binary()),  # JPEG
]


@dataclass
class IndexedImage:
    """A row of an index. `width` and `height` are of the upright image, in pixels; `frames` is 1 for an image."""

    place: Place
    caption: str | None
    width: int
    height: int
    frames: int = 1
    thumbnail: bytes = b""


class BadImage(NamedTuple):
    """An image that cannot be decoded: the path of the file or shard, the key, their stamp, the reason."""

    path: str
    key: str
    stamp: str
    reason: str


def write_part(path: Path, images: Sequence[IndexedImage], vectors: np.ndarray, bad: Sequence[BadImage] = ()) -> None:
    """Write a part, whole or not at all.

    Args:
        vectors: [images, width], of length 1; stored as float16.
        bad: images that cannot be decoded, so that they are not tried again.

    Raises:
        FullDiskError, WorkError: the disk is full; the part cannot be written for another reason.
    """
    width = vectors.shape[1]
    places = [image.place for image in images]
    columns: dict[str, list[Any]] = {
        name: [getattr(place, name) for place in places] for name in ("key", "path", "stamp", "offset", "size")
    }
    for name in ("caption", "frames", "width", "height", "thumbnail"):
        columns[name] = [getattr(image, name) for image in images]
    arrays = [pa.array(columns[name], kind) for name, kind in COLUMNS]
    stored = np.ascontiguousarray(vectors, np.float16)
    kind = pa.binary(2 * width)
    arrays.append(pa.FixedSizeBinaryArray.from_buffers(kind, len(images), [None, pa.py_buffer(stored)]))
    schema = pa.schema([*COLUMNS, ("vector", kind)], {BAD: json.dumps([list(one) for one in bad])})
    with writing(path) as temporary, pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
        file.write_batch(pa.record_batch(arrays, schema=schema))


class Part:
    """A part that is open. Threads may share it."""

    def __init__(self, path: Path):
        """Map the file into memory.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
                (self.batch,) = [file.get_batch(number) for number in range(file.num_record_batches)]
                source.seek(0)
                start = source.read_buffer(1).address
            vectors = self.batch.column("vector")
            width = vectors.type.byte_width // 2
            stored = vectors.buffers()[1]
            self.offset = stored.address - start if stored else 0  # of the vectors in the file, in bytes
            flat = np.frombuffer(stored or b"", np.float16, len(vectors) * width)
            self.vectors = flat.reshape(-1, width)  # [images, width]
            self.columns = {name: self.batch.column(name) for name, _ in COLUMNS}
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise UserError(
                f"The part {path} of an index cannot be read ({reason}); remove it and index again."
            ) from None

    def __len__(self) -> int:
        return len(self.vectors)

    def value(self, name: str, row: int) -> Any:
        """The value of a column in a row."""
        return self.columns[name][row].as_py()

    def image(self, row: int) -> IndexedImage:
        """A row without its thumbnail."""
        place = Place(*(self.value(name, row) for name in ("key", "path", "stamp", "offset", "size")))
        return IndexedImage(place, *(self.value(name, row) for name in ("caption", "width", "height", "frames")))

    def bad(self) -> list[BadImage]:
        """The images that could not be decoded when the part was written."""
        return [BadImage(*one) for one in json.loads((self.batch.schema.metadata or {}).get(BAD.encode(), b"[]"))]
