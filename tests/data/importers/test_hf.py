"""Hugging Face data sets to shards: the layouts of well-known ones, grouped rows, keys, and other image formats."""

import io

import datasets
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.data.dataset_layouts import (
    coco_caption,
    coco_sentences,
    flickr30k,
    nlvr2,
    nocaps,
    pictures,
    rows_to_dataset,
    vqav2,
)
from vlp.cli.main import app
from vlp.data.image_decoding import decode_image
from vlp.data.importers.hf import HuggingFaceDataset
from vlp.data.importers.write import write_imported
from vlp.data.shards import iterate_samples
from vlp.errors import UserError

IMAGES = pictures(12)
STRING = datasets.Value("string")


@pytest.fixture(autouse=True)
def _quiet_with_own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture(params=("saved", "parquet"))
def written(request, tmp_path):
    """A function that writes a data set, and gives its name."""

    def write(dataset):
        if request.param == "saved":
            dataset.save_to_disk(tmp_path / "data")
            return str(tmp_path / "data")
        (tmp_path / "data").mkdir()
        dataset.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", batch_size=5)
        return str(tmp_path / "data")

    return write


def imported(tmp_path, *arguments, **settings):
    counts = write_imported(HuggingFaceDataset(*arguments, **settings), str(tmp_path / "out"), 5, max_bad_share=0.5)
    return counts, list(iterate_samples(f"{tmp_path}/out/*.tar"))


LAYOUTS = {
    "flickr30k": (
        flickr30k,
        lambda n: {"img_id": str(n), "filename": f"{n}.jpg", "sentids": [f"{2 * n}", f"{2 * n + 1}"]},
    ),
    "coco_sentences": (
        coco_sentences,
        lambda n: {"cocoid": 1000 + n, "filename": f"COCO_{n}.jpg", "filepath": "val2014"},
    ),
    "coco_caption": (coco_caption, lambda n: {"question_id": f"q{n}.jpg", "id": 1000 + n}),
    "nocaps": (nocaps, lambda n: {"image_id": n, "image_width": 40, "annotations_ids": [2 * n, 9]}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, written, tmp_path):
    make, facts = LAYOUTS[layout]
    importer = HuggingFaceDataset(written(make(IMAGES)))
    assert len(importer) == 12
    assert write_imported(importer, str(tmp_path / "out"), 5).samples == 12
    samples = list(iterate_samples(f"{tmp_path}/out/*.tar"))
    for n, sample in enumerate(samples):
        assert sample.image == IMAGES[n] and sample.captions == [f"first {n}", f"second {n}"]
        assert facts(n).items() <= sample.info.items() and "image" not in sample.info
    assert len({sample.key for sample in samples}) == 12 and not any("." in sample.key for sample in samples)


def test_the_column_split(written, tmp_path):
    counts, samples = imported(tmp_path, written(flickr30k(IMAGES)), split="test")
    assert counts.samples == 3 and [sample.info["img_id"] for sample in samples] == ["0", "4", "8"]


def test_the_column_split_counts_more_than_a_split_that_holds_all(tmp_path):
    (tmp_path / "data").mkdir()
    flickr30k(IMAGES).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")  # as on the hub
    _, samples = imported(tmp_path, str(tmp_path / "data"), split="test")
    assert [sample.info["img_id"] for sample in samples] == ["0", "4", "8"]


def test_rows_of_questions_become_the_questions_of_their_image(written, tmp_path):
    rows = vqav2(IMAGES)
    more = (
        rows.select([0, 0]).remove_columns("question_id").add_column("question_id", [7, 10])
    )  # 10 is the second row's
    more = more.select_columns(rows.column_names).cast(rows.features)
    path = written(datasets.concatenate_datasets([rows, more]))
    counts, samples = imported(tmp_path, path)
    first = {"question": "is it 0?", "answers": ["yes"], "question_type": "is", "answer_type": "yes/no"}
    assert samples[0].info["questions"] == [{**first, "question_id": 0}, {**first, "question_id": 7}]
    assert samples[0].info["image_id"] == 0 and "answers" not in samples[0].info and not samples[0].captions
    assert len(samples) == 12 and counts.bad == {"duplicate question_id": 1}


def test_questions_and_wrong_calls(written, tmp_path):
    path = written(vqav2(IMAGES))
    for settings, words in [
        ({"text": "question", "group_by": "no"}, "no column 'no' to group by"),
        ({"text": "question", "split": "val"}, "no split 'val'; set split to one of train"),
    ]:
        with pytest.raises(UserError, match=words):
            HuggingFaceDataset(path, **settings)
    _, samples = imported(tmp_path, path, text="question")
    assert [sample.captions for sample in samples] == [[f"is it {n}?"] for n in range(12)]
    assert samples[3].info["answers"][0]["answer_confidence"] == "maybe"


def test_a_data_set_without_images(written):
    with pytest.raises(UserError, match=r"holds the image .*columns: sentence, left_url"):
        HuggingFaceDataset(written(nlvr2(IMAGES)))


def test_keys_that_repeat_and_a_group_that_is_given(written, tmp_path):
    rows = [{"image": image, "text": f"text {n}", "id": n // 2} for n, image in enumerate(IMAGES)]
    features = {"image": datasets.Image(), "text": STRING, "id": datasets.Value("int64")}
    path = written(rows_to_dataset(rows, features))
    _, samples = imported(tmp_path, path)
    assert [sample.key for sample in samples] == [f"{n:09d}" for n in range(12)]
    assert [sample.captions for sample in samples] == [[f"text {n}"] for n in range(12)]
    grouped = HuggingFaceDataset(path, group_by="id")
    found = [(one.key, one.captions, one.image) for one in grouped]
    assert found == [(f"{n}", [f"text {2 * n}", f"text {2 * n + 1}"], IMAGES[2 * n]) for n in range(6)]


def test_ids_with_a_dot_are_different_keys(written, tmp_path):
    rows = [{"image": image, "text": "a text", "id": f"2101.{n:05d}"} for n, image in enumerate(IMAGES)]
    path = written(rows_to_dataset(rows, {"image": datasets.Image(), "text": STRING, "id": STRING}))
    counts, samples = imported(tmp_path, path)
    assert [sample.key for sample in samples] == [f"2101_{n:05d}" for n in range(12)] and not counts.bad


def test_other_formats_become_png_and_bad_images_are_counted(written, tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (250, 0, 0)).save(file, "GIF")
    rows = [{"image": image, "label": n} for n, image in enumerate([IMAGES[0], file.getvalue(), b"no image"])]
    path = written(rows_to_dataset(rows, {"image": datasets.Image(), "label": datasets.Value("int64")}))
    with pytest.raises(UserError, match="give --text"):
        HuggingFaceDataset(path)
    counts, samples = imported(tmp_path, path, need_text=False)
    assert (counts.samples, counts.without_text, counts.bad) == (2, 2, {"image undecodable": 1})
    assert samples[0].image == IMAGES[0] and samples[1].image.startswith(b"\x89PNG")
    assert decode_image(samples[1].image).getpixel((0, 0)) == decode_image(file.getvalue()).getpixel((0, 0))
    assert [sample.info["label"] for sample in samples] == [0, 1]


def test_the_command_on_an_image_folder_and_a_damaged_file(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(IMAGES[number])
    lines = (f'{{"file_name": "{number}.jpg", "text": "text {number}"}}' for number in range(3))
    (tmp_path / "photos" / "metadata.jsonl").write_text("\n".join(lines))
    arguments = ["data", "import", "hf", str(tmp_path / "photos"), str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.output == f"Wrote 3 samples to {tmp_path}/out.\n"
    assert [one.image for one in iterate_samples(f"{tmp_path}/out/*.tar")] == IMAGES[:3]
    coco_caption(IMAGES).to_parquet(tmp_path / "damaged.parquet")
    content = (tmp_path / "damaged.parquet").read_bytes()
    places = pq.ParquetFile(tmp_path / "damaged.parquet").metadata.row_group(0).column(0)
    start = places.dictionary_page_offset or places.data_page_offset
    (tmp_path / "damaged.parquet").write_bytes(content[:start] + bytes(200) + content[start + 200 :])
    with pytest.raises(UserError, match=r"The data set .*damaged\.parquet cannot be read") as caught:
        write_imported(HuggingFaceDataset(str(tmp_path / "damaged.parquet")), str(tmp_path / "none"))
    assert "\n" not in str(caught.value) and not (tmp_path / "none").exists()
