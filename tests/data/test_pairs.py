"""Pairs of images: indexed, streamed and rewritten samples keep their second image, whoever wrote the shard."""

import io
import json
import random
import tarfile
from pathlib import Path

import pytest

from tests.data.test_shard_stream import indexed, streamed
from tests.data.test_shards import picture, write_tar
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import iterate_samples, read_members

LEFT, RIGHT = picture(colour=(1, 2, 3)), picture(colour=(9, 8, 7))
PAIR = json.dumps({"images": 2, "sentence": "x"}).encode()


def rights(path: str) -> list[bytes | None]:
    """The second images of a shard, read by its index and in sequence."""
    samples, _ = indexed(path)
    assert (samples, _) == streamed(path)
    return [sample.right for sample in samples]


def test_written_pairs_are_read_back_and_the_second_image_follows_the_first(tmp_path):
    with ShardWriter(str(tmp_path)) as writer:
        for number in range(3):
            extra = {"cls": b"1", "right.png": RIGHT + bytes(number)}
            writer.write(f"k{number}", LEFT, "png", "a text", {"images": 2}, extra)
        writer.write("single", LEFT, "png", None, {})
    path = str(tmp_path / "00000.tar")
    assert rights(path) == [RIGHT, RIGHT + bytes(1), RIGHT + bytes(2), None]
    with tarfile.open(path) as archive:
        assert archive.getnames()[:5] == ["k0.png", "k0.right.png", "k0.txt", "k0.json", "k0.cls"]
    assert [one.image for one in iterate_samples(path)] == [LEFT] * 4


def test_the_second_image_counts_only_where_the_json_says_so(tmp_path):
    members = [("a.png", LEFT), ("a.right.png", RIGHT), ("b.png", LEFT), ("b.right.png", RIGHT), ("b.json", PAIR)]
    assert rights(write_tar(tmp_path / "0.tar", members)) == [None, RIGHT]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_and_headers_of_every_format(tmp_path, format):
    folder = "d" * 70 + "/" + "e" * 40  # over the 100 bytes of a plain header, within the 255 of USTAR
    key = f"{folder}/é" if format != tarfile.USTAR_FORMAT else f"{folder}/e"
    with tarfile.open(tmp_path / "0.tar", "w", format=format) as archive:
        for name, data in ((f"{key}.JPG", LEFT), (f"{key}.Right.jpeg", RIGHT), (f"{key}.json", PAIR)):
            header = tarfile.TarInfo(name)
            header.size = len(data)
            if format == tarfile.PAX_FORMAT:
                header.pax_headers = {"comment": "x" * 600}
            archive.addfile(header, io.BytesIO(data))
    assert rights(str(tmp_path / "0.tar")) == [RIGHT]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves the file open
@pytest.mark.parametrize("extension", ["jpg", "webp"])  # the one sorts before json, the other after right
def test_shards_of_webdatasets_writer(tmp_path, extension):
    import webdataset

    path = str(tmp_path / "0.tar")
    with webdataset.TarWriter(path, encoder=False) as writer:  # type: ignore[arg-type]
        for key in ("a", "b"):
            members = {extension: LEFT, f"right.{extension}": RIGHT, "json": PAIR, "txt": b"a text"}
            writer.write({"__key__": key, **members})
    assert rights(path) == [RIGHT, RIGHT]


def test_a_missing_or_empty_second_image_is_none(tmp_path):
    members = [("a.png", LEFT), ("a.json", PAIR), ("b.png", LEFT), ("b.right.png", b""), ("b.json", PAIR)]
    members += [("c.right.png", RIGHT), ("d.png", LEFT), ("d.json", PAIR), ("d.right.txt", RIGHT)]
    assert rights(write_tar(tmp_path / "0.tar", members)) == [None, None, None]


def test_any_order_of_members_is_read_in_the_same_way(tmp_path):
    rng = random.Random(0)
    names = [f"{key}.{end}" for key in "ab" for end in ("png", "jpg", "right.png", "right.jpg", "json", "txt", "cls")]
    for number in range(200):
        members = [
            (name, PAIR if name.endswith("json") else f"{place} {name}".encode())
            for place, name in enumerate(rng.choices(names, k=8))
        ]
        rights(write_tar(tmp_path / f"{number}.tar", members))


def test_a_shard_of_pairs_cut_anywhere(tmp_path):
    members = [(f"{n}.{e}", PAIR if e == "json" else LEFT * 9) for n in range(3) for e in ("png", "right.png", "json")]
    whole = Path(write_tar(tmp_path / "0.tar", members)).read_bytes()
    for cut in range(0, len(whole), 256):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        rights(str(tmp_path / "cut.tar"))


def test_rewritten_members_keep_the_pair(tmp_path):
    source = write_tar(tmp_path / "0.tar", [("a.png", LEFT), ("a.json", PAIR), ("a.right.webp", RIGHT)])
    (key, members), *_ = read_members(source)
    others = {name: data for name, data in members.items() if name not in ("png", "json")}
    with ShardWriter(str(tmp_path / "new")) as writer:
        writer.write(key, members["png"], "png", "new", json.loads(members["json"]), others)
    assert rights(str(tmp_path / "new/00000.tar")) == [RIGHT]


def test_pairs_in_an_object_store_keep_their_second_image(s3, tmp_path):
    with ShardWriter(str(tmp_path / "pairs")) as writer:
        writer.write("a", LEFT, "png", None, {"images": 2}, {"right.png": RIGHT})
        writer.write("b", LEFT, "png", None, {"images": 2})
    address = s3.upload(tmp_path / "pairs", "pairs")
    assert [(one.key, one.right) for one in iterate_samples(f"{address}/*.tar")] == [("a", RIGHT), ("b", None)]
