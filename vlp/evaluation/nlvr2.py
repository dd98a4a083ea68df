"""NLVR2: whether sentences are true of pairs of images, scored by accuracy and consistency."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from vlp.data.bad_samples import BadSampleError
from vlp.data.batch import EvaluationBatch
from vlp.data.examples_nlvr2 import pair_sentence
from vlp.errors import UserError
from vlp.evaluation.distinct import distinct
from vlp.evaluation.predict import predict
from vlp.evaluation.results import Results, dataset_name, skipped_metrics
from vlp.evaluation.settings import EvaluationSettings
from vlp.files import write_text
from vlp.model import Model
from vlp.model.pairs import pair_probabilities
from vlp.models.finetuned import require

Row = dict[str, Any]
IDENTIFIER_PARTS = 4  # SPLIT-SET-PAIR-SENTENCE


def evaluate_nlvr2(model: Model, shards: str | list[str], settings: EvaluationSettings | None = None) -> Results:
    """Score a model that was finetuned for NLVR2 on shards of pairs.

    Each prediction has `key`, `sentence`, `probability` and `prediction` (bool), `identifier` where the sample has one,
    and `label` and `right` where it has a label. Metrics: see `pair_metrics`. Pairs without a second image or without
    a sentence, and those with the identifier of an earlier pair, are skipped and counted.

    Raises:
        UserError: the model was not finetuned for NLVR2, or the shards contain no usable pair.
    """
    require(model.config, "nlvr2", "be scored on NLVR2")

    def make(batch: EvaluationBatch) -> list[Row]:
        rows = [_facts(key, info) for key, info in zip(batch.keys, batch.infos, strict=True)]
        good = [number for number, row in enumerate(rows) if "skipped" not in row]
        if good:
            found = pair_probabilities(model, batch.images[good], [rows[number]["sentence"] for number in good])
            for number, probability in zip(good, found.tolist(), strict=True):
                rows[number] |= _prediction(probability, rows[number].get("label"))
        return rows

    settings = settings or EvaluationSettings()
    found = predict(shards, model.image_size, settings, make, "nlvr2", images_per_sample=2)
    if not found.rows:
        raise UserError("NLVR2 needs pairs of images with a sentence; these shards contain none.")
    rows, duplicates = distinct(found.rows, "identifier", lambda row: row.get("identifier"))
    counts = skipped_metrics(Counter(found.skipped) + duplicates)
    return Results("nlvr2", dataset_name(shards), pair_metrics(rows) | counts, rows)


def pair_metrics(rows: Sequence[Row]) -> dict[str, float | int]:
    """NLVR2's metrics, of the predictions that have a label.

    Returns:
        `accuracy`: the share of predictions that are right.
        `consistency`: the share of sentences whose predictions for all pairs are right (Suhr et al. 2019, section 5).
        `pairs`, `sentences`: over how many.
        `unlabeled`: the number of predictions without a label, where there are any.
        Without labels there are neither accuracy nor consistency.
    """
    labeled = [row for row in rows if "right" in row]
    sentences: dict[str, list[bool]] = defaultdict(list)
    for row in labeled:
        sentences[_sentence_of(row)].append(row["right"])
    metrics: dict[str, float | int] = {"pairs": len(labeled), "sentences": len(sentences)}
    if labeled:
        metrics["accuracy"] = sum(row["right"] for row in labeled) / len(labeled)
        metrics["consistency"] = sum(all(right) for right in sentences.values()) / len(sentences)
    if len(labeled) < len(rows):
        metrics["unlabeled"] = len(rows) - len(labeled)
    return metrics


def save_submission(predictions: Sequence[Row], path: str) -> None:
    """Write the lines `identifier,True` or `identifier,False` that NLVR2's scorer reads.

    A sample without an identifier, as in BLIP's files, is named by its key.

    Raises:
        UserError, WorkError: what `vlp.files.writing` raises.
    """
    write_text(path, "".join(f"{row.get('identifier') or row['key']},{row['prediction']}\n" for row in predictions))


def _facts(key: str, info: dict) -> Row:
    """What a prediction says of its sample."""
    try:
        row: Row = {"key": key, "sentence": pair_sentence(info)}
    except BadSampleError as error:
        return {"key": key, "skipped": error.reason}
    if isinstance(info.get("identifier"), str):
        row["identifier"] = info["identifier"]
    if isinstance(info.get("label"), bool):
        row["label"] = info["label"]
    return row


def _prediction(probability: float, label: bool | None) -> Row:
    made: Row = {"probability": probability, "prediction": probability > 0.5}
    return made if label is None else {**made, "right": made["prediction"] == label}


def _sentence_of(row: Row) -> str:
    """What the predictions for one sentence share: the identifier without its pair, or the sentence itself."""
    parts = row.get("identifier", "").split("-")
    if len(parts) == IDENTIFIER_PARTS:
        return "-".join([*parts[:2], parts[3]])
    return row["sentence"]
