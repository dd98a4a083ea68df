"""CLIP_benchmark's webdatasets: classes go into the JSON, the lines of a text become captions."""

import tarfile

import pytest

from tests.data.importers.layouts import add, benchmark, imported, photo
from vlp.data.importers.clip_benchmark import ClipBenchmark
from vlp.data.importers.write import write_imported
from vlp.data.shards import read_members
from vlp.errors import UserError

CLASSES = ["a golden retriever", "tabby cat"]


@pytest.mark.parametrize("extension", ["webp", "jpg", "png"])
def test_classification(extension, tmp_path):
    folder = benchmark(tmp_path / "wds", extension, lambda number: {"cls": b"%d" % (number % 2)})
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    importer = ClipBenchmark(str(folder))
    write_imported(importer, str(tmp_path / "kept"), files=importer.files)
    counts, samples = imported(importer, tmp_path / "out")
    assert (len(importer), counts.samples, counts.without_text, counts.bad) == (4, 4, 4, {})
    assert list(samples) == [f"s{number:07d}" for number in range(4)]
    assert [sample.info["cls"] for sample in samples.values()] == [0, 1, 0, 1]
    assert [sample.info["class_name"] for sample in samples.values()] == CLASSES * 2
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert kept == ["00000.tar", "classnames.txt", "zeroshot_classification_templates.txt"]
    assert (tmp_path / "kept" / "classnames.txt").read_text() == "\n".join(CLASSES)
    _, members = next(read_members(str(tmp_path / "kept" / "00000.tar")))
    assert sorted(members) == sorted([extension, "json"])


@pytest.mark.parametrize("template", ["a photo of a {c}.", "a photo of a {}."])
def test_captions_from_a_template(template, tmp_path):
    folder = benchmark(tmp_path / "wds", "jpg", lambda number: {"cls": b"%d\n" % (number % 2)}, "train")
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    _, samples = imported(ClipBenchmark(str(folder), "train", template), tmp_path / "out")
    assert [sample.captions for sample in samples.values()] == [[f"a photo of a {name}."] for name in CLASSES] * 2


def test_retrieval(tmp_path):
    folder = benchmark(tmp_path / "wds", "jpg", lambda number: {"txt": f"first {number}\nsecond\n\nsecond".encode()})
    (folder / "dataset_type.txt").write_text("retrieval")
    importer = ClipBenchmark(str(folder))
    _, samples = imported(importer, tmp_path / "out")
    assert [sample.captions for sample in samples.values()] == [[f"first {number}", "second"] for number in range(4)]
    assert samples["s0000001"].text == "first 1"
    assert importer.files == {"dataset_type.txt": b"retrieval"}


def test_bad_samples_and_labels(tmp_path):
    labels = [b"0", b"cat", b"7", b"\xff"]
    folder = benchmark(tmp_path / "wds", "jpg", lambda number: {"cls": labels[number], "npy": b"kept"})
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    with tarfile.open(folder / "test" / "0.tar", "a") as archive:
        add(archive, "../evil.x.jpg", photo(tmp_path / "p.jpg"))
        add(archive, "s9.cls", b"0")
        add(archive, "s8.jpg", b"")
    counts, samples = imported(ClipBenchmark(str(folder)), tmp_path / "out")
    assert counts.bad == {"bad class": 3, "no image": 2, "zero bytes": 1}
    assert [*samples] == ["s0000000"]
    _, members = next(read_members(f"{tmp_path}/out/00000.tar"))
    assert members["npy"] == b"kept"


def test_wrong_calls(tmp_path):
    folder = benchmark(tmp_path / "wds", "jpg", lambda number: {"cls": b"0"})
    with pytest.raises(UserError, match=r"wds has no train/nshards.txt .*; it has test"):
        ClipBenchmark(str(folder), "train")
    with pytest.raises(UserError, match=r"no classnames.txt, which --caption-template needs"):
        ClipBenchmark(str(folder), template="a {}")
    with pytest.raises(UserError, match=r"'a photo' has no \{\}"):
        ClipBenchmark(str(folder), template="a photo")
    with pytest.raises(UserError, match="There is no folder"):
        ClipBenchmark(str(tmp_path / "none"))
    for count, says in (
        ("3", r"no shard .*/2.tar, though nshards.txt says 3"),
        ("x", "must hold the number of shards"),
    ):
        (folder / "test" / "nshards.txt").write_text(count)
        with pytest.raises(UserError, match=says):
            ClipBenchmark(str(folder))


def test_a_data_set_is_imported_to_an_object_store(tmp_path, s3):
    folder = benchmark(tmp_path / "wds", "jpg", lambda number: {"cls": b"%d" % (number % 2)})
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    importer = ClipBenchmark(str(folder))
    counts = write_imported(importer, f"{s3.url}/pets", 3, files=importer.files)
    assert counts.samples == 4
    assert s3.names("pets") == ["pets/00000.tar", "pets/00001.tar", "pets/_SUCCESS", "pets/classnames.txt"]
    assert s3.files.cat_file(f"{s3.url}/pets/classnames.txt").decode() == "\n".join(CLASSES)
