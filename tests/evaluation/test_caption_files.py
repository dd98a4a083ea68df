"""Captions of images with references, without them and of NoCaps's domains; files of captions, good and bad ones."""

import io
import json

import pytest
from PIL import Image
from tiny_model import make_images, make_model
from typer.testing import CliRunner

from vlp.caption_metrics.scores import caption_scores
from vlp.cli.main import app
from vlp.data.shard_writer import ShardWriter
from vlp.errors import UserError
from vlp.evaluation.caption_files import caption_file_rows, score_caption_file
from vlp.evaluation.captioning import evaluate_captioning

REFERENCES = [["a red dog runs", "the dog"], ["two birds on a wire"], ["a cat sleeps here"], ["a blue square"]]
CAPTIONS = ["a red dog", "two birds on a small wire", "a dog", "a blue square"]
DOMAINS = ["in-domain", "near-domain", "near-domain", "out-domain"]


@pytest.fixture
def shards(tmp_path):
    """Shards of NoCaps's form; image ids are 10, 11, ..."""
    with ShardWriter(str(tmp_path / "shards")) as writer:
        for number, image in enumerate(make_images(4)):
            buffer = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "png")
            info = {"captions": REFERENCES[number], "image_id": 10 + number, "domain": DOMAINS[number]}
            writer.write(f"k{number}", buffer.getvalue(), "png", None, info)
    return str(tmp_path / "shards" / "*.tar")


def write_captions(path, ids, captions=CAPTIONS):
    rows = [{"image_id": number, "caption": text} for number, text in zip(ids, captions, strict=False)]
    path.write_text(json.dumps(rows))
    return str(path)


def test_a_file_of_captions_scores_as_the_captions_do(shards, tmp_path):
    path = write_captions(tmp_path / "captions.json", [10, 11, 12, 13])
    results = score_caption_file(path, shards)
    expected = caption_scores(CAPTIONS, REFERENCES)
    assert {name: results.metrics[name] for name in expected.metrics} == expected.metrics
    assert [row["score"] for row in results.predictions] == expected.cider
    near = caption_scores(CAPTIONS[1:3], REFERENCES[1:3]).metrics
    assert results.metrics["near-domain CIDEr"] == near["CIDEr"] and results.metrics["near-domain images"] == 2
    official = {
        "images": [{"id": 10 + i, "file_name": f"{i}.jpg", "domain": DOMAINS[i]} for i in range(4)],
        "annotations": [{"image_id": 10 + i, "id": 0, "caption": text} for i in range(4) for text in REFERENCES[i]],
    }
    (tmp_path / "nocaps.json").write_text(json.dumps(official))
    assert score_caption_file(path, str(tmp_path / "nocaps.json")).metrics == results.metrics


def test_captions_of_other_images_are_counted_and_of_another_split_refused(shards, tmp_path):
    results = score_caption_file(write_captions(tmp_path / "some.json", [10, 99]), shards)
    assert results.metrics["images"] == 1 and results.metrics["images_without_caption"] == 3
    assert results.metrics["skipped: unknown image_id"] == 1
    with pytest.raises(UserError, match="such as 77, is in"):
        score_caption_file(write_captions(tmp_path / "other.json", [77, 78]), shards)
    with pytest.raises(UserError, match="two captions of the image_id 10"):
        score_caption_file(write_captions(tmp_path / "twice.json", [10, 10]), shards)
    with pytest.raises(UserError, match="unknown kind; `vlp evaluate captions` takes"):
        (tmp_path / "bad.json").write_text('{"a": 1}')
        score_caption_file(str(tmp_path / "bad.json"), shards)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"images": [{"id": 1, "file_name": "a"}] * 2, "annotations": []}, "second image with the image_id 1"),
        ({"images": [{"id": 1, "file_name": "a"}, {"file_name": "b"}]}, "row without a proper"),
        ({"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 2, "caption": "x"}]}, "image_id 2"),
        (
            {"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "caption": 7}]},
            "row without a proper",
        ),
        ({"images": [{"id": 1, "file_name": "a"}], "annotations": []}, "no reference captions"),
    ],
)
def test_bad_references_are_named(tmp_path, truth, message):
    path = write_captions(tmp_path / "captions.json", [1])
    (tmp_path / "truth.json").write_text(json.dumps({"annotations": [{"image_id": 1, "caption": "a"}], **truth}))
    with pytest.raises(UserError, match=message):
        score_caption_file(path, str(tmp_path / "truth.json"))


def test_a_submission_has_each_image_once():
    rows = [{"key": "a", "caption": "x", "image_id": 3}, {"key": "b", "caption": "y"}]
    assert caption_file_rows(rows) == [{"image_id": 3, "caption": "x"}, {"image_id": "b", "caption": "y"}]
    with pytest.raises(UserError, match="image_id 3 occurs twice"):
        caption_file_rows([*rows, rows[0]])


def test_images_without_references_are_captioned_and_not_scored(tmp_path):
    with ShardWriter(str(tmp_path / "shards")) as writer:
        for number, image in enumerate(make_images(3)):
            buffer = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "png")
            writer.write(f"k{number}", buffer.getvalue(), "png", "a red circle" if number == 0 else None, {})
    results = evaluate_captioning(make_model(), f"{tmp_path}/shards/*.tar")
    assert results.metrics["images"] == len(results.predictions) == 3
    assert results.metrics["images_without_references"] == 2 and "CIDEr" in results.metrics
    assert ["score" in row for row in results.predictions] == [True, False, False]


def test_an_image_counts_once(shards, caplog):
    model = make_model()
    once, twice = (evaluate_captioning(model, one) for one in (shards, [shards, shards]))
    assert twice.predictions == once.predictions
    assert twice.metrics == {**once.metrics, "skipped": 4, "skipped: duplicate image_id": 4}
    assert "4 duplicate image_id (10, 11, 12, 13)" in caplog.text


def test_the_commands_write_a_submission_and_score_it(models, shards, tmp_path):
    submission = tmp_path / "submission.json"
    arguments = ["evaluate", "captioning", models[0], shards, "--json", "--max-length", "8", "--submission", submission]
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout.splitlines()[-1])["metrics"]
    assert [row["image_id"] for row in json.loads(submission.read_text())] == [10, 11, 12, 13]
    out = tmp_path / "scores.json"
    result = CliRunner().invoke(app, ["evaluate", "captions", str(submission), shards, "--json", "--out", str(out)])
    assert result.exit_code == 0, result.output
    scored = json.loads(out.read_text())
    assert scored["task"] == "captioning" and scored["metrics"]["CIDEr"] == pytest.approx(made["CIDEr"])
