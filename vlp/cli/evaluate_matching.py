"""`vlp evaluate matching`: how well a model separates matching from other image-text pairs."""

from typing import Annotated

import typer

from vlp.cli.evaluation_options import BatchSize, Dataset, Limit, Out, Workers, run_evaluation
from vlp.cli.options import Json, Precision


def matching(
    model: str,
    pairs: Annotated[str, typer.Argument(help="Tab-separated, with a header: image, caption, match or no-match.")],
    images: Annotated[str, typer.Option(help="Folder of the images.")],
    limit: Limit = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    precision: Precision = "auto",
    dataset: Dataset = "",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """AUC of ITM and ITC on labeled pairs. Example: vlp evaluate matching MODEL pairs.tsv --images photos"""
    given = locals()
    from vlp.evaluation.matching import evaluate_matching

    run_evaluation("matching", given, lambda loaded, settings: evaluate_matching(loaded, images, pairs, settings))
