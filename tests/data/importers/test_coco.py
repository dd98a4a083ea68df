"""COCO captions from the official JSON, Karpathy's and BLIP's: equal samples, official image ids."""

import pytest

from tests.data.importers.layouts import (
    CAPTIONS,
    OFFICIAL,
    blip_test,
    blip_train,
    imported,
    karpathy,
    photo,
    photos,
    write_json,
)
from vlp.data.importers.coco import coco
from vlp.data.importers.nocaps import nocaps
from vlp.errors import UserError

FORMS = {
    "official": lambda: OFFICIAL,
    "karpathy": lambda: karpathy("coco"),
    "blip train": blip_train,
    "blip test": blip_test,
}


@pytest.mark.parametrize("place", ["val2014", "."], ids=["in val2014", "directly"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_samples(form, place, tmp_path):
    files = photos(tmp_path / "images" / place)
    path = write_json(tmp_path / "annotations.json", FORMS[form]())
    importer = coco([path], str(tmp_path / "images"))
    counts, samples = imported(importer, tmp_path / "out")
    assert (len(importer), counts.bad, counts.without_text) == (3, {"no image": 1}, 0)
    assert {key: sample.captions for key, sample in samples.items()} == CAPTIONS
    assert list(samples) == list(CAPTIONS)
    assert {key: sample.image for key, sample in samples.items()} == files
    assert [sample.info["image_id"] for sample in samples.values()] == [522418, 184613]
    assert [sample.info["uid"] for sample in samples.values()] == [f"{key}.jpg" for key in CAPTIONS]
    first = samples["COCO_val2014_000000522418"].info
    if form in ("official", "karpathy"):  # the second caption with the same words is left out with its id
        assert first["sentids"] == [681330, 686718]
    if form == "official":
        assert (first["width"], first["height"], first["license"]) == (20, 10, 4)
    if form == "karpathy":
        assert (first["split"], first["imgid"], first["cocoid"]) == ("restval", 0, 522418)
    if form == "blip train":
        assert first["blip_image_id"] == "coco_522418"


def test_splits(tmp_path):
    photos(tmp_path / "images")
    path = write_json(tmp_path / "dataset_coco.json", karpathy("coco"))
    _, samples = imported(coco([path], str(tmp_path / "images"), ["train", "restval"]), tmp_path / "out")
    assert list(samples) == ["COCO_val2014_000000522418"]
    with pytest.raises(UserError, match=r"no split 'val'; it has restval \(1 images\), test \(1 images\), train"):
        coco([path], str(tmp_path), ["val"])
    with pytest.raises(UserError, match=r"official.json does not record splits; leave --split out"):
        coco([write_json(tmp_path / "official.json", OFFICIAL)], str(tmp_path), ["val"])


def test_several_files_are_one_data_set(tmp_path):
    photos(tmp_path / "images")
    rows = blip_train()
    paths = [write_json(tmp_path / f"{number}.json", rows[number::2]) for number in range(2)]
    _, samples = imported(coco(paths, str(tmp_path / "images")), tmp_path / "out")
    assert {key: sorted(sample.captions) for key, sample in samples.items()} == CAPTIONS


def test_images_without_a_caption_and_bad_rows(tmp_path):
    photos(tmp_path / "images")
    (tmp_path / "secret.jpg").write_bytes(photo(tmp_path / "images" / "x.jpg"))
    values = {
        "images": [
            *OFFICIAL["images"],
            {"id": 522418, "file_name": "x.jpg"},
            {"id": [], "file_name": "x.jpg"},
            {"id": 5},
            {"id": 7, "file_name": "../secret.jpg"},
            {"id": 8, "file_name": str(tmp_path / "secret.jpg")},
            3,
        ],
        "annotations": [
            *OFFICIAL["annotations"][2:],
            {"image_id": 184613, "id": 3, "caption": None},
            {"image_id": 31, "id": 3, "caption": "of no image"},
            {"image_id": {}, "id": 3, "caption": "of no image"},
        ],
    }
    path = write_json(tmp_path / "captions.json", values)
    counts, samples = imported(coco([path], str(tmp_path / "images")), tmp_path / "out")
    assert counts.bad == {"no image": 4, "bad row": 5, "duplicate key": 1}
    assert (counts.samples, counts.without_text) == (2, 1)
    assert samples["COCO_val2014_000000184613"].captions == []


def test_nocaps(tmp_path):
    images = [
        {
            "id": number,
            "open_images_id": f"00{number}",
            "file_name": f"00{number}.jpg",
            "domain": domain,
            "width": 20,
            "height": 10,
            "coco_url": f"https://example.com/00{number}.jpg",
        }
        for number, domain in enumerate(("in-domain", "near-domain", "out-domain"))
    ]
    annotations = [{"image_id": n, "id": 10 * n + k, "caption": f"caption {k}"} for n in range(3) for k in range(10)]
    files = {f"00{number}": photo(tmp_path / "nocaps" / "val" / f"00{number}.jpg", number) for number in range(3)}
    path = write_json(
        tmp_path / "nocaps_val_4500_captions.json", {"licenses": [], "images": images, "annotations": annotations}
    )
    _, samples = imported(nocaps([path], str(tmp_path / "nocaps")), tmp_path / "out")
    assert {key: sample.image for key, sample in samples.items()} == files
    assert [sample.info["domain"] for sample in samples.values()] == ["in-domain", "near-domain", "out-domain"]
    assert [sample.info["image_id"] for sample in samples.values()] == [0, 1, 2]
    assert samples["001"].info["open_images_id"] == "001"
    assert samples["002"].captions == [f"caption {k}" for k in range(10)]

    path = write_json(
        tmp_path / "nocaps_val.json", [{"image": f"val/00{number}.jpg", "img_id": number} for number in range(3)]
    )
    counts, samples = imported(nocaps([path], str(tmp_path / "nocaps")), tmp_path / "blip")
    assert {key: sample.image for key, sample in samples.items()} == files
    assert [sample.info["image_id"] for sample in samples.values()] == [0, 1, 2]
    assert (counts.without_text, samples["001"].text) == (3, None)
