"""Shards are read and written; whatever is broken in one is skipped, counted and named."""

import io
import json
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image

from vlp.data.bad_samples import BadSamples
from vlp.data.image_decoding import decode_image
from vlp.data.shard_index import expand_shards, index_shard, scan_shard
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import ShardReader, iterate_samples, read_members
from vlp.errors import UserError, WorkError
from vlp.files import prepare_output


def picture(kind="PNG", size=(8, 6), colour=(200, 10, 10)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, kind)
    return data.getvalue()


def write_tar(path, members) -> str:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return str(path)


def huge_png() -> bytes:
    """A PNG whose header says 30,000 x 30,000, with almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_written_samples_are_read_back(tmp_path):
    with ShardWriter(str(tmp_path), samples_per_shard=2) as writer:
        for number, kind in enumerate(("JPEG", "PNG", "WEBP")):
            extension = {"JPEG": "jpg"}.get(kind, kind.lower())
            writer.write(f"k{number}", picture(kind), extension, f"text {number}", {"n": number}, {"cls": b"7"})
    samples = list(iterate_samples(str(tmp_path / "{00000..00001}.tar")))
    assert [(s.key, s.captions, s.info) for s in samples] == [
        (f"k{n}", [f"text {n}"], {"n": n, "cls": "7"}) for n in range(3)
    ]
    assert decode_image(samples[2].image).size == (8, 6)
    key, members = next(read_members(str(tmp_path / "00000.tar")))
    assert (key, members["cls"], sorted(members)) == ("k0", b"7", ["cls", "jpg", "json", "txt"])


def test_equal_samples_give_equal_bytes_and_an_error_leaves_no_shard(tmp_path):
    for name in ("a", "b"):
        with ShardWriter(str(tmp_path / name)) as writer:
            writer.write("k", picture(), "png", "x", {})
    assert (tmp_path / "a/00000.tar").read_bytes() == (tmp_path / "b/00000.tar").read_bytes()
    with pytest.raises(KeyError), ShardWriter(str(tmp_path / "c")) as writer:
        writer.write("k", picture(), "png", "x", {})
        raise KeyError
    assert not list((tmp_path / "c").iterdir())
    with pytest.raises(UserError, match="exists already"):
        prepare_output(str(tmp_path / "a"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves the file open
def test_webdataset_reads_our_shards(tmp_path):
    import webdataset

    with ShardWriter(str(tmp_path)) as writer:
        writer.write("k", picture(), "png", "a text", {"x": 1})
    url = "file:" + str(tmp_path / "00000.tar")
    (sample,) = webdataset.WebDataset(url, shardshuffle=False, empty_check=False).decode("pil")
    assert (sample["__key__"], sample["txt"], sample["json"]) == ("k", "a text", {"x": 1})


def test_captions_in_the_json_replace_the_text(tmp_path):
    path = write_tar(
        tmp_path / "0.tar",
        [
            ("a.png", picture()),
            ("a.txt", b"text"),
            ("a.json", json.dumps({"captions": [" one ", {"text": "two", "source": "web"}, 3, ""]}).encode()),
            ("b.png", picture()),
            ("b.json", json.dumps({"captions": []}).encode()),
            ("b.txt", b"only"),
        ],
    )
    assert [sample.captions for sample in iterate_samples(path)] == [["one", "two"], ["only"]]


def test_bad_samples_are_skipped_counted_and_named(tmp_path, caplog):
    good = picture("JPEG", (64, 64))
    path = write_tar(
        tmp_path / "0.tar",
        [
            ("fine.jpg", good),
            ("fine.txt", b"fine"),
            ("notext.jpg", good),
            ("empty.jpg", good),
            ("empty.txt", b"  \n"),
            ("latin.jpg", good),
            ("latin.txt", "caf\xe9".encode("latin-1")),
            ("noimage.txt", b"words"),
            ("zero.jpg", b""),
            ("zero.txt", b"words"),
            ("json.jpg", good),
            ("json.json", b"{"),
            ("fine.jpg", good),
            ("fine.txt", b"again"),
            ("../../escape.jpg", good),
            ("../../escape.txt", b"stays a name"),
        ],
    )
    bad = BadSamples(max_share=1.0)
    with caplog.at_level("WARNING", logger="vlp"):
        samples = list(iterate_samples(path, bad))
    texts = {sample.key: sample.captions for sample in samples}
    assert texts == {"notext": [], "empty": [], "fine": ["fine"], "../../escape": ["stays a name"]}
    reasons = ("text not UTF-8", "no image", "zero bytes", "bad json", "duplicate key")
    assert bad.counts == dict.fromkeys(reasons, 1)
    assert "latin: text not UTF-8" in caplog.text
    assert path in caplog.text
    assert not (tmp_path.parent.parent / "escape.jpg").exists()


def test_broken_images(tmp_path):
    from vlp.data.bad_samples import BadSampleError

    jpg = picture("JPEG", (200, 200))
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "JPEG")
    broken = {
        "image undecodable": [data.getvalue()[:1500], b"just some text", jpg[:20]],
        "image too large": [huge_png()],
    }
    for reason, datas in broken.items():
        for one in datas:
            with pytest.raises(BadSampleError) as error:
                decode_image(one)
            assert error.value.reason == reason


def test_a_truncated_tar_gives_the_samples_before_the_cut(tmp_path):
    whole = write_tar(tmp_path / "0.tar", [(f"{n}.{e}", picture() * 9) for n in range(5) for e in ("png", "txt")])
    data = (tmp_path / "0.tar").read_bytes()
    for cut in range(600, len(data), 777):
        (tmp_path / "cut.tar").write_bytes(data[:cut])
        index = scan_shard(str(tmp_path / "cut.tar"))
        full = scan_shard(whole)
        assert index.keys == full.keys[: len(index.keys)]
        ends = np.array([sum(full.places(row)[1]) for row in range(len(full.keys))])  # a sample's text comes last
        # Whole samples are kept; if the archive ends between two members, the last sample may be without its text.
        assert (ends <= cut).sum() <= len(index.keys) <= (ends <= cut).sum() + 1


def test_files_that_are_no_shards(tmp_path):
    (tmp_path / "zero.tar").write_bytes(b"")
    (tmp_path / "text.tar").write_text("no archive" * 200)
    bad = BadSamples(max_share=1.0)
    assert list(iterate_samples([str(tmp_path / "zero.tar"), str(tmp_path / "text.tar")], bad)) == []
    assert sum(bad.counts.values()) == 2


def test_too_many_bad_samples_stop_the_work(tmp_path):
    path = write_tar(tmp_path / "0.tar", [(f"{n}.{'jpg' if n % 3 else 'txt'}", b"x") for n in range(150)])
    bad = BadSamples(max_share=0.2)
    with pytest.raises(WorkError, match=r"max_bad_share"):
        list(iterate_samples(path, bad))


def test_an_index_is_cached_until_the_shard_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "cache"))
    path = write_tar(tmp_path / "0.tar", [("a.png", picture()), ("a.txt", b"x"), ("b.txt", b"alone")])
    first = index_shard(path)
    monkeypatch.setattr("vlp.data.shard_index.scan_shard", lambda path: pytest.fail("scanned again"))
    second = index_shard(path)
    assert (first.keys, first.bad) == (second.keys, second.bad)
    assert (first.members == second.members).all()
    monkeypatch.undo()
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "cache"))
    write_tar(tmp_path / "0.tar", [("c.png", picture()), ("c.txt", b"xyz" * 1000)])
    assert index_shard(path).keys == ["c"]
    entries = [entry for entry in (tmp_path / "cache/index").rglob("*") if entry.is_file()]
    assert len(entries) == 2
    for entry in entries:
        whole = entry.read_bytes()
        damaged = whole[:200] + bytes([whole[200] ^ 255]) + whole[201:]
        for content in (b"", b"broken", whole[: len(whole) // 2], whole[:-1], damaged, b"PK" + bytes(100)):
            entry.write_bytes(content)
            assert index_shard(path).keys == ["c"]
            assert index_shard(path).members.shape == (1, 7)


def test_samples_are_read_in_any_order_from_paths_and_urls(tmp_path):
    paths = []
    for number in range(20):  # more than the reader keeps open
        members = [
            (f"{number}-{n}.{e}", picture() if e == "png" else f"{number} {n}".encode())
            for n in range(3)
            for e in ("png", "txt")
        ]
        paths.append(write_tar(tmp_path / f"{number:02d}.tar", members))
    assert expand_shards(str(tmp_path / "{00..19}.tar")) == paths == expand_shards([str(tmp_path / "*.tar")])
    reader = ShardReader()
    for path in [paths[0], *paths, paths[3]]:
        index = index_shard(path)
        assert [reader.read(index, row).key for row in (2, 0)] == [index.keys[2], index.keys[0]]
    reader.close()
    urls = ["file://" + paths[0]]
    assert [sample.key for sample in iterate_samples(urls)] == index_shard(paths[0]).keys


def test_no_shard_matches(tmp_path):
    for pattern in (str(tmp_path / "*.tar"), str(tmp_path / "{0..3}.tar"), ""):
        with pytest.raises(UserError, match="No shard matches"):
            expand_shards(pattern)
    with pytest.raises(UserError, match=r"name those of the folder: '.*/\*\.tar'"):
        expand_shards(str(tmp_path))


def test_sixteen_bits_and_other_formats():
    from vlp.data.bad_samples import BadSampleError

    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    data = io.BytesIO()
    Image.fromarray(ramp).save(data, "PNG")
    assert np.abs(np.asarray(decode_image(data.getvalue()))[..., 0] - ramp / 257).max() <= 1
    for kind in ("EPS", "TIFF", "PPM"):
        with pytest.raises(BadSampleError, match="image undecodable"):
            decode_image(picture(kind))
