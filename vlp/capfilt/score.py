"""Scores one shard: captions every image, and scores its own texts and the new captions."""

import hashlib
import json
import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlp import __version__
from vlp.capfilt.encoded_images import EncodedImages, TextScores
from vlp.capfilt.scorers import Scorers
from vlp.capfilt.scoring_batches import ScoringBatch, read_batches
from vlp.config import DecodingConfig, DecodingOverrides, SamplingOverrides
from vlp.data.bad_samples import BadSample, BadSamples
from vlp.data.score_tables import NAME, Scored, fresh_stamp, image_uid, shard_state, write_table
from vlp.data.shards import Sample
from vlp.data.transforms import clean_caption
from vlp.generation.settings import resolve_decoding
from vlp.log import ReportProgress, no_progress
from vlp.model import Model
from vlp.models.constant_weights import constant_weights
from vlp.remote import is_remote


@dataclass
class ScoreSettings:
    """How shards are scored, apart from the models.

    Attributes:
        decoding: changes to the captioners' own decoding settings.
        num_captions: captions per image and captioner.
        max_bad_share: a shard with a larger share of bad samples fails.
        name, tables: the tables' name and folder, see `table_path`.
    """

    decoding: DecodingOverrides = field(default_factory=SamplingOverrides)
    num_captions: int = 1
    seed: int = 0
    batch_size: int = 64
    max_bad_share: float = 0.1
    name: str = NAME
    tables: str = ""


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
    """Score a shard and write its table.

    The table does not depend on which process writes it: a batch holds samples of one shard only, and a sampled caption
    depends on the seed, the shard's file name and the sample's key.

    Raises:
        WorkError: more than `max_bad_share` of the samples are bad, or the table cannot be written.
    """
    bad = BadSamples(settings.max_bad_share)
    empty = BadSamples(math.inf)  # captions without a word; their samples are not bad
    counts, rows = ScoreCounts(shards=1), []
    digest = hashlib.sha256() if is_remote(shard) else None  # a remote shard is read once, for both
    state = {"shard": fresh_stamp(shard)} if digest else shard_state(shard)
    for batch in read_batches(shard, scorers, settings.batch_size, bad, digest):
        rows += score_batch(batch, scorers, settings, shard, empty)
        counts.images += len(batch.samples)
        progress("score", len(batch.samples))
    bad.finish()
    if digest:
        state["shard_sha256"] = digest.hexdigest()
    counts.texts, counts.bad = len(rows), dict(bad.counts + empty.counts)
    about = {**_provenance(scorers, settings), "bad": counts.bad}
    write_table(shard, rows, table_identity(scorers, settings), state, settings.name, about, settings.tables)
    return counts


def table_identity(scorers: Scorers, settings: ScoreSettings) -> dict[str, Any]:
    """What the rows of a table depend on. A table with another identity is scored again."""
    return {
        **scorers.identity,
        "decoding": [asdict(decoding) for decoding in _decodings(scorers, settings)],
        "num_captions": settings.num_captions,
        "seed": settings.seed,
        "batch_size": settings.batch_size,  # it changes rounding
    }


def score_batch(
    batch: ScoringBatch, scorers: Scorers, settings: ScoreSettings, shard: str, empty: BadSamples
) -> list[Scored]:
    """Caption a batch and score all its texts; returns rows image by image. Each model encodes an image once.

    Captions without a word are added to `empty` and make no row.
    """
    devices = {model.image_size: model.device for model in scorers.models}
    there = {size: batch.uint8[size].to(device) for size, device in devices.items()}  # once for models of one size
    encoded = {model: EncodedImages(model, there[model.image_size]) for model in scorers.models}
    vectors = [scorer.encode_images(images) for scorer, images in zip(scorers.clips, batch.clip, strict=True)]
    common = [_image_columns(sample, size) for sample, size in zip(batch.samples, batch.sizes, strict=True)]
    own = [
        (image, {**common[image], "source": source, "text": text})
        for image, sample in enumerate(batch.samples)
        for text, source in zip(sample.captions, sample.sources, strict=True)
    ]
    rows = _scored(own, encoded, vectors, scorers, settings)  # before captions: a GPU encodes images meanwhile
    captions = _captions(batch, encoded, scorers, settings, shard, empty)
    synthetic = [(image, {**common[image], **caption}) for image, caption in captions]
    # Apart from the own ones: texts of one kind have similar lengths, mostly equally many per image.
    rows += _scored(synthetic, encoded, vectors, scorers, settings)
    rows.sort(key=lambda pair: pair[0])
    numbers: Counter[tuple[int, str]] = Counter()
    for image, row in rows:
        row.caption_id = numbers[image, row.source]
        numbers[image, row.source] += 1
    return [row for _, row in rows]


def _scored(
    texts: list[tuple[int, dict[str, Any]]],
    encoded: dict[Model, EncodedImages],
    vectors: list[Tensor],
    scorers: Scorers,
    settings: ScoreSettings,
) -> list[tuple[int, Scored]]:
    """Rows of texts, each given as the number of its image, ascending, and the columns that are known already."""
    if not texts:
        return []
    images = [image for image, _ in texts]
    columns = _score_texts([row["text"] for _, row in texts], images, encoded, vectors, scorers, settings)
    values = zip(*columns.values(), strict=True)
    return [
        (image, Scored(**row, **dict(zip(columns, scores, strict=True))))
        for (image, row), scores in zip(texts, values, strict=True)
    ]


def _image_columns(sample: Sample, size: tuple[int, int]) -> dict[str, Any]:
    """The columns that are equal in all rows of an image."""
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
    """The number of an image, and the columns of a caption of it, for all captions of all captioners."""
    keys = [f"{os.path.basename(shard)}/{sample.key}" for sample in batch.samples]
    decodings = _decodings(scorers, settings)
    made = []
    for captioner, decoding in zip(scorers.captioners, decodings, strict=True):
        how = (decoding, keys, settings.seed, settings.num_captions)
        if isinstance(captioner, Model):
            made.append(encoded[captioner].captions(*how))
        else:
            made.append(captioner.captions(batch.full, *how))
    notes = [json.dumps({"captioner": number, **asdict(decoding)}) for number, decoding in enumerate(decodings)]
    for image, sample in enumerate(batch.samples):
        for captions, note in zip(made, notes, strict=True):
            for text in captions[image]:
                if clean_caption(text):
                    yield image, {"source": "synthetic", "text": text, "decoding": note}
                else:
                    empty.add(BadSample(shard, sample.key, "empty caption"), counted=True)


def _score_texts(
    texts: list[str],
    images: list[int],
    encoded: dict[Model, EncodedImages],
    vectors: list[Tensor],
    scorers: Scorers,
    settings: ScoreSettings,
) -> dict[str, list[float | int | None]]:
    """The score columns, each [texts]; `images` is the number of each text's image."""
    decodings = _decodings(scorers, settings)
    prompts = {captioner: one.prompt for captioner, one in zip(scorers.captioners, decodings, strict=True)}
    scores: list[TextScores] = [
        batch.score(texts, images, model in scorers.filters, prompts.get(model)) for model, batch in encoded.items()
    ]
    clip = [scorer.score(vector, texts, images) for scorer, vector in zip(scorers.clips, vectors, strict=True)]
    columns = {
        "itm": _mean([one.itm for one in scores]),
        "itc": _mean([one.itc for one in scores]),
        "nll": _mean([one.nll for one in scores]),
        "clip": _mean(clip),
        "tokens": scores[0].tokens if scores else None,
    }
    return {name: [None] * len(texts) if value is None else value.tolist() for name, value in columns.items()}


def _decodings(scorers: Scorers, settings: ScoreSettings) -> list[DecodingConfig]:
    """The decoding settings of each captioner: its own, with the overrides applied."""
    return [resolve_decoding(captioner.decoding, settings.decoding) for captioner in scorers.captioners]


def _mean(columns: Sequence[Tensor | None]) -> Tensor | None:
    """The mean of the columns that are not None; None if all are."""
    present = [column for column in columns if column is not None]
    return torch.stack(present).mean(dim=0) if present else None


def _provenance(scorers: Scorers, settings: ScoreSettings) -> dict[str, Any]:
    """What a table records about how it was made, apart from its identity."""
    return {"command": shlex.join(sys.argv), "vlp": __version__, **scorers.names, "settings": asdict(settings)}
