"""Linear probe on handwritten digits: features computed once, scikit-learn's classifier, few shots, bad data."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from tests.processes import run_vlp
from tests.tiny_model import make_model
from vlp.cli.main import app
from vlp.data.labelled_images import open_labelled
from vlp.errors import UserError, WorkError
from vlp.evaluation.linear_probe import evaluate_linear_probe, fit_probe, read_features, store_features
from vlp.evaluation.settings import EvaluationSettings

CLASSES, TRAIN, TEST = 4, 60, 40


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Image folders `train` and `test` with a subfolder per digit."""
    root, data = tmp_path_factory.mktemp("digits"), load_digits(n_class=CLASSES)
    for number in range(TRAIN + TEST):
        place = root / ("train" if number < TRAIN else "test") / str(data.target[number])
        place.mkdir(parents=True, exist_ok=True)
        pixels = (data.images[number] * 15.9).astype(np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return root


def probe(model, digits, folder, **more):
    train = open_labelled(str(digits / "train"))
    test = open_labelled(str(digits / "test"), folders=train.folders)
    return evaluate_linear_probe(model, train, test, str(folder), **more)


def test_the_probe_is_scikit_learns(model, digits, tmp_path):
    results = probe(model, digits, tmp_path)
    train = open_labelled(str(digits / "train"))
    parts = []
    for stage, data in (("train", train), ("test", open_labelled(str(digits / "test"), folders=train.folders))):
        stored = store_features(model, data, str(tmp_path), "class_token", f"{stage} features", EvaluationSettings())
        parts.append(read_features(str(tmp_path), stored))
    fit, scored = parts
    theirs = LogisticRegression(C=1 / results.metrics["penalty"], solver="newton-cholesky", tol=1e-8)
    theirs.fit(fit.features.double().numpy(), fit.labels.numpy())
    best = [row["best"][0] for row in results.predictions]
    agreed = np.mean(theirs.predict(scored.features.double().numpy()) == best)
    assert agreed >= 0.98  # two classes may tie
    assert results.metrics["acc1"] == np.mean(np.array(best) == scored.labels.numpy()) > 0.5
    counts = ("train_images", "images", "classes", "skipped")
    assert [results.metrics[name] for name in counts] == [TRAIN, TEST, CLASSES, 0]
    assert results.task == "linear_probe"


@pytest.mark.parametrize("kind", ["class_token", "embedding"])
def test_features_are_those_of_the_encoder(model, digits, tmp_path, kind):
    data = open_labelled(str(digits / "test"))
    stored = store_features(model, data, str(tmp_path), kind, "test features", EvaluationSettings(batch_size=7))
    found = read_features(str(tmp_path), stored)
    images = [str(digits / "test" / key) for key in found.keys]
    tokens = model.encode_images(model.load_images(images))
    expected = model.embed_images(images) if kind == "embedding" else tokens[:, 0]
    torch.testing.assert_close(found.features, expected, atol=1e-4, rtol=1e-4)
    assert found.labels.tolist() == [int(key.split("/")[0]) for key in found.keys] and len(found.keys) == TEST


def test_features_are_computed_once(model, digits, tmp_path, monkeypatch):
    first = probe(model, digits, tmp_path)
    monkeypatch.setattr(model, "encode_images", lambda images: pytest.fail("encoded again"))
    assert probe(model, digits, tmp_path) == first
    shots = probe(model, digits, tmp_path, shots=3, seed=1)
    assert shots.metrics["train_images"] == 3 * CLASSES
    assert probe(model, digits, tmp_path, shots=3, seed=1) == shots
    one = probe(model, digits, tmp_path, shots=1)
    assert (one.metrics["train_images"], one.metrics["penalty"]) == (CLASSES, 1.0)


def test_a_missing_file_of_features_is_named(model, digits, tmp_path):
    probe(model, digits, tmp_path)
    for path in tmp_path.glob("*.npy"):
        path.unlink()
    with pytest.raises(WorkError, match=r"with features cannot be read; remove "):
        probe(model, digits, tmp_path)


def test_an_interrupted_run_continues(model, digits, tmp_path):
    def interrupt(stage, count):
        if stage == "test features" and count:
            raise KeyboardInterrupt

    expected = probe(model, digits, tmp_path / "whole", settings=EvaluationSettings(batch_size=32))
    with pytest.raises(KeyboardInterrupt):
        probe(model, digits, tmp_path / "cut", settings=EvaluationSettings(batch_size=32, progress=interrupt))
    seen = []
    encode = model.encode_images
    try:
        model.encode_images = lambda images: seen.append(len(images)) or encode(images)
        again = probe(model, digits, tmp_path / "cut", settings=EvaluationSettings(batch_size=32))
    finally:
        del model.encode_images
    assert again == expected and sum(seen) < TEST


def test_one_class_cannot_be_told_apart():
    with pytest.raises(UserError, match="at least two classes"):
        fit_probe(torch.ones(4, 2), torch.zeros(4, dtype=torch.int64), 3, 0)


def test_the_command_keeps_features_in_the_cache(models, digits, tmp_path, monkeypatch):
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "cache"))
    call = ["evaluate", "linear-probe", models[1], str(digits / "train"), str(digits / "test"), "--json"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    written = json.loads(result.stdout.splitlines()[-1])
    assert written["task"] == "linear_probe" and written["metrics"]["images"] == TEST
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    assert stored
    again = CliRunner().invoke(app, [*call, "--shots", "5", "--workers", "2"])
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")} == stored


def test_two_processes_equal_one(models, digits, tmp_path, monkeypatch):
    call = ["evaluate", "linear-probe", models[1], str(digits / "train"), str(digits / "test")]
    call += ["--batch-size", "16", "--precision", "fp32", "--out"]
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "cache"))
    one = CliRunner().invoke(app, [*call, str(tmp_path / "one.json")])
    assert one.exit_code == 0, one.output
    monkeypatch.setenv("VLP_CACHE", str(tmp_path / "other cache"))
    run_vlp(tmp_path / "printed", *call, tmp_path / "two.json", count=2)
    for end in (".json", ".predictions.jsonl"):
        assert (tmp_path / f"one{end}").read_text() == (tmp_path / f"two{end}").read_text()
