"""Scoring: the columns of the tables against a plain loop, when a table is reused, and failures."""

import hashlib
import io
import json
import math
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageOps

from tests.scoring import score_shards
from tests.tiny_model import make_model
from vlp import files
from vlp.capfilt import pipeline, run, scoring_batches
from vlp.capfilt.encoded_images import EncodedImages
from vlp.capfilt.score import score_shard
from vlp.capfilt.scorers import load_scorers
from vlp.capfilt.selection import select
from vlp.config import DataConfig, DecodingConfig, SamplingOverrides, SourceConfig, TextChoiceConfig
from vlp.data import score_tables
from vlp.data.examples import CaptionExamples
from vlp.data.image_decoding import decode_image
from vlp.data.loader import training_loader
from vlp.data.score_tables import Scored, folder_hash, read_settings, read_table, table_path, write_table
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import iterate_samples
from vlp.data.transforms import clean_caption
from vlp.errors import UserError, WorkError
from vlp.generation.settings import resolve_decoding
from vlp.model import load_model

DECODING = SamplingOverrides(max_length=10, min_length=3, temperature=5.0, prompt="a")
RESOLVED = resolve_decoding(DecodingConfig(), DECODING)
LONG = "a red circle above the blue square " * 6  # 42 words; the models read the first 33
TEXTS = [
    ["a red circle"],
    ["the blue square", {"text": "Two Green stars!", "source": "human"}, {"text": "a star", "source": "synthetic"}],
    [{"text": "left of the star", "source": "human"}, {"text": "above", "source": "human"}],
    ["small shape on white", "large shape", LONG],
    ["near the square"],
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Model folders by name: tiny random models, of two image sizes."""
    folder = tmp_path_factory.mktemp("models")
    for seed, (name, size) in enumerate((("captioner", 32), ("captioner2", 48), ("filter", 48), ("filter2", 32))):
        make_model(seed=seed + 1, size=size).save(folder / name)
    return {path.name: str(path) for path in folder.iterdir()}


def noise(seed, size=(40, 48)):
    """An encoded image of random colors."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def write_shard(folder, texts=TEXTS, infos=None, size=(40, 48)) -> str:
    with ShardWriter(str(folder)) as writer:
        for number, captions in enumerate(texts):
            info = {"captions": captions, **((infos or {}).get(number, {}))}
            writer.write(f"k{number}", noise(number, (size[0] + number, size[1])), "jpg", None, info)
    return str(folder / "00000.tar")


@pytest.fixture
def shard(tmp_path) -> str:
    return write_shard(tmp_path / "shards")


def scored(shard, captioner, filter, **settings):
    """The rows of a shard scored in fp32."""
    settings = {"decoding": DECODING, "precision": "fp32", "seed": 5, **settings}
    score_shards(shard, captioner, filter, **settings)
    return rows_of(shard, settings.get("name", "capfilt"))


def rows_of(shard, name="capfilt"):
    return pq.read_table(table_path(shard, name)).to_pylist()


def pictures_of(shard):
    return {sample.key: decode_image(sample.image) for sample in iterate_samples(shard)}


def test_rows_have_the_uids_sources_and_sizes_of_the_samples(folders, tmp_path):
    infos = {1: {"uid": "dc-1"}, 2: {"uid": 7}, 3: {"uid": ""}}
    shard = write_shard(tmp_path / "shards", infos=infos, size=(200, 120))
    rows = scored(shard, folders["captioner"], folders["filter"], num_captions=2)
    expected, tokenizer = [], load_model(folders["filter"]).tokenizer.tokenizer
    for number, (captions, sample) in enumerate(zip(TEXTS, iterate_samples(shard), strict=True)):
        entries = [one if isinstance(one, dict) else {"text": one, "source": "web"} for one in captions]
        made = [{"text": None, "source": "synthetic"}] * 2
        uid = "dc-1" if number == 1 else hashlib.sha256(sample.image).hexdigest()
        for entry in entries + made:
            before = [row for row in expected if row[0] == sample.key and row[2] == entry["source"]]
            place = (entry["source"], len(before), (entry["text"] or "").strip())
            expected.append((sample.key, uid, *place, 200 + number, 120, entry["text"] is None))
    for row, (key, uid, source, caption_id, text, width, height, new) in zip(rows, expected, strict=True):
        assert (row["key"], row["uid"], row["source"], row["caption_id"]) == (key, uid, source, caption_id)
        assert row["text"] == text or (new and row["text"])
        assert (row["width"], row["height"], row["clip"]) == (width, height, None)
        words = tokenizer.encode(clean_caption(row["text"]), add_special_tokens=False)
        assert row["tokens"] == len(words.ids)
        assert row["decoding"] == (json.dumps({"captioner": 0, **asdict(RESOLVED)}) if new else None)


def plain_likelihood(model, image, text, prompt):
    """Mean negative log-likelihood of a text's tokens and its end, by a log-softmax over all words."""
    words = model.tokenizer.tokenizer.encode(clean_caption(text), add_special_tokens=False).ids[:33]
    start = [model.tokenizer.dec_id, *model.tokenizer.tokenizer.encode(prompt, add_special_tokens=False).ids]
    ids = torch.tensor([[*start, *words, model.tokenizer.sep_id]])
    memory = model.project(model.encode_images(model.load_images([image])), "decoder")
    with model.inference():
        logits = model.blip.caption_logits(ids, None, memory)[0].double()
    likelihoods = logits.log_softmax(dim=-1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
    return -likelihoods[len(start) - 1 :].mean().item()


def test_nll_is_the_mean_over_the_tokens_and_the_end_token(shard, folders):
    rows = scored(shard, folders["captioner"], folders["filter"])
    both = scored(shard, [folders["captioner"], folders["captioner2"]], folders["filter"], name="both")
    models, images = [load_model(folders[name], precision="fp32") for name in ("captioner", "captioner2")], None
    images = pictures_of(shard)
    assert {row["source"] for row in rows} == {"web", "human", "synthetic"}
    for row in rows:
        expected = plain_likelihood(models[0], images[row["key"]], row["text"], "a")
        assert row["nll"] == pytest.approx(expected, abs=1e-4)
    for row in both:
        expected = [plain_likelihood(model, images[row["key"]], row["text"], "a") for model in models]
        assert row["nll"] == pytest.approx(sum(expected) / 2, abs=1e-4)
    assert {row["nll"] for row in scored(shard, [], folders["filter"], name="none")} == {None}


def test_several_captions_of_several_captioners_are_pooled(shard, folders):
    names = [folders["captioner"], folders["captioner2"]]
    rows = scored(shard, names, folders["filter"], num_captions=3)
    models = [load_model(name, precision="fp32") for name in names]
    for key, image in pictures_of(shard).items():
        made = [row for row in rows if row["key"] == key and row["decoding"]]
        expected = []
        for number, model in enumerate(models):
            (captions,) = model.caption([image], RESOLVED, keys=[f"00000.tar/{key}"], seed=5, num_captions=3)
            expected += [(caption.text, number) for caption in captions if clean_caption(caption.text)]
        assert [(row["text"], json.loads(row["decoding"])["captioner"]) for row in made] == expected
        numbers = [row["caption_id"] for row in rows if row["key"] == key and row["source"] == "synthetic"]
        assert numbers == list(range(len(numbers)))
        assert len(made) >= 5
        assert len({row["text"] for row in made}) == len(made), "each caption has random numbers of its own"


def test_filters_are_averaged(shard, folders):
    one = scored(shard, folders["captioner"], folders["filter"], name="one")
    two = scored(shard, folders["captioner"], folders["filter2"], name="two")
    both = scored(shard, folders["captioner"], [folders["filter"], folders["filter2"]], name="both")
    for first, second, mean in zip(one, two, both, strict=True):
        assert first["text"] == second["text"] == mean["text"]
        assert abs(first["itm"] - second["itm"]) > 1e-5
        for column in ("itm", "itc"):
            assert mean[column] == pytest.approx((first[column] + second[column]) / 2, abs=1e-6)


def test_models_store_bf16_weights_if_they_compute_in_bf16(shard, folders, tmp_path):
    scorers = load_scorers(folders["captioner"], folders["filter"], "bf16", torch.device("cpu"))
    assert {weight.dtype for model in scorers.models for weight in model.blip.parameters()} == {torch.bfloat16}
    calm = load_model(folders["filter"])  # large random weights make chaos of every rounding
    with torch.no_grad():
        for weight in calm.blip.parameters():
            weight.mul_(0.25 if weight.ndim == 2 else 1)
    calm.save(tmp_path / "calm")
    exact = scored(shard, [], str(tmp_path / "calm"))
    for row, expected in zip(scored(shard, [], str(tmp_path / "calm"), precision="bf16"), exact, strict=True):
        assert row["itm"] == pytest.approx(expected["itm"], abs=0.02)
        assert row["itc"] == pytest.approx(expected["itc"], abs=0.02)
        assert row["itm"] != expected["itm"]


@pytest.mark.parametrize("captioners", [["captioner"], ["captioner", "filter"]])
def test_each_model_encodes_an_image_once(shard, folders, captioners, monkeypatch):
    scorers = load_scorers([folders[name] for name in captioners], folders["filter"], "fp32")
    assert len(scorers.models) == 2
    seen = {model: {"images": 0, "projected": 0} for model in scorers.models}
    for model in scorers.models:

        def count(module, arguments, output, counts=seen[model]):
            counts["images"] += len(arguments[0])

        def count_projection(tokens, side="encoder", real=model.blip.text_tower.project_image, counts=seen[model]):
            counts["projected"] += len(tokens)
            return real(tokens, side)

        model.blip.image_encoder.register_forward_hook(count)
        monkeypatch.setattr(model.blip.text_tower, "project_image", count_projection)
    decoded, real = [], scoring_batches.EncodedImage.pixels
    monkeypatch.setattr(
        scoring_batches.EncodedImage, "pixels", lambda image, *how: decoded.append(image.data) or real(image, *how)
    )
    counts = score_shard(shard, scorers, pipeline.ScoreSettings(DECODING, num_captions=3, batch_size=2))
    assert counts.texts == 10 + 5 * 3 * len(captioners)
    assert len(decoded) == len(set(decoded)) == 5
    assert list(seen.values()) == [{"images": 5, "projected": 5}] * 2


def test_metadata_record_how_a_table_was_made(shard, folders, monkeypatch):
    monkeypatch.setattr("sys.argv", ["vlp", "capfilt", "score", "--shards", "a b.tar"])
    scored(shard, [folders["captioner"], folders["captioner2"]], folders["filter"], num_captions=2, batch_size=3)
    settings = read_settings(shard)
    assert settings["captioner"] == [folder_hash(folders["captioner"]), folder_hash(folders["captioner2"])]
    assert settings["filter"] == [folder_hash(folders["filter"])]
    assert settings["decoding"] == [asdict(RESOLVED)] * 2
    assert (settings["seed"], settings["num_captions"], settings["batch_size"], settings["precision"]) == (
        5,
        2,
        3,
        "None",
    )
    assert settings["version"] == score_tables.VERSION
    with open(shard, "rb") as file:
        assert settings["shard_sha256"] == hashlib.file_digest(file, "sha256").hexdigest()
    about = settings["about"]
    assert about["command"] == "vlp capfilt score --shards 'a b.tar'"
    assert about["filter"] == [folders["filter"]] and about["vlp"]
    assert about["settings"]["seed"] == 5 and about["settings"]["decoding"]["max_length"] == 10


def test_a_table_is_rewritten_only_if_something_its_rows_depend_on_changed(shard, folders, tmp_path, monkeypatch):
    def done(**settings):
        given = {"captioner": folders["captioner"], "filter": folders["filter"], "decoding": DECODING, **settings}
        return score_shards(shard, precision="fp32", **given).shards

    assert (done(), done()) == (1, 0)
    moved = str(shutil.copytree(folders["filter"], tmp_path / "moved"))
    monkeypatch.setattr("sys.argv", ["another command"])
    assert (done(filter=moved), done(max_bad_share=0.2)) == (0, 0)
    changes = [
        {"filter": folders["filter2"]},
        {"captioner": folders["captioner2"]},
        {"captioner": []},
        {"filter": [folders["filter"], folders["filter2"]]},
        {"seed": 1},
        {"num_captions": 2},
        {"batch_size": 2},
        {"decoding": replace(DECODING, top_p=0.8)},
    ]
    for change in changes:
        assert (done(**change), done(**change)) == (1, 0), change


def test_a_table_belongs_to_the_content_of_its_shard(shard, folders, tmp_path):
    scored(shard, [], folders["filter"])
    os.utime(shard, ns=(1, 1))  # the same content, as after a copy
    assert len(read_table(shard)) == 10
    assert score_shards(shard, [], folders["filter"], DECODING, seed=5, precision="fp32").skipped_shards == 1
    with open(shard, "r+b") as file:  # as many bytes, other content
        file.seek(600)
        byte = file.read(1)
        file.seek(600)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(UserError, match=r"00000\.tar was changed after it was scored; score it again"):
        read_table(shard)
    with pytest.raises(UserError, match="was changed after it was scored"):
        select(table_path(shard), "itm >= 0", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_table_of_another_version_is_refused(shard, folders, monkeypatch):
    monkeypatch.setattr(score_tables, "VERSION", "1")
    scored(shard, [], folders["filter"])
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"has version 1, not \d; score it again"):
        read_table(shard)
    assert score_shards(shard, [], folders["filter"], DECODING, seed=5, precision="fp32").shards == 1


def test_captions_without_a_word_make_no_row(shard, folders, tmp_path, caplog):
    silent = load_model(folders["captioner"], precision="fp32")
    with torch.no_grad():
        silent.blip.language_head.bias[silent.tokenizer.sep_id] += 1e4  # the end, at once
    silent.save(tmp_path / "silent")
    decoding = SamplingOverrides(min_length=1)
    names = [str(tmp_path / "silent"), folders["captioner"]]
    counts = score_shards(shard, names, folders["filter"], decoding, num_captions=2, max_bad_share=0)
    assert (counts.images, counts.texts, counts.bad) == (5, 20, {"empty caption": 10})
    assert "00000.tar k0: empty caption" in caplog.text
    assert read_settings(shard)["about"]["bad"] == counts.bad
    assert all(row["text"].strip() and not math.isnan(row["itm"] + row["nll"]) for row in rows_of(shard))
    alone = score_shards(shard, names[0], folders["filter"], decoding, name="alone")
    assert alone.texts == 10 and not any(row["decoding"] for row in rows_of(shard, "alone"))


def test_sizes_and_scores_are_of_the_upright_image(folders, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, upright = io.BytesIO(), io.BytesIO()
    stored = Image.open(io.BytesIO(noise(0, (64, 40))))
    stored.save(turned, "PNG", exif=exif)
    ImageOps.exif_transpose(Image.open(turned)).save(upright, "PNG")
    rows = {}
    for name, image in (("turned", turned), ("upright", upright)):
        with ShardWriter(tmp_path / name) as writer:
            writer.write("k", image.getvalue(), "png", "a star", {"uid": "k"})
        rows[name] = scored(str(tmp_path / name / "00000.tar"), folders["captioner"], folders["filter"])
    assert (rows["turned"][0]["width"], rows["turned"][0]["height"]) == (40, 64)
    assert rows["turned"] == rows["upright"]


def test_an_image_without_any_text_is_captioned_selected_and_learned_from(folders, tmp_path):
    with ShardWriter(tmp_path / "shards") as writer:
        for number, text in enumerate([None, "a red circle", "", "..."] * 3):
            writer.write(f"k{number:02d}", noise(number), "jpg", text, {})
    shard = str(tmp_path / "shards/00000.tar")
    counts = score_shards(shard, folders["captioner"], folders["filter"], DECODING, max_bad_share=0.0)
    assert (counts.images, counts.bad) == (12, {})
    rows = rows_of(shard)
    assert {row["key"] for row in rows} == {f"k{number:02d}" for number in range(12)}
    assert {row["source"] for row in rows if row["key"] == "k00"} == {"synthetic"}
    select(table_path(shard), "synthetic(best(1))", str(tmp_path / "out"))
    assert len([one for one in iterate_samples(str(tmp_path / "out/*.tar")) if one.captions]) == 12
    choice = TextChoiceConfig(web=0.0, human=0.0, synthetic=1.0)
    data = DataConfig([SourceConfig(shard, texts=choice)], workers=0, max_bad_share=0.0)
    loader = training_loader(data, 32, CaptionExamples(load_model(folders["filter"]).tokenizer), 12)
    assert len(set(next(iter(loader)).keys)) == 12 and not loader.bad_counts


def test_captions_of_punctuation_make_no_row(shard, folders, monkeypatch):
    found = [" ... ", "a star", ""]
    monkeypatch.setattr(EncodedImages, "start_captions", lambda self, *how: lambda: [found for _ in self.tokens])
    made = [row for row in scored(shard, folders["captioner"], folders["filter"]) if row["decoding"]]
    assert [row["text"] for row in made] == ["a star"] * 5
    assert [row["caption_id"] for row in made] == [0, 1, 0, 0, 0]  # the second image had a synthetic text already


def test_a_full_disk_ends_the_run_with_one_sentence(folders, tmp_path, monkeypatch, caplog):
    with ShardWriter(str(tmp_path / "shards"), samples_per_shard=3) as writer:
        for number in range(6):
            writer.write(f"k{number}", noise(number), "jpg", "a star", {})
    first, second = (str(tmp_path / "shards" / f"0000{number}.tar") for number in (0, 1))
    files.temporary_path(table_path(second)).symlink_to("/dev/full")  # a device that is always full
    monkeypatch.setattr(run, "remove_leftovers", lambda path: None)
    monkeypatch.setattr(files, "remove_leftovers", lambda path: None)
    with pytest.raises(
        WorkError, match=r"00001\.capfilt\.parquet cannot be written: no space left on device \([\d,]+ b"
    ):
        score_shards([first, second], [], folders["filter"], DECODING)
    assert "attempt" not in caplog.text
    assert len(read_table(first)) == 3
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [
        "00000.capfilt.parquet",
        "00000.tar",
        "00001.tar",
    ]
    again = score_shards([first, second], [], folders["filter"], DECODING)
    assert (again.shards, again.skipped_shards) == (1, 1)


def test_the_old_table_stays_if_the_new_one_cannot_be_written(shard, monkeypatch):
    write_table(shard, [Scored("k0", "web", "old", 0.5, 0.0)], {})

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(WorkError, match=r"00000\.capfilt\.parquet cannot be written: Permission denied\."):
        write_table(shard, [Scored("k0", "web", "new", 0.5, 0.0)], {})
    assert [row["text"] for row in rows_of(shard)] == ["old"]
    assert not [path for path in Path(table_path(shard)).parent.iterdir() if "tmp" in path.name]


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_over_a_hundred_shards(tmp_path):
    make_model(size=224).save(tmp_path / "model")  # a batch of its images is 0.6 MB a sample, as it is computed with
    with ShardWriter(str(tmp_path / "shards"), samples_per_shard=8) as writer:
        for number in range(800):
            writer.write(f"k{number}", noise(number % 10), "jpg", "a star", {})
    model, memory, done = str(tmp_path / "model"), {}, 0

    def progress(_, images):
        nonlocal done
        done += images
        memory[done] = resident_bytes()

    scorers = load_scorers(model, model, "fp32")
    for number in range(100):
        score_shard(str(tmp_path / f"shards/{number:05d}.tar"), scorers, pipeline.ScoreSettings(DECODING), progress)
    assert len(memory) == 100
    assert memory[800] < 1.05 * memory[80]
