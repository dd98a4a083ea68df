"""Web collections: tables beside downloaded images, and the output of img2dataset."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.importers.layouts import imported, photo, write_json
from vlp.data.importers.conceptual import conceptual
from vlp.errors import UserError

URLS = [f"http://static.flickr.com/27{number}/photo_{number}.jpg?size=1" for number in range(3)]
TEXTS = ["a dog", 'a "big" cat, of stone', 'a 5" pipe']  # one quotation mark must not join lines
NOT_FOUND, NO_HOST = "HTTP Error 404: Not Found", "<urlopen error hostname 'a.com' unknown>"

TABLES = {
    "Train_GCC.tsv": "".join(f"{text}\t{url}\n" for text, url in zip(TEXTS, URLS, strict=True)),
    "cc12m.tsv": "".join(f"{url}\t{text}\n" for text, url in zip(TEXTS, URLS, strict=True)),
    "open_clip.csv": "filepath\ttitle\n" + "".join(f"photo_{n}.jpg\t{text}\n" for n, text in enumerate(TEXTS)),
    "named.csv": "Image,Caption\nphoto_0.jpg,a dog\n"
    + 'photo_1.jpg,"a ""big"" cat, of stone"\nphoto_2.jpg,"a 5"" pipe"\n',
    "quoted.tsv": 'image\tcaption\nphoto_0.jpg\ta dog\nphoto_1.jpg\t"a ""big"" cat, of stone"\n'
    + 'photo_2.jpg\t"a 5"" pipe"\n',
    "unnamed.csv": "photo_0.jpg,a dog\n" + 'photo_1.jpg,"a ""big"" cat, of stone"\nphoto_2.jpg,"a 5"" pipe"\n',
    "ccs_filtered.json": json.dumps([{"url": url, "caption": text} for text, url in zip(TEXTS, URLS, strict=True)]),
    "sbu-captions-all.json": json.dumps({"image_urls": URLS, "captions": TEXTS, "user_ids": ["x"] * 3}),
    "cc3m.json": json.dumps([{"image": f"cc3m/photo_{n}.jpg", "caption": text} for n, text in enumerate(TEXTS)]),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_beside_images(name, tmp_path):
    files = {f"photo_{number}": photo(tmp_path / f"photo_{number}.jpg", number) for number in range(3)}
    (tmp_path / name).write_text(TABLES[name])
    importer = conceptual([str(tmp_path / name)])
    counts, samples = imported(importer, tmp_path / "out")
    assert (len(importer), counts.bad, counts.not_downloaded) == (3, {}, {})
    assert {key: sample.image for key, sample in samples.items()} == files
    assert [sample.captions for sample in samples.values()] == [[text] for text in TEXTS]
    if "static.flickr.com" in TABLES[name]:
        assert [sample.info["url"] for sample in samples.values()] == URLS


def test_states_other_columns_and_bad_rows(tmp_path):
    photo(tmp_path / "images" / "a" / "1.jpg", 1)
    photo(tmp_path / "images" / "2.jpg", 2)
    rows = [
        "file\ttext\turl\tstatus\terror_message\twidth",
        "a/1.jpg\ta dog\thttp://x/1\tsuccess\t\t20",
        "a/1.jpg\ta cat\thttp://x/1\tsuccess\t\t20",
        "2.jpg\ta cat\thttp://x/2\t200\t\t20",
        f"\ta cow\thttp://x/3\tfailed_to_download\t{NOT_FOUND}\t",
        f"4.jpg\ta cow\thttp://x/4\tfailed_to_download\t{NO_HOST}\t",
        "5.jpg\ta hen\thttp://x/5\t408\t\t",
        "6.jpg\ta hen\thttp://x/6\tsuccess\t\t",
        "../secret.jpg\ta hen\thttp://x/7\tsuccess\t\t",
        "7.jpg\ta hen",
        "\ta hen\thttp://x/8\tsuccess\t\t",
    ]
    photo(tmp_path / "secret.jpg")
    (tmp_path / "report.tsv").write_text("\n".join(rows))
    importer = conceptual([str(tmp_path / "report.tsv")], str(tmp_path / "images"))
    counts, samples = imported(importer, tmp_path / "out")
    assert counts.bad == {"no image": 2, "bad row": 2}
    assert counts.not_downloaded == {NOT_FOUND: 1, "<urlopen error hostname ... unknown>": 1, "status 408": 1}
    assert samples["1"].captions == ["a dog", "a cat"]
    assert (samples["2"].info["url"], samples["2"].info["width"]) == ("http://x/2", "20")


def test_named_columns_and_columns_that_cannot_be_guessed(tmp_path):
    photo(tmp_path / "1.jpg")
    (tmp_path / "table.csv").write_text("photo,words,alt\n1.jpg,a dog,no\n")
    path = str(tmp_path / "table.csv")
    _, samples = imported(conceptual([path], image="photo", text="words"), tmp_path / "out")
    assert samples["1"].captions == ["a dog"]
    with pytest.raises(UserError, match=r"table.csv has no column 'x'; it has photo, words, alt"):
        conceptual([path], image="x")
    with pytest.raises(UserError, match=r"table.csv has the columns photo, words, alt; name those .* --image and"):
        conceptual([path], image="photo")


def test_urls_that_end_alike_are_not_confused(tmp_path):
    photo(tmp_path / "image.jpg")
    photo(tmp_path / "good.jpg")
    rows = [{"url": f"http://{host}/image.jpg", "caption": f"of {host}"} for host in ("a", "b", "a")]
    rows += [{"url": "http://a/good.jpg", "caption": "good"}]
    path = write_json(tmp_path / "rows.json", rows)
    counts, samples = imported(conceptual([path]), tmp_path / "out")
    assert (counts.bad, list(samples)) == ({"URLs with the same file name": 3}, ["good"])


KEYS = [f"00000{number:04d}" for number in range(6)]


def img2dataset(folder, layout: str) -> dict[str, bytes]:
    """The output of img2dataset with six rows, of which two failed; returns the images by key."""
    (folder / "00000").mkdir(parents=True)
    rows = []
    files = {}
    for number, key in enumerate(KEYS):
        failed = number in (1, 4)
        rows.append(
            {
                "url": f"http://x/{number}",
                "caption": f"caption {number}",
                "key": key,
                "status": "failed_to_download" if failed else "success",
                "error_message": (NOT_FOUND if number == 1 else NO_HOST) if failed else None,
                "width": None if failed else 20,
                "sha256": None if failed else f"{number:064x}",
            }
        )
        if failed:
            continue
        files[key] = photo(folder / "00000" / f"{key}.jpg", number)
        (folder / "00000" / f"{key}.txt").write_text(f"caption {number}")
        (folder / "00000" / f"{key}.json").write_text(json.dumps({**rows[-1], "exif": "{}"}))
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")
    if layout == "webdataset":
        with tarfile.open(folder / "00000.tar", "w") as archive:
            for path in sorted((folder / "00000").iterdir()):
                header = tarfile.TarInfo(path.name)
                header.size = path.stat().st_size
                archive.addfile(header, io.BytesIO(path.read_bytes()))
                path.unlink()
        (folder / "00000").rmdir()
    return files


@pytest.mark.parametrize("layout", ["webdataset", "files"])
def test_img2dataset(layout, tmp_path, caplog):
    files = img2dataset(tmp_path / "cc3m", layout)
    importer = conceptual([str(tmp_path / "cc3m")])
    with caplog.at_level("INFO", logger="vlp"):
        counts, samples = imported(importer, tmp_path / "out", max_bad_share=0)  # failed downloads are not bad
    assert (len(importer), counts.samples, counts.bad) == (6, 4, {})
    assert counts.not_downloaded == {NOT_FOUND: 1, "<urlopen error hostname ... unknown>": 1}
    assert f"{KEYS[1]}: {NOT_FOUND}" in caplog.text
    assert {key: sample.image for key, sample in samples.items()} == files
    assert samples[KEYS[2]].captions == ["caption 2"]
    info = samples[KEYS[2]].info
    assert (info["url"], info["sha256"], info["exif"]) == ("http://x/2", f"{2:064x}", "{}")


@pytest.mark.parametrize("layout", ["webdataset", "files"])
def test_img2dataset_with_a_missing_image_and_a_damaged_table(layout, tmp_path):
    img2dataset(tmp_path / "cc3m", layout)
    table = pq.read_table(tmp_path / "cc3m" / "00000.parquet").to_pylist()
    pq.write_table(
        pa.Table.from_pylist([*table, {**table[0], "key": "000009999"}]), tmp_path / "cc3m" / "00000.parquet"
    )
    counts, _ = imported(conceptual([str(tmp_path / "cc3m")]), tmp_path / "out")
    assert (counts.samples, counts.bad) == (4, {"no image": 1})
    (tmp_path / "cc3m" / "00000.parquet").write_bytes(b"PAR1 and no more")
    counts, _ = imported(conceptual([str(tmp_path / "cc3m")]), tmp_path / "again")
    assert (counts.samples, counts.bad) == (4, {"unreadable table": 1})


def test_a_part_of_img2dataset_without_an_image(tmp_path):
    files = img2dataset(tmp_path / "cc3m", "files")
    (tmp_path / "cc3m" / "00001").mkdir()
    failed = {"key": "000010000", "status": "failed_to_download", "error_message": NOT_FOUND}
    pq.write_table(pa.Table.from_pylist([failed]), tmp_path / "cc3m" / "00001.parquet")
    counts, samples = imported(conceptual([str(tmp_path / "cc3m")]), tmp_path / "out")
    assert (counts.bad, counts.not_downloaded[NOT_FOUND], list(samples)) == ({}, 2, list(files))


def test_img2dataset_wrong_calls(tmp_path):
    img2dataset(tmp_path / "cc3m", "files")
    photo(tmp_path / "1.jpg")
    (tmp_path / "t.tsv").write_text("1.jpg\ta dog\n")
    with pytest.raises(UserError, match="either folders of img2dataset or tables"):
        conceptual([str(tmp_path / "cc3m"), str(tmp_path / "t.tsv")])
    with pytest.raises(UserError, match="--images, --image and --text are for tables"):
        conceptual([str(tmp_path / "cc3m")], images=str(tmp_path))
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"neither shards .* of img2dataset; check the path"):
        conceptual([str(tmp_path / "other")])
    pq.write_table(pa.table({"jpg": [b""]}), tmp_path / "other" / "00000.parquet")
    with pytest.raises(UserError, match="with `vlp data import hf "):
        conceptual([str(tmp_path / "other")])
