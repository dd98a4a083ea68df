"""Linear probe: logistic regression on frozen features of the image encoder (CLIP, section 3.2 and appendix A.3)."""

import hashlib
import itertools
import json
import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vlp.data.cache import cache_path, identity
from vlp.data.labelled_images import LabelledImages
from vlp.distributed import run_on_main
from vlp.errors import UserError, WorkError
from vlp.evaluation.classification import BEST, accuracies, data_name
from vlp.evaluation.labelled import predict_labelled
from vlp.evaluation.logistic import (
    SEARCH_TOLERANCE,
    LinearClassifier,
    choose_shots,
    fit_logistic,
    search_penalty,
    split_held_out,
)
from vlp.evaluation.predict import Predictions
from vlp.evaluation.results import Results, skipped_metrics
from vlp.evaluation.settings import EvaluationSettings
from vlp.files import writing
from vlp.model import Model
from vlp.models.constant_weights import constant_weights

Features = Literal["class_token", "embedding"]

TASK = "linear_probe"  # CLIP_benchmark's name
FORMAT = "features-1"  # of cached features
HELD_OUT = 0.2  # share of the training images that choose the penalty
PENALTY = 1.0  # where there are too few images to choose one
DECIDE_FEATURES = ("model", "precision")  # of the facts that `EvaluationSettings.about` tells

log = logging.getLogger("vlp")


@dataclass
class LabelledFeatures:
    """Features float32 [images, width] with the classes int64 [images] and keys of their images."""

    features: Tensor
    labels: Tensor
    keys: list[str]


def evaluate_linear_probe(
    model: Model,
    train: LabelledImages,
    test: LabelledImages,
    folder: str,
    features: Features = "class_token",
    shots: int | None = None,
    seed: int = 0,
    settings: EvaluationSettings | None = None,
) -> Results:
    """Fit a linear classifier to the features of the training images and score it on the test images.

    Args:
        folder: keeps the features, so that they are computed once; several processes share it.
        features: "class_token", after the encoder's last normalization, or "embedding", its projection for ITC.
        shots: fit to this many random images of each class; None: all.
        seed: of the shots and of the held-out images that choose the penalty.

    Returns:
        The metrics of `accuracies`, `penalty`, `train_images`, `images` and `classes`, and the counts of the images
        that were skipped in both parts. A prediction holds the class `cls` and the classes `best`, best first.

    Raises:
        UserError: there is no test image with a class, or the training images do not have two classes.
        WorkError: the folder cannot be written, or files in it are missing.
    """
    settings = settings or EvaluationSettings()
    train_stored = store_features(model, train, folder, features, "train features", settings)
    test_stored = store_features(model, test, folder, features, "test features", settings)

    def probe() -> dict[str, Any]:
        fit, scored = read_features(folder, train_stored), read_features(folder, test_stored)
        classes = max(len(train.names), 1 + int(torch.cat([fit.labels, scored.labels]).max()))
        if shots is not None:
            rows = choose_shots(fit.labels, shots, seed)
            fit = LabelledFeatures(fit.features[rows], fit.labels[rows], [fit.keys[row] for row in rows.tolist()])
        penalty, classifier = fit_probe(fit.features.to(model.device), fit.labels.to(model.device), classes, seed)
        scores = classifier.scores(scored.features)
        best = scores.topk(min(BEST, classes), dim=1).indices.tolist()
        found = [
            {"key": key, "cls": label, "best": five, "right": five[0] == label}
            for key, label, five in zip(scored.keys, scored.labels.tolist(), best, strict=True)
        ]
        counts = {"train_images": len(fit.keys), "images": len(found), "classes": classes}
        return {"metrics": accuracies(found, classes) | {"penalty": penalty} | counts, "predictions": found}

    done = run_on_main(probe) if settings.spread else probe()
    skipped = skipped_metrics(Counter(train_stored.skipped) + Counter(test_stored.skipped))
    return Results(TASK, data_name(test), done["metrics"] | skipped, done["predictions"])


def features_folder(
    train: LabelledImages, test: LabelledImages, features: Features, settings: EvaluationSettings
) -> str:
    """The folder of the cache for the features that a model (`settings.about`) makes of two data sets."""
    about = json.dumps({name: settings.about.get(name) for name in DECIDE_FEATURES})
    sources = map(identity, [*train.source, *test.source])
    return str(cache_path(FORMAT, [about, *sources, features, str(settings.batch_size), str(settings.limit)]))


@constant_weights()
def store_features(
    model: Model, data: LabelledImages, folder: str, features: Features, stage: str, settings: EvaluationSettings
) -> Predictions:
    """Compute the features of images, each batch in a file of `folder`, unless an earlier call has.

    Returns:
        Rows with `key`, `cls`, and the `file` and its `row` that hold the features.

    Raises:
        UserError: what `predict_labelled` raises, or there is no image with a class.
        WorkError: the folder cannot be written.
    """

    def make(images: Tensor, keys: list[str], labels: list[int]) -> list[dict[str, Any]]:
        tokens = model.encode_images(images)  # [images, tokens, width]
        vectors = model.embed_tokens(tokens) if features == "embedding" else tokens[:, 0].float().cpu()
        array = vectors.numpy()
        file = hashlib.sha256(json.dumps(keys).encode() + array.tobytes()).hexdigest()[:32] + ".npy"
        with writing(f"{folder}/{file}") as temporary, open(temporary, "wb") as out:
            np.save(out, array)
        return [
            {"key": key, "cls": label, "file": file, "row": row}
            for row, (key, label) in enumerate(zip(keys, labels, strict=True))
        ]

    about = {name: value for name, value in settings.about.items() if name in DECIDE_FEATURES}
    keeping = replace(settings, partial=folder, about={**about, "features": features})
    stored = predict_labelled(data, model.image_size, keeping, make, stage)
    if not stored.rows:
        raise UserError(f"{data.source[0]} has no readable image with a class.")
    return stored


def read_features(folder: str, stored: Predictions) -> LabelledFeatures:
    """The features that `store_features` stored.

    Raises:
        WorkError: a file is missing or damaged.
    """
    parts = []
    for file, rows in itertools.groupby(stored.rows, key=lambda row: row["file"]):
        try:
            parts.append(np.load(Path(folder) / file, allow_pickle=False)[[row["row"] for row in rows]])
        except (OSError, ValueError, EOFError, IndexError):
            raise WorkError(f"{folder}/{file} with features cannot be read; remove {folder}.") from None
    labels = torch.tensor([row["cls"] for row in stored.rows])
    return LabelledFeatures(torch.from_numpy(np.concatenate(parts)), labels, [row["key"] for row in stored.rows])


def fit_probe(features: Tensor, labels: Tensor, classes: int, seed: int) -> tuple[float, LinearClassifier]:
    """Choose the penalty on held-out images, and fit to all images with it.

    Args:
        features: float32 [images, width].
        labels: int64 [images].

    Returns:
        The penalty, and the classifier on the CPU.

    Raises:
        UserError: all images have one class.
    """
    if len(labels.unique()) < 2:
        raise UserError("A linear probe needs training images of at least two classes.")
    fit, held_out = split_held_out(labels.cpu(), HELD_OUT, seed)
    penalty, last = PENALTY, None

    def accuracy(candidate: float) -> float:
        nonlocal last
        last = fit_logistic(features[fit], labels[fit], classes, candidate, last, SEARCH_TOLERANCE)
        right = last.scores(features[held_out]).argmax(dim=1) == labels[held_out]
        log.info("L2 penalty %.3g: %.4f of %d held-out images", candidate, right.double().mean(), len(right))
        return right.double().mean().item()

    if len(held_out):
        penalty = search_penalty(accuracy)
    else:
        log.warning("every class has one training image; the L2 penalty is %g instead of the best one", penalty)
    classifier = fit_logistic(features, labels, classes, penalty, start=last)
    return penalty, LinearClassifier(classifier.weight.cpu(), classifier.bias.cpu())
