"""VQA: answers to the questions in shards, by generation or by ranking a list, scored by the official accuracy."""

import json
import logging
from collections import Counter, defaultdict
from typing import Any

import torch

from vlp.config import DecodingConfig
from vlp.data.bad_samples import BadSampleError
from vlp.data.batch import EvaluationBatch
from vlp.data.questions import Question, read_questions
from vlp.errors import UserError, WorkError
from vlp.evaluation.predict import predict
from vlp.evaluation.results import Results, dataset_name, skipped_metrics
from vlp.evaluation.settings import DEFAULT_SETTINGS, EvaluationSettings
from vlp.evaluation.vqa_accuracy import accuracy
from vlp.files import read_text, write_text
from vlp.model import Model
from vlp.model.answer_ranking import AnswerList, rank_memory
from vlp.model.answers import answer_memory, question_memory
from vlp.models.finetuned import require

QUESTIONS_AT_ONCE = 128
NO_QUESTION = "no question"
DUPLICATE = "duplicate question_id"
NAMED = 5  # questions of each kind of problem that an error names

log = logging.getLogger("vlp")


def evaluate_vqa(
    model: Model,
    shards: str | list[str],
    answers: list[str] | None = None,
    k: int = 128,
    decoding: DecodingConfig | None = None,
    settings: EvaluationSettings = DEFAULT_SETTINGS,
) -> Results:
    """Answer all questions of shards.

    Args:
        answers: rank this list, of which the first token's probability chooses `k` answers; None generates.
        decoding: of generation; None: the model's own settings.

    Returns:
        The metrics of `vqa_metrics`, and a row for each question: its id, text, answer, annotators and `score`.

    Raises:
        UserError: the model was not finetuned for VQA, or no shard matches.
    """
    require(model.config, "vqa", "answer questions")
    listed = AnswerList(model, answers) if answers is not None else None

    def make(batch: EvaluationBatch) -> list[dict[str, Any]]:
        asked: list[tuple[int, Question]] = []  # image, question
        rows: list[dict[str, Any]] = []
        for number, (key, info) in enumerate(zip(batch.keys, batch.infos, strict=True)):
            try:
                questions = read_questions(info)
            except BadSampleError as error:
                rows.append({"key": key, "skipped": error.reason})
                continue
            asked += [(number, question) for question in questions]
            if not questions:
                rows.append({"key": key, "skipped": NO_QUESTION})
        tokens = model.encode_images(batch.images)
        for first in range(0, len(asked), QUESTIONS_AT_ONCE):
            here = asked[first : first + QUESTIONS_AT_ONCE]
            index = torch.tensor([number for number, _ in here], device=model.device)
            memory = question_memory(model, tokens, [question.text for _, question in here], index)
            if listed:
                found = [ranked[0].text for ranked in rank_memory(model, memory, listed, k)]
            else:
                names = [str(question.number) for _, question in here]
                found = answer_memory(model, memory, decoding or model.decoding, names)
            rows += [
                _row(batch.keys[number], question, answer)
                for (number, question), answer in zip(here, found, strict=True)
            ]
        return rows

    predictions = predict(shards, model.image_size, settings, make, "questions")
    rows, duplicates = _distinct(predictions.rows)
    skipped = Counter(predictions.skipped)
    if duplicates:
        skipped[DUPLICATE] = duplicates
    return Results("vqa", dataset_name(shards), {**vqa_metrics(rows), **skipped_metrics(skipped)}, rows)


def vqa_metrics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The accuracy over the questions with answers, and by answer type, 0 to 1; and over how many questions.

    Args:
        rows: as `evaluate_vqa` makes them.
    """
    scored = [row for row in rows if row.get("score") is not None]
    kinds: dict[str, list[float]] = defaultdict(list)
    for row in scored:
        kinds[row["answer_type"]].append(row["score"])
    metrics: dict[str, Any] = {}
    if scored:
        metrics["accuracy"] = sum(row["score"] for row in scored) / len(scored)
        metrics |= {f"accuracy_{kind}": sum(kinds[kind]) / len(kinds[kind]) for kind in sorted(kinds) if kind}
    metrics |= {"questions": len(rows), "without_answers": len(rows) - len(scored)}
    return metrics | {f"questions_{kind}": len(kinds[kind]) for kind in sorted(kinds) if kind}


def write_submission(path: str, results: Results) -> None:
    """Write what VQA's evaluation server takes: [{question_id, answer}], an answer for every question of the shards.

    Raises:
        WorkError: a sample was skipped, so that a question would be missing.
    """
    if results.metrics["skipped"]:
        reasons = {name: count for name, count in results.metrics.items() if name.startswith("skipped: ")}
        raise WorkError(
            f"{path} was not written, because some questions have no answer ({_counts(reasons)}); repair the shards "
            "first."
        )
    rows = [{"question_id": row["question_id"], "answer": row["answer"]} for row in results.predictions]
    write_text(path, json.dumps(rows) + "\n")


def score_submission(rows: list[dict[str, Any]], path: str) -> list[dict[str, Any]]:
    """The rows of questions with the answers and scores of a results file in place of the model's.

    Args:
        rows: as `evaluate_vqa` makes them.
        path: a file such as `write_submission` writes.

    Raises:
        UserError: the file is unreadable, has two answers to a question, or its questions are not those of the rows,
            as if it was of another split.
    """
    try:
        given = json.loads(read_text(path, "results file"))
        answers = {row["question_id"]: str(row["answer"]) for row in given}
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path} is not a list of question_id and answer.") from None
    if len(answers) < len(given):
        counts = Counter(row["question_id"] for row in given)
        twice = [number for number, count in counts.items() if count > 1]
        raise UserError(f"{path} has several answers to {_named(twice)}.")
    asked = {row["question_id"] for row in rows}
    problems = []
    if missing := [number for number in asked if number not in answers]:
        problems.append(f"it lacks {_named(missing)}")
    if unknown := [number for number in answers if number not in asked]:
        problems.append(f"it answers {_named(unknown)}, which the shards do not have")
    if problems:
        raise UserError(f"{path} belongs to another split or set of questions: {' and '.join(problems)}.")
    return [_scored({**row, "answer": answers[row["question_id"]]}) for row in rows]


def _row(key: str, question: Question, answer: str) -> dict[str, Any]:
    return _scored(
        {
            "key": key,
            "question_id": question.number,
            "question": question.text,
            "answer": answer,
            "answers": question.answers,
            "question_type": question.question_type,
            "answer_type": question.answer_type,
        }
    )


def _scored(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the accuracy of its answer as `score`; None where it has no annotators."""
    return {**row, "score": accuracy(row["answer"], row["answers"]) if row["answers"] else None}


def _distinct(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """The first row of each question id, and the number of the others, which are named in the log."""
    first: dict[Any, dict[str, Any]] = {}
    twice = []
    for row in rows:
        if first.setdefault(row["question_id"], row) is not row:
            twice.append(row["question_id"])
    if twice:
        log.warning("%s occur more than once; the first of each counts", _named(twice))
    return list(first.values()), len(twice)


def _named(numbers: list[Any]) -> str:
    """Question ids for a sentence: the first few and how many there are."""
    names = ", ".join(map(str, numbers[:NAMED]))
    more = f" and {len(numbers) - NAMED} more" if len(numbers) > NAMED else ""
    return f"{len(numbers)} question{'s' if len(numbers) > 1 else ''} (question_id {names}{more})"


def _counts(reasons: dict[str, int]) -> str:
    return ", ".join(f"{name.removeprefix('skipped: ')}: {count}" for name, count in reasons.items())
