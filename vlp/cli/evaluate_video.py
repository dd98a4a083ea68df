"""`vlp evaluate video-retrieval` and `video-qa`: videos as several frames, without training on videos."""

from typing import Annotated

import typer

from vlp.cli import decoding as options
from vlp.cli.evaluation_options import Dataset, Limit, Out, Workers, run_evaluation
from vlp.cli.options import Json, Precision

Videos = Annotated[str, typer.Option(help="Folder of the video files.")]
Frames = Annotated[int, typer.Option(min=1, help="Frames of a video, sampled uniformly.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Videos at once.")]


def video_retrieval(
    model: str,
    listed: Annotated[str, typer.Argument(metavar="LIST", help="JSON or JSON lines: clip_name or video, caption.")],
    videos: Videos,
    frames: Frames = 8,
    rerank: Annotated[
        int | None,
        typer.Option(min=0, help="Re-rank this many of the best by ITM; 0 disables; default: 128, for CLIP 0."),
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = 8,
    workers: Workers = 0,
    precision: Precision = "auto",
    dataset: Dataset = "",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """R@1/5/10 of videos. Example: vlp evaluate video-retrieval MODEL msrvtt_test.jsonl --videos msrvtt --workers 4"""
    given = locals()
    from vlp.data.video import find_av
    from vlp.evaluation.video_retrieval import evaluate_video_retrieval

    find_av()  # before the model is loaded
    run_evaluation(
        "video_retrieval",
        given,
        lambda loaded, settings: evaluate_video_retrieval(loaded, listed, videos, frames, rerank, settings),
        "videos",
    )


def video_qa(
    model: str,
    listed: Annotated[str, typer.Argument(metavar="LIST", help="JSON or JSON lines: video, question, answer.")],
    videos: Videos,
    frames: Frames = 16,
    answers: Annotated[str, typer.Option(help="JSON list of answers to rank; without it, generate.")] = "",
    k: Annotated[int, typer.Option(min=1, help="Answers of the list whose whole likelihood is computed.")] = 128,
    beams: options.Beams = None,
    min_length: options.MinLength = None,
    max_length: options.MaxLength = None,
    limit: Limit = None,
    batch_size: BatchSize = 4,
    workers: Workers = 0,
    precision: Precision = "auto",
    dataset: Dataset = "",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Right answers about videos. Example: vlp evaluate video-qa VQA-MODEL msvd_qa_test.json --videos msvd"""
    given = locals()
    from vlp.data.questions import read_answer_list
    from vlp.data.video import find_av
    from vlp.evaluation.results import Results
    from vlp.evaluation.settings import EvaluationSettings
    from vlp.evaluation.video_qa import evaluate_video_qa
    from vlp.generation.settings import named_overrides, resolve_decoding
    from vlp.model import Model

    find_av()  # before the model is loaded
    changes = {"beams": beams, "min_length": min_length, "max_length": max_length}
    ranked = read_answer_list(answers) if answers else None

    def evaluate(loaded: Model, settings: EvaluationSettings) -> Results:
        decoding = resolve_decoding(loaded.decoding, named_overrides(changes))
        return evaluate_video_qa(loaded, listed, videos, frames, ranked, k, decoding, settings)

    run_evaluation("video_qa", given, evaluate, "videos")
