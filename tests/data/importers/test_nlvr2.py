"""NLVR2's official JSON lines and BLIP's files: a sample for each sentence, with both images and its label."""

import json
from pathlib import Path

import pytest

from tests.data.importers.layouts import imported, photo, write_json
from vlp.data.importers.nlvr2 import Nlvr2
from vlp.errors import UserError

ROWS = [  # identifier, sentence, label
    ("dev-850-0-0", "One picture has a dog. ", "True"),
    ("dev-850-0-1", "Both pictures have two dogs.", "False"),
    ("dev-12-3-0", "The left picture is dark.", "true"),
]


def official(folder: Path, rows=ROWS, **more) -> str:
    """The official file: JSON lines, though its name ends in .json."""
    lines = [
        json.dumps({"sentence": text, "label": label, "identifier": name, "left_url": "http://x", **more})
        for name, text, label in rows
    ]
    (folder / "dev.json").write_text("\n".join(lines) + "\n")
    return str(folder / "dev.json")


def blip(folder: Path, rows=ROWS) -> str:
    """BLIP's file: one list, with the names of the images and without identifiers."""
    values = []
    for name, text, label in rows:
        pair = name.rpartition("-")[0]
        values.append({"images": [f"dev/{pair}-img{n}.png" for n in (0, 1)], "sentence": text, "label": label})
    return write_json(folder / "nlvr_dev.json", values)


def photos(folder: Path) -> dict[str, bytes]:
    """The images of ROWS by name."""
    names = [f"{pair}-img{n}.png" for pair in ("dev-850-0", "dev-12-3") for n in (0, 1)]
    return {name: photo(folder / name, 60 * number) for number, name in enumerate(names)}


@pytest.mark.parametrize("place", [".", "dev", "images/dev"])
@pytest.mark.parametrize("form", [official, blip])
def test_every_form_gives_the_same_samples(form, place, tmp_path):
    files = photos(tmp_path / "images" / place)
    importer = Nlvr2([form(tmp_path)], str(tmp_path / "images"))
    counts, samples = imported(importer, tmp_path / "out")
    assert (len(importer), counts.samples, counts.bad, counts.without_text) == (3, 3, {}, 3)
    assert list(samples) == [name for name, _, _ in ROWS]
    for (name, text, label), sample in zip(ROWS, samples.values(), strict=True):
        pair = name.rpartition("-")[0]
        assert (sample.image, sample.right) == (files[f"{pair}-img0.png"], files[f"{pair}-img1.png"])
        assert (sample.info["images"], sample.info["sentence"]) == (2, text.strip())
        assert sample.info["label"] is (label.lower() == "true")
        assert sample.info.get("identifier") == (name if form is official else None)
        assert sample.captions == []  # a sentence may be false


def test_the_official_training_images_are_in_folders_by_number(tmp_path):
    photo(tmp_path / "images/train/47/train-1-0-img0.png")
    photo(tmp_path / "images/train/47/train-1-0-img1.png")
    file = official(tmp_path, [("train-1-0-2", "a", "True")] * 2, directory=47)
    counts, samples = imported(Nlvr2([file], str(tmp_path)), tmp_path / "out")
    assert (list(samples), counts.bad) == (["train-1-0-2"], {"duplicate key": 1})


def test_a_test_split_has_no_labels(tmp_path):
    photos(tmp_path)
    rows = [{"identifier": name, "sentence": text} for name, text, _ in ROWS]
    _, samples = imported(Nlvr2([write_json(tmp_path / "test1.json", rows)], str(tmp_path)), tmp_path / "out")
    assert len(samples) == 3 and not any("label" in sample.info for sample in samples.values())


BAD = {
    "no label that is known": ({"label": "maybe"}, "bad label"),
    "no sentence": ({"sentence": "  "}, "no sentence"),
    "a sentence that is a number": ({"sentence": 3}, "bad row"),
    "one image": ({"images": ["dev-850-0-img0.png"]}, "bad row"),
    "a missing first image": ({"images": ["gone.png", "dev-850-0-img0.png"]}, "no image"),
    "a missing second image": ({"images": ["dev-850-0-img0.png", "gone.png"]}, "no second image"),
    "a second image outside": ({"images": ["dev-850-0-img0.png", "../secret.png"]}, "no second image"),
    "a broken second image": ({"images": ["dev-850-0-img0.png", "broken.png"]}, "no second image"),
    "an identifier without a pair": ({"identifier": "dev"}, "bad row"),
    "an identifier that is a number": ({"identifier": 3}, "bad row"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_skipped_counted_and_named(name, tmp_path):
    change, reason = BAD[name]
    photos(tmp_path / "images")
    photo(tmp_path / "secret.png")
    (tmp_path / "images/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    rows = [{"identifier": one, "sentence": text, "label": label} for one, text, label in ROWS]
    rows.append({**rows[0], "identifier": "dev-850-0-9", **change})
    file = write_json(tmp_path / "dev.json", rows)
    counts, samples = imported(Nlvr2([file], str(tmp_path / "images")), tmp_path / "out")
    assert (len(samples), counts.bad) == (3, {reason: 1})


def test_other_files_and_missing_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="no image folder"):
        Nlvr2([official(tmp_path)], str(tmp_path / "none"))
    with pytest.raises(UserError, match="holds COCO's captions"):
        rows = {"images": [{"file_name": "1.jpg"}], "annotations": [{"caption": "x"}]}
        Nlvr2([write_json(tmp_path / "coco.json", rows)], str(tmp_path))
    (tmp_path / "cut.json").write_text('{"sentence": "a", "identifier": "b"}\n{"sentence": ')
    with pytest.raises(UserError, match="not readable as JSON"):
        Nlvr2([str(tmp_path / "cut.json")], str(tmp_path))
