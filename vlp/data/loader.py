"""Shards to batches: sources mixed and shuffled, split over processes and workers, resumable at any sample.

The order of samples is one endless stream (see order.py) that knows nothing of processes or workers. A process takes
its slice of every global batch, so any number of processes sees the same batches, and none runs out before another.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlp.config import AugmentConfig, DataConfig, TextChoiceConfig
from vlp.data.bad_samples import BadSample, BadSampleError, BadSamples
from vlp.data.image_decoding import EncodedImage, decode_pixels
from vlp.data.order import SampleOrder
from vlp.data.shard_index import ShardIndex, expand_shards, index_shard
from vlp.data.shards import Sample, ShardReader
from vlp.data.text_choice import TextReader, check_texts, choose_text
from vlp.data.tokenizer import CaptionTokenizer
from vlp.data.transforms import clean_caption, evaluation_image, training_image
from vlp.errors import UserError


@dataclass
class Batch:
    """What a training step reads.

    Attributes:
        images: uint8 [batch, 3, size, size].
        text_ids, text_mask: int64 and bool [batch, tokens]; ids begin with [CLS].
        text_hashes: int64 [batch]; equal where the cleaned captions are equal.
        image_hashes: int64 [batch]; equal where shard and key are equal.
        keys, texts: of each sample, for people.
    """

    images: Tensor
    text_ids: Tensor
    text_mask: Tensor
    text_hashes: Tensor
    image_hashes: Tensor
    keys: list[str]
    texts: list[str]

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on a device."""
        moved = {one.name: getattr(self, one.name) for one in fields(self)}
        return Batch(**{k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in moved.items()})


@dataclass
class EvaluationBatch:
    """Images uint8 [batch, 3, size, size] with all their captions, keys and JSON facts, in the shards' order."""

    images: Tensor
    captions: list[list[str]]
    keys: list[str]
    infos: list[dict]


@dataclass
class _Chunk:
    """What a worker returns: the good samples of the positions it was given, and the bad ones."""

    images: Tensor  # uint8 [good, 3, size, size]
    places: list[int]  # of the good ones, in this process's stream
    captions: list[list[str]]  # all of each sample; in training the one that was drawn
    keys: list[str]
    image_hashes: list[int]
    infos: list[dict]
    bad: list[BadSample]
    bad_places: list[int]


class _SampleDataset(Dataset):
    """Runs in the workers: sample numbers to decoded images and texts."""

    def __init__(
        self,
        indexes: list[ShardIndex],
        size: int,
        augment: AugmentConfig | None,
        seed: int,
        choices: list[TextChoiceConfig | None],
    ):
        self.indexes = indexes
        self.choices = choices  # of each shard; None: its own captions
        self.ends = np.cumsum([len(index.keys) for index in indexes])
        self.size = size
        self.augment = augment  # None: evaluation
        self.seed = seed
        self.reader: ShardReader | None = None  # opened in the worker
        self.texts = TextReader()

    def __getitem__(self, places: tuple[np.ndarray, np.ndarray, np.ndarray]) -> _Chunk:
        self.reader = self.reader or ShardReader()
        chunk = _Chunk(torch.empty(0), [], [], [], [], [], [], [])
        images = []
        for place, position, number in zip(*(column.tolist() for column in places), strict=True):
            shard = int(np.searchsorted(self.ends, number, side="right"))
            index = self.indexes[shard]
            row = number - (int(self.ends[shard]) - len(index.keys))
            try:
                sample = self.reader.read(index, row)
                captions = sample.captions if self.augment is None else [self._caption(shard, row, sample, position)]
                images.append(self._image(sample.image, position))
            except BadSampleError as error:
                chunk.bad.append(BadSample(index.path, index.keys[row], error.reason))
                chunk.bad_places.append(place)
                continue
            chunk.places.append(place)
            chunk.captions.append(captions)
            chunk.keys.append(sample.key)
            chunk.image_hashes.append(stable_hash(f"{index.path}#{sample.key}"))
            chunk.infos.append(sample.info if self.augment is None else {})
        if images:
            chunk.images = torch.from_numpy(np.stack(images))
        return chunk

    def _caption(self, shard: int, row: int, sample: Sample, position: int) -> str:
        rng = random.Random(f"caption {self.seed} {position}")  # by its place in the stream, whoever draws it
        choice = self.choices[shard]
        if choice is not None:
            return choose_text(self.texts.read(self.indexes[shard], row, choice), choice, rng)
        usable = [caption for caption in sample.captions if clean_caption(caption)]
        if not usable:  # nothing but punctuation
            raise BadSampleError("empty text")
        return rng.choice(usable)

    def _image(self, data: bytes, position: int) -> np.ndarray:
        if self.augment is None:
            return evaluation_image(decode_pixels(data, shortest=self.size), self.size)
        rng = random.Random(f"image {self.seed} {position}")
        return training_image(EncodedImage(data), self.size, self.augment, rng)


class TrainingLoader:
    """Endless training batches of one process; see the head of this file."""

    def __init__(
        self,
        data: DataConfig,
        image_size: int,
        tokenizer: CaptionTokenizer,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        prompt: str = "",
    ):
        """Index the shards of all sources.

        Args:
            batch_size: samples of a batch over all processes; a multiple of `world`.
            prompt: words put before every caption.

        Raises:
            UserError: no shard matches, none has a sample, one lacks the score table that its source draws from, or the
                batch cannot be shared out.
        """
        if batch_size % world:
            raise UserError(f"A batch of {batch_size} cannot be shared out over {world} processes; make it a multiple.")
        if not data.sources:
            raise UserError("data.sources is empty: name the shards to train on.")
        if any(source.weight < 0 for source in data.sources):
            raise UserError("data.sources: a weight must not be negative.")
        self.data, self.tokenizer, self.prompt = data, tokenizer, prompt
        self.batch, self.rank, self.world = batch_size // world, rank, world
        paths = [expand_shards(source.shards) for source in data.sources]
        for source, shards in zip(data.sources, paths, strict=True):
            if source.texts is not None:
                check_texts(shards, source.texts)
        sources = [[index_shard(path) for path in shards] for shards in paths]
        choices = [source.texts for source, shards in zip(data.sources, paths, strict=True) for _ in shards]
        indexes = [index for source in sources for index in source]
        counts = [[len(index.keys) for index in source] for source in sources]
        self.order = SampleOrder(counts, [source.weight for source in data.sources], data.shuffle_buffer, seed)
        if self.order.epoch_size == 0:
            raise UserError("The shards of data.sources hold no sample.")
        self.decoder = _SampleDataset(indexes, image_size, data.augment, seed, choices)
        self.listed = BadSamples(data.max_bad_share)  # bad already by the headers
        self.listed.total = sum(map(sum, counts))
        for bad in (bad for index in indexes for bad in index.bad):
            self.listed.add(bad)
        self.bad = BadSamples(data.max_bad_share)  # bad when read
        self.place = 0  # in this process's stream, of the next sample to give out
        self.ahead: list[tuple[int, str]] = []  # place and reason of the bad ones that were read ahead of `place`

    @property
    def epoch_size(self) -> int:
        """Samples an epoch, over all processes."""
        return self.order.epoch_size

    @property
    def bad_counts(self) -> dict[str, int]:
        """Bad samples by reason: those the headers show, and those met when read (again in every epoch)."""
        return dict(self.listed.counts + self.bad.counts)

    def state(self) -> dict:
        """Where to go on, and what was bad up to there."""
        ahead = Counter(reason for place, reason in self.ahead if place >= self.place)
        return {"place": self.place * self.world, "bad": dict(self.bad.counts - ahead)}

    def load_state(self, state: dict) -> None:
        """Go on from a state; also one of another number of processes, then to within a batch."""
        self.place = state["place"] // self.world
        self.bad.counts.update(state["bad"])
        self.bad.total = self.place  # each place up to there was read once

    def __iter__(self) -> Iterator[Batch]:
        waiting: list[_Chunk] = []
        for chunk in _chunks(self.decoder, self._places(), self.data.workers):
            self.bad.seen(len(chunk.keys))
            for bad, place in zip(chunk.bad, chunk.bad_places, strict=True):
                self.bad.add(bad)
                self.ahead.append((place, bad.reason))
            if chunk.keys:
                waiting.append(chunk)
            while sum(len(one.keys) for one in waiting) >= self.batch:
                chunk, rest = _split(_join(waiting), self.batch)
                waiting = [rest] if rest.keys else []
                self.place = chunk.places[-1] + 1
                self.ahead = [(place, reason) for place, reason in self.ahead if place >= self.place]
                yield self._batch(chunk)

    def _places(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each batch: places in this process's stream, positions in the whole stream, sample numbers."""
        start = self.place
        while True:
            places = np.arange(start, (start // self.batch + 1) * self.batch)
            step, offset = np.divmod(places, self.batch)
            positions = (step * self.world + self.rank) * self.batch + offset
            yield places, positions, self.order.numbers(positions)
            start = int(places[-1]) + 1

    def _batch(self, chunk: _Chunk) -> Batch:
        texts = [clean_caption(f"{self.prompt} {captions[0]}") for captions in chunk.captions]
        ids, mask = self.tokenizer.encode(texts, self.data.max_tokens)
        text_hashes = torch.tensor([stable_hash(text) for text in texts])
        return Batch(chunk.images, ids, mask, text_hashes, torch.tensor(chunk.image_hashes), chunk.keys, texts)


def evaluation_batches(
    shards: str | list[str],
    image_size: int,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
    bad: BadSamples | None = None,
) -> Iterator[EvaluationBatch]:
    """Every good sample of the shards once, in order; processes take turns by batch.

    Args:
        limit: at most this many samples, over all processes.
        bad: counts what was skipped.
    """
    indexes = [index_shard(path) for path in expand_shards(shards)]
    for one in (one for index in indexes for one in index.bad if bad is not None):
        bad.add(one)
    total = sum(len(index.keys) for index in indexes)
    numbers = np.arange(total if limit is None else min(limit, total))
    starts = range(rank * batch_size, len(numbers), world * batch_size)
    parts = [numbers[start : start + batch_size] for start in starts]
    decoder = _SampleDataset(indexes, image_size, None, 0, [None] * len(indexes))
    for chunk in _chunks(decoder, iter([(part, part, part) for part in parts]), workers):
        if bad is not None:
            bad.seen(len(chunk.keys))
            for one in chunk.bad:
                bad.add(one)
        if chunk.keys:
            yield EvaluationBatch(chunk.images, chunk.captions, chunk.keys, chunk.infos)


def stable_hash(text: str) -> int:
    """A 63-bit hash that is the same in every process and run."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _chunks(decoder: _SampleDataset, places: Iterator, workers: int) -> Iterator[_Chunk]:
    """Chunks in the order of `places`, decoded by `workers` processes, or here when there are none."""
    if workers == 0:
        return map(decoder.__getitem__, places)
    return iter(
        DataLoader(
            decoder,
            sampler=places,
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=False,
            prefetch_factor=4,
        )
    )


def _as_it_is(chunk: _Chunk) -> _Chunk:
    return chunk


def _join(chunks: list[_Chunk]) -> _Chunk:
    if len(chunks) == 1:
        return chunks[0]
    lists = {
        one.name: [item for chunk in chunks for item in getattr(chunk, one.name)]
        for one in fields(_Chunk)
        if one.name != "images"
    }
    return _Chunk(images=torch.cat([chunk.images for chunk in chunks]), **lists)


def _split(chunk: _Chunk, count: int) -> tuple[_Chunk, _Chunk]:
    """The first `count` samples, and the rest."""
    names = [one.name for one in fields(_Chunk) if not one.name.startswith("bad")]
    first = {name: getattr(chunk, name)[:count] for name in names}
    rest = {name: getattr(chunk, name)[count:] for name in names}
    return replace(chunk, **first), replace(chunk, **rest)
