"""Captioning: a model's captions of shards, scored against the reference captions as COCO and NoCaps do."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vlp.caption_metrics.scores import caption_scores
from vlp.config import DecodingConfig
from vlp.data.batch import EvaluationBatch
from vlp.data.importers.clip_benchmark import refuse_raw_captions
from vlp.errors import UserError
from vlp.evaluation.distinct import distinct
from vlp.evaluation.predict import predict
from vlp.evaluation.results import Results, dataset_name, skipped_metrics
from vlp.evaluation.settings import DEFAULT_SETTINGS, EvaluationSettings
from vlp.model import Model
from vlp.models.constant_weights import constant_weights

DOMAINS = ("in-domain", "near-domain", "out-domain")  # of NoCaps


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
    java: bool = False,
) -> Results:
    """Caption every image, and score the captions of images with references.

    Args:
        decoding: None means the model's own settings.
        seed: of sampling; has no effect on greedy and beam search.
        scorers: further measures; each is called once with all captions of images with references.
        java: also METEOR and SPICE, see `caption_scores`.

    Returns:
        `score_captions`, the results of `scorers`, `images` (captioned) and `images_without_references`, which no
        score counts. Without any reference, as of NoCaps's test images, there are captions and no scores.

    Raises:
        UserError: the shards contain no image, or a setting is out of range.
    """
    decoding = decoding or model.decoding
    refuse_raw_captions(shards)

    def caption(batch: EvaluationBatch) -> list[dict]:
        made = model.caption_tokens(model.encode_images(batch.images), decoding, batch.keys, seed)
        return [
            {"key": key, "caption": captions[0].text, "references": references, "info": info}
            for key, captions, references, info in zip(batch.keys, made, batch.captions, batch.infos, strict=True)
        ]

    about = settings.about | {"decoding": asdict(decoding), "seed": seed}
    made = predict(shards, model.image_size, replace(settings, about=about), caption, "caption")
    rows, duplicates = distinct(made.rows, "image_id", lambda row: row["info"].get("image_id"))
    captioned = [Captioned(**row) for row in rows]
    if not captioned:
        raise UserError("Captioning needs images; these shards contain none that can be read.")
    results = scored_results(captioned, dataset_name(shards), java)
    if scored := [one for one in captioned if one.references]:
        results.metrics |= {name: value for scorer in scorers for name, value in scorer(scored).items()}
    results.metrics |= skipped_metrics(Counter(made.skipped) + duplicates)
    return results


def scored_results(captioned: list[Captioned], dataset: str, java: bool = False) -> Results:
    """The scores of captions, and a prediction for each: `image_id` where it has one, `caption`, `score` (CIDEr-D)."""
    scored = [one for one in captioned if one.references]
    metrics: dict[str, Any] = {}
    scores: dict[int, float] = {}
    if scored:
        metrics, ciders = score_captions(scored, java)
        scores = {id(one): cider for one, cider in zip(scored, ciders, strict=True)}
    metrics |= {"images": len(captioned), "images_without_references": len(captioned) - len(scored)}
    rows = []
    for one in captioned:
        row: dict[str, Any] = {"key": one.key, "caption": one.caption, "references": one.references}
        row |= {name: one.info[name] for name in ("image_id", "domain") if name in one.info}
        rows.append(row | ({"score": scores[id(one)]} if id(one) in scores else {}))
    return Results("captioning", dataset, metrics, rows)


def score_captions(captioned: list[Captioned], java: bool = False) -> tuple[dict[str, float], list[float]]:
    """`caption_scores` of all captions, and those of each domain of NoCaps, such as `in-domain CIDEr`.

    A domain is scored as a data set of its own: CIDEr takes document frequencies from its references.

    Returns:
        The scores by name, and the CIDEr-D of each caption.
    """
    metrics, ciders = _scores(captioned, java)
    for domain in DOMAINS:
        if group := [one for one in captioned if one.info.get("domain") == domain]:
            found, _ = _scores(group, java)
            metrics |= {f"{domain} {name}": value for name, value in found.items()} | {f"{domain} images": len(group)}
    return metrics, ciders


def _scores(captioned: list[Captioned], java: bool) -> tuple[dict[str, float], list[float]]:
    metrics, ciders = caption_scores([one.caption for one in captioned], [one.references for one in captioned], java)
    return dict(metrics), ciders
