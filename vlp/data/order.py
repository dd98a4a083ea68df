"""The order of training samples: an endless stream that depends only on sources, weights and seed."""

import numpy as np


class SampleOrder:
    """Maps positions 0, 1, 2, ... of the stream to sample numbers, which count over all shards of all sources.

    Each source has its own endless sequence of passes. A pass is a new shuffle: the shards in random order, then each
    sample moved by up to `shuffle_buffer` places. An epoch takes `weight * samples` from each source, mixed at random.
    With weights of 1 an epoch has every sample exactly once.
    """

    def __init__(self, sources: list[list[int]], weights: list[float], shuffle_buffer: int, seed: int):
        """`sources` lists the number of samples of each shard, for each source."""
        self.sources = sources
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        counts = [sum(shards) for shards in sources]
        self.first = np.concatenate([[0], np.cumsum(counts)])  # number of each source's first sample
        self.counts = counts
        self.takes = [round(weight * count) for weight, count in zip(weights, counts, strict=True)]
        self.epoch_size = sum(self.takes)
        self._epochs: dict[int, np.ndarray] = {}
        self._passes: dict[tuple[int, int], np.ndarray] = {}

    def shards_at_once(self) -> int:
        """How many shards to keep open so that none is opened twice in a pass, over all sources.

        The first and the last sample of a shard move apart by up to `shuffle_buffer` places, and the samples between
        them come from shards up to as far away on either side.
        """
        spans = [np.searchsorted(np.cumsum(np.sort(shards)), 2 * self.shuffle_buffer) + 2 for shards in self.sources]
        return sum(min(int(span), len(shards)) for span, shards in zip(spans, self.sources, strict=True))

    def numbers(self, positions: np.ndarray) -> np.ndarray:
        """Sample numbers, int64, at positions of the stream."""
        epochs, offsets = np.divmod(positions, self.epoch_size)
        result = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            result[here] = self._epoch(int(epoch))[offsets[here]]
        return result

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            for old in [number for number in self._epochs if number < epoch - 1]:
                del self._epochs[old]
            rng = np.random.default_rng([self.seed, 1, epoch])
            parts = [self._take(source, epoch) for source in range(len(self.sources))]
            places = [np.sort(rng.random(len(part))) for part in parts]  # keeps each source's own order
            self._epochs[epoch] = np.concatenate(parts)[np.argsort(np.concatenate(places), kind="stable")]
        return self._epochs[epoch]

    def _take(self, source: int, epoch: int) -> np.ndarray:
        """The samples that an epoch takes from a source: the next ones of its passes."""
        take, count = self.takes[source], self.counts[source]
        start, pieces = epoch * take, []
        while take > 0:
            number, offset = divmod(start, count)
            piece = self._pass(source, number)[offset : offset + take]
            pieces.append(piece)
            start, take = start + len(piece), take - len(piece)
        for key in [key for key in self._passes if key[0] == source and key[1] < start // count]:
            del self._passes[key]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def _pass(self, source: int, number: int) -> np.ndarray:
        """One shuffled pass over a source: sample numbers, int64 [samples]."""
        key = (source, number)
        if key not in self._passes:
            rng = np.random.default_rng([self.seed, 2, source, number])
            shards = self.sources[source]
            starts = self.first[source] + np.concatenate([[0], np.cumsum(shards)])
            ranges = [np.arange(starts[i], starts[i] + shards[i]) for i in rng.permutation(len(shards))]
            line = np.concatenate(ranges).astype(np.int64)
            moved = np.arange(len(line)) + rng.uniform(0, max(self.shuffle_buffer, 1), len(line))
            self._passes[key] = line[np.argsort(moved, kind="stable")] if self.shuffle_buffer > 0 else line
        return self._passes[key]
