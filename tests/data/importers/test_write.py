"""Samples of importers are written as shards: in order, each key once; a killed import leaves nothing."""

import json
import os
import signal
import tracemalloc
from contextlib import closing

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.processes import run_code
from vlp.cli.main import app
from vlp.data.bad_samples import BadSampleError
from vlp.data.importers import write
from vlp.data.importers.flickr import flickr
from vlp.data.importers.folder import image_folder
from vlp.data.importers.write import CHECKED_AHEAD, ImportedSample, NotDownloaded, make_key, read_image, write_imported
from vlp.data.shards import iterate_samples, read_members
from vlp.errors import UserError, WorkError


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (20, 10), (60 * number, 0, 0)).save(folder / f"{number}.jpg")
    (folder / "broken.jpg").write_text("no picture")
    return folder


def write_lines(images, lines):
    (images / "metadata.jsonl").write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )


def flickr8k(images, captions, names=None):
    return flickr("flickr8k", [str(captions)], str(images), names=names)


class Photos:
    """An importer of the same photo under many keys, some broken."""

    def __init__(self, photo: bytes, count: int):
        self.photo, self.count, self.taken = photo, count, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self):
        for number in range(self.count):
            self.taken += 1
            photo = b"broken" if number % 7 == 3 else self.photo
            yield ImportedSample(f"k{number}", photo, "jpg", [f"caption {number}"], {"n": number}, {"npy": b"x"})


def samples_of(folder):
    return list(iterate_samples(f"{folder}/*.tar"))


def test_names_that_give_one_key_are_one_sample(images, tmp_path):
    for name in ("a.b.jpg", "a_b.jpg"):
        Image.new("RGB", (20, 10)).save(images / name)
    (tmp_path / "captions.txt").write_text("a.b.jpg,first\na_b.jpg,second\n")
    importer = flickr8k(images, tmp_path / "captions.txt")
    for out, size in (("out", 1000), ("several", 1)):  # also where the first one's shard is finished
        assert write_imported(importer, str(tmp_path / out), size, max_bad_share=0.5).bad == {"duplicate key": 1}
        assert [sample.captions for sample in samples_of(tmp_path / out)] == [["first"]]


def test_keys_of_many_samples_are_known_and_not_in_memory(monkeypatch):
    """sqlite holds a part of them in memory, which Python does not count."""
    monkeypatch.setattr(write, "MEMORY_OF_KEYS", 100 * 1024)
    names = [f"{number * 7919 % 30_011:09d}" for number in range(30_000)]
    with closing(write.KnownKeys()) as keys:
        tracemalloc.start()
        assert all(keys.add(name) for name in names)
        assert tracemalloc.get_traced_memory()[1] < 100_000
        tracemalloc.stop()
        assert not any(keys.add(name) for name in names) and keys.add("other") and keys.add("odd\udcff")
        keys.table.execute("PRAGMA max_page_count = 1")
        with pytest.raises(WorkError, match=r"database or disk is full.*set TMPDIR"):
            all(keys.add(f"more {name}") for name in names)


def test_images_are_decoded_in_threads_and_written_in_order(images, tmp_path):
    """A few images are taken ahead of the one that is written, however many there are."""
    importer, ahead = Photos((images / "0.jpg").read_bytes(), 200), []
    done = iter(range(1, 201))
    counts = write_imported(
        importer, str(tmp_path / "out"), 30, 1.0, lambda *_: ahead.append(importer.taken - next(done))
    )
    kept = [number for number in range(200) if number % 7 != 3]
    assert [sample.info["n"] for sample in samples_of(tmp_path / "out")] == kept
    assert (counts.samples, counts.bad) == (len(kept), {"image undecodable": 200 - len(kept)})
    assert 1 <= max(ahead) <= CHECKED_AHEAD * len(os.sched_getaffinity(0)) + 1
    key, members = next(read_members(f"{tmp_path}/out/00000.tar"))
    assert (key, sorted(members), members["npy"]) == ("k0", ["jpg", "json", "npy", "txt"], b"x")


def test_failed_downloads_are_counted_apart(images, tmp_path):
    photo = (images / "0.jpg").read_bytes()
    importer = [NotDownloaded("shard", str(number), "HTTP Error 404") for number in range(150)]
    importer += [ImportedSample(f"k{number}", photo, "jpg", [], {}) for number in range(2)]
    counts = write_imported(importer, str(tmp_path / "out"), max_bad_share=0, files={"classnames.txt": b"dog"})
    assert (counts.samples, counts.bad, counts.not_downloaded) == (2, {}, {"HTTP Error 404": 150})
    assert sorted(os.listdir(tmp_path / "out")) == ["00000.tar", "classnames.txt"]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        *[("a.jpg", "a"), ("a.b.jpg", "a_b"), ("c/a.jpg", "c_a"), ("../a.jpg", "___a"), (".jpg", "_jpg"), ("a", "a")],
        *[("a.JPEG", "a"), ("a.tif", "a"), ("2101.00001", "2101_00001"), ("a.b/c", "a_b_c"), ("a.", "a_")],
    ],
)
def test_keys_have_neither_dots_nor_slashes(name, key):
    assert make_key(name) == key


@pytest.mark.parametrize(("format", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("GIF", None)])
def test_files_without_an_extension_are_recognized(format, extension, tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "123_456", format)
    if extension is None:
        with pytest.raises(BadSampleError, match="no image"):
            read_image(tmp_path, "123_456")
    else:
        assert read_image(tmp_path, "none", "123_456") == ((tmp_path / "123_456").read_bytes(), extension)


def test_too_many_bad_rows_stop_the_import(images, tmp_path):
    (tmp_path / "captions.txt").write_text("image,caption\n0.jpg,x\nabsent.jpg,a caption\n")
    with pytest.raises(WorkError, match="no image: 1"):
        write_imported(flickr8k(images, tmp_path / "captions.txt"), str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.txt", "images"]


def test_wrong_calls(images, tmp_path):
    with pytest.raises(UserError, match=r"no caption file nowhere\.txt"):
        flickr8k(images, "nowhere.txt")
    (tmp_path / "captions.txt").write_text("image,caption\n" + "0.jpg," + "x" * 200_000)
    with pytest.raises(UserError, match="not readable as CSV"):
        flickr8k(images, tmp_path / "captions.txt")
    write_lines(images, [])
    with pytest.raises(UserError, match="no sample to import"):
        write_imported(image_folder(str(images)), str(tmp_path / "out"))
    with pytest.raises(UserError, match="images exists already"):
        write_imported(image_folder(str(images)), str(images))
    with pytest.raises(UserError, match="at least one sample, not 0"):
        write_imported(image_folder(str(images)), str(tmp_path / "out"), 0)
    assert not (tmp_path / "out").exists()


def test_a_killed_import_leaves_nothing_and_can_be_rerun(images, tmp_path):
    write_lines(images, [{"file_name": f"{number}.jpg", "text": "a photo"} for number in range(4)])
    code = (
        "import os, signal, sys\n"
        "from vlp.data.importers import folder, write\n"
        "seen = []\n"
        "progress = lambda *_: (seen.append(1), len(seen) == 3 and os.kill(os.getpid(), signal.SIGKILL))\n"
        "write.write_imported(folder.image_folder(sys.argv[1]), sys.argv[2], 2, progress=progress)"
    )
    assert run_code(code, images, tmp_path / "out").returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    (left,) = (path for path in tmp_path.iterdir() if path.name.startswith(".out."))
    assert (left / "00000.tar").exists()
    write_imported(image_folder(str(images)), str(tmp_path / "out"), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["00000.tar", "00001.tar"]


def test_the_commands(images, tmp_path):
    write_lines(images, [{"file_name": "0.jpg", "text": "first"}, {"file_name": "1.jpg"}, {"file_name": "broken.jpg"}])
    out = str(tmp_path / "out")
    result = CliRunner().invoke(app, ["data", "import", "folder", str(images), out, "--max-bad-share", "0.5"])
    assert result.output.splitlines()[-1] == (
        f"Wrote 2 samples to {out}. 1 of them have no text. 1 bad samples were skipped (image undecodable: 1)."
    )
    (tmp_path / "captions.txt").write_text("0.jpg,x\n")
    arguments = [str(tmp_path / "captions.txt"), f"{out}-2", "--images", str(images)]
    result = CliRunner().invoke(app, ["data", "import", "flickr8k", *arguments])
    assert result.output == f"Wrote 1 samples to {out}-2.\n"
