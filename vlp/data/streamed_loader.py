"""Streamed reading: whole shards in sequence, shuffled in a buffer, resumable at any sample.

A fixed number of streams (see sample_stream.py) makes every global batch: equally many samples of each, in the order of
streams. Processes and their workers share the streams out, so any number of either sees the same batches.
"""

import logging
import math
import random
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from vlp.config import DataConfig, SourceConfig
from vlp.data.bad_samples import BadSample, BadSampleError, BadSamples, FilteredSampleError, UnusableSources
from vlp.data.byte_stream import Access
from vlp.data.chunk import Chunk, Skipped, join_chunks, stable_hash
from vlp.data.dataset_source import open_dataset_source
from vlp.data.examples import Examples
from vlp.data.sample_dataset import training_images
from vlp.data.sample_lists import read_list
from vlp.data.sample_stream import Drawn, SampleStream, Source, StreamState
from vlp.data.shard_index import expand_shards
from vlp.data.shard_source import ShardSource
from vlp.data.shards import Sample
from vlp.data.table_texts import TableTexts
from vlp.data.text_choice import check_choice, choose_texts
from vlp.data.workers import pins_memory, start_workers
from vlp.distributed import share_out
from vlp.errors import UserError, WorkError
from vlp.remote import is_remote

MOST_STREAMS = 16  # of data.streams: 0
REPORTED_AFTER = 256  # skipped samples of a batch, after which a worker reports before it goes on

log = logging.getLogger("vlp")


@dataclass
class StreamPart:
    """What a worker adds to a batch.

    Attributes:
        worker: its number.
        chunk: samples in the order of the worker's streams, and those that were skipped.
        states: of its streams, after these samples.
        done: whether the batch is complete; else the worker skipped many samples and goes on.
        error: why the worker stops.
    """

    worker: int = 0
    chunk: Chunk = field(default_factory=Chunk)
    states: dict[int, StreamState] = field(default_factory=dict)
    done: bool = False
    error: UserError | WorkError | None = None

    def pin_memory(self) -> "StreamPart":
        """The part with its images in page-locked memory; the loader's pinning thread calls it."""
        return replace(self, chunk=self.chunk.pin_memory())


def stream_count(data: DataConfig, batch_size: int) -> int:
    """The number of streams: `data.streams`, or one that does not depend on the processes."""
    return data.streams or math.gcd(batch_size, MOST_STREAMS)


class StreamedLoader:
    """Endless training batches of one process; see the first lines of this file."""

    def __init__(
        self,
        data: DataConfig,
        image_size: int,
        examples: Examples,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
    ):
        """List the shards of all sources and count their samples. Processes that run together share this work.

        Args:
            examples: what the task learns from a sample.
            batch_size: samples of a batch over all processes; a multiple of the streams.

        Raises:
            UserError: no shard matches, one cannot be read, or the streams do not fit the batch and the processes.
            WorkError: the server cannot be reached.
        """
        if not data.sources:
            raise UserError("data.sources is empty: name the shards to train on.")
        self.streams = stream_count(data, batch_size)
        check_streams(self.streams, batch_size, world)
        self.data, self.examples = data, examples
        self.rank, self.world = rank, world
        access = Access(data.retries, cache=data.cache, cache_gib=data.cache_gib)
        sources = [
            open_source(number, source, self.streams, access, examples.label)
            for number, source in enumerate(data.sources)
        ]
        counts = share_out(lambda number: sources[number][1](), range(len(sources)))
        if not all(counts):
            raise UserError(f"data.sources[{counts.index(0)}]: the first shard holds no sample; name other shards.")
        shares = [source.weight * count for source, count in zip(data.sources, counts, strict=True)]
        self.epoch_size = round(sum(shares))
        if self.epoch_size == 0:
            raise UserError("data.sources: every weight is 0; raise one.")
        # A larger window than the source would mix several passes.
        windows = [min(data.shuffle_buffer, count) for count in counts]
        self.reader = StreamReader(
            [source for source, _ in sources],
            shares,
            windows,
            data,
            image_size,
            examples,
            self.streams,
            batch_size,
            seed,
        )
        share = self.streams // world
        self.reader.numbers = list(range(rank * share, (rank + 1) * share))
        self.bad = BadSamples(data.max_bad_share)
        self.unusable = UnusableSources([2 * count + REPORTED_AFTER for count in counts])
        self.states: dict[int, StreamState] = {}

    @property
    def bad_counts(self) -> dict[str, int]:
        """Bad samples by reason; those that come again in every epoch are counted again."""
        return dict(self.bad.counts)

    @property
    def filtered_counts(self) -> dict[str, int]:
        """Filtered samples by reason."""
        return dict(self.bad.filtered)

    def state(self) -> dict:
        """The position of this process's streams after the batches given out, and what was skipped up to it."""
        return {
            "streams": dict(self.states),
            "shares": self.reader.shares,
            "windows": self.reader.windows,
            "bad": dict(self.bad.counts),
            "filtered": dict(self.bad.filtered),
            "total": self.bad.total,
        }

    def load_states(self, states: list[dict]) -> None:
        """Resume from the states of all processes, of which there may have been another number.

        Raises:
            UserError: they are of indexed reading.
        """
        if any("streams" not in state for state in states):
            raise UserError("The checkpoint was written with data.reading: indexed; resume it with that.")
        every = {number: one for state in states for number, one in state["streams"].items()}
        self.states = {number: every[number] for number in self.reader.numbers if number in every}
        # As they were: a count that is estimated may change, and would change the order.
        self.reader.shares, self.reader.windows = states[0]["shares"], states[0]["windows"]
        self.epoch_size = round(sum(self.reader.shares))
        own = states[self.rank : self.rank + 1] if len(states) == self.world else states if self.rank == 0 else []
        for state in own:
            self.bad.counts.update(state["bad"])
            self.bad.filtered.update(state["filtered"])
            self.bad.total += state["total"]

    def __iter__(self) -> Generator[Any, None, None]:
        workers = min(self.data.workers, len(self.reader.numbers))
        self.reader.states = dict(self.states)
        waiting: list[deque[StreamPart]] = [deque() for _ in range(max(workers, 1))]
        pin = pins_memory(self.data.pin_memory)
        parts = start_workers(self.reader, workers, self.data.prefetch, pin) if workers else iter(self.reader)
        while True:
            chunks = []
            for worker in range(len(waiting)):
                chunks += self._part_of_batch(worker, waiting, parts)
            yield self.examples.batch(join_chunks(chunks))

    def _part_of_batch(self, worker: int, waiting: list[deque[StreamPart]], parts: Iterator[StreamPart]) -> list[Chunk]:
        """A worker's chunks of the next batch."""
        chunks = []
        while True:
            while not waiting[worker]:
                part = next(parts)
                waiting[part.worker].append(part)
            part = waiting[worker].popleft()
            if part.error:
                raise part.error
            self.bad.seen(len(part.chunk.keys))
            self.unusable.seen(part.chunk.sources)
            for one in part.chunk.skipped:
                (self.bad.add_filtered if one.filtered else self.bad.add)(one.sample)
                self.unusable.add(one.source, one.sample, one.filtered)
            if part.chunk.keys:
                chunks.append(part.chunk)
            if part.done:
                self.states |= part.states
                return chunks


def check_streams(streams: int, batch_size: int, world: int) -> None:
    """Make sure that processes can share the streams, and a batch can be made of them.

    Raises:
        UserError: they cannot.
    """
    if batch_size % world:
        raise UserError(f"{world} processes cannot share a batch of {batch_size} equally; make it a multiple.")
    if batch_size % streams == 0 and streams % world == 0:
        return
    fitting = [count for count in range(world, batch_size + 1, world) if batch_size % count == 0]
    best = min(fitting, key=lambda count: abs(count - streams))
    raise UserError(
        f"data.streams is {streams}, but it must divide the batch of {batch_size} and be a multiple of the {world} "
        f"processes; set data.streams to {best}."
    )


def open_source(
    number: int, source: SourceConfig, streams: int, access: Access, label: str | None
) -> tuple[Source, Any]:
    """A source, and a function that counts its samples; `label` as in `open_dataset_source`.

    Raises:
        UserError: no shard matches, one lacks the score table that the source draws from, or a data set cannot be read.
        WorkError: the hub cannot be reached.
    """
    if source.dataset:
        rows = open_dataset_source(source, streams, label)
        return rows, lambda: source.samples or rows.count()
    paths = expand_shards(source.shards)
    if source.texts is not None:
        for path in paths[:1] if is_remote(paths[0]) else paths:  # a remote table takes requests
            check_choice(path, source.texts)
    keep = read_list(source.keep) if source.keep else None
    shards = ShardSource(paths, streams, access, keep, source.index)
    return shards, lambda: source.samples or shards.count()


class StreamReader(IterableDataset):
    """What the workers do: the samples of their streams, decoded."""

    def __init__(
        self,
        sources: list[Source],
        shares: list[float],
        windows: list[int],
        data: DataConfig,
        image_size: int,
        examples: Examples,
        streams: int,
        batch_size: int,
        seed: int,
    ):
        """Nothing is read yet.

        Args:
            shares: how often each source is drawn from, in any unit.
            windows: samples of each source in which all streams together shuffle.
            batch_size: samples of a batch over all streams.
        """
        self.sources, self.shares, self.windows, self.data, self.seed = sources, shares, windows, data, seed
        self.image_size, self.examples = image_size, examples
        self.streams, self.each = streams, batch_size // streams
        self.numbers: list[int] = []  # this process's streams
        self.texts = TableTexts(most_kept=4 * streams)
        self.states: dict[int, StreamState] = {}

    def __iter__(self) -> Generator[StreamPart, None, None]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        numbers = np.array_split(self.numbers, workers)[worker].tolist()
        streams = {
            number: SampleStream(self.sources, self.shares, self.windows, number, self.streams, self.seed)
            for number in numbers
        }
        for number in self.states.keys() & streams.keys():
            streams[number].resume(self.states[number])
        try:
            while True:
                yield from self._batch(worker, streams)
        except (UserError, WorkError) as error:
            yield StreamPart(worker, error=error)

    def _batch(self, worker: int, streams: dict[int, SampleStream]) -> Iterator[StreamPart]:
        """This worker's part of a batch."""
        chunk, images = Chunk(), []
        for number, stream in streams.items():
            good = 0
            while good < self.each:
                drawn = stream.draw()
                sample = drawn.sample
                try:
                    image, example = self._decode(number, drawn)
                except (BadSampleError, FilteredSampleError) as error:
                    skipped = BadSample(sample.shard, sample.key, error.reason)
                    chunk.skipped.append(Skipped(0, drawn.source, skipped, isinstance(error, FilteredSampleError)))
                    if len(chunk.skipped) == REPORTED_AFTER:
                        yield StreamPart(worker, Chunk(skipped=chunk.skipped))
                        chunk.skipped = []
                    continue
                assert isinstance(sample, Sample)  # a bad one cannot be decoded
                stream.accept()
                good += 1
                images.append(image)
                chunk.drawn.append(example)
                chunk.keys.append(sample.key)
                chunk.image_hashes.append(stable_hash(f"{sample.shard}#{sample.image_id or sample.key}"))
                chunk.sources.append(drawn.source)
        chunk.images = torch.from_numpy(np.stack(images))
        yield StreamPart(worker, chunk, {number: stream.state() for number, stream in streams.items()}, done=True)

    def _decode(self, stream: int, drawn: Drawn) -> tuple[np.ndarray, Any]:
        """An image, uint8 [3, size, size], and its example. The sample's place decides all that is random."""
        sample = drawn.sample
        if isinstance(sample, BadSample):
            raise BadSampleError(sample.reason)
        place = f"{self.seed} {drawn.source} {stream} {drawn.number}"
        choice, rng = self.data.sources[drawn.source].texts, random.Random(f"caption {place}")
        if choice is None:
            example = self.examples.draw(sample, rng)
        else:
            texts = self.texts.read(sample.shard, sample.key, choice)
            example = choose_texts(texts, choice, rng, self.examples.texts)
        rng = random.Random(f"image {place}")
        return training_images(sample, self.examples.images, self.image_size, self.data.augment, rng), example
