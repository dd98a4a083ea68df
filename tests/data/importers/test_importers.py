"""Importers: other people's folders to shards, bad rows skipped."""

import json

import pytest
from PIL import Image

from vlp.data.importers.flickr8k import import_flickr8k
from vlp.data.importers.folder import import_folder
from vlp.data.inspect import inspect_shards
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


def test_flickr8k(images, tmp_path):
    rows = ["image,caption", *(f"{n}.jpg,caption {k} of {n} , with a comma" for n in range(4) for k in range(5))]
    rows += ['0.jpg,"quoted, caption"', "broken.jpg,a caption", "absent.jpg,a caption", "../0.jpg,outside"]
    (tmp_path / "captions.txt").write_text("\n".join(rows))
    out = tmp_path / "out"
    assert import_flickr8k(str(images), str(tmp_path / "captions.txt"), str(out), max_bad_share=0.5) == 4
    samples = list(iterate_samples(f"{out}/*.tar"))
    assert [sample.key for sample in samples] == ["0", "1", "2", "3"]
    assert samples[0].captions[-1] == "quoted, caption"
    assert samples[1].captions == [f"caption {k} of 1 , with a comma" for k in range(5)]
    (tmp_path / "split.txt").write_text("2.jpg\n1.jpg\n")
    arguments = (str(images), str(tmp_path / "captions.txt"), str(tmp_path / "part"), str(tmp_path / "split.txt"))
    assert import_flickr8k(*arguments) == 2
    assert [sample.key for sample in iterate_samples(str(tmp_path / "part/*.tar"))] == ["2", "1"]


def test_too_many_bad_rows_stop_the_import(images, tmp_path):
    (tmp_path / "captions.txt").write_text("image,caption\n0.jpg,x\nabsent.jpg,a caption\n")
    with pytest.raises(WorkError, match="no image: 1"):
        import_flickr8k(str(images), str(tmp_path / "captions.txt"), str(tmp_path / "out"))


def test_an_image_folder(images, tmp_path, caplog):
    lines = [
        {"file_name": "0.jpg", "text": "first", "licence": "free"},
        {"file_name": "1.jpg", "text": ["one", "two"]},
        {"file_name": "2.jpg"},
        {"file_name": "broken.jpg", "text": "x"},
        {"file_name": "../secret.jpg", "text": "x"},
        {"text": "x"},
    ]
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.jpg")
    (images / "metadata.jsonl").write_text("\n".join([json.dumps(line) for line in lines] + ["{"]))
    with caplog.at_level("WARNING", logger="vlp"):
        assert import_folder(str(images), str(tmp_path / "out"), max_bad_share=1.0) == 2
    samples = list(iterate_samples(str(tmp_path / "out/*.tar")))
    assert [sample.captions for sample in samples] == [["first"], ["one", "two"]]
    assert samples[0].info["licence"] == "free"
    assert "line 4: image undecodable" in caplog.text


def test_wrong_calls(images, tmp_path):
    with pytest.raises(UserError, match=r"metadata\.jsonl"):
        import_folder(str(images), str(tmp_path / "out"))
    with pytest.raises(UserError, match="cannot be read"):
        import_flickr8k(str(images), "nowhere.txt", str(tmp_path / "out"))


def test_inspection_counts_what_is_there(web_scenes):
    facts = inspect_shards(f"{web_scenes}/*.tar")
    assert (facts["shards"], facts["samples"], facts["captions"], facts["bad"]) == (3, 60, 60, {})
    assert facts["image_sizes"] == {"32x32": 60}
    assert len(facts["pictures"]) == 40
    assert sum(facts["frequent_words"].values()) > 60
