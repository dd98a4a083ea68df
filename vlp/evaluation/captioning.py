"""Captioning: how good a model's captions are."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from vlp.config import DecodingConfig
from vlp.data.bad_samples import BadSamples
from vlp.data.loader import evaluation_batches
from vlp.errors import UserError
from vlp.evaluation.metrics import captioning_scores
from vlp.log import ReportProgress, no_progress
from vlp.model import Model
from vlp.models.cpu.linear import constant_weights

log = logging.getLogger("vlp")


@dataclass
class Captioned:
    """A made caption beside the captions of its image."""

    key: str
    caption: str
    references: list[str]
    info: dict = field(default_factory=dict)


CaptionScorer = Callable[[list[Captioned]], dict[str, float]]


@constant_weights()
def evaluate_captioning(
    model: Model,
    shards: str | list[str],
    decoding: DecodingConfig | None = None,
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 0,
    progress: ReportProgress = no_progress,
    scorers: Sequence[CaptionScorer] = (),
) -> dict[str, float]:
    """Caption every image and score the captions against the references.

    Args:
        decoding: None means beam search with 3 beams.
        scorers: further measures, each given all captions.

    Returns:
        `CIDEr` and `BLEU-4` where `pycocoevalcap` is installed, what `scorers` return, and `images`.
    """
    made = list(caption_shards(model, shards, decoding, batch_size, limit, seed, workers, progress))
    return {**score_captions(made, scorers), "images": len(made)}


def caption_shards(
    model: Model,
    shards: str | list[str],
    decoding: DecodingConfig | None = None,
    batch_size: int = 32,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 0,
    progress: ReportProgress = no_progress,
) -> Iterator[Captioned]:
    """A caption for every image of shards, with the image's own captions; images without a caption are left out.

    Arguments as in `evaluate_captioning`.
    """
    decoding = decoding or DecodingConfig(beams=3, repetition_penalty=1.0)
    bad = BadSamples(max_share=1.0)
    batches = evaluation_batches(shards, model.image_size, batch_size, workers, limit=limit, bad=bad, need_text=True)
    for batch in batches:
        texts = model.caption_tokens(model.encode_images(batch.images), decoding, batch.keys, seed)
        for key, (made,), references, info in zip(batch.keys, texts, batch.captions, batch.infos, strict=True):
            yield Captioned(key, made.text, references, info)
        progress("caption", len(texts))


def score_captions(made: list[Captioned], scorers: Sequence[CaptionScorer] = ()) -> dict[str, float]:
    """The scores of `evaluate_captioning` for existing captions."""
    results = {name: value for scorer in scorers for name, value in scorer(made).items()}
    try:
        results |= captioning_scores([one.caption for one in made], [one.references for one in made])
    except UserError as error:  # the other scores do not need it
        log.warning("CIDEr and BLEU-4 are left out. %s", error)
    return results
