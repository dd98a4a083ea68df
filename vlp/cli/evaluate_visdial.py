"""`vlp evaluate visdial`: ranked answers in dialogs."""

from typing import Annotated

import typer

from vlp.cli.evaluation_options import BatchSize, Dataset, Limit, Out, Workers, run_evaluation
from vlp.cli.options import Json, Precision


def visdial(
    model: str,
    shards: list[str],
    submission: Annotated[
        str | None, typer.Option(help="Also write the ranks to this JSON file, as EvalAI takes them.")
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = 8,
    workers: Workers = 0,
    precision: Precision = "auto",
    dataset: Dataset = "",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """MRR, R@1/5/10, mean rank and NDCG of the answer options of VisDial.

    The model must have been finetuned on dialogs (configs/visdial.yaml). NDCG needs dense annotations.

    Example: vlp evaluate visdial MODEL 'data/visdial-val/*.tar' --out visdial.json --submission ranks.json
    """
    given = locals()
    from vlp.data.dialogs import NO_DIALOG
    from vlp.distributed import is_main
    from vlp.evaluation.results import Results, check_complete
    from vlp.evaluation.settings import EvaluationSettings
    from vlp.evaluation.visdial import NO_OPTIONS, evaluate_visdial, submission_rows
    from vlp.files import write_json
    from vlp.model import Model

    def evaluate(loaded: Model, settings: EvaluationSettings) -> Results:
        results = evaluate_visdial(loaded, shards, settings)
        if submission and is_main():
            check_complete(submission, results, (NO_DIALOG, NO_OPTIONS))
            write_json(submission, submission_rows(results.predictions))
        return results

    run_evaluation("visdial", given, evaluate)
