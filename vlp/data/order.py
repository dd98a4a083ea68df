"""The order of training samples: an endless stream that depends only on sources, weights and seed.

Any part of the stream is computed on its own. Nothing is held that is as long as an epoch: per source two permutations
of its shards, and the last few blocks.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

MIXED = 4096  # positions of the stream within which the sources are mixed at random
KEPT = 4  # blocks, and parts of the stream, that are kept for the next positions
FORMAT = 2  # of the order; a data position of another format means other samples

Value = TypeVar("Value")


@dataclass
class _Pass:
    """One pass over a source: its shards in random order.

    Attributes:
        starts: int64 [shards + 1]: the place in the pass of each shard's first sample, in order.
        first: int64 [shards]: the number of that sample.
        shift: how far the borders of the blocks are shifted.
    """

    starts: np.ndarray
    first: np.ndarray
    shift: int


class SampleOrder:
    """Maps positions 0, 1, 2, ... of the stream to sample numbers, which count over all shards of all sources.

    Each source has its own endless sequence of passes. A pass has every sample once: the shards in random order, cut
    into blocks of `shuffle_buffer` samples, each block shuffled, so that a sample moves by less than `shuffle_buffer`
    places. The borders of the blocks differ from pass to pass. An epoch takes `weight * samples` from each source,
    mixed at random within every 4,096 positions. With weights of 1 an epoch has every sample exactly once.
    """

    def __init__(
        self, sources: Sequence[Sequence[int] | np.ndarray], weights: list[float], shuffle_buffer: int, seed: int
    ):
        """`sources` holds the number of samples of each shard, for each source: int64 [shards]."""
        self.sources = [np.asarray(shards, dtype=np.int64) for shards in sources]
        self.block = max(shuffle_buffer, 1)
        self.seed = seed
        self.counts = [int(shards.sum()) for shards in self.sources]
        self.first = np.concatenate([[0], np.cumsum(self.counts)])  # number of each source's first sample
        self.takes = [round(weight * count) for weight, count in zip(weights, self.counts, strict=True)]
        self.epoch_size = sum(self.takes)
        self.parts = max(-(-self.epoch_size // MIXED), 1)  # of an epoch
        self._parts: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._passes: OrderedDict[tuple[int, int], _Pass] = OrderedDict()
        self._blocks: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()

    def shards_at_once(self) -> int:
        """How many shards to keep open so that none is opened twice in a pass, over all sources.

        A block uses its shards in any order, and the next block begins with the last shard of the one before.
        """
        spans = [np.searchsorted(np.cumsum(np.sort(shards)), 2 * self.block) + 2 for shards in self.sources]
        return sum(min(int(span), len(shards)) for span, shards in zip(spans, self.sources, strict=True))

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        """Sample numbers, int64, at positions of the stream."""
        epochs, offsets = np.divmod(positions, self.epoch_size)
        parts = self._part_of(offsets)
        result = np.empty_like(positions)
        for epoch, part in np.unique(np.stack([epochs, parts]), axis=1).T.tolist():
            here = (epochs == epoch) & (parts == part)
            numbers = _kept(self._parts, KEPT, (epoch, part), self._mix_part)
            result[here] = numbers[offsets[here] - sum(self._taken(part))]
        return result

    def _taken(self, part: int) -> list[int]:
        """How many samples of each source come before a part of an epoch."""
        return [take * part // self.parts for take in self.takes]

    def _part_of(self, offsets: np.ndarray) -> np.ndarray:
        """The part of an epoch that each offset in it belongs to, int64."""
        low, high = np.zeros_like(offsets), np.full_like(offsets, self.parts)
        while (high - low > 1).any():  # the start of part `low` is at most the offset, that of part `high` is beyond it
            middle = (low + high) // 2
            starts = sum((take * middle // self.parts for take in self.takes), np.zeros_like(offsets))
            low, high = np.where(starts <= offsets, middle, low), np.where(starts <= offsets, high, middle)
        return low

    def _mix_part(self, epoch: int, part: int) -> np.ndarray:
        """Sample numbers, int64, of a part of an epoch: the next ones of each source, mixed at random."""
        starts, ends = self._taken(part), self._taken(part + 1)
        source_of = np.repeat(np.arange(len(starts)), np.subtract(ends, starts))
        source_of = np.random.default_rng([self.seed, 1, epoch, part]).permutation(source_of)
        numbers = np.empty(len(source_of), dtype=np.int64)
        for source, (start, end, take) in enumerate(zip(starts, ends, self.takes, strict=True)):
            if end > start:
                numbers[source_of == source] = self._stretch(source, epoch * take + start, end - start)
        return numbers

    def _stretch(self, source: int, start: int, count: int) -> np.ndarray:
        """Sample numbers, int64 [count], from a place in the endless passes of a source."""
        pieces = []
        while count > 0:
            number, place = divmod(start, self.counts[source])
            shuffled = self._shuffled(source, number, place)[:count]
            one = self._pass(source, number)
            shards = np.searchsorted(one.starts, shuffled, side="right") - 1
            pieces.append(one.first[shards] + shuffled - one.starts[shards])
            start, count = start + len(shuffled), count - len(shuffled)
        return np.concatenate(pieces)

    def _shuffled(self, source: int, number: int, place: int) -> np.ndarray:
        """What stands at a place of a pass and behind it, to the end of the block: places before shuffling, int64."""
        if self.block == 1:
            return np.arange(place, min(place + MIXED, self.counts[source]))
        shift = self._pass(source, number).shift
        block = (place + shift) // self.block
        start = max(block * self.block - shift, 0)
        return _kept(self._blocks, KEPT * len(self.sources), (source, number, block), self._shuffle)[place - start :]

    def _shuffle(self, source: int, number: int, block: int) -> np.ndarray:
        shift = self._pass(source, number).shift
        start = max(block * self.block - shift, 0)
        end = min((block + 1) * self.block - shift, self.counts[source])
        return start + np.random.default_rng([self.seed, 2, source, number, block]).permutation(end - start)

    def _pass(self, source: int, number: int) -> _Pass:
        return _kept(self._passes, 2 * len(self.sources), (source, number), self._start_pass)

    def _start_pass(self, source: int, number: int) -> _Pass:
        rng = np.random.default_rng([self.seed, 3, source, number])
        counts = self.sources[source]
        order = rng.permutation(len(counts))
        first = self.first[source] + np.cumsum(counts) - counts
        shift = int(rng.integers(self.block)) if self.counts[source] > self.block else 0  # else one block holds all
        return _Pass(np.concatenate([[0], np.cumsum(counts[order])]), first[order], shift)


def _kept(values: "OrderedDict[tuple, Value]", most: int, key: tuple, make: Callable[..., Value]) -> Value:
    """The value of a key, made where it is not kept; the `most` values that were used last are kept."""
    value = values.pop(key) if key in values else make(*key)
    values[key] = value
    if len(values) > most:
        values.popitem(last=False)
    return value
