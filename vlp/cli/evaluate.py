"""`vlp evaluate`: score a model on data."""

from typing import Annotated

import typer

from vlp.cli.options import Json, Out, save_results
from vlp.config import DecodingConfig

evaluate_app = typer.Typer(no_args_is_help=True, help="Score a model on shards.")


@evaluate_app.command("retrieval")
def evaluate_retrieval(
    model: str, shards: list[str], rerank: int = 16, limit: int | None = None, out: Out = None, as_json: Json = False
) -> None:
    """R@1/5/10 both ways. Example: vlp evaluate retrieval MODEL 'data/val/*.tar' --rerank 16"""
    from vlp.evaluation.retrieval import evaluate_retrieval as run
    from vlp.log import Progress
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

    with Progress("items", quiet=as_json) as progress:
        results = run(optimise_for_cpu(load_model(model)), shards, rerank=rerank, limit=limit, progress=progress.add)
    save_results(results, out, as_json)


@evaluate_app.command("captioning")
def evaluate_captioning(
    model: str, shards: list[str], beams: int = 3, limit: int | None = None, out: Out = None, as_json: Json = False
) -> None:
    """CIDEr, BLEU, and on scenes the share of exact captions. Example: vlp evaluate captioning MODEL 'val/*.tar'"""
    from vlp.evaluation.captioning import evaluate_captioning as run
    from vlp.log import Progress
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

    with Progress("images", quiet=as_json) as progress:
        decoding = DecodingConfig(beams=beams)
        results = run(optimise_for_cpu(load_model(model)), shards, decoding, limit=limit, progress=progress.add)
    save_results(results, out, as_json)


@evaluate_app.command("matching")
def evaluate_matching(
    model: str,
    pairs: Annotated[str, typer.Argument(help="Tab-separated: image, caption, match or no-match.")],
    images: Annotated[str, typer.Option(help="Folder of the images.")],
    out: Out = None,
    as_json: Json = False,
) -> None:
    """AUC of ITM and ITC on labelled pairs. Example: vlp evaluate matching MODEL pairs.tsv --images photos"""
    from vlp.evaluation.matching import evaluate_matching as run
    from vlp.log import Progress
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

    with Progress("pairs", quiet=as_json) as progress:
        results = run(optimise_for_cpu(load_model(model)), images, pairs, progress=progress.add)
    save_results(results, out, as_json)
