"""Whether a model reads relations: AUC of true captions of scenes against the same captions with a flipped relation."""

import random

import torch

from vlp.data.batch import EvaluationBatch
from vlp.demo.scene_captions import INVERSE, describe
from vlp.errors import UserError
from vlp.evaluation.metrics import area_under_curve
from vlp.evaluation.predict import predict
from vlp.evaluation.settings import DEFAULT_SETTINGS, EvaluationSettings
from vlp.model import Model
from vlp.models.cpu.linear import constant_weights


@constant_weights()
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

    def score(batch: EvaluationBatch) -> list[dict]:
        rows, texts = [], []
        for row, (key, info) in enumerate(zip(batch.keys, batch.infos, strict=True)):
            truth = info["truth"]
            if truth["relation"] is None:
                continue
            for relation in (truth["relation"], INVERSE[truth["relation"]]):
                rows.append(row)
                texts.append(describe(truth["objects"], relation, random.Random(key)))  # equal but for the relation
        if not texts:
            return []
        match = model.match_tokens(model.encode_images(batch.images), texts, torch.tensor(rows))
        return [
            {"key": batch.keys[row], "right": number % 2 == 0, "itm": itm, "itc": itc}
            for number, (row, itm, itc) in enumerate(zip(rows, match.itm.tolist(), match.itc.tolist(), strict=True))
        ]

    rows = predict(shards, model.image_size, settings, score, "relations").rows
    if not rows:
        raise UserError("Relations need scenes with two objects; these shards contain none.")
    right = [row["right"] for row in rows]
    return {f"relation_{name}_auc": area_under_curve([row[name] for row in rows], right) for name in ("itm", "itc")}
