"""`vlp evaluate`: score a model on data."""

from typing import Annotated

import typer

from vlp.cli import decoding as options
from vlp.cli.decoding import decoding_settings
from vlp.cli.options import Json, Out, Precision, save_results

evaluate_app = typer.Typer(no_args_is_help=True, help="Score a model on shards or labeled pairs.")

Rerank = Annotated[int, typer.Option(min=0, help="Re-rank this many of the best candidates by ITM; 0 disables.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use at most this many images.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at once.")]
Workers = Annotated[
    int, typer.Option(min=0, max=1024, help="Processes that decode images; 0 decodes in the main process.")
]


@evaluate_app.command("retrieval")
def evaluate_retrieval(
    model: str,
    shards: list[str],
    rerank: Rerank = 16,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    precision: Precision = "auto",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """R@1/5/10 in both directions. Example: vlp evaluate retrieval MODEL 'data/val/*.tar' --rerank 16"""
    from vlp.evaluation.retrieval import evaluate_retrieval as run
    from vlp.log import Progress
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

    with Progress("items", quiet=as_json) as progress:
        loaded = optimise_for_cpu(load_model(model, precision=precision))
        results = run(loaded, shards, rerank, batch_size, limit, workers, progress.add)
    save_results(results, out, as_json)


@evaluate_app.command("captioning")
def evaluate_captioning(
    model: str,
    shards: list[str],
    prompt: options.Prompt = None,
    beams: options.Beams = None,
    min_length: options.MinLength = None,
    max_length: options.MaxLength = None,
    repetition_penalty: options.RepetitionPenalty = None,
    length_penalty: options.LengthPenalty = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    temperature: options.Temperature = None,
    no_repeat_ngram: options.NoRepeatNgram = None,
    banned_words: options.BannedWords = None,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling.")] = 0,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    precision: Precision = "auto",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """CIDEr and BLEU-4 of the model's captions. Example: vlp evaluate captioning MODEL 'data/val/*.tar' --beams 5"""
    settings = decoding_settings(locals())
    from vlp.evaluation.captioning import evaluate_captioning as run
    from vlp.generation.settings import named_overrides, resolve_decoding
    from vlp.log import Progress
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

    with Progress("images", quiet=as_json) as progress:
        loaded = optimise_for_cpu(load_model(model, precision=precision))
        decoding = resolve_decoding(loaded.decoding, named_overrides(settings))
        results = run(loaded, shards, decoding, batch_size, limit, seed, workers, progress.add)
    save_results(results, out, as_json)


@evaluate_app.command("matching")
def evaluate_matching(
    model: str,
    pairs: Annotated[str, typer.Argument(help="Tab-separated, with a header: image, caption, match or no-match.")],
    images: Annotated[str, typer.Option(help="Folder of the images.")],
    batch_size: BatchSize = 32,
    precision: Precision = "auto",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """AUC of ITM and ITC on labeled pairs. Example: vlp evaluate matching MODEL pairs.tsv --images photos"""
    from vlp.evaluation.matching import evaluate_matching as run
    from vlp.log import Progress
    from vlp.model import load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

    with Progress("pairs", quiet=as_json) as progress:
        loaded = optimise_for_cpu(load_model(model, precision=precision))
        results = run(loaded, images, pairs, batch_size, progress.add)
    save_results(results, out, as_json)
