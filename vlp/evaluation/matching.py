"""Matching: how well a model separates matching from non-matching texts on labeled image-text pairs."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from vlp.data.cache import file_stamp, identity
from vlp.errors import UserError
from vlp.evaluation.metrics import area_under_curve
from vlp.evaluation.predict import predict_items
from vlp.evaluation.results import Results
from vlp.evaluation.settings import DEFAULT_SETTINGS, EvaluationSettings
from vlp.model import Model
from vlp.models.constant_weights import constant_weights

log = logging.getLogger("vlp")


@constant_weights()
def evaluate_matching(
    model: Model, images: str, pairs: str, settings: EvaluationSettings = DEFAULT_SETTINGS
) -> Results:
    """Score a model on labeled image-text pairs.

    Args:
        images: folder of the images.
        pairs: a tab-separated file with a header line and the columns image, caption and label (`match` or `no-match`).
        settings: batches and the limit count images, each with all of its texts.

    Returns:
        `itm_auc` and `itc_auc`, the areas under the ROC curves of the ITM probability and of the cosine; `itm_accuracy`
        at a threshold of 0.5; `pairs`. Unreadable images are skipped and counted.

    Raises:
        UserError: `pairs` is missing or does not have this format, or no image is readable.
    """
    texts, labels = _read_pairs(Path(pairs))

    def match(names: Sequence[str]) -> list[dict]:
        loaded, rows = [], []
        for name in names:
            try:
                loaded.append(model.load_images([Path(images) / name]))
            except UserError as error:
                rows.append({"key": name, "skipped": "unreadable image"})
                log.warning("skipped %s", error)
        found = [name for name in names if name not in {row["key"] for row in rows}]
        if not found:
            return rows
        index = torch.tensor([row for row, name in enumerate(found) for _ in texts[name]])
        here = [(name, text, label) for name in found for text, label in zip(texts[name], labels[name], strict=True)]
        scores = model.match_tokens(model.encode_images(torch.cat(loaded)), [text for _, text, _ in here], index)
        for (name, text, label), itm, itc in zip(here, scores.itm.tolist(), scores.itc.tolist(), strict=True):
            right = (itm >= 0.5) == label
            rows.append({"key": name, "text": text, "label": label, "itm": itm, "itc": itc, "right": right})
        return rows

    facts = {"pairs": identity(pairs), "size and time": file_stamp(pairs), "images": identity(images)}
    made = predict_items(list(texts), settings, match, "match", facts)
    if not made.rows:
        raise UserError(f"{images} has none of the images of {pairs} in readable form.")
    truth = [row["label"] for row in made.rows]
    metrics = {
        "itm_auc": area_under_curve([row["itm"] for row in made.rows], truth),
        "itc_auc": area_under_curve([row["itc"] for row in made.rows], truth),
        "itm_accuracy": sum(row["right"] for row in made.rows) / len(made.rows),
        "pairs": len(made.rows),
        **made.counts(),
    }
    return Results("matching", Path(pairs).stem, metrics, made.rows)


def _read_pairs(path: Path) -> tuple[dict[str, list[str]], dict[str, list[bool]]]:
    """The texts and labels of each image."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text.") from None
    texts: dict[str, list[str]] = defaultdict(list)
    labels: dict[str, list[bool]] = defaultdict(list)
    for number, line in enumerate(lines[1:], start=2):
        image, *rest = line.split("\t")
        if len(rest) != 2 or rest[1] not in ("match", "no-match"):
            raise UserError(f"{path}, line {number} must be: image, caption, match or no-match, separated by tabs.")
        texts[image].append(rest[0])
        labels[image].append(rest[1] == "match")
    if not texts:
        raise UserError(f"{path} contains no pairs.")
    return texts, labels
