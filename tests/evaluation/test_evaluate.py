"""Evaluation against plain loops on a tiny random model."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image
from tiny_model import make_images, make_model
from typer.testing import CliRunner

from vlp.cli.main import app
from vlp.data.importers import clip_benchmark
from vlp.data.shard_writer import ShardWriter
from vlp.errors import UserError
from vlp.evaluation import captioning, matching, predict, retrieval
from vlp.evaluation.settings import EvaluationSettings

TEXTS = [
    ["a red circle", "the red circle on white"],
    ["a blue square", "A blue square!"],
    ["a star above the circle", "a red circle"],
    ["small green shape", "large shape near a star"],
    ["a square left of the large star", "square"],
    ["blue and white", "the small star below a shape"],
    ["a red and blue shape", "left star"],
]


@pytest.fixture
def model(monkeypatch):
    images = make_images(len(TEXTS))

    def batches(shards, image_size, batch_size, *_, limit=None, **__):
        for start in range(0, limit or len(TEXTS), batch_size):
            rows = range(start, min(start + batch_size, limit or len(TEXTS)))
            yield SimpleNamespace(
                images=images[start : rows.stop],
                captions=[TEXTS[i] for i in rows],
                keys=[f"key{i}" for i in rows],
                infos=[{"truth": {"text_right": i % 2 == 0}} for i in rows],
                number=start // batch_size,
                skipped={},
            )

    monkeypatch.setattr(predict, "evaluation_batches", batches)
    for module in (predict, clip_benchmark):
        monkeypatch.setattr(module, "expand_shards", lambda shards: [])
    return make_model()


def test_captioning_accepts_additional_scorers(model):
    seen, steps = [], []

    def scorer(captions):
        seen.extend(one.caption for one in captions)
        return {"right": sum(one.info["truth"]["text_right"] for one in captions) / len(captions)}

    settings = EvaluationSettings(3, progress=lambda what, count: steps.append(count))
    results = captioning.evaluate_captioning(model, "", scorers=[scorer], settings=settings).metrics
    assert results["right"] == pytest.approx(4 / 7)
    assert results["images"] == 7 and sum(steps) == 7
    assert seen == model.caption_texts(make_images(7))


@pytest.mark.parametrize("truth", ["yes", ["a", 1], {"text_right": True}, None])
def test_a_foreign_truth_field_does_not_matter(models, tmp_path, truth):
    with ShardWriter(str(tmp_path / "shards")) as writer:
        for number, image in enumerate(make_images(3)):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "one.png")
            data = (tmp_path / "one.png").read_bytes()
            writer.write(f"k{number}", data, "png", "a red circle", {"truth": truth})
    arguments = ["evaluate", "captioning", models[0], f"{tmp_path}/shards/*.tar", "--json", "--batch-size", "2"]
    result = CliRunner().invoke(app, [*arguments, "--workers", "1", "--precision", "fp32", "--max-length", "8"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout.splitlines()[-1])["metrics"]["images"] == 3


def test_captions_are_scored_against_their_references():
    made = [
        captioning.Captioned("a", "a red circle on white", ["a red circle on white"]),
        captioning.Captioned("b", "two stars near a square", ["two stars near a square"]),
    ]
    scores, ciders = captioning.score_captions(made)
    assert scores["BLEU-4"] == pytest.approx(1.0) and sum(ciders) / 2 == pytest.approx(scores["CIDEr"])


def test_matching_agrees_with_model_match(model, tmp_path):
    from PIL import Image

    from vlp.evaluation.metrics import area_under_curve

    lines, itm, right = ["image\tcaption\tlabel"], [], []
    for number, picture in enumerate(make_images(5)):
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        image.save(tmp_path / f"{number}.png")
        for k, one in enumerate(TEXTS[number]):
            text = one.replace(" ", "\u2028", 1)  # a line separator that does not end a line of the file
            lines.append(f"{number}.png\t{text}\t{'match' if (number + k) % 2 else 'no-match'}")
            itm.append(model.match(image, text).itm.item())
            right.append((number + k) % 2 == 1)
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    results = matching.evaluate_matching(
        model, str(tmp_path), str(tmp_path / "pairs.tsv"), EvaluationSettings(3)
    ).metrics
    assert results["pairs"] == len(right)
    assert results["itm_auc"] == pytest.approx(area_under_curve(itm, right))
    accuracy = sum((score >= 0.5) == label for score, label in zip(itm, right, strict=True)) / len(right)
    assert results["itm_accuracy"] == pytest.approx(accuracy)
    for wrong in ("absent.tsv", "short.tsv"):
        (tmp_path / "short.tsv").write_text("image\tcaption\tlabel\na\tb\n")
        with pytest.raises(UserError):
            matching.evaluate_matching(model, str(tmp_path), str(tmp_path / wrong))


def test_on_scenes(tmp_path):
    from vlp.demo.scenes import write_scenes

    write_scenes(str(tmp_path / "scenes"), 12, split="web", wrong=0.5, image_size=32, shard_size=6, seed=0)
    model, shards = make_model(), str(tmp_path / "scenes" / "{00000..00001}.tar")
    results = retrieval.evaluate_retrieval(model, shards, rerank=4, settings=EvaluationSettings(5)).metrics
    assert results["images"] == 12 and 0 <= results["t2i_r1"] <= results["t2i_r10"] <= 1
    captioned = captioning.evaluate_captioning(model, shards, settings=EvaluationSettings(5, limit=7))
    assert captioned.metrics["images"] == len(captioned.predictions) == 7
