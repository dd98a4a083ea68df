"""What the loader's workers do: sample numbers to decoded images with their texts."""

import hashlib
import random
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlp.config import AugmentConfig, TextChoiceConfig
from vlp.data.bad_samples import NO_TEXT, BadSample, BadSampleError, FilteredSampleError
from vlp.data.data_index import DataIndex
from vlp.data.image_decoding import EncodedImage, decode_pixels
from vlp.data.shard_index import ShardIndex
from vlp.data.shards import Sample, ShardReader
from vlp.data.text_choice import TextReader, choose_text
from vlp.data.transforms import clean_caption, evaluation_image, training_image
from vlp.data.workers import start_workers

Places = tuple[np.ndarray, np.ndarray, np.ndarray]  # int64 [samples] each: see `SampleDataset.__getitem__`


@dataclass(frozen=True)
class Skipped:
    """A sample that was passed over: where it was in the process's stream, its source, and why it was skipped."""

    place: int
    source: int
    sample: BadSample
    filtered: bool  # else it is bad


@dataclass
class Chunk:
    """Decoded samples.

    Attributes:
        images: uint8 [samples, 3, size, size].
        captions: of each sample; in training the one that was drawn.
        sources: the number of each sample's source.
        places: of each sample in the process's stream.
        skipped: the samples that were passed over.
    """

    images: Tensor = field(default_factory=lambda: torch.empty(0))
    captions: list[list[str]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    image_hashes: list[int] = field(default_factory=list)
    infos: list[dict] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def pin_memory(self) -> "Chunk":
        """The chunk with its images in page-locked memory."""
        return replace(self, images=self.images.pin_memory()) if self.keys else self


class SampleDataset(Dataset):
    """The samples of the shards of all sources, numbered in order."""

    def __init__(
        self,
        sources: list[DataIndex],
        size: int,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        choices: list[TextChoiceConfig | None] | None = None,
        most_open: int = 2,
        need_text: bool = True,
    ):
        """Nothing is read yet.

        Args:
            sources: the index of each source's shards.
            size: side of the images in pixels.
            augment: None for evaluation: images as they are, and all captions.
            choices: how each source draws texts from score tables; None: from the samples' own captions.
            most_open: the most shards, with their indexes, and the most score tables, that are kept open.
            need_text: whether samples without a text are filtered in evaluation, as they always are in training.
        """
        self.sources = sources
        self.ends: list[int] = np.cumsum(np.concatenate([source.counts for source in sources])).tolist()  # of shards
        self.first: list[int] = np.cumsum([0, *(len(source.paths) for source in sources)]).tolist()  # shard of a source
        self.opened: OrderedDict[int, ShardIndex] = OrderedDict()  # by shard; the one used last is the last one
        self.most_open = most_open
        self.choices = choices or [None] * len(sources)
        self.size, self.augment, self.seed, self.need_text = size, augment, seed, need_text
        self.reader = ShardReader(most_open)
        self.texts = TextReader(most_open)

    def __getitem__(self, places: Places) -> Chunk:
        """Decode samples.

        Args:
            places: places in the process's stream, positions in the whole stream (which decide what is random), and
                sample numbers.
        """
        chunk, images = Chunk(), []
        for place, position, number in zip(*(column.tolist() for column in places), strict=True):
            index, row, source = self.find(number)
            try:
                image, captions, info = self._read(index, row, source, position)
            except (BadSampleError, FilteredSampleError) as error:
                sample = BadSample(index.path, index.keys[row], error.reason)
                chunk.skipped.append(Skipped(place, source, sample, isinstance(error, FilteredSampleError)))
                continue
            images.append(image)
            chunk.captions.append(captions)
            chunk.keys.append(index.keys[row])
            chunk.image_hashes.append(stable_hash(f"{index.path}#{index.keys[row]}"))
            chunk.infos.append(info)
            chunk.sources.append(source)
            chunk.places.append(place)
        if images:
            chunk.images = torch.from_numpy(np.stack(images))
        return chunk

    def find(self, number: int) -> tuple[ShardIndex, int, int]:
        """The index of the shard of a sample, the sample's row in it, and the number of its source."""
        shard = bisect_right(self.ends, number)
        source = bisect_right(self.first, shard) - 1
        index = self.opened.pop(shard, None) or self.sources[source].shard(shard - self.first[source])
        self.opened[shard] = index
        if len(self.opened) > self.most_open:
            self.opened.popitem(last=False)
        return index, number - (self.ends[shard] - len(index.keys)), source

    def _read(self, index: ShardIndex, row: int, source: int, position: int) -> tuple[np.ndarray, list[str], dict]:
        """A sample's image, uint8 [3, size, size], captions and JSON. The position decides all that is random."""
        if self.augment is None:
            sample = self.reader.read(index, row)
            return whole_image(sample, self.size, self.need_text), sample.captions, sample.info
        choice, rng = self.choices[source], random.Random(f"caption {self.seed} {position}")
        if choice is None:
            sample = self.reader.read(index, row)
            caption = own_caption(sample, rng)
        else:
            caption = choose_text(self.texts.read(index, row, choice), choice, rng)
            sample = self.reader.read(index, row)
        rng = random.Random(f"image {self.seed} {position}")
        return training_image(EncodedImage(sample.image), self.size, self.augment, rng), [caption], {}


def whole_image(sample: Sample, size: int, need_text: bool) -> np.ndarray:
    """A sample's image as evaluation sees it, uint8 [3, size, size].

    Raises:
        BadSampleError: the image is broken.
        FilteredSampleError: the sample has no text, and `need_text` is set.
    """
    if need_text and not any(map(clean_caption, sample.captions)):
        raise FilteredSampleError(NO_TEXT)
    return evaluation_image(decode_pixels(sample.image, shortest=size), size)


def own_caption(sample: Sample, rng: random.Random) -> str:
    """Draw one of a sample's own captions.

    Raises:
        FilteredSampleError: it has none.
    """
    usable = [caption for caption in sample.captions if clean_caption(caption)]
    if not usable:
        raise FilteredSampleError(NO_TEXT)
    return rng.choice(usable)


def stable_hash(text: str) -> int:
    """A 63-bit hash that is the same in every process and run."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def read_chunks(
    dataset: SampleDataset, places: Iterator[Places], workers: int, prefetch: int = 4, pin: bool = False
) -> Iterator[Chunk]:
    """Chunks in the order of `places`, decoded by `workers` processes, or in this one if there are none.

    Args:
        prefetch, pin: see `start_workers`.
    """
    if workers == 0:
        return map(dataset.__getitem__, places)
    return start_workers(dataset, workers, prefetch, pin, places)


def join_chunks(chunks: list[Chunk]) -> Chunk:
    """Chunks with samples as one."""
    if len(chunks) == 1:
        return chunks[0]
    names = [one.name for one in fields(Chunk) if one.name != "images"]
    lists = {name: [item for chunk in chunks for item in getattr(chunk, name)] for name in names}
    return Chunk(images=torch.cat([chunk.images for chunk in chunks]), **lists)


def split_chunk(chunk: Chunk, count: int) -> tuple[Chunk, Chunk]:
    """The first `count` samples, and the rest."""
    names = [one.name for one in fields(Chunk) if one.name != "skipped"]
    first = {name: getattr(chunk, name)[:count] for name in names}
    rest = {name: getattr(chunk, name)[count:] for name in names}
    return replace(chunk, **first), replace(chunk, **rest)
