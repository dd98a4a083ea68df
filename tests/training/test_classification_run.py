"""A classifier from training to use: resume, evaluation, and as the start of other models and from them."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.labelled_data import CLASSES, write_folder, write_parquet, write_shards
from tests.training.test_resume import Died, assert_same_run, die_at, disturb_random_state
from vlp.cli.main import app
from vlp.config import RunConfig
from vlp.config_reader import load_config
from vlp.data.labelled_images import open_labelled
from vlp.errors import UserError
from vlp.evaluation.classification import evaluate_classification
from vlp.model import load_model
from vlp.models.blip import Blip
from vlp.models.classifier import Classifier
from vlp.training.loop import train
from vlp.training.model_setup import build_model

ENCODER = (
    "model.image_encoder={name: cct, convolutions: 1, image_size: 16, width: 32, layers: 1, heads: 2, drop_path: 0.1}"
)
RANDOM = "data.augment={crop_min: 0.8, operations: 0, policy: rand-m9-mstd0.5-inc1, erase: 0.3}"
PLAIN = "data.augment={crop_min: 1, operations: 0}"


@pytest.fixture
def classifier_config(tmp_path):
    """A function that makes the config of a run on 24 images from the name of its folder and overrides."""
    shards = write_shards(tmp_path / "shards", 24)

    def make(output: str = "run", *overrides: str) -> RunConfig:
        base = [
            "task=classification",
            f"output={tmp_path / output}",
            f"data.sources=[{{shards: '{shards}'}}]",
            f"validation={shards}",
            "data.workers=0",
            PLAIN,
            "model.network=classifier",
            ENCODER,
            "optim={learning_rate: 1e-3, warmup_steps: 2, decay: cosine}",
            "batch_size=8",
            "steps=8",
            "precision=fp32",
            "log_every=1",
        ]
        return load_config(RunConfig, None, base + list(overrides))

    return make


@pytest.mark.parametrize("reading", ["indexed", "streamed"])
def test_a_resumed_run_equals_an_undisturbed_one(classifier_config, monkeypatch, reading):
    common = RANDOM, "classification={mixup: 0.8, cutmix: 1.0}", f"data.reading={reading}", "accumulation=2"
    whole, broken = classifier_config("whole", *common), classifier_config("broken", *common, "checkpoint_every=3")
    results = train(whole)
    assert results["acc1"] > 0.6 and "acc5" not in results
    with monkeypatch.context() as patch, pytest.raises(Died):
        die_at(patch, 5)
        train(broken)
    disturb_random_state()
    train(broken, resume=True)
    assert_same_run(whole, broken)


def test_a_classifier_is_saved_and_used(classifier_config, tmp_path):
    train(classifier_config())
    folder = str(tmp_path / "run" / "model")
    assert sorted(path.name for path in Path(folder).iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((Path(folder) / "config.json").read_text())["model"]["classes"] == CLASSES
    model = load_model(folder, precision="fp32")
    images = sorted(map(str, Path(write_folder(tmp_path / "folder", 6)).glob("*/*.png")))
    found = model.classify(images)
    logits = model.network.class_logits(model.encode_images(model.load_images(images)))
    torch.testing.assert_close(found.probabilities, logits.softmax(dim=1))
    assert torch.equal(found.ranking[:, 0], logits.argmax(dim=1))
    for data in (str(tmp_path / "folder"), write_parquet(tmp_path / "parquet", 6, "test"), f"{tmp_path}/shards/*.tar"):
        results = evaluate_classification(model, open_labelled(data))
        assert results.task == "classification" and results.metrics["classes"] == 3
        best = [CLASSES[row["predicted_cls"]] == row["predicted"] for row in results.predictions]
        assert all(best) and results.metrics["acc1"] == sum(row["right"] for row in results.predictions) / len(best)
    printed = CliRunner().invoke(app, ["classify", folder, images[0], "--json"])
    assert {one["label"] for one in json.loads(printed.stdout)[images[0]]} == set(CLASSES)
    for use in (lambda: model.embed_texts("a"), lambda: model.match(images, "a"), lambda: model.caption(images)):
        with pytest.raises(UserError, match=r"The model is a classifier, which .*cannot"):
            use()
    with pytest.raises(UserError, match=r"a classifier .* leave labels, templates and rerank out"):
        model.classify(images, ["a", "b"])


def test_pretraining_starts_from_the_encoder_of_a_classifier(classifier_config, run_config, tmp_path, caplog):
    train(classifier_config("run", "steps=2"))
    started = f"start_from={tmp_path}/run/model"
    with pytest.raises(UserError, match="is a classifier and has no tokenizer; set tokenizer"):
        build_model(run_config("blip", started, "tokenizer=''", "model.image_encoder={}"))
    with pytest.raises(UserError, match=r"model.image_encoder.width is 64 \(the model has 32\)"):
        build_model(run_config("blip", started, "model.image_encoder={width: 64}"))
    locked = "task=contrastive", "model.network=clip", "objective.locked=text", "model.image_encoder={}"
    with pytest.raises(UserError, match="locked: text would keep the text tower at random weights, because start_from"):
        build_model(run_config("lit", started, *locked))
    config = run_config("blip", started, "model.image_encoder={}", "image_size=32", "steps=2")
    with caplog.at_level(logging.INFO, logger="vlp"):
        network, tokenizer, _ = build_model(config)
    assert isinstance(network, Blip) and tokenizer and network.config.image_encoder.image_size == 32
    assert "new: text_tower, image_projection, text_projection, itm_head, language_head" in caplog.text
    trained = load_file(tmp_path / "run" / "model" / "model.safetensors")
    state = network.state_dict()
    for name, value in trained.items():
        if name.startswith("image_encoder") and "pos" not in name:
            assert torch.equal(state[name], value), name
    train(config)
    assert load_model(tmp_path / "blip" / "model").image_size == 32


def test_a_classifier_starts_from_another_network_or_classifier(classifier_config, models, tmp_path, caplog):
    blip = load_model(models[0], "cpu")
    started = f"start_from={models[0]}", "model.image_encoder={}", "model.network=blip", "validation=''"
    with caplog.at_level(logging.INFO, logger="vlp"):
        network, tokenizer, _ = build_model(classifier_config("one", *started))
    assert isinstance(network, Classifier) and tokenizer is None and network.config.classes == CLASSES
    assert "new: the head for 3 classes" in caplog.text
    state = network.image_encoder.state_dict()
    assert all(torch.equal(state[name], value) for name, value in blip.blip.image_encoder.state_dict().items())
    train(classifier_config("first", "steps=1"))
    caplog.clear()
    again, *_ = build_model(classifier_config("second", f"start_from={tmp_path}/first/model"))
    weights = load_file(tmp_path / "first" / "model" / "model.safetensors")
    assert all(torch.equal(again.state_dict()[name], value) for name, value in weights.items())
    assert not caplog.text  # nothing is new


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.network=blip"], "task classification trains a classifier; set model.network: classifier"),
        (["tokenizer=tokenizer"], "a classifier has no text tower; leave it out"),
        (["batch_size=7", "classification.mixup=0.8"], "mix images in pairs, but each process has batches of 7"),
        (["data.augment.policy=rand"], "is no RandAugment of timm"),
        (["validation=SCENES"], "validation: .* has no classes"),
        (
            ["data.sources=[{shards: SCENES}]", "validation=''"],
            "The class of 87 of 87 images is not a whole number, such as",
        ),
    ],
)
def test_wrong_settings_are_refused(classifier_config, scenes, overrides, message):
    overrides = [one.replace("SCENES", f"{scenes}/*.tar") for one in overrides]
    with pytest.raises(UserError, match=message):
        train(classifier_config("run", *overrides))
