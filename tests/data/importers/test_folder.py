"""Folders of pictures, with and without metadata."""

import csv
import json

import pytest

from tests.data.importers.layouts import imported, photo
from vlp.data.importers.folder import image_folder
from vlp.errors import UserError


def write_lines(folder, lines) -> None:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metadata.jsonl").write_text(text)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for number in range(4):
        photo(folder / f"{number}.jpg", 60 * number)
    (folder / "broken.jpg").write_text("no picture")
    return folder


def test_metadata_in_json_lines(images, tmp_path, caplog):
    lines = [
        {"file_name": "0.jpg", "text": "first", "license": "free", "uid": "of DataComp"},
        {"file_name": "1.jpg", "text": ["one", "two", " one"]},
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
        {"file_name": "./0.jpg", "text": "second", "license": "another"},
    ]
    photo(tmp_path / "secret.jpg")
    write_lines(images, lines)
    importer = image_folder(str(images))
    with caplog.at_level("WARNING", logger="vlp"):
        counts, samples = imported(importer, tmp_path / "out")
    assert (len(importer), counts.samples, counts.without_text) == (11, 3, 1)
    assert counts.bad == {"image undecodable": 1, "no image": 3, "text not UTF-8": 1, "bad json": 2, "bad row": 1}
    assert [(key, sample.captions) for key, sample in samples.items()] == [
        ("0", ["first", "second"]),
        ("1", ["one", "two"]),
        ("2", []),
    ]
    assert (samples["0"].info["license"], samples["0"].info["uid"]) == ("free", "of DataComp")
    assert (samples["1"].info["uid"], samples["2"].text) == ("1.jpg", None)
    assert "skipped broken.jpg broken: image undecodable" in caplog.text
    assert f"{images}/metadata.jsonl line 11: bad json" in caplog.text


def test_metadata_in_csv(images, tmp_path):
    photo(images / "a" / "0.jpg", 7)
    rows = [
        ("file_name", "text", "license"),
        ("0.jpg", 'a "dog", and\na line break', "free"),
        ("a/0.jpg", "a cat", ""),
        ("0.jpg", "two dogs", "free"),
        ("gone.jpg", "a cat", ""),
        ("1.jpg",),
        ("2.jpg", "x", "y", "one too many"),
    ]
    with open(images / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    counts, samples = imported(image_folder(str(images)), tmp_path / "out")
    assert counts.bad == {"no image": 1, "bad row": 1}
    assert [(key, sample.captions) for key, sample in samples.items()] == [
        ("0", ['a "dog", and\na line break', "two dogs"]),
        ("a_0", ["a cat"]),
        ("1", []),
    ]
    assert (samples["0"].info["license"], samples["a_0"].info["uid"]) == ("free", "a/0.jpg")


def test_captions_from_several_fields(images, tmp_path):
    line = {"file_name": "0.jpg", "caption": "alt", "text": ["one"], "title": "a title"}
    write_lines(images, [line])
    _, samples = imported(image_folder(str(images)), tmp_path / "guessed")
    assert (samples["0"].captions, samples["0"].info["title"]) == (["one", "alt"], "a title")
    _, samples = imported(image_folder(str(images), ["title", "caption"]), tmp_path / "named")
    assert (samples["0"].captions, samples["0"].info["text"]) == (["a title", "alt"], ["one"])


def test_pictures_without_metadata(images, tmp_path, caplog):
    photo(images / "b" / "c" / "0.PNG", 1)
    photo(images / "b" / "0.webp", 2)
    photo(images / ".hidden" / "0.jpg")
    photo(images / ".1.jpg")
    photo(images / "old.gif")
    (images / "1.txt").write_text(" a dog \n")
    (images / "2.json").write_text('{"captions": ["one", {"text": "two", "source": "human"}], "license": "free"}')
    (images / "3.txt").write_bytes(b"\xff\xfe")
    (images / "b" / "0.json").write_text("{")
    (images / "notes.txt").write_text("no picture")
    (images / "linked.jpg").symlink_to(tmp_path / "secret.jpg")
    photo(tmp_path / "secret.jpg")
    with caplog.at_level("INFO", logger="vlp"):
        importer = image_folder(str(images))
    assert "has no metadata.jsonl or metadata.csv; all of its 9 pictures are taken" in caplog.text
    counts, samples = imported(importer, tmp_path / "out")
    assert (len(importer), counts.samples, counts.without_text) == (9, 4, 2)
    assert counts.bad == {
        "image undecodable": 1,
        "text not UTF-8": 1,
        "bad json": 1,
        "no image": 1,
        "neither jpg, png nor webp": 1,
    }
    found = [(key, sample.captions) for key, sample in samples.items()]
    assert found == [("0", []), ("1", ["a dog"]), ("2", ["one", "two"]), ("b_c_0", [])]
    assert samples["2"].sources == ["web", "human"]
    assert (samples["2"].info["license"], samples["b_c_0"].info["uid"]) == ("free", "b/c/0.PNG")


def test_names_that_give_one_key_are_one_sample(tmp_path):
    for name in ("a.jpg", "a.png", "b.c.jpg", "b_c.jpg"):
        photo(tmp_path / "images" / name)
    counts, samples = imported(image_folder(str(tmp_path / "images")), tmp_path / "out")
    assert (sorted(samples), counts.bad) == (["a", "b_c"], {"duplicate key": 2})


def test_wrong_calls(images, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="There is no folder nowhere"):
        image_folder("nowhere")
    with pytest.raises(UserError, match="empty has no pictures; they must be jpg, jpeg, png or webp files"):
        image_folder(str(tmp_path / "empty"))
    (tmp_path / "empty" / "metadata.csv").write_text("name,text\n0.jpg,x\n")
    with pytest.raises(UserError, match=r"metadata.csv must have a column file_name; it has name, text"):
        image_folder(str(tmp_path / "empty"))
    (tmp_path / "empty" / "metadata.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"metadata.csv is not a UTF-8 text file"):
        image_folder(str(tmp_path / "empty"))
    (images / "metadata.csv").write_text("file_name,text\n")
    write_lines(images, [])
    with pytest.raises(UserError, match=r"has a metadata.jsonl and a metadata.csv; remove one"):
        image_folder(str(images))
    with pytest.raises(UserError, match=r"empty has metadata of its own; import that folder by itself"):
        image_folder(str(tmp_path))
