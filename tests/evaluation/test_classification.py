"""Zero-shot classification: metrics against scikit-learn, rows against `model.classify`, folders, shards, bad data."""

import json
import logging
import random
import tarfile
import warnings
from dataclasses import replace

import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from typer.testing import CliRunner

from tests.data.importers.layouts import add, benchmark
from tests.tiny_model import make_images, make_model
from vlp.cli.main import app
from vlp.data.labelled_images import LabelledImages, open_labelled
from vlp.errors import UserError
from vlp.evaluation.classification import accuracies, class_counts, evaluate_classification
from vlp.evaluation.settings import EvaluationSettings

NAMES = ["circle", "square", "star", "large shape", "small shape", "blue"]


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture
def folder(tmp_path):
    """An image folder with two images of four of six classes, and a loose, a broken and an empty image."""
    pets = tmp_path / "pets"
    for name in NAMES:
        (pets / name.replace(" ", "_")).mkdir(parents=True)
    for number, image in enumerate(make_images(8)):
        place = pets / NAMES[number // 2].replace(" ", "_") / f"{number}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place)
    (pets / "loose.png").write_bytes((pets / "circle" / "0.png").read_bytes())
    (pets / "circle" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    (pets / "star" / "empty.jpg").write_bytes(b"")
    return pets


def test_accuracies_equal_scikit_learn():
    rng = random.Random(0)
    for classes in (6, 9):
        rows = [{"cls": rng.choice((0, 1, 3, 5)), "best": rng.sample(range(classes), 5)} for _ in range(50)]
        labels = [row["cls"] for row in rows]
        scores = [[-row["best"].index(c) if c in row["best"] else -9 for c in range(classes)] for row in rows]
        found = accuracies(rows, classes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of predictions of classes without images
            recall = balanced_accuracy_score(labels, [row["best"][0] for row in rows])
        assert found["mean_per_class_recall"] == pytest.approx(recall)
        for k in (1, 5):
            expected = top_k_accuracy_score(labels, scores, k=k, labels=list(range(classes)))
            assert found[f"acc{k}"] == pytest.approx(expected)


def test_five_best_of_four_classes_mean_nothing():
    assert accuracies([{"cls": 0, "best": [0, 1, 2, 3]}], 4)["acc5"] is None
    with pytest.raises(UserError, match="at least one image"):
        accuracies([], 4)


@pytest.mark.parametrize("rerank", [0, 3])
def test_rows_are_those_of_classify(model, folder, rerank):
    results = evaluate_classification(model, open_labelled(str(folder)), ["a {}"], rerank)
    order = sorted(NAMES)
    found = {row["key"]: row for row in results.predictions}
    assert len(found) == 8
    for key, row in found.items():
        expected = model.classify(str(folder / key), order, ["a {}"], rerank)
        assert row["best"] == expected.ranking[0, :5].tolist()
        assert row["probability"] == pytest.approx(expected.probabilities[0, row["predicted_cls"]].item(), abs=1e-4)
        assert row["class"] == order[row["cls"]] == key.split("/")[0].replace("_", " ")
        assert row["predicted"] == order[row["predicted_cls"]]
    metrics = results.metrics
    assert metrics["acc1"] == sum(row["right"] for row in results.predictions) / 8
    counts = ("images", "classes", "classes_without_images", "repeated_class_names", "skipped")
    assert [metrics[name] for name in counts] == [8, 6, 2, 0, 3]
    assert metrics["skipped: no class"] == metrics["skipped: zero bytes"] == metrics["skipped: image undecodable"] == 1
    assert (results.task, results.dataset) == ("zeroshot_classification", "pets")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_downloaded_data_set_equals_its_folder(model, folder, tmp_path, workers):
    files = sorted(folder.glob("*/?.png"))
    order = sorted(NAMES)

    def members(number):
        return {"cls": b"%d" % order.index(files[number].parent.name.replace("_", " "))}

    wds = benchmark(tmp_path / "wds", "png", members)
    (wds / "classnames.txt").write_text("\n".join(order))
    for shard in range(2):  # the same pictures instead of plain ones
        with tarfile.open(wds / "test" / f"{shard}.tar", "w") as archive:
            for number in (2 * shard, 2 * shard + 1):
                add(archive, f"s{number:07d}.cls", members(number)["cls"])
                add(archive, f"s{number:07d}.png", files[number].read_bytes())
    settings = EvaluationSettings(batch_size=3, workers=workers)
    shards = evaluate_classification(model, open_labelled(str(wds)), ["a {}"], settings=settings)
    whole = evaluate_classification(model, open_labelled(str(folder)), ["a {}"], settings=settings)
    by_file = {row["key"]: row for row in whole.predictions}
    for number, row in enumerate(shards.predictions):
        expected = by_file[f"{files[number].parent.name}/{files[number].name}"]
        assert {**row, "key": "", "probability": 0} == {**expected, "key": "", "probability": 0}
        assert row["probability"] == pytest.approx(expected["probability"], abs=1e-5)
    assert len(shards.predictions) == 4 and shards.dataset == "wds/test"


def test_unusable_classes_are_counted_and_named(model, tmp_path, caplog):
    labels = [b"0", b"1", b"7", b"cat"]
    wds = benchmark(tmp_path / "wds", "jpg", lambda number: {"cls": labels[number]})
    (wds / "classnames.txt").write_text("star\nstar\nblue\n")
    with caplog.at_level(logging.WARNING, logger="vlp"):
        metrics = evaluate_classification(model, open_labelled(str(wds))).metrics
    assert (metrics["images"], metrics["skipped: bad class"], metrics["skipped"]) == (2, 2, 2)
    assert (metrics["classes_without_images"], metrics["repeated_class_names"], metrics["acc5"]) == (1, 1, None)
    assert "s0000002: bad class" in caplog.text and "s0000003: bad class" in caplog.text
    assert "without images, which no accuracy counts: blue" in caplog.text
    assert "with the name of another: star" in caplog.text


def test_log_lines_name_few_classes(caplog):
    data = LabelledImages(["x"], [str(number) for number in range(20)])
    class_counts([{"cls": 3}], data)
    assert "0, 1, 2, 4, 5 and 14 more" in caplog.text


def test_an_interrupted_evaluation_goes_on_with_equal_settings_only(model, folder, tmp_path):
    data, whole = open_labelled(str(folder)), EvaluationSettings(batch_size=2)
    expected = evaluate_classification(model, data, ["a {}"], settings=whole)
    made = []

    def interrupt(stage, count):
        made.append(count)
        if sum(made) >= 6:
            raise KeyboardInterrupt

    partial = replace(whole, partial=str(tmp_path / "partial"))
    with pytest.raises(KeyboardInterrupt):
        evaluate_classification(model, data, ["a {}"], settings=replace(partial, progress=interrupt))
    with pytest.raises(UserError, match="another templates"):
        evaluate_classification(model, data, ["the {}"], settings=partial)
    encoded = []
    encode = model.encode_images
    try:
        model.encode_images = lambda images: encoded.append(len(images)) or encode(images)
        again = evaluate_classification(model, data, ["a {}"], settings=partial)
    finally:
        del model.encode_images
    assert again == expected and sum(encoded) < 8


def test_the_command_writes_clip_benchmarks_json(models, folder, tmp_path):
    (tmp_path / "templates.txt").write_text("a {c}\nthe {c}\n")
    call = ["evaluate", "classification", models[1], str(folder), "--templates", str(tmp_path / "templates.txt")]
    result = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "out.json"), "--rerank", "2"])
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["task"] == "zeroshot_classification" and written["metrics"]["images"] == 8
    assert {"acc1", "acc5", "mean_per_class_recall"} < set(written["metrics"])
    rows = [json.loads(line) for line in (tmp_path / "out.predictions.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and rows[0]["key"] == "circle/0.png"


def test_shards_without_names_are_refused(models, tmp_path):
    wds = benchmark(tmp_path / "wds", "jpg", lambda number: {"cls": b"0"})
    result = CliRunner().invoke(app, ["evaluate", "classification", models[1], str(wds)])
    assert isinstance(result.exception, UserError) and "name a file with --classnames" in str(result.exception)
