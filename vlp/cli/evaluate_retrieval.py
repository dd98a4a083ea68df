"""`vlp evaluate retrieval`: recall of texts by images and of images by texts."""

from typing import Annotated

import typer

from vlp.cli.evaluation_options import BatchSize, Dataset, Limit, Out, Workers, run_evaluation
from vlp.cli.options import Json, Precision

Rerank = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Re-rank this many of the best candidates by ITM, or all where there are fewer; 0 disables. BLIP's paper "
        "uses 256 for COCO and 128 for Flickr30k. Default: 256, or 0 for a CLIP model.",
    ),
]


def retrieval(
    model: str,
    shards: list[str],
    rerank: Rerank = None,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    precision: Precision = "auto",
    dataset: Dataset = "",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """R@1/5/10, mean and median rank in both directions, by ITC and after re-ranking by ITM.

    Example: vlp evaluate retrieval MODEL 'flickr30k/test/*.tar' --rerank 128
    """
    given = locals()
    from vlp.evaluation.retrieval import evaluate_retrieval

    run_evaluation(
        "retrieval",
        given,
        lambda loaded, settings: evaluate_retrieval(loaded, shards, rerank, settings),
        unit="items",  # images and texts
    )
