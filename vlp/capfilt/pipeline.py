"""Captions batches of images and scores all their texts; on a GPU, one batch is started before the last one is done."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vlp.capfilt.encoded_images import EncodedImages, SplitTexts
from vlp.capfilt.scorers import Scorers
from vlp.capfilt.scoring_batches import ScoringBatch
from vlp.config import DecodingConfig, DecodingOverrides, SamplingOverrides
from vlp.data.bad_samples import BadSample, BadSamples
from vlp.data.score_tables import NAME, Scored
from vlp.data.transforms import clean_caption
from vlp.generation.settings import resolve_decoding
from vlp.model import Model
from vlp.transfers import to_device

Rows = list[tuple[int, Scored]]  # each with the number of its image


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


def score_batches(
    batches: Iterable[ScoringBatch],
    scorers: Scorers,
    settings: ScoreSettings,
    shard: str,
    empty: BadSamples,
    ahead: bool | None = None,
) -> Iterator[tuple[ScoringBatch, list[Scored]]]:
    """Caption batches of a shard and score all their texts; yields each batch and its rows, image by image.

    Captions without a word are added to `empty` and make no row.

    Args:
        ahead: start a batch before the host waits for the captions of the batch before, so that a GPU has work while
            the host makes texts of tokens and rows of scores. The device then holds two batches. None: on a GPU.
    """
    if ahead is None:
        ahead = any(model.device.type == "cuda" for model in scorers.models)
    works = (_BatchWork(batch, scorers, settings, shard, empty) for batch in batches)
    yield from _one_ahead(works) if ahead else _one_by_one(works)


def decodings(scorers: Scorers, settings: ScoreSettings) -> list[DecodingConfig]:
    """The decoding settings of each captioner: its own, with the overrides applied."""
    return [resolve_decoding(captioner.decoding, settings.decoding) for captioner in scorers.captioners]


class _BatchWork:
    """What is done for one batch, method after method. Each model encodes an image once.

    On a GPU, `score_captions` waits for the captions, `rows` for the scores, and `caption` every few tokens to learn
    which texts are finished. All else is only started, except what CLIP models and models of `transformers` do.
    """

    def __init__(self, batch: ScoringBatch, scorers: Scorers, settings: ScoreSettings, shard: str, empty: BadSamples):
        """Start to copy the images to the models' device."""
        self.batch, self.scorers, self.settings, self.shard, self.empty = batch, scorers, settings, shard, empty
        self.decodings = decodings(scorers, settings)
        devices = {model.image_size: model.device for model in scorers.models}
        self.images = {size: to_device(batch.uint8[size], device) for size, device in devices.items()}
        self.encoded: dict[Model, EncodedImages] = {}
        self.vectors: list[Tensor] = []  # of each CLIP model
        self.common: list[dict[str, Any]] = []  # the columns that are equal in all rows of an image
        self.captions: list[Callable[[], list[list[str]]]] = []  # of each captioner
        self.scored: list[Callable[[], Rows]] = []

    def encode(self) -> None:
        """Encode the images, and score the texts that they bring along."""
        batch, clips = self.batch, self.scorers.clips
        self.encoded = {model: EncodedImages(model, self.images[model.image_size]) for model in self.scorers.models}
        self.images = {}
        self.vectors = [scorer.encode_images(images) for scorer, images in zip(clips, batch.clip, strict=True)]
        self.common = [
            {"key": sample.key, "uid": uid, "width": width, "height": height}
            for sample, uid, (width, height) in zip(batch.samples, batch.uids, batch.sizes, strict=True)
        ]
        self._start_scores(
            [
                (image, {"source": source, "text": text})
                for image, sample in enumerate(batch.samples)
                for text, source in zip(sample.captions, sample.sources, strict=True)
            ]
        )

    def caption(self) -> None:
        """Make captions by all captioners."""
        keys = [f"{os.path.basename(self.shard)}/{sample.key}" for sample in self.batch.samples]
        for captioner, decoding in zip(self.scorers.captioners, self.decodings, strict=True):
            how = (decoding, keys, self.settings.seed, self.settings.num_captions)
            if isinstance(captioner, Model):
                self.captions.append(self.encoded[captioner].start_captions(*how))
            else:
                self.captions.append(partial(list, captioner.captions(self.batch.full, *how)))

    def score_captions(self) -> None:
        """Score the captions.

        Apart from the images' own texts: those of one kind have similar lengths, mostly equally many per image.
        """
        self._start_scores(list(self._texts_of_captions()))
        self.encoded, self.vectors = {}, []  # frees memory for the next batch

    def rows(self) -> list[Scored]:
        """The rows, image by image."""
        rows = sorted((row for some in self.scored for row in some()), key=lambda pair: pair[0])
        numbers: Counter[tuple[int, str]] = Counter()
        for image, row in rows:
            row.caption_id = numbers[image, row.source]
            numbers[image, row.source] += 1
        return [row for _, row in rows]

    def _texts_of_captions(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The number of an image, and the columns of a caption of it, for all captions of all captioners."""
        made = [captions() for captions in self.captions]
        notes = [json.dumps({"captioner": number, **asdict(one)}) for number, one in enumerate(self.decodings)]
        for image, sample in enumerate(self.batch.samples):
            for captions, note in zip(made, notes, strict=True):
                for text in captions[image]:
                    if clean_caption(text):
                        yield image, {"source": "synthetic", "text": text, "decoding": note}
                    else:
                        self.empty.add(BadSample(self.shard, sample.key, "empty caption"), counted=True)

    def _start_scores(self, texts: list[tuple[int, dict[str, Any]]]) -> None:
        """Score texts, each given as the number of its image, ascending, and the columns that only this text has."""
        if not texts:
            return
        common = self.common
        columns = self._start_columns([row["text"] for _, row in texts], [image for image, _ in texts])

        def rows() -> Rows:
            made = columns()
            return [
                (image, Scored(**common[image], **row, **dict(zip(made, scores, strict=True))))
                for (image, row), scores in zip(texts, zip(*made.values(), strict=True), strict=True)
            ]

        self.scored.append(rows)

    def _start_columns(self, texts: list[str], images: list[int]) -> Callable[[], dict[str, list[float | int | None]]]:
        """Score texts; the function returned waits for the columns, each [texts]. `images` has the number of each's."""
        scorers = self.scorers
        prompts = {one: decoding.prompt for one, decoding in zip(scorers.captioners, self.decodings, strict=True)}
        split = SplitTexts(texts)
        coming = [
            batch.start_scores(split, images, model in scorers.filters, prompts.get(model))
            for model, batch in self.encoded.items()
        ]
        clip = [one.score(vectors, texts, images) for one, vectors in zip(scorers.clips, self.vectors, strict=True)]

        def columns() -> dict[str, list[float | int | None]]:
            scores = [one() for one in coming]
            made = {
                "itm": _mean([one.itm for one in scores]),
                "itc": _mean([one.itc for one in scores]),
                "nll": _mean([one.nll for one in scores]),
                "clip": _mean(clip),
                "tokens": scores[0].tokens if scores else None,
            }
            return {name: [None] * len(texts) if value is None else value.tolist() for name, value in made.items()}

        return columns


def _one_by_one(works: Iterator[_BatchWork]) -> Iterator[tuple[ScoringBatch, list[Scored]]]:
    """Do the work of each batch before the next one is read."""
    for work in works:
        work.encode()
        work.caption()
        work.score_captions()
        yield work.batch, work.rows()


def _one_ahead(works: Iterator[_BatchWork]) -> Iterator[tuple[ScoringBatch, list[Scored]]]:
    """Start the next batch whenever the host would wait for a GPU that has nothing else to do.

    All work of a GPU is in one stream, in the order in which it is started. Captions that are decoded have left the
    device when those of the next batch are started.
    """
    current, scored = next(works, None), None
    if current:
        current.encode()
    while current:
        following = next(works, None)  # before captions: these wait for the device, which scores texts until then
        current.caption()
        if following:
            following.encode()
        current.score_captions()
        if scored:
            yield scored.batch, scored.rows()
        current, scored = following, current
    if scored:
        yield scored.batch, scored.rows()


def _mean(columns: Sequence[Tensor | None]) -> Tensor | None:
    """The mean of the columns that are not None; None if all are."""
    present = [column for column in columns if column is not None]
    return torch.stack(present).mean(dim=0) if present else None
