"""Flickr30k and Flickr8k from every table and JSON in which they are distributed."""

import csv
import io
import json

import pytest

from tests.data.importers.layouts import CAPTIONS, blip_test, blip_train, imported, karpathy, photos, write_json
from tests.flickr8k import FOLDER
from vlp.data.importers.flickr import flickr
from vlp.data.importers.write import write_imported
from vlp.data.shards import iterate_samples
from vlp.errors import UserError

LOST = "COCO_val2014_000000000009.jpg"
PAIRS = [(row["image"], row["caption"].strip()) for row in blip_train("")]


def written_csv(**options) -> str:
    file = io.StringIO()
    csv.writer(file, **options).writerows([("image", "caption"), *PAIRS])
    return file.getvalue()


TABLES = {
    "captions.txt": "image,caption\n" + "".join(f"{name},{caption}\n" for name, caption in PAIRS),
    "quoted.csv": written_csv(quoting=csv.QUOTE_ALL),
    "results_20130124.token": "".join(f"{name}#{n}\t{caption}\n" for n, (name, caption) in enumerate(PAIRS)),
    "results.csv": "image_name| comment_number| comment\n"
    + "".join(f"{name}| {n}| {caption}\n" for n, (name, caption) in enumerate(PAIRS)),
}
JSON = {
    "dataset_flickr30k.json": karpathy("flickr30k"),
    "flickr30k_train.json": blip_train("flickr30k-images/"),
    "flickr30k_test.json": blip_test("flickr30k-images/"),
}


@pytest.mark.parametrize("name", [*TABLES, *JSON])
def test_every_file_gives_the_same_samples(name, tmp_path):
    files = photos(tmp_path / "images")
    path = tmp_path / name
    path.write_text(TABLES[name] if name in TABLES else json.dumps(JSON[name]))
    importer = flickr("flickr30k", [str(path)], str(tmp_path / "images"))
    counts, samples = imported(importer, tmp_path / "out")
    assert (len(importer), counts.bad) == (3, {"no image": 1})
    assert {key: sample.captions for key, sample in samples.items()} == CAPTIONS
    assert {key: sample.image for key, sample in samples.items()} == files


def test_rows_that_are_cut_are_bad(tmp_path):
    photos(tmp_path / "images")
    name = PAIRS[0][0]
    (tmp_path / "results.csv").write_text(TABLES["results.csv"] + f"{name}| 4   A dog runs across the grass .\n")
    (tmp_path / "results.token").write_text(TABLES["results_20130124.token"] + f"{name}#4\n")
    for table in ("results.csv", "results.token"):
        importer = flickr("flickr30k", [str(tmp_path / table)], str(tmp_path / "images"))
        counts, _ = imported(importer, tmp_path / f"{table}-shards")
        assert counts.bad == {"no image": 1, "bad row": 1}


def test_the_splits_of_karpathy_and_a_list_of_names(tmp_path):
    photos(tmp_path / "images")
    path = write_json(tmp_path / "dataset_flickr8k.json", karpathy("flickr8k"))
    _, samples = imported(flickr("flickr8k", [path], str(tmp_path / "images"), ["test"]), tmp_path / "test")
    assert list(samples) == ["COCO_val2014_000000184613"]
    (tmp_path / "names.txt").write_text(f"{PAIRS[1][0]}\r\n\n{PAIRS[0][0]}\n{PAIRS[1][0]}\n")
    names = str(tmp_path / "names.txt")
    _, samples = imported(flickr("flickr8k", [path], str(tmp_path / "images"), names=names), tmp_path / "names")
    assert list(samples) == ["COCO_val2014_000000184613", "COCO_val2014_000000522418"]
    with pytest.raises(UserError, match=r"holds Karpathy's annotations of Flickr8k, and .* takes Karpathy's"):
        flickr("flickr30k", [path], str(tmp_path))
    (tmp_path / "captions.txt").write_text(TABLES["captions.txt"])
    with pytest.raises(UserError, match=r"captions\.txt does not record splits"):
        flickr("flickr8k", [str(tmp_path / "captions.txt")], str(tmp_path), ["test"])


@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the photos of Flickr8k")
def test_flickr8k_from_its_csv_and_from_karpathys_json_is_the_same(tmp_path):
    texts: dict[str, list[str]] = {}
    for name, caption in list(csv.reader((FOLDER / "captions.txt").read_text().splitlines()))[1:501]:
        texts.setdefault(name, []).append(caption)
    names = (FOLDER / "val.txt").read_text().split()[:3] + list(texts)
    (tmp_path / "names.txt").write_text("\n".join(list(texts)))
    rows = [
        {"filename": name, "imgid": number, "split": "train" if name not in names[:3] else "val"}
        | {"sentences": [{"raw": text, "imgid": number, "sentid": k} for k, text in enumerate(texts[name])]}
        for number, name in enumerate(texts)
    ]
    path = write_json(tmp_path / "dataset_flickr8k.json", {"images": rows, "dataset": "flickr8k"})
    images = str(FOLDER / "images")
    table = flickr("flickr8k", [str(FOLDER / "captions.txt")], images, names=str(tmp_path / "names.txt"))
    for importer, out in ((table, "csv"), (flickr("flickr8k", [path], images), "json")):
        assert write_imported(importer, str(tmp_path / out), 40).bad == {}
    both = [list(iterate_samples(f"{tmp_path}/{out}/*.tar")) for out in ("csv", "json")]
    assert len(both[0]) == 100
    for one, other in zip(*both, strict=True):
        assert (one.key, one.image, one.text, one.captions) == (other.key, other.image, other.text, other.captions)
        assert one.info["uid"] == other.info["uid"]
