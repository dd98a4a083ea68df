"""NLVR2's evaluation: metrics on hand-made rows, predictions of a network, skipped pairs and the submission."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.data.test_shards import picture, write_tar
from tests.tiny_model import make_images, make_model
from vlp.cli.main import app
from vlp.data.image_decoding import decode_pixels
from vlp.data.shards import iterate_samples
from vlp.data.transforms import evaluation_image
from vlp.demo.nlvr2_scenes import KINDS, make_nlvr2_scenes, score_nlvr2
from vlp.errors import UserError, WorkError
from vlp.evaluation.nlvr2 import evaluate_nlvr2, pair_metrics, save_submission
from vlp.evaluation.results import check_complete
from vlp.evaluation.settings import EvaluationSettings
from vlp.model import Model
from vlp.models.finetuned import extend


@pytest.fixture(scope="module")
def model() -> Model:
    """A tiny random network whose predictions are neither all true nor all false."""
    made = make_model()
    made.network = extend(made.blip, "nlvr2")
    made.config = made.blip.config
    with torch.no_grad():
        for weight in made.blip.pair_head.parameters():
            weight.mul_(5)
        probabilities = made.compare(list(make_images(8)), list(make_images(8)), "a red star").logit()
        made.blip.pair_head[2].bias[1] -= probabilities.median()
    return made


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "dev"
    make_nlvr2_scenes(folder, 30, 32, "dev")
    return folder


def row(identifier: str, right: bool | None, sentence: str = "a") -> dict:
    made = {"key": identifier or sentence, "sentence": sentence, "prediction": True}
    return made | ({"identifier": identifier} if identifier else {}) | ({} if right is None else {"right": right})


def test_accuracy_and_consistency_of_the_definition():
    rows = [
        row("dev-850-0-0", True),  # one sentence of set 850, over four pairs of images
        row("dev-850-1-0", True),
        row("dev-850-2-0", False),
        row("dev-850-3-0", True),
        row("dev-850-0-1", True),  # another sentence of the set
        row("dev-850-1-1", True),
        row("dev-851-0-0", True),
        row("dev-851-1-0", False),
        row("dev-852-0-0", None),  # without a label
    ]
    found = pair_metrics(rows)
    assert found == {"pairs": 8, "sentences": 3, "accuracy": 6 / 8, "consistency": 1 / 3, "unlabeled": 1}


def test_without_identifiers_the_sentence_itself_tells_and_without_labels_there_is_no_accuracy():
    rows = [row("", True, "a dog"), row("", False, "a dog"), row("", True, "a cat")]
    assert pair_metrics(rows) == {"pairs": 3, "sentences": 2, "accuracy": 2 / 3, "consistency": 1 / 2}
    assert pair_metrics([row("dev-1-0-0", None)]) == {"pairs": 0, "sentences": 0, "unlabeled": 1}


def test_predictions_are_those_of_the_model_in_order(model, pairs):
    results = evaluate_nlvr2(model, f"{pairs}/*.tar", EvaluationSettings(batch_size=7))
    samples = list(iterate_samples(f"{pairs}/*.tar"))
    sides: list[list[torch.Tensor]] = [
        [torch.as_tensor(evaluation_image(decode_pixels(data or b""), 32)) for data in one]
        for one in zip(*((sample.image, sample.right) for sample in samples), strict=True)
    ]
    expected = model.compare(*sides, [sample.info["sentence"] for sample in samples])
    rows = results.predictions
    assert [one["key"] for one in rows] == [sample.key for sample in samples]
    assert [one["probability"] for one in rows] == pytest.approx(expected.tolist(), abs=1e-4)
    right = [(one > 0.5) == sample.info["label"] for one, sample in zip(expected.tolist(), samples, strict=True)]
    assert [one["right"] for one in rows] == right and 0 < sum(right) < len(right)
    assert results.metrics == {
        "pairs": 30,
        "sentences": 30,
        "accuracy": sum(right) / 30,
        "consistency": sum(right) / 30,
        "skipped": 0,
    }
    assert (results.task, results.dataset) == ("nlvr2", f"{pairs.parent.name}/dev")


def test_samples_that_are_no_whole_pair_are_skipped_counted_and_named(model, tmp_path):
    good = {"images": 2, "sentence": "a red star", "label": True}
    samples = {
        "good": (good, picture()),
        "half": (good, None),
        "broken": (good, picture()[:50]),
        "silent": ({**good, "sentence": 7}, picture()),
        "single": ({"sentence": "a red star"}, picture()),
        "test": ({**good, "label": None}, picture()),
    }
    members = []
    for key, (info, right) in samples.items():
        members += [(f"{key}.png", picture()), *([(f"{key}.right.png", right)] if right else [])]
        members.append((f"{key}.json", json.dumps(info).encode()))
    shard = write_tar(tmp_path / "0.tar", members)
    results = evaluate_nlvr2(model, shard, EvaluationSettings(batch_size=2))
    assert [one["key"] for one in results.predictions] == ["good", "test"]
    counts = {name: value for name, value in results.metrics.items() if name not in ("accuracy", "consistency")}
    assert counts == {
        "pairs": 1,
        "sentences": 1,
        "unlabeled": 1,
        "skipped": 4,
        "skipped: no second image": 3,
        "skipped: no sentence": 1,
    }

    with pytest.raises(UserError, match="needs pairs"):
        evaluate_nlvr2(model, write_tar(tmp_path / "1.tar", members[2:3]))
    with pytest.raises(WorkError, match="some samples have no prediction"):
        check_complete("x.csv", results)


def test_a_pair_counts_once(model, pairs, caplog):
    shard = f"{pairs}/00000.tar"
    once, twice = evaluate_nlvr2(model, shard), evaluate_nlvr2(model, [shard, shard])
    count = len(once.predictions)
    assert twice.predictions == once.predictions
    assert twice.metrics == {**once.metrics, "skipped": count, "skipped: duplicate identifier": count}
    assert f"{count} duplicate identifier (" in caplog.text


def test_the_command_writes_results_and_a_submission(model, pairs, tmp_path):
    model.save(tmp_path / "model")
    out, csv = tmp_path / "results.json", tmp_path / "submission.csv"
    arguments = ["evaluate", "nlvr2", tmp_path / "model", f"{pairs}/*.tar", "--out", out, "--submission", csv]
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    written = json.loads(out.read_text())
    assert (written["task"], written["metrics"]["pairs"]) == ("nlvr2", 30)
    rows = [json.loads(line) for line in (tmp_path / "results.predictions.jsonl").read_text().splitlines()]
    lines = csv.read_text().splitlines()
    assert lines == [f"{one['identifier']},{one['prediction']}" for one in rows]
    labels = {sample.info["identifier"]: sample.info["label"] for sample in iterate_samples(f"{pairs}/*.tar")}
    scored = dict(line.split(",") for line in lines)  # as NLVR2's scorer reads them
    accuracy = sum(scored[name].lower() == str(label).lower() for name, label in labels.items()) / len(labels)
    assert accuracy == written["metrics"]["accuracy"]
    limited = CliRunner().invoke(app, [str(one) for one in [*arguments, "--limit", 3]])
    assert "leave --limit out" in str(limited.exception)
    before = CliRunner().invoke(app, ["evaluate", "nlvr2", "absent", f"{pairs}/*.tar", "--submission", str(tmp_path)])
    assert "is a folder" in str(before.exception)  # before the model is loaded


def test_a_submission_names_samples_without_an_identifier_by_their_keys(tmp_path):
    save_submission([row("", None, "k1"), row("dev-1-0-0", None)], str(tmp_path / "s.csv"))
    assert (tmp_path / "s.csv").read_text() == "k1,True\ndev-1-0-0,True\n"


def test_a_model_that_was_not_finetuned_is_refused(pairs):
    with pytest.raises(UserError, match="was not finetuned for nlvr2"):
        evaluate_nlvr2(make_model(), f"{pairs}/*.tar")


def test_scenes_are_scored_by_kind_of_sentence(model, pairs):
    scores = score_nlvr2(model, pairs)
    kinds = [scores[f"accuracy {kind}"] for kind in KINDS]
    assert scores["accuracy"] == pytest.approx(sum(kinds) / len(kinds))
