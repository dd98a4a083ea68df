"""VisDial: rank the answer options of every round, and score the ranking as the challenge does."""

from collections import Counter
from typing import Any

from vlp.data.bad_samples import BadSampleError, FilteredSampleError
from vlp.data.batch import EvaluationBatch
from vlp.data.dialogs import read_dialog
from vlp.errors import UserError
from vlp.evaluation.dialog_metrics import dialog_metrics, option_ranks, true_rank
from vlp.evaluation.distinct import distinct
from vlp.evaluation.predict import predict
from vlp.evaluation.results import Results, dataset_name, skipped_metrics
from vlp.evaluation.settings import DEFAULT_SETTINGS, EvaluationSettings
from vlp.model import Model
from vlp.model.dialog import score_options
from vlp.models.constant_weights import constant_weights
from vlp.models.finetuned import require

NO_OPTIONS = "no answer options"  # the reason of a skipped dialog


@constant_weights()
def evaluate_visdial(model: Model, shards: str | list[str], settings: EvaluationSettings = DEFAULT_SETTINGS) -> Results:
    """Rank the answer options of every round that has some.

    Returns:
        What `dialog_metrics` returns, and `images`. A prediction is a round: `scores` of its options, their `ranks`,
        the `best` one, and where the true one is known its `rank` (from 1) and whether it is `right`, the first.

    Raises:
        UserError: the model was not finetuned on dialogs, or the shards contain no options to rank.
    """
    require(model.config, "visdial", "rank the answers of dialogs")

    def rank(batch: EvaluationBatch) -> list[dict[str, Any]]:
        tokens = model.encode_images(batch.images)
        samples = zip(tokens.split(1), batch.keys, batch.infos, strict=True)
        return [row for one, key, info in samples for row in _rank_dialog(model, one, key, info)]

    made = predict(shards, model.image_size, settings, rank, "rank answers")
    if not made.rows:
        raise UserError("VisDial needs dialogs with answer options; these shards contain none.")
    rows, duplicates = distinct(made.rows, "image_id and round_id", _place)
    images = len({(row["key"], str(row["image_id"])) for row in rows})  # shards may share keys
    counts = skipped_metrics(Counter(made.skipped) + duplicates)
    return Results("visdial", dataset_name(shards), {**dialog_metrics(rows), "images": images, **counts}, rows)


def _place(row: dict[str, Any]) -> tuple[str, int] | None:
    """What tells a round from others; None where its image has no id."""
    return None if row["image_id"] is None else (str(row["image_id"]), row["round_id"])


def submission_rows(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The predictions as EvalAI takes them: [{image_id, round_id, ranks}], both counted from 1.

    Raises:
        UserError: a sample has no `image_id`, or two rounds of an image have the same number.
    """
    seen: set[tuple[Any, int]] = set()
    for row in predictions:
        place = (row["image_id"], row["round_id"])
        if row["image_id"] is None:
            raise UserError(f"The sample {row['key']} has no image_id; import VisDial with `vlp data import visdial`.")
        if place in seen:
            raise UserError(f"The image_id {place[0]} occurs twice; evaluate each dialog once.")
        seen.add(place)
    return [{name: row[name] for name in ("image_id", "round_id", "ranks")} for row in predictions]


def _rank_dialog(model: Model, image_tokens: Any, key: str, info: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each round with options, or one with the reason why there is none."""
    try:
        dialog = read_dialog(info)
    except (BadSampleError, FilteredSampleError) as error:
        return [{"key": key, "skipped": error.reason}]
    scores = score_options(model, image_tokens, dialog)
    rows = []
    for number, values in scores.items():
        one, ranks = dialog.rounds[number], option_ranks(values)
        row = {
            "key": key,
            "image_id": info.get("image_id"),
            "round_id": number + 1,
            "caption": dialog.caption,
            "history": [f"{before.question} {before.answer or ''}".strip() for before in dialog.rounds[:number]],
            "question": one.question,
            "best": one.options[ranks.index(1)],
            "answer": one.answer,
            "gt_index": one.right,
            "relevance": one.relevance,
            "ranks": ranks,
            "scores": values,
        }
        if one.right is not None:
            rank = true_rank(values, one.right)
            row |= {"rank": rank, "right": rank == 1}
        rows.append(row)
    return rows or [{"key": key, "skipped": NO_OPTIONS}]
