"""Classification, zero-shot or by a classifier, scored as CLIP_benchmark scores it."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from vlp.data.class_names import repeated
from vlp.data.labelled_images import LabelledImages, use_classes
from vlp.errors import UserError
from vlp.evaluation.labelled import predict_labelled
from vlp.evaluation.results import Results, dataset_name
from vlp.evaluation.settings import EvaluationSettings
from vlp.model import Model
from vlp.model.classify import image_classifier
from vlp.models.classifier import Classifier
from vlp.models.constant_weights import constant_weights

TASK = "zeroshot_classification"  # CLIP_benchmark's name
SUPERVISED = "classification"  # the task of a classifier
TEMPLATES = ("a photo of a {}",)  # for data sets that bring none
NAMED = 5  # classes that a log line lists
BEST = 5  # classes that a row lists, as many as acc5 needs

log = logging.getLogger("vlp")


@constant_weights()
def evaluate_classification(
    model: Model,
    data: LabelledImages,
    templates: Sequence[str] = (),
    rerank: int = 0,
    settings: EvaluationSettings | None = None,
) -> Results:
    """Classify every image by the names of the classes alone, or by the head of a classifier.

    Args:
        data: for a classifier, its classes go by the names or numbers of the model's (see `use_classes`).
        templates: prompts with {} or {c} for the name; none: those of the data set, or `TEMPLATES`.
        rerank: match this many of the classes' texts with each image by ITM (see `classify_tokens`); 0 disables.

    Returns:
        The metrics of `accuracies`, and the counts of `class_counts`. A prediction holds the number (`cls`) and the
        name of the class, the number and the name of the predicted class with its probability, and the numbers of the
        best classes.

    Raises:
        UserError: class names are missing, or none of them is a class of the classifier; there is no image with a
            class; or a classifier gets templates or re-ranking.
    """
    settings = settings or EvaluationSettings()
    if supervised := isinstance(model.network, Classifier):
        data = use_classes(data, model.config.classes)
        classify, _ = image_classifier(model, (), templates, rerank)
    else:
        if not data.names:
            raise UserError(f"{data.source[0]} has no names of its classes; name a file with --classnames.")
        prompts = list(templates) or data.templates or list(TEMPLATES)
        classify, _ = image_classifier(model, data.names, prompts, rerank, 4 * settings.batch_size)
        settings = replace(settings, about={**settings.about, "templates": prompts})

    def make(images: Tensor, keys: list[str], labels: list[int]) -> list[dict[str, Any]]:
        found = classify(model.encode_images(images))
        best = found.ranking[:, :BEST].tolist()
        shares = found.probabilities.gather(1, found.ranking[:, :1])[:, 0].tolist()
        return [
            {
                "key": key,
                "cls": label,
                "class": data.names[label],
                "predicted_cls": five[0],
                "predicted": data.names[five[0]],
                "right": five[0] == label,
                "probability": share,
                "best": five,
            }
            for key, label, five, share in zip(keys, labels, best, shares, strict=True)
        ]

    predictions = predict_labelled(data, model.image_size, settings, make, "classify")
    metrics = accuracies(predictions.rows, len(data.names)) | class_counts(predictions.rows, data)
    return Results(
        SUPERVISED if supervised else TASK, data_name(data), metrics | predictions.counts(), predictions.rows
    )


def accuracies(rows: Sequence[dict[str, Any]], classes: int) -> dict[str, float | None]:
    """Accuracies under the names and by the definitions of CLIP_benchmark.

    Args:
        rows: of each image the class `cls` and the classes `best`, best first.
        classes: their number.

    Returns:
        `acc1` and `acc5`, the shares (0 to 1) of images whose class is the best one, or among the five best (None with
        fewer than five classes); `mean_per_class_recall`, the mean over the classes that have images of the share of
        their images whose best class is right.

    Raises:
        UserError: there are no rows.
    """
    if not rows:
        raise UserError("Accuracy needs at least one image with a class; the data contains none.")
    right, images = Counter(), Counter()
    in_five = 0
    for row in rows:
        images[row["cls"]] += 1
        right[row["cls"]] += row["best"][0] == row["cls"]
        in_five += row["cls"] in row["best"][:5]
    return {
        "acc1": right.total() / len(rows),
        "acc5": in_five / len(rows) if classes >= 5 else None,
        "mean_per_class_recall": sum(right[label] / count for label, count in images.items()) / len(images),
    }


def class_counts(rows: Sequence[dict[str, Any]], data: LabelledImages) -> dict[str, int]:
    """How many images and classes the accuracies are over: `images`, `classes`, `classes_without_images` and
    `repeated_class_names`. The log names the classes of the last two."""
    seen = {row["cls"] for row in rows}
    empty = [name for number, name in enumerate(data.names) if number not in seen]
    twice = repeated(data.names)
    for names, problem in ((empty, "without images, which no accuracy counts"), (twice, "with the name of another")):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            log.warning("classes %s: %s%s", problem, ", ".join(names[:NAMED]), more)
    return {
        "images": len(rows),
        "classes": len(data.names),
        "classes_without_images": len(empty),
        "repeated_class_names": len(twice),
    }


def data_name(data: LabelledImages) -> str:
    """The name of a data set in the results, from its path."""
    return dataset_name(data.source) if data.folders is None else dataset_name(f"{data.source[0]}/*")
