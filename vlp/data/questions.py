"""The questions about an image, as the JSON of a sample has them."""

import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from vlp.data.bad_samples import BadSampleError
from vlp.data.shards import iterate_samples
from vlp.errors import UserError
from vlp.files import read_text

log = logging.getLogger("vlp")

NO_ANSWERED_QUESTION = "no question with an answer"  # the reason of a filtered sample
BAD_QUESTIONS = "bad questions"  # the reason of a sample whose JSON has them in another form


@dataclass
class Question:
    """A question about an image.

    Attributes:
        number: its id in the data set.
        answers: one of each annotator, "" of one who gave none; empty in a test split.
        question_type, answer_type: of VQA, such as "what color is the" and "other"; "" where unknown.
        weight: of the question in training; BLIP gives those of Visual Genome 0.2.
    """

    text: str
    number: int | str
    answers: list[str] = field(default_factory=list)
    question_type: str = ""
    answer_type: str = ""
    weight: float = 1.0

    def shares(self) -> dict[str, float]:
        """Each distinct answer with its share of the annotators who gave one."""
        given = [answer for answer in self.answers if answer]
        return {answer: count / len(given) for answer, count in Counter(given).items()}


def read_questions(info: dict) -> list[Question]:
    """The questions in the JSON of a sample; [] where it has none.

    Raises:
        BadSampleError: they have another form.
    """
    rows = info.get("questions", [])
    if not isinstance(rows, list):
        raise BadSampleError(BAD_QUESTIONS)
    return [_read(row) for row in rows]


def read_answer_list(path: str) -> list[str]:
    """A JSON list of answers, such as BLIP's answer_list.json or one of `vlp data answers`.

    Raises:
        UserError: it is something else, or empty.
    """
    try:
        answers = json.loads(read_text(path, "list of answers"))
    except ValueError:
        answers = None
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"{path} is not a JSON list of answers; `vlp data answers` makes one.")
    return answers


def frequent_answers(shards: str | list[str], least: int) -> list[str]:
    """The answers that annotators gave most often to the questions of shards, the most frequent first.

    Args:
        least: how often an answer must occur to be listed.

    Raises:
        UserError: no answer occurs so often, the shards hold no questions with answers, or no shard matches.
    """
    counts: Counter[str] = Counter()
    any_asked = False
    for sample in iterate_samples(shards):
        try:
            questions = read_questions(sample.info)
        except BadSampleError as error:
            log.warning("%s %s: %s", sample.shard, sample.key, error.reason)
            continue
        any_asked = any_asked or bool(questions)
        counts.update(answer for question in questions for answer in question.answers if answer)
    if not any_asked:
        raise UserError("The shards hold no questions; name shards of `vlp data import vqa`.")
    if not counts:
        raise UserError("The questions of the shards have no answers; name shards of a training split.")
    found = [answer for answer, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])) if count >= least]
    if not found:
        raise UserError(
            f"No answer occurs {least} times in the {len(counts)} different ones of the shards; lower --min-count."
        )
    return found


def _read(row: Any) -> Question:
    if not isinstance(row, dict) or not isinstance(row.get("question"), str):
        raise BadSampleError(BAD_QUESTIONS)
    number, answers, weight = row.get("question_id"), row.get("answers") or [], row.get("weight", 1.0)
    if not isinstance(number, (int, str)) or not isinstance(weight, (int, float)):
        raise BadSampleError(BAD_QUESTIONS)
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise BadSampleError(BAD_QUESTIONS)
    answers = [answer.strip() for answer in answers]
    answers = answers if any(answers) else []
    kind, answer_type = (str(row.get(name) or "") for name in ("question_type", "answer_type"))
    return Question(row["question"], number, answers, kind, answer_type, float(weight))
