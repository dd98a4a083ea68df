"""`vlp evaluate captioning`: the model's captions against the reference captions."""

from typing import Annotated

import typer

from vlp.cli import decoding as options
from vlp.cli.decoding import decoding_settings
from vlp.cli.evaluate_captions import Java
from vlp.cli.evaluation_options import BatchSize, Dataset, Limit, Out, Workers, run_evaluation
from vlp.cli.options import Json, Precision


def captioning(
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
    java: Java = False,
    submission: Annotated[
        str | None, typer.Option(help="Also write the captions to this JSON file in COCO's format for results.")
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    precision: Precision = "auto",
    dataset: Dataset = "",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """BLEU, ROUGE-L and CIDEr-D of the model's captions, for NoCaps also in each domain.

    Example: vlp evaluate captioning MODEL 'data/val/*.tar' --beams 3 --submission captions.json
    """
    given = {name: value for name, value in locals().items() if name != "java"}
    from vlp.distributed import is_main
    from vlp.evaluation.caption_files import caption_file_rows
    from vlp.evaluation.captioning import evaluate_captioning
    from vlp.evaluation.results import Results, check_complete
    from vlp.evaluation.settings import EvaluationSettings
    from vlp.files import write_json
    from vlp.generation.settings import named_overrides, resolve_decoding
    from vlp.model import Model

    def evaluate(loaded: Model, settings: EvaluationSettings) -> Results:
        decoding = resolve_decoding(loaded.decoding, named_overrides(decoding_settings(given)))
        results = evaluate_captioning(loaded, shards, decoding, seed, settings=settings, java=java)
        if submission and is_main():
            check_complete(submission, results)
            write_json(submission, caption_file_rows(results.predictions))
        return results

    run_evaluation("captioning", given, evaluate)
