"""The EXIF orientation of an encoded image, read from its bytes: nothing is decoded."""

import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # the tag
UPRIGHT = 1  # the orientation that changes nothing
NUMBERS = {1: "B", 3: "H", 4: "I"}  # TIFF's types of whole numbers


def read_orientation(data: bytes) -> int:
    """The orientation, 1 to 8, of a JPEG, PNG or WebP file; 1 where it has none or a broken one."""
    for block in _exif_blocks(data):
        orientation = _tiff_orientation(block.removeprefix(b"Exif\0\0"))
        if orientation is not None:
            return orientation
    return UPRIGHT


def read_pil_orientation(image: Image.Image) -> int:
    """The orientation, 1 to 8, of an image that was opened by Pillow; 1 where it has none or a broken one."""
    block = image.info.get("exif")
    return (_tiff_orientation(block.removeprefix(b"Exif\0\0")) or UPRIGHT) if isinstance(block, bytes) else UPRIGHT


def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and flip stored pixels [height, width, 3] so that they are upright, as an EXIF orientation says."""
    if orientation >= 5:  # rows are columns
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _exif_blocks(data: bytes) -> Iterator[bytes]:
    """The EXIF data in the headers of a file."""
    if data[:2] == b"\xff\xd8":
        yield from _jpeg_blocks(data)
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        yield from _chunks(data, 8, ">I4s", b"eXIf", padding=4)  # a checksum follows each chunk
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        yield from _chunks(data, 12, "<4sI", b"EXIF", padding=0)


def _jpeg_blocks(data: bytes) -> Iterator[bytes]:
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        if marker in (0xD9, 0xDA):  # the pixels begin
            return
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker == 0xE1 and data[place + 4 : place + 10] == b"Exif\0\0":
            yield data[place + 4 : end]
        place = end


def _chunks(data: bytes, place: int, header: str, kind: bytes, padding: int) -> Iterator[bytes]:
    """The chunks of a kind in a PNG (size before the kind) or a RIFF file (after it, and padded to an even size)."""
    while place + 8 <= len(data):
        first, second = struct.unpack_from(header, data, place)
        name, size = (second, first) if isinstance(first, int) else (first, second)
        if name == kind:
            yield data[place + 8 : place + 8 + size]
        place += 8 + size + (padding or size % 2)


def _tiff_orientation(block: bytes) -> int | None:
    """The orientation in the first directory of a TIFF header; None where there is none."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", block, 4)
        (entries,) = struct.unpack_from(f"{order}H", block, start)
        for place in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, place)
            if tag == ORIENTATION:
                (orientation,) = struct.unpack_from(f"{order}{NUMBERS[kind]}", block, place + 8)
                return orientation if 1 <= orientation <= 8 else UPRIGHT
    except (struct.error, KeyError):
        return None
    return None
