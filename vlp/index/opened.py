"""An index that is open for reading: nearest images of a vector, and each image's key, place, thumbnail and pixels."""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from vlp.data.bad_samples import BadSampleError
from vlp.data.image_encoding import small_jpeg
from vlp.data.video import load_frame
from vlp.errors import UserError
from vlp.index.clip_retrieval import EmbeddingFiles, is_clip_retrieval
from vlp.index.manifest import IndexModel, Manifest, is_index, open_part, part_path, read_left_out, read_manifest
from vlp.index.neighbors import EXACT, Neighbors, neighbors_in_memory, open_neighbors, to_float32
from vlp.index.parts import IndexedImage, Part
from vlp.index.pixels import QUALITY, THUMBNAIL, picture
from vlp.index.places import read_bytes

OPEN_PARTS = 64  # that stay mapped into memory


class Found(NamedTuple):
    """An image that was found: its number in the index, and the cosine of its vector and the query's."""

    number: int
    score: float


class Files(Protocol):
    """Files of vectors and images by the number of the file and the row in it."""

    def vectors(self, part: int) -> np.ndarray:
        """The vectors of a file: float16 or float32 [images, width]."""
        ...

    def gather(self, part: int, rows: np.ndarray) -> np.ndarray:
        """The vectors in some rows of a file: float16 or float32 [rows, width]."""
        ...

    def image(self, part: int, row: int) -> IndexedImage:
        """An image without its thumbnail."""
        ...

    def thumbnail(self, part: int, row: int) -> bytes:
        """JPEG; empty where none is kept."""
        ...


class PartFiles:
    """The parts of an index, opened when they are used; those used last stay mapped into memory."""

    def __init__(self, folder: Path, names: list[str], width: int):
        """Nothing is read yet; `width` is the length of the vectors."""
        self.folder, self.names, self.width = folder, names, width
        self.part = lru_cache(OPEN_PARTS)(self._open)
        self.offset = lru_cache(None)(lambda part: self.part(part).offset)

    def vectors(self, part: int) -> np.ndarray:
        """The vectors of a part: float16 [images, width]."""
        return self.part(part).vectors

    def gather(self, part: int, rows: np.ndarray) -> np.ndarray:
        """The vectors in some rows of a part, read and not mapped, so that memory does not grow with every search."""
        offset, size = self.offset(part), 2 * self.width
        with open(part_path(self.folder, self.names[part]), "rb", buffering=0) as file:
            data = b"".join(os.pread(file.fileno(), size, offset + row * size) for row in rows.tolist())
        if len(data) != size * len(rows):
            raise UserError(f"The part {self.names[part]} of the index {self.folder} is cut off; index again.")
        return np.frombuffer(data, np.float16).reshape(-1, self.width)

    def image(self, part: int, row: int) -> IndexedImage:
        """An image without its thumbnail."""
        return self.part(part).image(row)

    def thumbnail(self, part: int, row: int) -> bytes:
        """The JPEG of an image."""
        return self.part(part).value("thumbnail", row)

    def _open(self, part: int) -> Part:
        return open_part(self.folder, self.names[part])


@dataclass
class Rows:
    """Consecutive images over all files; `starts` is int64 [files + 1], the number of each file's first image."""

    files: Files
    starts: np.ndarray

    def find(self, number: int) -> tuple[int, int]:
        """The file and the row of an image."""
        part = int(np.searchsorted(self.starts, number, "right")) - 1
        return part, number - int(self.starts[part])

    def read(self, first: int, end: int) -> np.ndarray:
        """The vectors of consecutive images, [end - first, width]."""
        found = []
        while first < end:
            part, row = self.find(first)
            found.append(self.files.vectors(part)[row : row + end - first])
            first += len(found[-1])
        return found[0] if len(found) == 1 else np.concatenate(found)

    def gather(self, numbers: np.ndarray) -> np.ndarray:
        """The vectors of some images, float32 [images, width]."""
        parts = np.searchsorted(self.starts, numbers, "right") - 1
        order = np.argsort(parts, kind="stable")
        found = [
            to_float32(self.files.gather(part, numbers[parts == part] - self.starts[part]))
            for part in np.unique(parts).tolist()
        ]
        vectors = np.concatenate(found)
        vectors[order] = vectors.copy()
        return vectors


class ImageIndex:
    """Images by their numbers, 0 to `total - 1`. Threads may share it; files are mapped into memory.

    It shows the index as it was when it was opened, also while `vlp index` adds to it.

    Attributes:
        folder: as it was given.
        model: what is known of the model that made the vectors.
        frames: of each video.
        total: images, those included that have disappeared since and are never found.
    """

    def __init__(self, folder: str, manifest: Manifest, rows: Rows, neighbors: Neighbors, left_out: np.ndarray):
        """See `open_index`."""
        self.folder, self.model, self.frames = folder, manifest.model, manifest.frames
        self.total = int(rows.starts[-1])
        self._rows, self._neighbors, self._left_out = rows, neighbors, left_out

    def __len__(self) -> int:
        """The images that can be found."""
        return self.total - len(self._left_out)

    def search(self, features: np.ndarray | Tensor, k: int) -> list[Found]:
        """The `k` images nearest to a vector of length 1, [width], best first; fewer where the index has fewer.

        Raises:
            UserError: the vector has another length than those of the index.
        """
        query = np.ascontiguousarray(features.detach().cpu() if isinstance(features, Tensor) else features, np.float32)
        if query.shape != (self.model.width,):
            raise UserError(
                f"The index {self.folder} searches for [{self.model.width}] values, not {list(query.shape)}."
            )
        wanted, asked = min(k, len(self)), k
        while True:
            numbers, scores = self._neighbors.search(query, asked)
            kept = ~np.isin(numbers, self._left_out, assume_unique=True)
            if kept.sum() >= wanted or asked >= self.total:
                break
            asked *= 2
        numbers, scores = numbers[kept], scores[kept]
        if not self._neighbors.exact and len(numbers):
            scores = self._rows.gather(numbers) @ query
            order = np.lexsort((numbers, -scores))
            numbers, scores = numbers[order], scores[order]
        return [Found(*pair) for pair in zip(numbers[:k].tolist(), scores[:k].tolist(), strict=True)]

    def row(self, number: int) -> IndexedImage:
        """What the index knows of an image, without its thumbnail; raises UserError for a number out of range."""
        return self._rows.files.image(*self._find(number))

    def key(self, number: int) -> str:
        """The sample's key, or the path within the folder that was indexed."""
        return self.row(number).place.key

    def thumbnail(self, number: int) -> bytes:
        """A small JPEG; it is made from the image where the index keeps none.

        Raises:
            UserError: there is no such number, or the index keeps no thumbnails and the image has disappeared.
        """
        return self._rows.files.thumbnail(*self._find(number)) or small_jpeg(self.image(number), THUMBNAIL, QUALITY)

    def image(self, number: int) -> Image.Image:
        """The image at full size, read from where it is, upright, RGB; of a video, its middle frame.

        Raises:
            UserError: there is no such number, or the image has disappeared, or is damaged.
        """
        place = self.row(number).place
        try:
            if place.is_video:
                return Image.fromarray(load_frame(place.path, 1, 1))
            return picture(read_bytes(place))
        except BadSampleError as error:
            raise UserError(f"{place.name} cannot be read ({error.reason}); run `vlp index` again.") from None

    def _find(self, number: int) -> tuple[int, int]:
        if not 0 <= number < self.total:
            raise UserError(f"The index {self.folder} has images 0 to {self.total - 1}, not {number}.")
        return self._rows.find(number)


def open_index(folder: str | Path) -> ImageIndex:
    """Open an index that `vlp index` wrote, or a folder of clip-retrieval with up to a million images.

    Raises:
        UserError: the folder is neither, a file is damaged, or the folder of clip-retrieval has more images.
    """
    folder = Path(folder)
    if not is_index(folder) and is_clip_retrieval(folder):
        files = EmbeddingFiles(folder)
        manifest = Manifest(model=IndexModel(width=files.width), rows=files.rows)
        if sum(files.rows) > EXACT:
            raise UserError(
                f"{folder} has {sum(files.rows):,} images, too many to search without an index; "
                f"run `vlp index {folder} OUT`, which copies no vector, and search OUT."
            )
        rows = Rows(files, manifest.starts)
        neighbors = neighbors_in_memory(rows.read, sum(files.rows), files.width)
        return ImageIndex(str(folder), manifest, rows, neighbors, np.empty(0, np.int64))
    manifest = read_manifest(folder)
    rows = Rows(open_files(folder, manifest), manifest.starts)
    return ImageIndex(str(folder), manifest, rows, open_neighbors(folder, manifest), read_left_out(folder, manifest))


def open_files(folder: Path, manifest: Manifest) -> Files:
    """The files with the vectors of an index: its parts, or the files of clip-retrieval.

    Raises:
        UserError: the files of clip-retrieval have changed.
    """
    if not manifest.embeddings:
        return PartFiles(folder, manifest.parts, manifest.model.width)
    files = EmbeddingFiles(manifest.embeddings)
    if (files.names, files.rows) != (manifest.parts, manifest.rows):
        raise UserError(f"{manifest.embeddings} has changed; run `vlp index {manifest.embeddings} {folder}` again.")
    return files
