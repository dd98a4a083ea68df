"""Indexed reading: every sample has a number; sources mixed and shuffled, resumable at any sample.

The order of samples is one endless stream (see order.py) that does not depend on processes or workers. Each process
takes its slice of every global batch, so any number of processes sees the same batches, and none runs out first.
"""

import logging
import resource
from collections import Counter
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from vlp.config import DataConfig, SourceConfig, TextChoiceConfig
from vlp.data.bad_samples import NO_TEXT_CHOSEN, NOT_SCORED, BadSamples, UnusableSources
from vlp.data.chunk import Chunk, Skipped, join_chunks, split_chunk
from vlp.data.data_index import DataIndex, open_index
from vlp.data.examples import Examples
from vlp.data.index_writer import cached_index
from vlp.data.order import FORMAT, SampleOrder
from vlp.data.sample_dataset import Places, SampleDataset, read_chunks
from vlp.data.sample_lists import read_list, shard_uids
from vlp.data.score_tables import NAME
from vlp.data.shard_index import expand_shards
from vlp.data.text_choice import check_choice, read_texts
from vlp.data.workers import pins_memory
from vlp.distributed import is_main, share_out, world_size
from vlp.errors import UserError
from vlp.log import Progress

log = logging.getLogger("vlp")


class IndexedLoader:
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
        """Index the shards of all sources. Processes that run together share this work.

        Args:
            examples: what the task learns from a sample.
            batch_size: samples of a batch over all processes; a multiple of `world`.

        Raises:
            UserError: no shard matches, none has a sample, one lacks the score table that its source draws from, a
                source has no sample with a text to use, or the processes cannot share the batch equally.
        """
        if batch_size % world:
            raise UserError(f"{world} processes cannot share a batch of {batch_size} equally; make it a multiple.")
        if not data.sources:
            raise UserError("data.sources is empty: name the shards to train on.")
        if any(source.weight < 0 for source in data.sources):
            raise UserError("data.sources: a weight must not be negative.")
        self.data, self.examples = data, examples
        self.batch, self.rank, self.world = batch_size // world, rank, world
        self.listed = BadSamples(data.max_bad_share)  # bad by the shards' headers; filtered by the score tables
        sources = [self._index_source(number, source) for number, source in enumerate(data.sources)]
        counts = [source.counts for source in sources]
        self.order = SampleOrder(counts, [source.weight for source in data.sources], data.shuffle_buffer, seed)
        if self.order.epoch_size == 0:
            raise UserError("The shards of data.sources hold no sample; name other shards.")
        choices = [source.texts for source in data.sources]
        most_open = min(self.order.shards_at_once(), _file_limit())
        self.dataset = SampleDataset(sources, image_size, examples, data.augment, seed, choices, most_open)
        self.bad = BadSamples(data.max_bad_share)  # skipped when read
        self.place = 0  # in this process's stream, of the next sample to give out
        self.ahead: list[Skipped] = []  # those that were read ahead of `place`
        self.unusable = UnusableSources([2 * world * count for count in self.order.counts])  # a resume starts in a pass

    @property
    def epoch_size(self) -> int:
        """Samples of an epoch, over all processes."""
        return self.order.epoch_size

    @property
    def bad_counts(self) -> dict[str, int]:
        """Bad samples by reason: those that the headers show, and those found when read (again in every epoch)."""
        return dict(self.listed.counts + self.bad.counts)

    @property
    def filtered_counts(self) -> dict[str, int]:
        """Filtered samples by reason: those that score tables leave out of every epoch, and those found when read."""
        return dict(self.listed.filtered + self.bad.filtered)

    def state(self) -> dict:
        """The position to resume from, and what was skipped up to it."""
        ahead = [one for one in self.ahead if one.place >= self.place]
        bad = Counter(one.sample.reason for one in ahead if not one.filtered)
        filtered = Counter(one.sample.reason for one in ahead if one.filtered)
        return {
            "format": FORMAT,
            "place": self.place * self.world,
            "bad": dict(self.bad.counts - bad),
            "filtered": dict(self.bad.filtered - filtered),
        }

    def load_states(self, states: list[dict]) -> None:
        """Resume from the states of all processes. With another number of processes, to within a batch.

        Raises:
            UserError: the states are of streamed reading, or of another order of samples.
        """
        state = states[self.rank if len(states) == self.world else 0]
        if "streams" in state:
            raise UserError("The checkpoint was written with data.reading: streamed; resume it with that.")
        if state.get("format") != FORMAT:
            raise UserError(
                "The checkpoint is of a version of vlp that read the samples in another order, so the run cannot be "
                "resumed; start a new one, with start_from for its weights."
            )
        self.place = state["place"] // self.world
        self.bad.counts.update(state["bad"])
        self.bad.filtered.update(state["filtered"])
        self.bad.total = self.place  # each place up to there was read once

    def __iter__(self) -> Generator[Any, None, None]:
        waiting: list[Chunk] = []
        pin = pins_memory(self.data.pin_memory)
        for chunk in read_chunks(self.dataset, self._places(), self.data.workers, self.data.prefetch, pin):
            self._count(chunk)
            if chunk.keys:
                waiting.append(chunk)
            while sum(len(one.keys) for one in waiting) >= self.batch:
                *whole, last = waiting  # only the last one has more than the batch lacks
                last, rest = split_chunk(last, self.batch - sum(len(one.keys) for one in whole))
                chunk, waiting = join_chunks([*whole, last]), [rest] if rest.keys else []
                self.place = chunk.places[-1] + 1
                self.ahead = [one for one in self.ahead if one.place >= self.place]
                yield self.examples.batch(chunk)

    def _index_source(self, number: int, source: SourceConfig) -> DataIndex:
        """The shards of a source, without the samples of which its score tables have no text to use."""
        paths = expand_shards(source.shards)
        index = open_index(source.index, paths) if source.index else cached_index(paths, self.data.workers, share=True)
        self.listed.total += int(index.counts.sum())
        for bad in index.bad():
            self.listed.add(bad)
        if source.keep:
            _keep_listed(number, index, source)
        if source.texts is not None:
            self._keep_usable(number, index, source.texts)
        return index

    def _keep_usable(self, number: int, index: DataIndex, choice: TextChoiceConfig) -> None:
        """Leave out the samples of which the score tables have no text to use. Processes share the work."""

        def usable(shard: int) -> tuple[np.ndarray | None, int]:
            check_choice(index.paths[shard], choice)
            texts = read_texts(index.whole_shard(shard), choice)
            if texts is None:
                return None, 0  # the table is named when it is read again
            return np.packbits(texts.usable(choice)), texts.unscored()

        total = int(index.counts.sum())
        found = share_out(usable, range(len(index.paths)))
        index.keep([mask for mask, _ in found])
        left = int(index.counts.sum())
        if left < total:
            # With a list of samples, the tables' own counts include samples that are not listed.
            unscored = 0 if self.data.sources[number].keep else sum(count for _, count in found)
            self.listed.filtered.update({NOT_SCORED: unscored, NO_TEXT_CHOSEN: total - left - unscored})
            self.listed.filtered = +self.listed.filtered
            log.info("data.sources[%d]: %d of %d samples have no text to use", number, total - left, total)
        if total and not left:
            raise UserError(
                f"data.sources[{number}]: the score tables have no text to use for any of its {total} samples; "
                "lower texts.floor, or give other sources of texts a chance."
            )

    def _count(self, chunk: Chunk) -> None:
        """Count a chunk's good and skipped samples.

        Raises:
            WorkError: too many samples are bad, or a source gives no sample at all.
        """
        self.bad.seen(len(chunk.keys))
        self.unusable.seen(chunk.sources)
        for one in chunk.skipped:
            (self.bad.add_filtered if one.filtered else self.bad.add)(one.sample)
            self.ahead.append(one)
            self.unusable.add(one.source, one.sample, one.filtered)

    def _places(self) -> Iterator[Places]:
        """For each batch: places in this process's stream, positions in the whole stream, sample numbers."""
        start = self.place
        while True:
            places = np.arange(start, (start // self.batch + 1) * self.batch)
            step, offset = np.divmod(places, self.batch)
            positions = (step * self.world + self.rank) * self.batch + offset
            yield places, positions, self.order.numbers(positions)
            start = int(places[-1]) + 1


def _keep_listed(number: int, index: DataIndex, source: SourceConfig) -> None:
    """Leave out the samples that the source's list does not have. Processes share the work.

    Raises:
        UserError: the list cannot be read, or has none of the samples.
    """
    chosen, total = read_list(source.keep), int(index.counts.sum())
    table = source.texts.table if source.texts else NAME

    with Progress("shards", -(-len(index.paths) // world_size()), quiet=not is_main()) as bar:

        def listed(shard: int) -> np.ndarray:
            one = index.whole_shard(shard)
            mask = chosen.listed(one.path, one.keys, shard_uids(one, table) if chosen.by_uid else None)
            bar.add("compare with the list")
            return np.packbits(mask)

        index.keep(share_out(listed, range(len(index.paths))))
    left = int(index.counts.sum())
    log.info("data.sources[%d]: %s has %d of %d samples", number, source.keep, left, total)
    if not left:
        what = "uids" if chosen.by_uid else "keys"
        raise UserError(
            f"data.sources[{number}]: none of the {total} samples is among the {len(chosen.pairs)} {what} in "
            f"{source.keep}; name the list of these shards, or remove keep."
        )


def _file_limit() -> int:
    """The most shards to keep open: half of the files that a process may open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**14 if limit == resource.RLIM_INFINITY else max(limit // 2, 2)
