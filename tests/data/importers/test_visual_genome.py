"""Visual Genome: regions become the captions of their image, with their boxes in the JSON."""

from tests.data.importers.layouts import imported, photo, write_json
from vlp.data.importers.visual_genome import visual_genome


def region(number: int, phrase: object) -> dict:
    box = {"x": 421, "y": 57, "width": 82, "height": 139}
    return {"region_id": number, "image_id": 1, "phrase": phrase, **box}


def test_regions(tmp_path):
    first = photo(tmp_path / "vg" / "VG_100K" / "1.jpg", 1)
    second = photo(tmp_path / "vg" / "VG_100K_2" / "2.jpg", 2)
    third = photo(tmp_path / "vg" / "3.jpg", 3)
    regions = [
        region(1, "the clock is green "),
        region(2, "shade is along the street"),
        region(3, "the clock is green"),
    ]
    rows = [
        {"id": 1, "regions": regions},
        {"id": 2, "regions": [region(4, "a man")]},
        {"id": 3, "regions": []},
        {"id": 4, "regions": [region(5, "a lost image")]},
        {"id": 5, "regions": [region(6, 7)]},
        {"id": "../6", "regions": []},
        {"id": 7, "regions": {}},
        None,
    ]
    importer = visual_genome([write_json(tmp_path / "region_descriptions.json", rows)], str(tmp_path / "vg"))
    counts, samples = imported(importer, tmp_path / "out")
    assert (counts.samples, counts.without_text, counts.bad) == (3, 1, {"no image": 1, "bad row": 4})
    assert [samples[key].image for key in "123"] == [first, second, third]
    assert samples["1"].captions == ["the clock is green", "shade is along the street"]
    assert samples["1"].info["regions"] == regions
    assert samples["1"].info["image_id"] == 1


def test_blip_captions(tmp_path):
    photo(tmp_path / "vg" / "VG_100K" / "1.jpg", 1)
    rows = [{"image": "VG_100K/1.jpg", "caption": text} for text in ("a clock", "a street", "a clock")]
    importer = visual_genome([write_json(tmp_path / "vg_caption.json", rows)], str(tmp_path / "vg"))
    _, samples = imported(importer, tmp_path / "out")
    assert samples["1"].captions == ["a clock", "a street"]
