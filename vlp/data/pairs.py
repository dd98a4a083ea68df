"""Samples that are pairs of images: KEY.jpg, then KEY.right.jpg, and `"images": 2` in the JSON."""

import tarfile
from typing import IO

from vlp.data.shard_index import DAMAGE, IMAGE_EXTENSIONS, split_name

RIGHT_EXTENSIONS = tuple(f"right.{one}" for one in IMAGE_EXTENSIONS)


def is_pair(info: dict) -> bool:
    """Whether the JSON of a sample says that it has two images."""
    return info.get("images") == 2


def read_right(file: IO[bytes], position: int, key: str, own: set[int]) -> bytes | None:
    """The second image of a sample from an open tar; None where the sample has none.

    The index of a shard does not hold its position, so the headers after the first member of the sample are read.

    Args:
        position: in bytes, of the header after that member.
        own: the positions of the contents of the sample's image, text and JSON.
    """
    file.seek(position)
    last = -1
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for header in archive:
                name, extension = split_name(header.name)
                core = extension in (*IMAGE_EXTENSIONS, "txt", "json") and header.offset_data not in own
                if name != key or core or header.offset <= last:  # the next sample, or a hostile header
                    return None
                last = header.offset
                content = archive.extractfile(header) if extension in RIGHT_EXTENSIONS else None
                if content is not None:
                    return content.read() or None
    except DAMAGE:
        pass
    return None
