"""Captioning: score a model's captions of shards against the reference captions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vlp.caption_metrics.scores import caption_scores
from vlp.config import DecodingConfig
from vlp.data.bad_samples import BadSamples
from vlp.data.evaluation_loader import evaluation_batches
from vlp.errors import UserError
from vlp.log import ReportProgress, no_progress
from vlp.model import Model
from vlp.models.cpu.linear import constant_weights


@dataclass
class Captioned:
    """A generated caption, the reference captions of its image, and the metadata of its sample."""

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

    Images without a reference caption are left out and named in the log.

    Args:
        decoding: None means the model's own settings.
        limit: at most this many images.
        seed: of sampling; has no effect on greedy and beam search.
        workers: processes that decode images; 0 decodes in this process.
        scorers: further measures; each is called once with all captions.

    Returns:
        `caption_scores`, the results of `scorers`, and `images`.

    Raises:
        UserError: the shards contain no image with a caption, or a setting is out of range.
    """
    decoding = decoding or model.decoding
    captioned: list[Captioned] = []
    bad = BadSamples(max_share=1.0)
    batches = evaluation_batches(shards, model.image_size, batch_size, workers, limit=limit, bad=bad, need_text=True)
    for batch in batches:
        made = model.caption_tokens(model.encode_images(batch.images), decoding, batch.keys, seed)
        for key, captions, references, info in zip(batch.keys, made, batch.captions, batch.infos, strict=True):
            captioned.append(Captioned(key, captions[0].text, references, info))
        progress("caption", len(made))
    if not captioned:
        raise UserError("Captioning needs images with captions; these shards contain none.")
    return {**score_captions(captioned, scorers), "images": len(captioned)}


def score_captions(captioned: list[Captioned], scorers: Sequence[CaptionScorer] = ()) -> dict[str, float]:
    """The scores of `evaluate_captioning` for existing captions."""
    results = {name: value for scorer in scorers for name, value in scorer(captioned).items()}
    return results | caption_scores([one.caption for one in captioned], [one.references for one in captioned])
