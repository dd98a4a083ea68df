"""One of the fixed number of streams that streamed reading deals shards to: an endless sequence of shuffled samples.

Each source counts its units (shards, or parts of them) without end: pass after pass, each in a random order of its own.
Unit g goes to stream g % streams, so every pass reads each unit once over all streams. Within a stream, the n-th sample
of a source gets the sort key n + U(0, window) and leaves in the order of keys. All random numbers are functions of the
seed, the source, the stream and n. So a stream depends on nothing but these, and its state is a few numbers.
"""

import heapq
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vlp.data.bad_samples import BadSample
from vlp.data.chunk import stable_hash
from vlp.data.shards import Sample
from vlp.errors import UserError, WorkError

MOST_FAILED = 10  # shards in a row of one stream and source that give nothing before reading stops
MASK = 2**64 - 1

SourceState = tuple[float, int, int]  # the last sort key given out, the first unit to read, its first sample's number
StreamState = dict  # {"drawn": int, "sources": [SourceState]}: plain numbers


class Source(Protocol):
    """Where samples come from, in units that are read in sequence."""

    def units(self) -> int:
        """The number of units."""
        ...

    def read(self, unit: int) -> Iterator[Sample | BadSample]:
        """The samples of a unit, always in the same order; bad ones included.

        A unit that cannot be read, or not to its end, gives a bad sample with the reason "unreadable shard".
        """
        ...


@dataclass(frozen=True)
class Drawn:
    """A sample that left a stream: its source, and its number in this stream and source."""

    source: int
    number: int
    sample: Sample | BadSample


@dataclass
class _Unit:
    number: int  # in this stream's sequence of units
    first: int  # number of its first sample
    waiting: int = 0  # samples that were read and not given out


class UniformNumbers:
    """Random numbers in [0, 1), each a function of the name and a counter (SplitMix64, Steele et al. 2014)."""

    def __init__(self, name: str):
        self.base = stable_hash(name)

    def __call__(self, counter: int) -> float:
        value = (self.base + (counter + 1) * 0x9E3779B97F4A7C15) & MASK
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        return ((value ^ (value >> 31)) >> 11) / 2**53


class ShuffledSource:
    """The samples of one source in one stream."""

    def __init__(self, source: Source, number: int, stream: int, streams: int, window: float, seed: int):
        """Nothing is read yet.

        Args:
            number: of the source.
            stream, streams: the number of this stream, and of all.
            window: samples of this stream within which a sample moves.
        """
        self.source, self.number = source, number
        self.stream, self.streams, self.window, self.seed = stream, streams, window, seed
        self.uniform = UniformNumbers(f"shuffle {seed} {number} {stream}")
        self.order: tuple[int, np.ndarray] = -1, np.empty(0)
        self.heap: list[tuple[float, int, Sample | BadSample, _Unit]] = []
        self.units: deque[_Unit] = deque()  # those that still have samples to give out, and the one that is read
        self.reading: Iterator[Sample | BadSample] | None = None
        self.next_unit = 0
        self.next_sample = 0
        self.last_key = -1.0
        self.failed = 0  # units in a row without a good sample

    def state(self) -> SourceState:
        """What `resume` continues from."""
        while self.units and not self.units[0].waiting and (self.reading is None or len(self.units) > 1):
            self.units.popleft()
        first = self.units[0] if self.units else _Unit(self.next_unit, self.next_sample)
        return self.last_key, first.number, first.first

    def resume(self, state: SourceState) -> None:
        """Continue from a state: units are read again from the first that is needed."""
        self.last_key, self.next_unit, self.next_sample = state

    def draw(self) -> Drawn:
        """The next sample.

        Raises:
            WorkError: many units in a row gave none.
        """
        while not self.heap or self.heap[0][0] > self.next_sample:  # a later sample may have a smaller key
            self._read_one()
        key, number, sample, unit = heapq.heappop(self.heap)
        self.last_key = key
        unit.waiting -= 1
        return Drawn(self.number, number, sample)

    def _read_one(self) -> None:
        if self.reading is None:
            self.reading = self.source.read(self._unit(self.next_unit))
            self.units.append(_Unit(self.next_unit, self.next_sample))
            self.next_unit += 1
            self.failed += 1
        item = next(self.reading, None)
        if item is None:
            self.reading = None
            # A part of a small shard may be empty, and so may a few shards.
            if self.failed > MOST_FAILED * self.source.units():
                raise UserError(f"data.sources[{self.number}] holds no sample; name other shards.")
            return
        if isinstance(item, Sample):
            self.failed = 0
        elif item.reason == "unreadable shard" and self.failed >= MOST_FAILED:
            raise WorkError(
                f"data.sources[{self.number}]: {self.failed} shards in a row could not be read, the last one "
                f"{item.shard}; check the connection and the credentials, then resume the run."
            )
        number, self.next_sample = self.next_sample, self.next_sample + 1
        key = number + self.uniform(number) * self.window
        if key > self.last_key:  # else it was given out before the state that was resumed
            self.units[-1].waiting += 1
            heapq.heappush(self.heap, (key, number, item, self.units[-1]))

    def _unit(self, number: int) -> int:
        """The unit at a place of this stream's sequence."""
        one_pass, place = divmod(self.stream + number * self.streams, self.source.units())
        if self.order[0] != one_pass:
            rng = np.random.default_rng([self.seed, 3, self.number, one_pass])
            self.order = one_pass, rng.permutation(self.source.units())
        return int(self.order[1][place])


class SampleStream:
    """One stream: the sources mixed at random, each sample from source s with a probability proportional to shares[s].

    A source that gives a bad sample gives the next one too, so that bad samples do not change the mix.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        shares: Sequence[float],
        windows: Sequence[int],
        stream: int,
        streams: int,
        seed: int,
    ):
        """Nothing is read yet; `windows` are the samples of each source in which all streams together shuffle."""
        self.parts = [
            ShuffledSource(source, n, stream, streams, window / streams, seed)
            for n, (source, window) in enumerate(zip(sources, windows, strict=True))
        ]
        self.bounds = np.cumsum(shares) / sum(shares)
        self.uniform = UniformNumbers(f"mix {seed} {stream}")
        self.drawn = 0  # good samples

    def state(self) -> StreamState:
        """What `resume` continues from."""
        return {"drawn": self.drawn, "sources": [part.state() for part in self.parts]}

    def resume(self, state: StreamState) -> None:
        """Continue from a state."""
        self.drawn = state["drawn"]
        for part, one in zip(self.parts, state["sources"], strict=True):
            part.resume(one)

    def draw(self) -> Drawn:
        """The next sample; the same source is drawn from until `accept` is called."""
        place = int(np.searchsorted(self.bounds, self.uniform(self.drawn), side="right"))
        return self.parts[min(place, len(self.parts) - 1)].draw()

    def accept(self) -> None:
        """The sample that was drawn last is used."""
        self.drawn += 1
