"""Odd and hostile pictures are decoded, or skipped, counted and named; as a file, one is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.end_to_end.bad_input import encoded, good, picture, refused, run, sample, succeeded, tidy, write_tar

JPEG, PNG, WEBP = picture((200, 160), format="JPEG"), picture(), picture(format="WEBP")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def empty_png(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds next to nothing."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def large_text() -> bytes:
    """A small PNG with 20 MB of compressed text."""
    notes = PngImagePlugin.PngInfo()
    notes.add_text("note", "a" * 20_000_000, zip=True)
    return encoded(Image.new("RGB", (9, 9)), "PNG", pnginfo=notes)


def animated(format: str) -> bytes:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue", "green")]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:])


def palette(**save) -> bytes:
    return encoded(Image.open(io.BytesIO(PNG)).convert("P"), "PNG", **save)


def sixteen_bits() -> bytes:
    return encoded(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100), "PNG")


def with_exif(exif: bytes | int) -> bytes:
    """A JPEG with an orientation, or with any bytes as its EXIF block."""
    if isinstance(exif, int):
        tags = Image.Exif()
        tags[0x0112] = exif
        exif = tags.tobytes()
    return encoded(Image.open(io.BytesIO(JPEG)), "JPEG", exif=exif)


def flipped(data: bytes) -> bytes:
    """The file with some bytes of its second half inverted."""
    changed = bytearray(data)
    for place in range(len(data) // 2, len(data) - 8, 97):
        changed[place] ^= 0xFF
    return bytes(changed)


BAD = {
    "no byte": (b"", "zero bytes"),
    "JPEG cut in its header": (JPEG[:100], "image undecodable"),
    "JPEG cut": (JPEG[:600], "image undecodable"),
    "progressive JPEG cut": (picture((200, 160), format="JPEG", progressive=True)[:9000], "image undecodable"),
    "PNG cut": (PNG[:1500], "image undecodable"),
    "WebP cut": (WEBP[:300], "image undecodable"),
    "PNG with inverted bytes": (flipped(PNG), "image undecodable"),
    "3,600 megapixels": (empty_png(60_000, 60_000), "image too large"),
    "225 megapixels of one color": (encoded(Image.new("1", (15_000, 15_000)), "PNG"), "image too large"),
    "2 billion pixels wide": (empty_png(2**31 - 1, 1), "image too large"),
    "no pixel": (empty_png(0, 0), "image undecodable"),
    "PNG with 20 MB of text": (large_text(), "image undecodable"),
    "TIFF": (picture(format="TIFF"), "image undecodable"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>', "image undecodable"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(a) run\n", "image undecodable"),
    "PDF": (b"%PDF-1.4\n%%EOF", "image undecodable"),
    "HTML": (b"<html>404 not found</html>", "image undecodable"),
    "XPM": (b'/* XPM */\nstatic char * x[] = {"1 1 1 1","a c #000","a"};', "image undecodable"),
    "zeros": (bytes(1000), "image undecodable"),
}
ODD = {
    "1 x 1": picture((1, 1)),
    "1 x 10,000": picture((1, 10_000)),
    "10,000 x 1": picture((10_000, 1), format="JPEG"),
    "CMYK JPEG": picture(mode="CMYK", format="JPEG"),
    "gray JPEG": picture(mode="L", format="JPEG"),
    "gray with alpha": picture(mode="LA"),
    "WebP with alpha": picture(mode="RGBA", format="WEBP"),
    "16 bits": sixteen_bits(),
    "1 bit": encoded(Image.new("1", (30, 30)), "PNG"),
    "palette with a transparent color": palette(transparency=3),
    "palette with alpha": palette(transparency=bytes(range(256))),
    "animated GIF": animated("GIF"),
    "animated WebP": animated("WEBP"),
    "animated PNG": animated("PNG"),
    "BMP": picture(format="BMP"),
    "JPEG under the name of a PNG": JPEG,
    "JPEG with bytes after its end": JPEG + b"junk" * 1000,
    "turned by EXIF": with_exif(6),
    "EXIF orientation 99": with_exif(99),
    "EXIF of garbage": with_exif(b"Exif\0\0garbage" * 100),
    "EXIF cut": with_exif(b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "EXIF of a wrong type": with_exif(b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\xff\xff\0\x06\0\0\0\0\0\0"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_skipped_and_named(name, tmp_path, models):
    data, reason = BAD[name]
    write_tar(tmp_path / "s.tar", [*good(), *sample("odd", data), *sample("last")])
    seen = run("data", "inspect", tmp_path / "s.tar", "--sheet", tmp_path / "sheet.png", "--json")
    succeeded(seen, f"odd: {reason}")
    assert (seen.values()["samples"], seen.values()["bad"]) == (7, {reason: 1})
    (tmp_path / "odd.png").write_bytes(data)
    refused(run("caption", models[0], tmp_path / "odd.png", "--max-length", 8), "odd.png", reason)
    refused(run("match", models[1], tmp_path / "odd.png", "a circle"), "odd.png", reason)
    tidy(tmp_path)


@pytest.mark.parametrize("name", ODD)
def test_an_odd_picture_is_decoded(name, tmp_path, models):
    write_tar(tmp_path / "s.tar", [*good(), *sample("odd", ODD[name]), *sample("last")])
    seen = run("data", "inspect", tmp_path / "s.tar", "--sheet", tmp_path / "sheet.png", "--json")
    succeeded(seen)
    assert (seen.values()["samples"], seen.values()["bad"]) == (8, {})
    (tmp_path / "odd.png").write_bytes(ODD[name])
    succeeded(run("match", models[1], tmp_path / "odd.png", "a circle"))


def test_bad_pictures_are_left_out_of_score_tables_and_searches(tmp_path, models):
    members = [member for number, (data, _) in enumerate(BAD.values()) for member in sample(f"bad{number}", data)]
    write_tar(tmp_path / "s.tar", [*good(), *members])
    scored = run(
        "capfilt", "score", "--shards", tmp_path / "s.tar", "--filter", models[1], "--set", "max_bad_share=0.9"
    )
    succeeded(scored, "bad0: zero bytes")
    assert "images          6\n" in scored.out
    found = run("search", models[1], tmp_path / "s.tar", "--query", "a circle", "--json")
    succeeded(found, "bad0: zero bytes")
    assert len(found.values()) == 6
