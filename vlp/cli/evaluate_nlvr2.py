"""`vlp evaluate nlvr2`: whether sentences are true of pairs of images."""

from typing import Annotated

import typer

from vlp.cli.evaluation_options import BatchSize, Dataset, Limit, Out, Workers, run_evaluation
from vlp.cli.options import Json, Precision

Submission = Annotated[
    str, typer.Option(help="Also write a CSV of identifiers and predictions, as NLVR2's scorer reads it.")
]


def nlvr2(
    model: str,
    shards: list[str],
    submission: Submission = "",
    limit: Limit = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    precision: Precision = "auto",
    dataset: Dataset = "",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Accuracy and consistency on pairs of images. Example: vlp evaluate nlvr2 MODEL 'data/nlvr2/dev/*.tar'

    Splits without labels, such as the hidden test, are predicted only; --submission writes them for the scorer.
    """
    given = locals()
    from vlp.distributed import is_main
    from vlp.evaluation.nlvr2 import evaluate_nlvr2, save_submission
    from vlp.evaluation.results import Results, check_complete
    from vlp.evaluation.settings import EvaluationSettings
    from vlp.model import Model

    def evaluate(loaded: Model, settings: EvaluationSettings) -> Results:
        results = evaluate_nlvr2(loaded, shards, settings)
        if submission and is_main():
            check_complete(submission, results)
            save_submission(results.predictions, submission)
        return results

    run_evaluation("nlvr2", given, evaluate, unit="pairs")
