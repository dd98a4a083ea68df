"""Importers: other data formats to shards; bad rows are skipped, and a killed import leaves nothing."""

import json
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from vlp.cli.main import app
from vlp.data.importers.flickr import flickr
from vlp.data.importers.folder import image_folder
from vlp.data.importers.write import write_imported
from vlp.data.shards import iterate_samples
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


def samples_of(folder):
    return list(iterate_samples(f"{folder}/*.tar"))


def test_flickr8k(images, tmp_path):
    rows = ["image,caption", *(f"{n}.jpg,caption {k} of {n} , with a comma" for n in range(4) for k in range(5))]
    rows += ['0.jpg,"quoted, caption"', "broken.jpg,a caption", "absent.jpg,a caption", "../0.jpg,outside"]
    (tmp_path / "captions.txt").write_text("\n".join(rows))
    out = tmp_path / "out"
    importer = flickr8k(images, tmp_path / "captions.txt")
    counts = write_imported(importer, str(out), max_bad_share=0.5)
    assert (len(importer), counts.samples, counts.without_text) == (7, 4, 0)
    assert counts.bad == {"image undecodable": 1, "no image": 2}
    samples = samples_of(out)
    assert [sample.key for sample in samples] == ["0", "1", "2", "3"]
    assert samples[0].captions[-1] == "quoted, caption"
    assert samples[1].captions == [f"caption {k} of 1 , with a comma" for k in range(5)]
    assert samples[1].text == "caption 0 of 1 , with a comma"
    (tmp_path / "split.txt").write_text("2.jpg\r\n\n1.jpg\n2.jpg\n")
    part = flickr8k(images, tmp_path / "captions.txt", str(tmp_path / "split.txt"))
    assert write_imported(part, str(tmp_path / "part")).samples == 2
    assert [sample.key for sample in samples_of(tmp_path / "part")] == ["2", "1"]


def test_names_that_give_one_key_are_one_sample(images, tmp_path):
    for name in ("a.b.jpg", "a_b.jpg"):
        Image.new("RGB", (20, 10)).save(images / name)
    (tmp_path / "captions.txt").write_text("a.b.jpg,first\na_b.jpg,second\n")
    importer = flickr8k(images, tmp_path / "captions.txt")
    assert write_imported(importer, str(tmp_path / "out"), max_bad_share=0.5).bad == {"duplicate key": 1}
    assert [sample.captions for sample in samples_of(tmp_path / "out")] == [["first"]]


def test_too_many_bad_rows_stop_the_import(images, tmp_path):
    (tmp_path / "captions.txt").write_text("image,caption\n0.jpg,x\nabsent.jpg,a caption\n")
    with pytest.raises(WorkError, match="no image: 1"):
        write_imported(flickr8k(images, tmp_path / "captions.txt"), str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.txt", "images"]


def test_an_image_folder(images, tmp_path, caplog):
    lines = [
        {"file_name": "0.jpg", "text": "first", "license": "free", "uid": "of DataComp"},
        {"file_name": "1.jpg", "text": ["one", "two"]},
        {"file_name": "2.jpg"},
        {"file_name": "broken.jpg", "text": "x"},
        {"file_name": "../secret.jpg", "text": "x"},
        {"file_name": "nul\0.jpg", "text": "x"},
        {"file_name": "half \ud800.jpg", "text": "x"},
        {"file_name": "3.jpg", "text": "half \ud800"},
        {"text": "x"},
        "",
        "{",
        "[" * 100_000,
    ]
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.jpg")
    write_lines(images, lines)
    importer = image_folder(str(images))
    with caplog.at_level("WARNING", logger="vlp"):
        counts = write_imported(importer, str(tmp_path / "out"), max_bad_share=1.0)
    assert (len(importer), counts.samples, counts.without_text) == (11, 3, 1)
    assert counts.bad == {"image undecodable": 1, "no image": 3, "text not UTF-8": 1, "bad json": 2, "bad row": 1}
    samples = samples_of(tmp_path / "out")
    assert [sample.captions for sample in samples] == [["first"], ["one", "two"], []]
    assert (samples[0].info["license"], samples[0].info["uid"]) == ("free", "of DataComp")
    assert (samples[1].info["uid"], samples[2].text) == ("1.jpg", None)
    assert "skipped broken.jpg broken: image undecodable" in caplog.text
    assert f"{images}/metadata.jsonl line 11: bad json" in caplog.text


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
    command = [sys.executable, "-c", code, str(images), str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
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
