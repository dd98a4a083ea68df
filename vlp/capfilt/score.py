"""Score a shard: caption every image, and ask the scorers about its own texts and the new captions."""

import json
import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlp import __version__
from vlp.capfilt.encoded_images import EncodedImages, TextScores
from vlp.capfilt.scorers import Scorers
from vlp.capfilt.scoring_batches import ScoringBatch, read_batches
from vlp.config import DecodingConfig
from vlp.data.bad_samples import BadSample, BadSamples
from vlp.data.score_tables import NAME, Scored, image_uid, shard_state, write_table
from vlp.data.shards import Sample
from vlp.data.transforms import clean_caption
from vlp.log import ReportProgress, no_progress
from vlp.model import Model
from vlp.models.cpu.linear import constant_weights


@dataclass
class ScoreSettings:
    """How shards are scored, beside the models.

    Attributes:
        num_captions: an image and captioner.
        max_bad_share: a shard with a larger share of bad samples fails.
        name: of the tables, as in `table_path`.
    """

    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    num_captions: int = 1
    seed: int = 0
    batch_size: int = 64
    max_bad_share: float = 0.1
    name: str = NAME


@dataclass
class ScoreCounts:
    """What was scored of one shard, by one process or by all of them.

    Attributes:
        skipped_shards: shards whose tables were finished before.
        bad: by reason, the samples that were left out, and as "empty caption" the captions without a word.
    """

    shards: int = 0
    skipped_shards: int = 0
    images: int = 0
    texts: int = 0
    bad: dict[str, int] = field(default_factory=dict)

    def add(self, other: "ScoreCounts") -> None:
        """Add other counts to these."""
        for name in ("shards", "skipped_shards", "images", "texts"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.bad = dict(Counter(self.bad) + Counter(other.bad))


@constant_weights()
def score_shard(
    shard: str, scorers: Scorers, settings: ScoreSettings, progress: ReportProgress = no_progress
) -> ScoreCounts:
    """Read a shard, score it and write its table whole.

    A table does not depend on which process makes it: batches stay within the shard, and a sampled caption depends on
    the seed, the shard's file name and the sample's key.

    Raises:
        WorkError: more samples than `max_bad_share` are bad, or the table cannot be written; there is none then.
    """
    bad = BadSamples(settings.max_bad_share)
    empty = BadSamples(math.inf)  # captions without a word, whose samples are as good as others
    counts, rows = ScoreCounts(shards=1), []
    state = shard_state(shard)
    for batch in read_batches(shard, scorers, settings.batch_size, bad):
        rows += score_batch(batch, scorers, settings, shard, empty)
        counts.images += len(batch.samples)
        progress("score", len(batch.samples))
    bad.finish()
    counts.texts, counts.bad = len(rows), dict(bad.counts + empty.counts)
    about = {**_about(scorers, settings), "bad": counts.bad}
    write_table(shard, rows, table_identity(scorers, settings), state, settings.name, about)
    return counts


def table_identity(scorers: Scorers, settings: ScoreSettings) -> dict[str, Any]:
    """What the rows of a table follow from: a table made from another one of these is not finished."""
    return {
        **scorers.identity,
        "decoding": asdict(settings.decoding),
        "num_captions": settings.num_captions,
        "seed": settings.seed,
        "batch_size": settings.batch_size,  # another one rounds otherwise
    }


def score_batch(
    batch: ScoringBatch, scorers: Scorers, settings: ScoreSettings, shard: str, empty: BadSamples
) -> list[Scored]:
    """Caption a batch and score all its texts, image by image; each model encodes an image once.

    Captions without a word are given to `empty` and make no row.
    """
    encoded = {model: EncodedImages(model, batch.uint8[model.image_size]) for model in scorers.models}
    vectors = [scorer.encode_images(images) for scorer, images in zip(scorers.clips, batch.clip, strict=True)]
    blank = [_blank(sample, size) for sample, size in zip(batch.samples, batch.sizes, strict=True)]
    given = [
        (image, {**blank[image], "source": source, "text": text})
        for image, sample in enumerate(batch.samples)
        for text, source in zip(sample.captions, sample.sources, strict=True)
    ]
    captions = _captions(batch, encoded, scorers, settings, shard, empty)
    made = [(image, {**blank[image], **caption}) for image, caption in captions]
    rows: list[tuple[int, Scored]] = []
    for texts in (given, made):  # apart, as each have a length and, mostly, a number an image of their own
        if texts:
            images = [image for image, _ in texts]
            columns = _judge([row["text"] for _, row in texts], images, encoded, vectors, scorers, settings)
            values = zip(*columns.values(), strict=True)
            for (image, row), scores in zip(texts, values, strict=True):
                rows.append((image, Scored(**row, **dict(zip(columns, scores, strict=True)))))
    rows.sort(key=lambda pair: pair[0])
    numbers: Counter[tuple[int, str]] = Counter()
    for image, row in rows:
        row.caption_id = numbers[image, row.source]
        numbers[image, row.source] += 1
    return [row for _, row in rows]


def _blank(sample: Sample, size: tuple[int, int]) -> dict[str, Any]:
    """What all rows of an image have in common."""
    uid = image_uid(sample.image, sample.info)
    return {"key": sample.key, "uid": uid, "width": size[0], "height": size[1]}


def _captions(
    batch: ScoringBatch,
    encoded: dict[Model, EncodedImages],
    scorers: Scorers,
    settings: ScoreSettings,
    shard: str,
    empty: BadSamples,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """All captioners' captions of each image, with the image's number."""
    keys = [f"{os.path.basename(shard)}/{sample.key}" for sample in batch.samples]
    how = (settings.decoding, keys, settings.seed, settings.num_captions)
    made = [
        encoded[captioner].captions(*how) if captioner in encoded else captioner.captions(batch.whole, *how)
        for captioner in scorers.captioners
    ]
    notes = [json.dumps({"captioner": number, **asdict(settings.decoding)}) for number in range(len(made))]
    for image, sample in enumerate(batch.samples):
        for captions, note in zip(made, notes, strict=True):
            for text in captions[image]:
                if clean_caption(text):
                    yield image, {"source": "synthetic", "text": text, "decoding": note}
                else:
                    empty.add(BadSample(shard, sample.key, "empty caption"), counted=True)


def _judge(
    texts: list[str],
    images: list[int],
    encoded: dict[Model, EncodedImages],
    vectors: list[Tensor],
    scorers: Scorers,
    settings: ScoreSettings,
) -> dict[str, list[float | int | None]]:
    """The columns that models fill, each [texts]; `images` is the image of each text."""
    prompt = settings.decoding.prompt
    scores: list[TextScores] = [
        seen.score(texts, images, model in scorers.filters, prompt if model in scorers.captioners else None)
        for model, seen in encoded.items()
    ]
    clip = [scorer.score(seen, texts, images) for scorer, seen in zip(scorers.clips, vectors, strict=True)]
    columns = {
        "itm": _mean([one.itm for one in scores]),
        "itc": _mean([one.itc for one in scores]),
        "nll": _mean([one.nll for one in scores]),
        "clip": _mean(clip),
        "tokens": scores[0].tokens if scores else None,
    }
    return {name: [None] * len(texts) if value is None else value.tolist() for name, value in columns.items()}


def _mean(columns: list[Tensor | None]) -> Tensor | None:
    """The mean of those that there are."""
    present = [column for column in columns if column is not None]
    return torch.stack(present).mean(dim=0) if present else None


def _about(scorers: Scorers, settings: ScoreSettings) -> dict[str, Any]:
    """What is said of a table beside what its rows follow from."""
    return {"command": shlex.join(sys.argv), "vlp": __version__, **scorers.names, "settings": asdict(settings)}
