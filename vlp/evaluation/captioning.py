"""Captioning: score a model's captions of shards against the reference captions."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

from vlp.caption_metrics.scores import caption_scores
from vlp.config import DecodingConfig
from vlp.data.batch import EvaluationBatch
from vlp.errors import UserError
from vlp.evaluation.predict import predict
from vlp.evaluation.results import Results, dataset_name
from vlp.evaluation.settings import DEFAULT_SETTINGS, EvaluationSettings
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
    seed: int = 0,
    scorers: Sequence[CaptionScorer] = (),
    settings: EvaluationSettings = DEFAULT_SETTINGS,
) -> Results:
    """Caption every image and score the captions against the references.

    Images without a reference caption are left out and counted.

    Args:
        decoding: None means the model's own settings.
        seed: of sampling; has no effect on greedy and beam search.
        scorers: further measures; each is called once with all captions.

    Returns:
        `caption_scores`, the results of `scorers`, and `images`.

    Raises:
        UserError: the shards contain no image with a caption, or a setting is out of range.
    """
    decoding = decoding or model.decoding

    def caption(batch: EvaluationBatch) -> list[dict]:
        made = model.caption_tokens(model.encode_images(batch.images), decoding, batch.keys, seed)
        return [
            {"key": key, "caption": captions[0].text, "references": references, "info": info}
            for key, captions, references, info in zip(batch.keys, made, batch.captions, batch.infos, strict=True)
        ]

    about = settings.about | {"decoding": asdict(decoding), "seed": seed}
    made = predict(shards, model.image_size, replace(settings, about=about), caption, "caption", need_text=True)
    captioned = [Captioned(**row) for row in made.rows]
    if not captioned:
        raise UserError("Captioning needs images with captions; these shards contain none.")
    metrics = {**score_captions(captioned, scorers), "images": len(captioned), **made.counts()}
    rows = [{name: row[name] for name in ("key", "caption", "references")} for row in made.rows]
    return Results("captioning", dataset_name(shards), metrics, rows)


def score_captions(captioned: list[Captioned], scorers: Sequence[CaptionScorer] = ()) -> dict[str, float]:
    """The scores of `evaluate_captioning` for existing captions."""
    results = {name: value for scorer in scorers for name, value in scorer(captioned).items()}
    return results | caption_scores([one.caption for one in captioned], [one.references for one in captioned])
