"""Matching scores of a model on scenes, against the truth: flipped relations, and wrong web texts."""

import random
from collections.abc import Callable

import numpy as np
import torch

from vlp.data.batch import EvaluationBatch
from vlp.demo.scene_captions import INVERSE, describe
from vlp.errors import UserError
from vlp.evaluation.metrics import area_under_curve
from vlp.evaluation.predict import predict
from vlp.evaluation.settings import DEFAULT_SETTINGS, EvaluationSettings
from vlp.model import Model
from vlp.models.constant_weights import constant_weights

KEPT = 0.92  # share of the right web texts that a threshold keeps, for `web_wrong_dropped`
LabelTexts = Callable[[str, dict, list[str]], list[tuple[str, bool]]]  # of a scene: key, truth, captions


def flipped_relation_auc(
    model: Model, shards: str | list[str], settings: EvaluationSettings = DEFAULT_SETTINGS
) -> dict[str, float]:
    """Compare the scores of correct captions with those of the same captions whose relation is inverted.

    Scenes with one object are left out. 0.5 is chance.

    Returns:
        `relation_itm_auc` and `relation_itc_auc`, the areas under the ROC curves of the ITM probability and the cosine.

    Raises:
        UserError: no scene has two objects.
    """

    def texts(key: str, truth: dict, _captions: list[str]) -> list[tuple[str, bool]]:
        relation = truth["relation"]
        if relation is None:
            return []
        both = (relation, True), (INVERSE[relation], False)
        # With one seed the texts are equal but for the relation.
        return [(describe(truth["objects"], one, random.Random(key)), right) for one, right in both]

    rows = _match(model, shards, texts, settings)
    right = [row["right"] for row in rows]
    return {f"relation_{name}_auc": area_under_curve([row[name] for row in rows], right) for name in ("itm", "itc")}


def web_text_scores(
    model: Model, shards: str | list[str], settings: EvaluationSettings = DEFAULT_SETTINGS
) -> dict[str, float]:
    """How well ITM tells the right from the wrong texts of web scenes.

    Returns:
        `web_itm_auc`; `web_wrong_dropped`, the share of wrong texts below the threshold that keeps 92% of the right
        ones.

    Raises:
        UserError: there is no text of either kind.
    """
    rows = _match(
        model, shards, lambda _, truth, captions: [(text, truth["text_right"]) for text in captions], settings
    )
    right, wrong = ([row["itm"] for row in rows if row["right"] == kind] for kind in (True, False))
    if not right or not wrong:
        raise UserError("Web texts need right and wrong ones; these shards contain one kind only.")
    return {
        "web_itm_auc": area_under_curve([*right, *wrong], [True] * len(right) + [False] * len(wrong)),
        "web_wrong_dropped": wrong_dropped(right, wrong),
    }


def wrong_dropped(right: list[float], wrong: list[float]) -> float:
    """The share of the wrong texts' scores below the threshold that keeps 92% of the right ones'; nan without texts."""
    if not right or not wrong:
        return float("nan")
    threshold = np.quantile(right, 1 - KEPT, method="lower")
    return float(np.mean(np.asarray(wrong) < threshold))


@constant_weights()
def _match(model: Model, shards: str | list[str], label: LabelTexts, settings: EvaluationSettings) -> list[dict]:
    """The scores of labeled texts with their scenes: {"key", "right", "itm", "itc"} for each text."""

    def score(batch: EvaluationBatch) -> list[dict]:
        rows, texts, labels = [], [], []
        for row, (key, info) in enumerate(zip(batch.keys, batch.infos, strict=True)):
            for text, right in label(key, info["truth"], batch.captions[row]):
                rows.append(row)
                texts.append(text)
                labels.append(right)
        if not texts:
            return []
        match = model.match_tokens(model.encode_images(batch.images), texts, torch.tensor(rows))
        scores = zip(rows, labels, match.itm.tolist(), match.itc.tolist(), strict=True)
        return [{"key": batch.keys[row], "right": right, "itm": itm, "itc": itc} for row, right, itm, itc in scores]

    rows = predict(shards, model.image_size, settings, score, "match").rows
    if not rows:
        raise UserError("No scene of these shards has a text to compare; relations need scenes with two objects.")
    return rows
