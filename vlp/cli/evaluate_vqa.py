"""`vlp evaluate vqa`: the official accuracy of a model's answers to questions about images."""

from typing import Annotated

import typer

from vlp.cli import decoding as options
from vlp.cli.evaluation_options import BatchSize, Dataset, Limit, Out, Workers, run_evaluation
from vlp.cli.options import Json, Precision

Answers = Annotated[
    str, typer.Option(help="JSON list of answers to rank, such as BLIP's answer_list.json; without it, generate.")
]
Top = Annotated[int, typer.Option("--k", min=1, help="Answers of the list whose whole likelihood is computed.")]
Submission = Annotated[str, typer.Option(help="Also write this JSON file for VQA's evaluation server.")]


def vqa(
    model: str,
    shards: list[str],
    answers: Answers = "",
    k: Top = 128,
    beams: options.Beams = None,
    min_length: options.MinLength = None,
    max_length: options.MaxLength = None,
    submission: Submission = "",
    limit: Limit = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    precision: Precision = "auto",
    dataset: Dataset = "",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """VQA's accuracy, by answer type. Example: vlp evaluate vqa MODEL 'data/vqa-val/*.tar' --answers list.json"""
    given = locals()
    from vlp.data.questions import read_answer_list
    from vlp.distributed import is_main
    from vlp.evaluation.results import Results
    from vlp.evaluation.settings import EvaluationSettings
    from vlp.evaluation.vqa import evaluate_vqa
    from vlp.evaluation.vqa_answers import write_submission
    from vlp.generation.settings import named_overrides, resolve_decoding
    from vlp.model import Model

    changes = {"beams": beams, "min_length": min_length, "max_length": max_length}
    listed = read_answer_list(answers) if answers else None

    def evaluate(loaded: Model, settings: EvaluationSettings) -> Results:
        decoding = resolve_decoding(loaded.decoding, named_overrides(changes))
        results = evaluate_vqa(loaded, shards, listed, k, decoding, settings)
        if submission and is_main():
            write_submission(submission, results)
        return results

    run_evaluation("vqa", given, evaluate)
