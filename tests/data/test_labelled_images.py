"""Classes of images from folders, JSON and .cls members, and data sets that have none."""

import pytest

from tests.data.importers.layouts import benchmark, photo
from vlp.data import class_names
from vlp.data.bad_samples import BadSampleError
from vlp.data.importers.clip_benchmark import ClipBenchmark
from vlp.data.importers.write import write_imported
from vlp.data.labelled_images import open_labelled
from vlp.data.shard_index import index_shard
from vlp.data.shard_stream import read_shard
from vlp.data.shards import iterate_samples
from vlp.errors import UserError

NAMES = ["a golden retriever", "tabby cat"]


def wds(folder, members=lambda number: {"cls": b"%d" % (number % 2)}):
    """A CLIP_benchmark data set as it is downloaded."""
    benchmark(folder, "webp", members)
    (folder / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n\na {}\n")
    return folder


def classes_of(data):
    """The class of every sample of shards by key, or the reason why it has none."""
    found = {}
    for sample in iterate_samples(data.source):
        try:
            found[sample.key] = data.class_of(sample.key, sample.info)
        except BadSampleError as error:
            found[sample.key] = error.reason
    return found


def test_a_downloaded_data_set_and_its_import_are_the_same(tmp_path):
    folder = wds(tmp_path / "wds")
    importer = ClipBenchmark(str(folder))
    write_imported(importer, str(tmp_path / "imported"), files=importer.files)
    for data in (folder, folder / "test", tmp_path / "imported", tmp_path / "imported" / "*.tar"):
        found = open_labelled(str(data))
        assert found.names == NAMES and found.templates == ["a photo of a {c}.", "a {}"]
        assert classes_of(found) == {f"s000000{number}": number % 2 for number in range(4)}


def test_streamed_and_indexed_shards_have_the_same_classes(tmp_path):
    labels = [b"3", b"", b"[1, 2]", b"1\n"]
    path = str(wds(tmp_path / "wds", lambda number: {"cls": labels[number], "json": b"{}"}) / "test")
    for shard in (f"{path}/0.tar", f"{path}/1.tar"):
        indexed = {sample.key: sample.info for sample in iterate_samples(shard)}
        assert {sample.key: sample.info for sample in read_shard(shard)} == indexed
        assert all(index_shard(shard).members[:, 6].astype(bool) == ["cls" in info for info in indexed.values()])
    assert [info.get("cls") for info in indexed.values()] == ["[1, 2]", "1"]


def test_the_json_goes_before_the_member(tmp_path):
    folder = wds(tmp_path / "wds", lambda number: {"cls": b"1", "json": b'{"cls": 0}'})
    assert {sample.info["cls"] for sample in iterate_samples(f"{folder}/test/*.tar")} == {0}


def test_images_without_a_usable_class_have_a_reason(tmp_path):
    labels = [b"0", b"cat", b"2", b""]
    data = open_labelled(str(wds(tmp_path / "wds", lambda number: {"cls": labels[number]})))
    assert list(classes_of(data).values()) == [0, "bad class", "bad class", "no class"]
    with pytest.raises(BadSampleError, match="no class"):
        data.class_of("absent", {})
    with pytest.raises(BadSampleError, match="bad class"):
        data.class_of("any", {"cls": True})


def test_multi_label_data_sets_are_refused(tmp_path):
    message = "multi-label data set"
    with pytest.raises(UserError, match=message):
        open_labelled(str(wds(tmp_path / "npy", lambda number: {"npy": b"x"})))
    data = open_labelled(str(wds(tmp_path / "text", lambda number: {"cls": b"[0, 1]"})))
    with pytest.raises(UserError, match=message):
        classes_of(data)
    with pytest.raises(UserError, match=message):
        open_labelled(str(wds(tmp_path / "json"))).class_of("any", {"cls": [0, 1]})


def test_data_without_classes_is_refused(tmp_path, scenes):
    with pytest.raises(UserError, match="has no classes: neither `cls` in the JSON"):
        open_labelled(f"{scenes}/*.tar")
    folder = wds(tmp_path / "wds")
    (folder / "dataset_type.txt").write_text("retrieval\n")
    with pytest.raises(UserError, match="for retrieval, without classes; use `vlp evaluate retrieval`"):
        open_labelled(str(folder))
    with pytest.raises(UserError, match=r"no train/nshards.txt .*; it has test"):
        open_labelled(str(folder), split="train")
    with pytest.raises(UserError, match="No shard matches"):
        open_labelled(str(tmp_path / "absent"))
    photo(tmp_path / "flat" / "a.jpg")
    with pytest.raises(UserError, match="neither shards nor subfolders with images"):
        open_labelled(str(tmp_path / "flat"))


@pytest.fixture
def folder(tmp_path):
    for name in ("tabby_cat/1.jpg", "tabby_cat/more/2.png", "dog/1.jpg", "dog/2.webp", "loose.jpg"):
        photo(tmp_path / "pets" / name)
    (tmp_path / "pets" / "no_bird").mkdir()
    (tmp_path / "pets" / ".hidden").mkdir()
    return tmp_path / "pets"


def test_subfolders_are_classes(folder):
    data = open_labelled(str(folder))
    assert data.names == ["dog", "no bird", "tabby cat"]
    assert [data.class_of(key, {}) for key in ("dog/1.jpg", "tabby_cat/more/2.png")] == [0, 2]
    with pytest.raises(BadSampleError, match="no class"):
        data.class_of("loose.jpg", {})


def test_a_second_folder_has_the_classes_of_the_first(folder, tmp_path):
    photo(tmp_path / "other" / "tabby_cat" / "1.jpg")
    photo(tmp_path / "other" / "fish" / "1.jpg")
    data = open_labelled(str(tmp_path / "other"), folders=open_labelled(str(folder)).folders)
    assert data.class_of("tabby_cat/1.jpg", {}) == 2
    with pytest.raises(BadSampleError, match="unknown class"):
        data.class_of("fish/1.jpg", {})


def test_a_file_names_the_classes_of_subfolders(folder, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("a dog\na bird\na cat\n")
    assert open_labelled(str(folder), str(names)).names == ["a dog", "a bird", "a cat"]
    names.write_text("tabby_cat\ta cat\ndog\ta dog\nno_bird\ta bird\nfish\ta fish\n")
    assert open_labelled(str(folder), str(names)).names == ["a dog", "a bird", "a cat"]
    names.write_text("a dog\na cat\n")
    with pytest.raises(UserError, match="2 names for 3 subfolders"):
        open_labelled(str(folder), str(names))
    names.write_text("dog\ta dog\n")
    with pytest.raises(UserError, match="no name for the subfolder no_bird"):
        open_labelled(str(folder), str(names))


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (class_names.read_names, "\n", "has no class names"),
        (class_names.read_names, "a\n\nb\n", "line 2 is empty"),
        (class_names.read_templates, "\n\n", "has no templates"),
        (class_names.read_templates, "a {}\na photo\n", r"'a photo' has no \{\}"),
    ],
)
def test_wrong_files_are_refused(read, text, message, tmp_path):
    (tmp_path / "file.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "file.txt")
    with pytest.raises(UserError, match="There is no file of"):
        read(tmp_path / "absent.txt")


def test_templates():
    assert class_names.fill_template("a {c} or {}", "cat{}") == "a cat{} or cat{}"
    assert class_names.repeated(["crane", "cat", "crane"]) == ["crane"]
