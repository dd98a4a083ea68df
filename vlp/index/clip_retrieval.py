"""Reads a folder of clip-retrieval (`clip-retrieval inference`) where it is: img_emb/*.npy and metadata/*.parquet."""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlp.errors import UserError
from vlp.index.parts import IndexedImage
from vlp.index.places import FILE, Place

IMAGES, METADATA = "img_emb", "metadata"
COLUMNS = ("image_path", "caption", "key", "shard", "width", "height")  # that are used, as far as they are there
TABLES = 4  # that are kept in memory


def is_clip_retrieval(folder: str | Path) -> bool:
    """Whether a folder has embeddings of images as clip-retrieval writes them."""
    return any((Path(folder) / IMAGES).glob("*.npy"))


class EmbeddingFiles:
    """The embeddings and their metadata, in the order of the files' names; mapped into memory, not copied.

    Attributes:
        names, rows: of the .npy files, and their numbers of images.
        width: length of the vectors.
    """

    def __init__(self, folder: str | Path):
        """Open the files.

        Raises:
            UserError: a file is missing or damaged, or files do not fit together.
        """
        self.folder = Path(folder)
        paths = sorted((self.folder / IMAGES).glob("*.npy"), key=_number)
        if not paths:
            raise UserError(f"{folder} has no {IMAGES}/*.npy, as clip-retrieval writes them.")
        self.arrays = [_open_array(path) for path in paths]
        self.names, self.rows = [path.name for path in paths], [len(one) for one in self.arrays]
        self.width = int(self.arrays[0].shape[1])
        for path in (path for path, one in zip(paths, self.arrays, strict=True) if one.shape[1] != self.width):
            raise UserError(f"{path} has vectors of another length than {paths[0]}.")
        tables = {_number(path): path for path in (self.folder / METADATA).glob("*.parquet")}
        self.tables = [tables.get(_number(path)) for path in paths]
        self.table = lru_cache(TABLES)(self._table)

    def vectors(self, part: int) -> np.ndarray:
        """The vectors of a file, float16 or float32 [images, width]."""
        return self.arrays[part]

    def gather(self, part: int, rows: np.ndarray) -> np.ndarray:
        """The vectors in some rows of a file."""
        return self.arrays[part][rows]

    def image(self, part: int, row: int) -> IndexedImage:
        """An image by its row in a file; without metadata its place is unknown."""
        table = self.table(part)
        values = {name: table[name][row].as_py() for name in table.column_names} if table is not None else {}
        path, shard = values.get("image_path") or f"{self.names[part]}#{row}", values.get("shard")
        place = Place(values.get("key") or path, shard, "", 0) if shard else Place(path, path, "", FILE)
        width, height = (value if isinstance(value := values.get(name), int) else 0 for name in ("width", "height"))
        caption = values.get("caption")
        return IndexedImage(place, caption if isinstance(caption, str) else None, width, height)

    def thumbnail(self, part: int, row: int) -> bytes:
        """Nothing: clip-retrieval keeps no thumbnails."""
        return b""

    def _table(self, part: int) -> pa.Table | None:
        path = self.tables[part]
        if path is None:
            return None
        try:
            with pq.ParquetFile(path) as file:
                table = file.read([name for name in COLUMNS if name in file.schema_arrow.names])
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}.") from None
        if len(table) != self.rows[part]:
            raise UserError(f"{path} has {len(table)} rows and {self.names[part]} has {self.rows[part]}.")
        return table


def _number(path: Path) -> tuple[int, str]:
    """The number in `img_emb_12.npy` and `metadata_12.parquet`."""
    matched = re.search(r"(\d+)$", path.stem)
    return (int(matched[1]), "") if matched else (-1, path.stem)


def _open_array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200].rstrip('.')}.") from None
    if array.ndim != 2 or array.dtype not in (np.float16, np.float32):
        raise UserError(f"{path} must hold float16 or float32 [images, width], not {array.dtype} {list(array.shape)}.")
    return array
