"""Questions about videos, zero-shot: the share of right answers of a model finetuned for VQA on images."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlp.config import DecodingConfig
from vlp.data.video_batch import VideoBatch
from vlp.data.video_lists import Question, read_video_questions
from vlp.evaluation.predict import Row
from vlp.evaluation.results import Results, skipped_metrics
from vlp.evaluation.settings import DEFAULT_SETTINGS, EvaluationSettings
from vlp.evaluation.video_retrieval import naming, predict_videos
from vlp.evaluation.vqa_accuracy import normalize
from vlp.model import Model
from vlp.model.answer_ranking import AnswerList, rank_memory
from vlp.model.answers import answer_memory, question_memory
from vlp.model.video import QUESTION_FRAMES, encode_videos
from vlp.models.constant_weights import constant_weights
from vlp.models.finetuned import require

QUESTIONS_AT_ONCE = 128  # about one video


@constant_weights()
def evaluate_video_qa(
    model: Model,
    listed: str,
    folder: str,
    frames: int = QUESTION_FRAMES,
    answers: list[str] | None = None,
    k: int = 128,
    decoding: DecodingConfig | None = None,
    settings: EvaluationSettings = DEFAULT_SETTINGS,
) -> Results:
    """Answer the questions about videos; an answer is right if it equals the true one after VQA's normalization.

    Args:
        listed: the list of videos with questions, and
        folder: the folder of the files; see `read_video_questions`.
        frames: of each video; their tokens are one memory.
        answers, k, decoding: as in `evaluate_vqa`.
        settings: `batch_size` counts videos.

    Returns:
        `accuracy`, `questions`, `videos`, and `skipped`: rows of the list and questions about unreadable videos.

    Raises:
        UserError: the model was not finetuned for VQA, the list or the folder cannot be used, or no video can be read.
    """
    require(model.config, "vqa", "answer questions")
    videos, skipped_rows = read_video_questions(listed, folder)
    name = naming(listed)
    settings = replace(settings, about={**settings.about, "list of answers": answers})
    ranked = AnswerList(model, answers) if answers is not None else None

    def make(batch: VideoBatch) -> list[Row]:
        name(batch)
        rows: list[Row] = [{"skipped": reason} for video, reason in batch.skipped for _ in video.questions]
        tokens = encode_videos(model, batch.frames) if batch.videos else []
        for video, own in zip(batch.videos, tokens, strict=True):
            for first in range(0, len(video.questions), QUESTIONS_AT_ONCE):
                asked = video.questions[first : first + QUESTIONS_AT_ONCE]
                # One video at a time: the memory of 16 frames is too large to hold a copy for each question.
                memory = question_memory(model, own[None], [question.text for question in asked])
                if ranked:
                    found = [best[0].text for best in rank_memory(model, memory, ranked, k)]
                else:
                    names = [str(question.number) for question in asked]
                    found = answer_memory(model, memory, decoding or model.decoding, names)
                rows += [_row(video.name, question, one) for question, one in zip(asked, found, strict=True)]
        return rows

    made = predict_videos(videos, listed, frames, model.image_size, settings, make, "questions")
    metrics: dict[str, Any] = {
        "accuracy": sum(row["right"] for row in made.rows) / len(made.rows),
        "questions": len(made.rows),
        "videos": len({row["key"] for row in made.rows}),
    }
    counts = skipped_metrics(Counter(made.skipped) + skipped_rows)
    return Results("video_qa", Path(listed).stem, metrics | counts, made.rows)


def _row(video: str, question: Question, answer: str) -> Row:
    """A prediction; `truth` is the answer in the list."""
    return {
        "key": video,
        "question_id": question.number,
        "question": question.text,
        "answer": answer,
        "truth": question.answer,
        "right": normalize(answer) == normalize(question.answer),
    }
