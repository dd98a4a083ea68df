"""VQA: answers to the questions in shards, by generation or by ranking a list, scored by the official accuracy."""

from collections import Counter
from dataclasses import replace
from typing import Any

import torch

from vlp.config import DecodingConfig
from vlp.data.bad_samples import BadSampleError
from vlp.data.batch import EvaluationBatch
from vlp.data.questions import Question, read_questions
from vlp.errors import UserError
from vlp.evaluation.distinct import distinct
from vlp.evaluation.predict import predict
from vlp.evaluation.results import Results, dataset_name, skipped_metrics
from vlp.evaluation.settings import DEFAULT_SETTINGS, EvaluationSettings
from vlp.evaluation.vqa_answers import NO_QUESTION, QUESTION_ID, question_row, vqa_metrics
from vlp.model import Model
from vlp.model.answer_ranking import AnswerList, rank_memory
from vlp.model.answers import answer_memory, question_memory
from vlp.models.finetuned import require

QUESTIONS_AT_ONCE = 128


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
        The metrics of `vqa_metrics`, and a row for each question: its id, text, answer, annotators, `score`, `right`.

    Raises:
        UserError: the model was not finetuned for VQA, or the shards contain no question.
    """
    require(model.config, "vqa", "answer questions")
    settings = replace(settings, about={**settings.about, "list of answers": answers})
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
                question_row(batch.keys[number], question, answer)
                for (number, question), answer in zip(here, found, strict=True)
            ]
        return rows

    predictions = predict(shards, model.image_size, settings, make, "questions")
    if not predictions.rows:
        raise UserError("VQA needs images with questions; these shards contain none.")
    rows, duplicates = distinct(predictions.rows, *QUESTION_ID)
    skipped = Counter(predictions.skipped) + duplicates
    return Results("vqa", dataset_name(shards), {**vqa_metrics(rows), **skipped_metrics(skipped)}, rows)
