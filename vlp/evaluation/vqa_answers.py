"""Answers to the questions of shards: their scores, results files of other models, and the file for VQA's server."""

import json
from collections import Counter, defaultdict
from operator import itemgetter
from typing import Any

from vlp.data.bad_samples import BadSampleError, BadSamples
from vlp.data.questions import Question, read_questions
from vlp.data.shards import iterate_samples
from vlp.errors import UserError
from vlp.evaluation.distinct import distinct, named_ids
from vlp.evaluation.results import Results, check_complete, dataset_name, skipped_metrics
from vlp.evaluation.vqa_accuracy import accuracy
from vlp.files import read_text, write_text

NO_QUESTION = "no question"
QUESTION_ID = "question_id", itemgetter("question_id")  # what tells questions apart


def question_row(key: str, question: Question, answer: str) -> dict[str, Any]:
    """The prediction of a question, with the accuracy of the answer as `score`; see `_scored`."""
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
        WorkError: a question would be missing or occurs twice, because samples were skipped.
    """
    check_complete(path, results, (NO_QUESTION,))
    rows = [{"question_id": row["question_id"], "answer": row["answer"]} for row in results.predictions]
    write_text(path, json.dumps(rows) + "\n")


def score_answers(path: str, shards: str | list[str]) -> Results:
    """The metrics and predictions of a results file, such as `write_submission` writes.

    Args:
        shards: the questions, with the annotators' answers.

    Raises:
        UserError: the file is unreadable or has two answers to a question, or its questions are not those of the
            shards, as if it was of another split.
    """
    answers = _read_answers(path)
    bad, rows, skipped = BadSamples(max_share=1.0), [], Counter()
    for sample in iterate_samples(shards, bad):
        try:
            questions = read_questions(sample.info)
        except BadSampleError as error:
            skipped[error.reason] += 1
            continue
        skipped[NO_QUESTION] += not questions
        rows += [question_row(sample.key, one, answers.get(one.number, "")) for one in questions]
    rows, duplicates = distinct(rows, *QUESTION_ID)
    _check_same(path, {row["question_id"] for row in rows}, set(answers))
    counts = skipped_metrics(skipped + duplicates + Counter(bad.counts))
    return Results("vqa", dataset_name(shards), {**vqa_metrics(rows), **counts}, rows)


def _read_answers(path: str) -> dict[int | str, str]:
    """The answers of a results file by question id; raises UserError."""
    try:
        given = json.loads(read_text(path, "results file"))
        answers = {row["question_id"]: str(row["answer"]) for row in given}
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path} is not a list of question_id and answer.") from None
    if len(answers) < len(given):
        counts = Counter(row["question_id"] for row in given)
        raise UserError(f"{path} has several answers to {_named([one for one in counts if counts[one] > 1])}.")
    return answers


def _check_same(path: str, asked: set[int | str], answered: set[int | str]) -> None:
    """Raise a UserError where a results file has other questions than the shards."""
    problems = []
    if asked - answered:
        problems.append(f"it lacks {_named(sorted(asked - answered, key=str))}")
    if answered - asked:
        problems.append(f"it answers {_named(sorted(answered - asked, key=str))}, which the shards do not have")
    if problems:
        raise UserError(f"{path} belongs to another split or set of questions: {' and '.join(problems)}.")


def _scored(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the accuracy of its answer as `score`; None where it has no annotators.

    `right` tells whether the answer is right, unless it is partly right.
    """
    score = accuracy(row["answer"], row["answers"]) if row["answers"] else None
    return {**row, "score": score, **({"right": score == 1} if score in (0, 1) else {})}


def _named(numbers: list[Any]) -> str:
    """Question ids for a sentence."""
    return named_ids(numbers, "questions" if len(numbers) > 1 else "question", "question_id")
