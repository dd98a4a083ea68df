"""Every sample of shards once, in order, for evaluation."""

from collections import Counter
from collections.abc import Iterator
from itertools import count, islice, takewhile, tee

import numpy as np
import torch
from torch.utils.data import Dataset

from vlp.data.bad_samples import BadSample, BadSampleError, BadSamples, FilteredSampleError
from vlp.data.batch import EvaluationBatch
from vlp.data.chunk import Chunk, Skipped
from vlp.data.dataset_source import DatasetSource
from vlp.data.index_writer import cached_index
from vlp.data.sample_dataset import SampleDataset, read_chunks, whole_images
from vlp.data.shard_index import expand_shards
from vlp.data.shards import Sample, iterate_samples
from vlp.data.workers import start_workers
from vlp.remote import is_remote


def evaluation_batches(
    shards: str | list[str],
    image_size: int,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
    bad: BadSamples | None = None,
    need_text: bool = False,
    finished: frozenset[int] = frozenset(),
    images_per_sample: int = 1,
) -> Iterator[EvaluationBatch]:
    """Every good sample of the shards once, in order; processes take turns by batch.

    If any shard is remote, each process reads all shards in sequence, and decodes its own batches. Damage that is found
    when a shard is opened is counted by the first process. A batch without a good sample is left out.

    Args:
        limit: at most this many samples, over all processes.
        bad: counts the skipped samples, and limits the share of bad ones; None allows any share.
        need_text: samples without a text are skipped as filtered ones.
        finished: the numbers of batches that are left out and not decoded; processes take turns by the others.
        images_per_sample: 1, or 2 for pairs; a sample without its second image is a bad one.
    """
    bad = bad or BadSamples(max_share=1.0)
    paths = expand_shards(shards)
    mine = islice((number for number in count() if number not in finished), rank, None, world)
    if any(map(is_remote, paths)):
        mine, wanted = tee(mine)
        counted = bad if rank == 0 else BadSamples(1.0)
        streamed = _streamed_parts(iterate_samples(paths, counted), batch_size, wanted, limit, counted)
        yield from _batches(_read(_Decoder(image_size, need_text, images_per_sample), streamed, workers), mine, bad)
        return
    index = cached_index(paths)
    if rank == 0:
        for one in index.bad():
            bad.add(one)
    total = int(index.counts.sum())
    numbers = np.arange(total if limit is None else min(limit, total))
    numbered = takewhile(lambda number: number * batch_size < len(numbers), mine)
    numbered, wanted = tee(numbered)
    parts = (numbers[number * batch_size :][:batch_size] for number in wanted)
    dataset = SampleDataset([index], image_size, need_text=need_text, images_per_sample=images_per_sample)
    yield from _batches(read_chunks(dataset, ((part, part, part) for part in parts), workers), numbered, bad)


def row_batches(
    rows: DatasetSource,
    image_size: int,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
    bad: BadSamples | None = None,
    finished: frozenset[int] = frozenset(),
) -> Iterator[EvaluationBatch]:
    """Every good row of a data set once, in order; arguments as in `evaluation_batches`.

    Each process reads all rows in sequence, and decodes its own batches.
    """
    bad = bad or BadSamples(max_share=1.0)
    mine, wanted = tee(islice((number for number in count() if number not in finished), rank, None, world))
    counted = bad if rank == 0 else BadSamples(1.0)
    streamed = _streamed_parts(_good_rows(rows, counted), batch_size, wanted, limit, counted)
    yield from _batches(_read(_Decoder(image_size, False, 1), streamed, workers), mine, bad)


def _good_rows(rows: DatasetSource, bad: BadSamples) -> Iterator[Sample]:
    for unit in range(rows.units()):
        for sample in rows.read(unit):
            if isinstance(sample, BadSample):
                bad.add(sample)
            else:
                bad.seen()
                yield sample


def _batches(chunks: Iterator[Chunk], numbers: Iterator[int], bad: BadSamples) -> Iterator[EvaluationBatch]:
    """The batches of chunks and their numbers; skipped samples are counted in `bad`."""
    for chunk in chunks:
        number = next(numbers)
        bad.seen(len(chunk.keys))
        for one in chunk.skipped:
            (bad.add_filtered if one.filtered else bad.add)(one.sample)
        if chunk.keys:
            skipped = Counter(one.sample.reason for one in chunk.skipped)
            yield EvaluationBatch(chunk.images, chunk.captions, chunk.keys, chunk.infos, number, skipped)


def _streamed_parts(
    samples: Iterator[Sample], batch_size: int, wanted: Iterator[int], limit: int | None, bad: BadSamples
) -> Iterator[list[Sample]]:
    """The wanted batches of samples that are read in sequence and counted in `bad`, and are not decoded yet."""
    samples = islice(samples, limit)
    next_wanted = next(wanted)
    for number in count():
        part = list(islice(samples, batch_size))
        bad.total -= len(part)  # counted again when decoded
        if not part:
            return
        if number == next_wanted:
            yield part
            next_wanted = next(wanted)


class _Decoder(Dataset):
    """Samples that were read to images; for worker processes."""

    def __init__(self, size: int, need_text: bool, images_per_sample: int):
        self.size, self.need_text, self.images_per_sample = size, need_text, images_per_sample

    def __getitem__(self, samples: list[Sample]) -> Chunk:
        chunk, images = Chunk(), []
        for sample in samples:
            try:
                images.append(whole_images(sample, self.images_per_sample, self.size, self.need_text))
            except (BadSampleError, FilteredSampleError) as error:
                skipped = BadSample(sample.shard, sample.key, error.reason)
                chunk.skipped.append(Skipped(0, 0, skipped, isinstance(error, FilteredSampleError)))
                continue
            chunk.captions.append(sample.captions)
            chunk.keys.append(sample.key)
            chunk.infos.append(sample.info)
        if images:
            chunk.images = torch.from_numpy(np.stack(images))
        return chunk


def _read(decoder: _Decoder, parts: Iterator[list[Sample]], workers: int) -> Iterator[Chunk]:
    return start_workers(decoder, workers, 2, False, parts) if workers else map(decoder.__getitem__, parts)
