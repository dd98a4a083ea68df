"""`vlp evaluate captioning`: the model's captions against the reference captions."""

from typing import Annotated

import typer

from vlp.cli import decoding as options
from vlp.cli.decoding import decoding_settings
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
    limit: Limit = None,
    batch_size: BatchSize = 32,
    workers: Workers = 0,
    precision: Precision = "auto",
    dataset: Dataset = "",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """CIDEr and BLEU-4 of the model's captions. Example: vlp evaluate captioning MODEL 'data/val/*.tar' --beams 5"""
    given = locals()
    from vlp.evaluation.captioning import evaluate_captioning
    from vlp.evaluation.results import Results
    from vlp.evaluation.settings import EvaluationSettings
    from vlp.generation.settings import named_overrides, resolve_decoding
    from vlp.model import Model

    def evaluate(loaded: Model, settings: EvaluationSettings) -> Results:
        decoding = resolve_decoding(loaded.decoding, named_overrides(decoding_settings(given)))
        return evaluate_captioning(loaded, shards, decoding, seed, settings=settings)

    run_evaluation("captioning", given, evaluate)
