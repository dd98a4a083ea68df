"""Hugging Face data sets as sources: formats, layouts, columns; the same batches for any processes, exact resumes."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.data import dataset_layouts
from tests.data.dataset_layouts import coco_caption, flickr30k, pictures, rows_to_dataset
from vlp.config import AugmentConfig, DataConfig, SourceConfig
from vlp.config_reader import save_config
from vlp.data import dataset_source
from vlp.data.bad_samples import BadSample
from vlp.data.dataset_source import open_dataset_source
from vlp.data.examples import CaptionExamples
from vlp.data.loader import training_loader
from vlp.data.shard_writer import ShardWriter
from vlp.data.tokenizer import load_tokenizer
from vlp.errors import UserError

IMAGES = pictures(24)


@pytest.fixture(autouse=True)
def _quiet_with_own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def write_parquet(dataset, folder, files=3, rows_per_group=4):
    (folder / "data").mkdir(parents=True)
    for number in range(files):
        path = folder / "data" / f"train-{number:05d}-of-{files:05d}.parquet"
        dataset.shard(files, number, contiguous=True).to_parquet(path, batch_size=rows_per_group)
    return str(folder)


def write_saved(dataset, folder):
    dataset.save_to_disk(folder)
    return str(folder)


def write_saved_splits(dataset, folder):
    datasets.DatasetDict({"train": dataset, "test": dataset.select(range(2))}).save_to_disk(folder)
    return str(folder)


def write_image_folder(_dataset, folder):
    (folder / "train").mkdir(parents=True)
    lines = []
    for number, image in enumerate(IMAGES):
        (folder / "train" / f"{number}.jpg").write_bytes(image)
        lines.append(json.dumps({"file_name": f"{number}.jpg", "text": [f"first {number}", f"second {number}"]}))
    (folder / "train" / "metadata.jsonl").write_text("\n".join(lines))
    return str(folder)


def write_webdataset(_dataset, folder):
    with ShardWriter(folder, 10) as writer:
        for number, image in enumerate(IMAGES):
            writer.write(str(number), image, "jpg", f"first {number}", {"caption": f"first {number}"})
    return str(folder)


def write_parquet_file(dataset, folder):
    return f"{write_parquet(dataset, folder, 1)}/data/train-00000-of-00001.parquet"


WRITERS = {
    "parquet": write_parquet,
    "parquet file": write_parquet_file,
    "save_to_disk": write_saved,
    "save_to_disk with splits": write_saved_splits,
    "imagefolder": write_image_folder,
    "webdataset": write_webdataset,
}


def all_of(source):
    """Every sample or bad sample of a source, by units."""
    return [one for unit in range(source.units()) for one in source.read(unit)]


@pytest.mark.parametrize("streams", (1, 7, 100))
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_every_row_once_with_its_encoded_image(name, streams, tmp_path):
    dataset = coco_caption(IMAGES)
    source = open_dataset_source(SourceConfig(dataset=WRITERS[name](dataset, tmp_path / "data set")), streams)
    assert source.units() >= min(streams, 3)
    assert source.count() == (30 if name == "webdataset" else 24)  # a tar's samples are estimated from the first's
    found = sorted(all_of(source), key=lambda one: IMAGES.index(one.image))
    assert [one.image for one in found] == IMAGES
    both = name != "webdataset"
    assert [one.captions for one in found] == [[f"first {n}", f"second {n}"][: 1 + both] for n in range(24)]
    again = sorted(all_of(source), key=lambda one: IMAGES.index(one.image))
    assert [one.key for one in found] == [one.key for one in again] and len({one.key for one in found}) == 24


@pytest.mark.parametrize("write", (write_saved, write_parquet))
@pytest.mark.parametrize("layout", ("coco_sentences", "coco_caption", "nocaps"))
def test_layouts_are_guessed(layout, write, tmp_path, caplog):
    dataset = getattr(dataset_layouts, layout)(IMAGES)
    caplog.set_level("INFO", "vlp")
    found = all_of(open_dataset_source(SourceConfig(dataset=write(dataset, tmp_path / "data")), 2))
    text = {"coco_sentences": "sentences", "coco_caption": "answer", "nocaps": "annotations_captions"}[layout]
    assert f"image: image, text: {text}" in caplog.text
    key = {"coco_sentences": 1000, "coco_caption": 1000, "nocaps": 0}[layout]
    texts = {n: {text for one in found if one.key == str(key + n) for text in one.captions} for n in range(24)}
    assert texts == {n: {f"first {n}", f"second {n}"} for n in range(24)}
    assert all(one.image == IMAGES[int(one.key) - key] for one in found)


@pytest.mark.parametrize("write", (write_saved, write_parquet))
def test_the_column_split_is_used_where_there_is_one_split(write, tmp_path):
    path = write(flickr30k(IMAGES), tmp_path / "data")
    for split, expected in {"test": range(0, 24, 4), "train": [n for n in range(24) if n % 4]}.items():
        if split == "train":  # the name of the only split of these files
            expected = range(24)
        source = open_dataset_source(SourceConfig(dataset=path, split=split), 3)
        assert sorted(int(one.key) for one in all_of(source)) == list(expected)
        assert source.count() == pytest.approx(len(expected), abs=6)
    assert len(all_of(open_dataset_source(SourceConfig(dataset=path, split="test+val"), 3))) == 6


def test_columns_that_cannot_be_guessed_are_listed(tmp_path):
    vqa = write_saved(dataset_layouts.vqav2(IMAGES), tmp_path / "vqa")
    with pytest.raises(
        UserError, match=r"holds the texts .*columns: image, image_id, question, .*set text to its name"
    ):
        open_dataset_source(SourceConfig(dataset=vqa), 2)
    for text, expected in {"question": "is it 3?", "answers.answer": "yes", "answers": "yes"}.items():
        source = open_dataset_source(SourceConfig(dataset=vqa, image="image", text=text), 2)
        assert all_of(source)[3].captions == [expected]
    nlvr = write_saved(dataset_layouts.nlvr2(IMAGES), tmp_path / "nlvr")
    with pytest.raises(UserError, match=r"holds the image .*columns: sentence, left_url, .*set image to its name"):
        open_dataset_source(SourceConfig(dataset=nlvr), 2)
    with pytest.raises(UserError, match=r"no column 'img' for image; its columns are image, image_id"):
        open_dataset_source(SourceConfig(dataset=vqa, image="img", text="question"), 2)
    with pytest.raises(UserError, match=r"The column 'image_id' of .* holds no text"):
        open_dataset_source(SourceConfig(dataset=vqa, text="image_id"), 2)


def test_bytes_without_a_declared_type_and_json_in_tars(tmp_path):
    struct = pa.table({"img": [{"bytes": image, "path": "a.jpg"} for image in IMAGES], "TEXT": ["a"] * 24})
    plain = pa.table({"jpg": IMAGES, "txt": ["a"] * 24})
    for name, table in {"struct": struct, "plain": plain}.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
        found = all_of(open_dataset_source(SourceConfig(dataset=str(tmp_path / f"{name}.parquet")), 2))
        assert sorted(one.image for one in found) == sorted(IMAGES) and found[0].captions == ["a"]
    web = write_webdataset(None, tmp_path / "web")
    found = all_of(open_dataset_source(SourceConfig(dataset=web, text="json.caption"), 2))
    assert {one.captions[0] for one in found} == {f"first {n}" for n in range(24)}


def test_bad_rows_and_paths_out_of_the_data_set(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(IMAGES[0])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "inside.jpg").write_bytes(IMAGES[1])
    images = [
        *({"bytes": None, "path": path} for path in (str(tmp_path / "secret.jpg"), "../secret.jpg", "inside.jpg")),
        *({"bytes": b"", "path": None}, {"bytes": None, "path": None}, {"bytes": None, "path": "https://a.b/c.jpg"}),
    ]
    pq.write_table(pa.table({"image": images, "text": ["a"] * 6}), tmp_path / "data" / "train.parquet")
    found = all_of(open_dataset_source(SourceConfig(dataset=str(tmp_path / "data" / "train.parquet")), 1))
    reasons = [one.reason if isinstance(one, BadSample) else one.image == IMAGES[1] for one in found]
    assert reasons == ["no image", "no image", True, "zero bytes", "no image", "no image"]


def test_a_damaged_file_is_one_bad_sample(tmp_path, caplog):
    path = write_parquet(coco_caption(IMAGES), tmp_path / "data")
    damaged = tmp_path / "data" / "data" / "train-00001-of-00003.parquet"
    source = open_dataset_source(SourceConfig(dataset=path), 1)
    content = damaged.read_bytes()
    damaged.write_bytes(content[:40] + bytes(len(content) - 40))
    found = all_of(source)
    assert [one.reason for one in found if isinstance(one, BadSample)] == ["unreadable shard"]
    assert len(found) == 17 and "gave up a part of a data set" in caplog.text


WRONG = {
    "nowhere/at/all": "no data set folder nowhere/at/all",
    "./nowhere": "no data set folder ./nowhere",
    "{tmp}/empty": "cannot be read|holds no data",
    "{tmp}/text.txt": "is no parquet file",
    "{tmp}/broken.parquet": "cannot be read",
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_data_sets_are_one_sentence(name, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no data")
    (tmp_path / "broken.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=WRONG[name]) as caught:
        open_dataset_source(SourceConfig(dataset=name.format(tmp=tmp_path)), 1)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_not_in_the_cache_offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no folder some/name, and no data set some/name in the cache of `datasets`"):
        open_dataset_source(SourceConfig(dataset="some/name"), 1)


def test_wrong_settings(tmp_path, tokenizer_folder):
    path = write_saved(coco_caption(IMAGES), tmp_path / "data")
    with pytest.raises(UserError, match="no split 'test'; set split to one of train"):
        open_dataset_source(SourceConfig(dataset=path, split="test"), 1)
    with pytest.raises(UserError, match="a source with a dataset cannot have shards"):
        SourceConfig(shards="a.tar", dataset="b")
    with pytest.raises(UserError, match="image and text name columns of a dataset"):
        SourceConfig(shards="a.tar", text="b")
    with pytest.raises(UserError, match=r"data cannot be read by data\.reading: indexed; set data\.reading to auto"):
        data = DataConfig([SourceConfig(dataset=path)], "indexed")
        training_loader(data, 32, CaptionExamples(load_tokenizer(str(tokenizer_folder))), 4)


@pytest.fixture(params=("parquet", "save_to_disk"))
def loader_of(request, tmp_path, tokenizer_folder):
    path = WRITERS[request.param](coco_caption(IMAGES), tmp_path / "data")
    tokenizer = load_tokenizer(str(tokenizer_folder))

    def make(rank=0, world=1, workers=0):
        plain = AugmentConfig(crop_min=1.0, flip=False, operations=0)
        sources = [SourceConfig(dataset=path)]
        data = DataConfig(sources, workers=workers, streams=4, shuffle_buffer=8, max_tokens=16, augment=plain)
        return training_loader(data, 32, CaptionExamples(tokenizer, 16), 8, rank, world, seed=5)

    return make


def take(loader, count):
    batches = iter(loader)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def keys(batches):
    return [batch.keys for batch in batches]


def test_passes_processes_workers_and_resume(loader_of):
    expected = take(loader_of(), 9)
    assert loader_of().epoch_size == 24
    counts = Counter(key for batch in keys(expected) for key in batch)
    assert len(counts) == 24 and set(counts.values()) <= {2, 3, 4}
    halves = [keys(take(loader_of(rank, 2), 9)) for rank in range(2)]
    assert [one + other for one, other in zip(*halves, strict=True)] == keys(expected)
    loader = loader_of(workers=2)
    assert keys(take(loader, 4)) == keys(expected)[:4]
    resumed = [loader_of(rank, 2) for rank in range(2)]
    for one in resumed:
        one.load_states([loader.state()])
    halves = [take(one, 5) for one in resumed]
    assert [one.keys + other.keys for one, other in zip(*halves, strict=True)] == keys(expected)[4:]
    for one, other, whole in zip(*halves, expected[4:], strict=True):
        assert torch.equal(torch.cat([one.images, other.images]), whole.images)
        assert torch.equal(torch.cat([one.image_hashes, other.image_hashes]), whole.image_hashes)


def hashed_images(sources, tokenizer_folder):
    """The images, as bytes, that three passes give each image hash."""
    plain = AugmentConfig(crop_min=1.0, flip=False, operations=0)
    data = DataConfig(sources, workers=0, streams=4, shuffle_buffer=8, max_tokens=16, augment=plain)
    loader = training_loader(data, 32, CaptionExamples(load_tokenizer(str(tokenizer_folder)), 16), 8)
    images: dict[int, set[bytes]] = defaultdict(set)
    for batch in take(loader, 3 * loader.epoch_size // 8):
        for number, image in zip(batch.image_hashes.tolist(), batch.images, strict=True):
            images[number].add(image.numpy().tobytes())
    return images


@pytest.mark.parametrize("write", (write_saved, write_parquet))
@pytest.mark.parametrize(("column", "images"), [("id", 24), ("filename", 24), ("image_id", 8)])
def test_only_columns_that_name_images_say_which_rows_share_one(column, images, write, tmp_path, tokenizer_folder):
    names = [n % 8 for n in range(24)]
    rows = [{"image": IMAGES[n], "text": f"text {n}", column: names[n]} for n in range(24)]
    features = {"image": datasets.Image(), "text": datasets.Value("string"), column: datasets.Value("int64")}
    path = write(rows_to_dataset(rows, features), tmp_path / "data")
    found = hashed_images([SourceConfig(dataset=path)], tokenizer_folder)
    assert len(found) == images and all(len(shared) == 24 // images for shared in found.values())


def test_splits_of_a_data_set_share_no_image(tmp_path, tokenizer_folder):
    rows = coco_caption(IMAGES).remove_columns(["id", "question_id"])
    parts = {name: rows.select(range(start, start + 12)) for name, start in (("train", 0), ("test", 12))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "data")
    sources = [SourceConfig(dataset=str(tmp_path / "data"), split=split) for split in parts]
    found = hashed_images(sources, tokenizer_folder)
    assert len(found) == 24 and all(len(shared) == 1 for shared in found.values())


def test_training_from_a_data_set_without_network(tmp_path, run_config):
    """Also that nothing is printed by `datasets` and no connection is tried."""
    path = write_parquet(coco_caption(IMAGES), tmp_path / "data")
    config = run_config("run", f"data.sources=[{{dataset: {path}}}]", "steps=3", "data.workers=1")
    save_config(config, tmp_path / "run.yaml")
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise SystemExit('network')\n"
        "socket.getaddrinfo = socket.create_connection = refuse\n"
        "socket.socket = type('Local', (socket.socket,), {'connect': lambda self, address: refuse() "
        "if isinstance(address, tuple) else super(Local, self).connect(address)})\n"
        "Local = socket.socket\n"
        "from vlp.cli.main import main\n"
        "main()"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", code, "pretrain", str(tmp_path / "run.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{path}: image: image, text: answer" in done.stderr and "it/s" not in done.stderr + done.stdout
    assert f"- `{path}` (weight 1)" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_rows_without_texts_are_filtered_and_units_are_ranges(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_source, "ROWS_PER_UNIT", 5)
    rows = [{"image": image, "text": "" if n % 2 else f"text {n}"} for n, image in enumerate(IMAGES)]
    dataset = rows_to_dataset(rows, {"image": datasets.Image(), "text": datasets.Value("string")})
    source = open_dataset_source(SourceConfig(dataset=write_saved(dataset, tmp_path / "data")), 2)
    assert source.units() == 5
    assert [len(list(source.read(unit))) for unit in range(5)] == [5, 5, 5, 5, 4]
    assert [one.captions for one in all_of(source)] == [[] if n % 2 else [f"text {n}"] for n in range(24)]
