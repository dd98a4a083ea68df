"""What the loader's workers do: sample numbers to decoded images with their texts."""

import random
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset

from vlp.config import AugmentConfig, TextChoiceConfig
from vlp.data.bad_samples import NO_SECOND_IMAGE, NO_TEXT, BadSample, BadSampleError, FilteredSampleError
from vlp.data.chunk import Chunk, Skipped, stable_hash
from vlp.data.data_index import DataIndex
from vlp.data.examples import Examples
from vlp.data.image_decoding import EncodedImage, decode_pixels
from vlp.data.shard_index import ShardIndex
from vlp.data.shards import Sample, ShardReader
from vlp.data.text_choice import TextReader, choose_texts
from vlp.data.transforms import clean_caption, evaluation_image, training_image
from vlp.data.workers import start_workers

Places = tuple[np.ndarray, np.ndarray, np.ndarray]  # int64 [samples] each: see `SampleDataset.__getitem__`


class SampleDataset(Dataset):
    """The samples of the shards of all sources, numbered in order."""

    def __init__(
        self,
        sources: list[DataIndex],
        size: int,
        examples: Examples | None = None,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        choices: list[TextChoiceConfig | None] | None = None,
        most_open: int = 2,
        need_text: bool = True,
        images_per_sample: int = 1,
    ):
        """Nothing is read yet.

        Args:
            sources: the index of each source's shards.
            size: side of the images in pixels.
            examples: what the task learns from a sample; None for evaluation: images as they are, and all captions.
            augment: of training images.
            choices: how each source draws texts from score tables; None: from the samples' own captions.
            most_open: the most shards, with their indexes, and the most score tables, that are kept open.
            need_text: whether samples without a text are filtered in evaluation, as they always are in training.
            images_per_sample: in evaluation: 1, or 2 for pairs.
        """
        self.sources = sources
        self.ends: list[int] = np.cumsum(np.concatenate([source.counts for source in sources])).tolist()  # of shards
        self.first: list[int] = np.cumsum([0, *(len(source.paths) for source in sources)]).tolist()  # shard of a source
        self.opened: OrderedDict[int, ShardIndex] = OrderedDict()  # by shard; the one used last is the last one
        self.most_open = most_open
        self.choices = choices or [None] * len(sources)
        self.size, self.examples, self.seed, self.need_text = size, examples, seed, need_text
        self.images_per_sample = images_per_sample
        self.augment = augment or AugmentConfig()
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
                image = self._read(chunk, index, row, source, position)
            except (BadSampleError, FilteredSampleError) as error:
                sample = BadSample(index.path, index.keys[row], error.reason)
                chunk.skipped.append(Skipped(place, source, sample, isinstance(error, FilteredSampleError)))
                continue
            images.append(image)
            chunk.keys.append(index.keys[row])
            chunk.image_hashes.append(stable_hash(f"{index.path}#{index.keys[row]}"))
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

    def _read(self, chunk: Chunk, index: ShardIndex, row: int, source: int, position: int) -> np.ndarray:
        """A sample's image, uint8 [3, size, size]; what belongs to it is added to `chunk`.

        The position decides all that is random.
        """
        if self.examples is None:
            sample = self.reader.read(index, row)
            image = whole_images(sample, self.images_per_sample, self.size, self.need_text)
            chunk.captions.append(sample.captions)
            chunk.infos.append(sample.info)
            return image
        choice, rng = self.choices[source], random.Random(f"caption {self.seed} {position}")
        if choice is None:
            sample = self.reader.read(index, row)
            drawn = self.examples.draw(sample, rng)
        else:
            drawn = choose_texts(self.texts.read(index, row, choice), choice, rng, self.examples.texts)
            sample = self.reader.read(index, row)
        rng = random.Random(f"image {self.seed} {position}")
        image = training_images(sample, self.examples.images, self.size, self.augment, rng)
        chunk.drawn.append(drawn)
        return image


def whole_images(sample: Sample, count: int, size: int, need_text: bool) -> np.ndarray:
    """A sample's image as evaluation sees it: uint8 [3, size, size], or [2, 3, size, size] for a `count` of 2.

    Raises:
        BadSampleError: an image is missing or broken.
        FilteredSampleError: the sample has no text, and `need_text` is set.
    """
    if need_text and not any(map(clean_caption, sample.captions)):
        raise FilteredSampleError(NO_TEXT)
    first = evaluation_image(decode_pixels(sample.image, shortest=size), size)
    if count == 1:
        return first
    try:
        return np.stack([first, evaluation_image(decode_pixels(sample.right or b"", shortest=size), size)])
    except BadSampleError:
        raise BadSampleError(NO_SECOND_IMAGE) from None


def training_images(sample: Sample, count: int, size: int, augment: AugmentConfig, rng: random.Random) -> np.ndarray:
    """A sample's image, cropped and augmented: uint8 [3, size, size], or [2, 3, size, size] for a `count` of 2.

    Raises:
        BadSampleError: an image is missing or broken.
    """
    first = training_image(EncodedImage(sample.image), size, augment, rng)
    if count == 1:
        return first
    try:
        return np.stack([first, training_image(EncodedImage(sample.right or b""), size, augment, rng)])
    except BadSampleError:
        raise BadSampleError(NO_SECOND_IMAGE) from None


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
