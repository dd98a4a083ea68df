"""CLIP models of open_clip and of ours as scorers: their cosines equal open_clip's."""

import json
import logging

import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.capfilt.test_score import DECODING, rows_of, write_shard
from tests.scoring import score_shards
from tests.tiny_model import make_clip, make_model
from vlp.capfilt.clip_scorer import clip_of_open_clip
from vlp.capfilt.image_tables import EMBEDDINGS, write_image_tables
from vlp.capfilt.pipeline import ScoreSettings
from vlp.capfilt.rounds import _next
from vlp.capfilt.score import score_shard
from vlp.capfilt.scorers import load_scorers
from vlp.config_model import ModelConfig
from vlp.convert.command import to_ours
from vlp.data import transforms
from vlp.data.image_decoding import decode_image
from vlp.data.score_tables import read_settings, table_path
from vlp.data.shards import iterate_samples
from vlp.errors import UserError
from vlp.model_folder import save_model
from vlp.models.classifier import Classifier

NAME = "tiny-for-tests"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    """Two tiny random models, as names for `--filter`."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / f"{NAME}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / f"{NAME}.json")
    files = []
    logging.disable(logging.WARNING)  # open_clip's, that these weights are random
    for seed in range(2):
        torch.manual_seed(seed)
        files.append(folder / f"{seed}.safetensors")
        save_file({k: v.contiguous() for k, v in open_clip.create_model(NAME).state_dict().items()}, files[-1])
    logging.disable(logging.NOTSET)
    return [f"open_clip:{NAME},{file}" for file in files]


def plain_cosines(clip, shard, rows):
    """The cosine of each row's image and text, one by one."""
    model, prepare = open_clip.create_model_from_pretrained(NAME, clip.partition(",")[2])
    model.eval()
    tokenizer = open_clip.get_tokenizer(NAME)
    images = {sample.key: prepare(decode_image(sample.image)) for sample in iterate_samples(shard)}
    cosines = []
    with torch.no_grad():
        for row in rows:
            image = model.encode_image(images[row["key"]][None])[0]
            text = model.encode_text(tokenizer([row["text"]]))[0]
            cosines.append((image @ text / image.norm() / text.norm()).item())
    return cosines


def test_cosines_equal_open_clips_and_filters_are_averaged(clips, tmp_path):
    shard = write_shard(tmp_path / "shards")
    make_model(seed=1).save(tmp_path / "model")
    model = str(tmp_path / "model")
    settings = {"decoding": DECODING, "precision": "fp32", "num_captions": 2}
    score_shards(shard, model, [model, *clips], **settings)
    score_shards(shard, model, [model, clips[0]], name="one", **settings)
    rows, ones = rows_of(shard), rows_of(shard, "one")
    assert {row["source"] for row in rows} == {"web", "human", "synthetic"}
    expected = [plain_cosines(clip, shard, rows) for clip in clips]
    for row, one, first, second in zip(rows, ones, *expected, strict=True):
        assert one["clip"] == pytest.approx(first, abs=1e-5)
        assert row["clip"] == pytest.approx((first + second) / 2, abs=1e-5)
        assert (row["itm"], row["itc"], row["nll"]) == (one["itm"], one["itc"], one["nll"])
    assert read_settings(shard)["filter"] != read_settings(shard, "one")["filter"]


def test_a_very_long_image_is_cut_before_open_clip_resizes_it(clips, monkeypatch):
    scorer, _ = clip_of_open_clip(clips[0], torch.device("cpu"), "fp32")
    pictures = [Image.linear_gradient("L").convert("RGB").resize(size) for size in ((300, 200), (3000, 10))]
    expected = [open_clip.create_model_from_pretrained(NAME, clips[0].partition(",")[2])[1](one) for one in pictures]
    monkeypatch.setattr(transforms, "MAX_PIXELS", 32 * 32 * 40)
    cut = []
    monkeypatch.setattr(Image.Image, "resize", resized(cut, Image.Image.resize))
    for picture, right in zip(pictures, expected, strict=True):
        torch.testing.assert_close(scorer.prepare(picture), right)
    assert cut == [(48, 32), (1280, 32)]


def resized(sizes, real):
    """`Image.resize`, which adds the new size to a list."""

    def resize(self, size, *given, **named):
        sizes.append(tuple(size))
        return real(self, size, *given, **named)

    return resize


def test_without_blip_models_the_other_columns_are_null(clips, tmp_path):
    shard = write_shard(tmp_path / "shards")
    score_shards(shard, "", clips[1], DECODING)
    table = pq.read_table(table_path(shard))
    assert {name: table[name].null_count for name in ("itm", "itc", "nll", "tokens", "clip")} == {
        **dict.fromkeys(("itm", "itc", "nll", "tokens"), len(table)),
        "clip": 0,
    }
    same = [read_settings(shard)["filter"]]
    score_shards(shard, "", clips[0], DECODING)
    assert read_settings(shard)["filter"] not in same, "other weights, another table"


def test_a_converted_model_gives_the_scores_of_open_clips(clips, tmp_path):
    shard = write_shard(tmp_path / "shards")
    to_ours(clips[0], str(tmp_path / "clip"))
    settings = {"decoding": DECODING, "precision": "fp32"}
    for name, filters in (
        ("theirs", clips[0]),
        ("ours", str(tmp_path / "clip")),
        ("both", [clips[0], str(tmp_path / "clip")]),
    ):
        score_shards(shard, "", filters, name=name, **settings)
    for theirs, ours, both in zip(*(rows_of(shard, name) for name in ("theirs", "ours", "both")), strict=True):
        assert ours["clip"] == pytest.approx(theirs["clip"], abs=1e-3), "images differ by one level of 256"
        assert both["clip"] == pytest.approx((theirs["clip"] + ours["clip"]) / 2, abs=1e-6)
        assert (ours["itm"], ours["itc"]) == (None, None)
    assert read_settings(shard, "theirs")["filter"] != read_settings(shard, "ours")["filter"]
    with pytest.raises(UserError, match="clip is a CLIP model, which cannot caption; give it as a filter"):
        load_scorers(str(tmp_path / "clip"), clips[0])


def test_a_clip_folder_embeds_images_and_stays_a_filter_in_all_rounds(tmp_path):
    shard = write_shard(tmp_path / "shards")
    clip, blip = make_clip(seed=1), make_model(seed=1)
    clip.save(tmp_path / "clip")
    blip.save(tmp_path / "blip")
    write_image_tables([shard], str(tmp_path / "clip"), precision="fp32", quiet=True)
    table = pq.read_table(table_path(shard, EMBEDDINGS))
    images = {sample.key: clip.load_images([decode_image(sample.image)]) for sample in iterate_samples(shard)}
    for key, vector in zip(table["key"].to_pylist(), table["embedding"].to_pylist(), strict=True):
        expected = clip.embed_tokens(clip.encode_images(images[key]))[0]
        torch.testing.assert_close(torch.tensor(vector), expected, atol=2e-3, rtol=0)  # float16
    given = [str(tmp_path / "blip"), str(tmp_path / "clip"), "open_clip:ViT-B-32,openai"]
    assert _next(given, tmp_path / "filter") == [str(tmp_path / "filter/model"), *given[1:]]


def test_an_image_is_encoded_once(clips, tmp_path, monkeypatch):
    shard = write_shard(tmp_path / "shards")
    make_model(seed=1).save(tmp_path / "model")
    scorers = load_scorers(str(tmp_path / "model"), clips[0], "fp32")
    encoded, real = [], scorers.clips[0].encode_images
    monkeypatch.setattr(scorers.clips[0], "encode_images", lambda images: encoded.append(len(images)) or real(images))
    counts = score_shard(shard, scorers, ScoreSettings(DECODING, num_captions=3, batch_size=2))
    assert counts.texts > 20 and encoded == [2, 2, 1]


def test_bf16_is_close_to_fp32(clips):
    images = torch.randn(3, 3, 32, 32)
    texts = ["a red star", "two dogs", "the moon"]
    exact, rough = (clip_of_open_clip(clips[0], precision=precision)[0] for precision in ("fp32", "bf16"))
    cosines = [scorer.score(scorer.encode_images(images), texts, [0, 1, 2]) for scorer in (exact, rough)]
    torch.testing.assert_close(*cosines, atol=0.01, rtol=0)
    assert not torch.equal(*cosines)


def test_wrong_names_are_refused(clips, tmp_path):
    with pytest.raises(UserError, match="open_clip has no model 'ViT-Z'"):
        load_scorers("", "open_clip:ViT-Z,openai")
    for weights in ("weights.pt", "nosuchtag", ""):
        with pytest.raises(
            UserError, match=r"needs a file of weights \(\.safetensors, .*\) or one of open_clip's tags"
        ):
            load_scorers("", f"open_clip:{NAME},{tmp_path / weights if weights.endswith('.pt') else weights}")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors here")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_scorers("", f"open_clip:{NAME},{broken}")
    with pytest.raises(UserError, match="cannot caption; give it as a filter"):
        load_scorers(clips[0], clips[0])
    config = ModelConfig(make_model().config.image_encoder, network="classifier", classes=["a", "b"])
    save_model(Classifier(config), None, tmp_path / "classifier")
    with pytest.raises(UserError, match="is a classifier, which has no text tower and cannot score or caption"):
        load_scorers("", str(tmp_path / "classifier"))
