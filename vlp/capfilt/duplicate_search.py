"""Finds the images that duplicate an image that is kept, by embedding and by caption, in the order of their ranks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from vlp.capfilt.clustered_vectors import ClusteredVectors
from vlp.log import Progress

BLOCK = 65_536  # images that are compared at once with the images before them
SMALLEST_BLOCK = 256
MOST_PAIRS = 8_000_000  # pairs of similar images within a block; a block with more is halved
MOST_ROWS = 65_536  # images of a cluster that are in memory at once
MOST_COSINES = 2**24  # cosines that are in memory at once
KEPT, AGAINST, EXACT, NEAR, CAPTION = range(5)  # kinds of matches
KINDS = ("", "against", "exact", "near", "caption")


@dataclass
class Matches:
    """What each image duplicates.

    Attributes:
        of: int64 [images], the image that this one duplicates; -1 if it is kept.
        cosine: float32 [images], the cosine with that image; nan for a match by caption.
        kind: int8 [images], into `KINDS`.
    """

    of: np.ndarray
    cosine: np.ndarray
    kind: np.ndarray

    @staticmethod
    def none(images: int) -> "Matches":
        """No image duplicates another."""
        return Matches(np.full(images, -1), np.zeros(images, np.float32), np.zeros(images, np.int8))

    def set(self, image: int | np.ndarray, of: int | np.ndarray, cosine: float | np.ndarray, kind: int) -> None:
        """Record matches of one kind."""
        self.of[image], self.cosine[image], self.kind[image] = of, cosine, kind


class _TooManyPairs(Exception):
    """A block has more than `MOST_PAIRS` pairs of similar images."""


def search_duplicates(
    images: int,
    tests: int,
    vectors: ClusteredVectors | None,
    captions: np.ndarray | None,
    above: float,
    progress: Progress,
) -> Matches:
    """Find duplicates among images that are numbered by rank.

    In the order of their ranks, an image is a duplicate if an image of an evaluation set, or else an image before it
    that is kept, has a cosine of at least `above` or the same caption; otherwise it is kept. Of several such images it
    duplicates the most similar one, or else the one with the same caption. An image is compared with the images of its
    nearest clusters (`ClusteredVectors.nearest`); with one cluster the result is exact.

    Args:
        tests: how many images belong to evaluation sets; they have the first ranks and are always kept.
        vectors: embeddings of length 1; None to ignore them.
        captions: int64 [images], the same number for the same caption, -1 without one; None to ignore captions.
        progress: counts each image once.

    Returns:
        The matches by rank.
    """
    search = _Search(tests, vectors, captions if captions is not None else np.full(images, -1), above, images)
    progress.add("compare", tests)
    start, size = tests, BLOCK
    while start < images:
        stop = min(start + size, images)
        try:
            search.add_block(start, stop)
        except _TooManyPairs:
            size = (stop - start) // 2
            continue
        progress.add("compare", stop - start)
        start, size = stop, min(2 * size, BLOCK)
    return search.found


class _Search:
    """The matches so far, and the images that later ones are compared with.

    Attributes:
        alive: bool [rows of `vectors`], the images of evaluation sets and those that are kept so far.
        reached: int64 [clusters], the end of the rows whose ranks are before the present block.
        keepers: int64 [captions], the image that is kept for each caption; -1 while there is none.
    """

    def __init__(
        self, tests: int, vectors: ClusteredVectors | None, captions: np.ndarray, above: float, images: int
    ) -> None:
        self.tests, self.vectors, self.captions, self.above = tests, vectors, captions, np.float32(above)
        self.found = Matches.none(images)
        self.shared = np.bincount(captions[captions >= 0], minlength=1) > 1  # captions of several images
        self.keepers = np.full(len(self.shared), -1)
        with_caption = np.flatnonzero(captions[:tests] >= 0)[::-1]
        self.keepers[captions[with_caption]] = with_caption  # of several, the first
        if vectors is not None:
            self.alive = np.zeros(len(vectors.ranks), bool)
            self.alive[vectors.rows[:tests]] = True
            self.reached = vectors.starts[:-1] + self._per_cluster(np.arange(tests))

    def add_block(self, start: int, stop: int) -> None:
        """Decide on the images of ranks `start` to `stop`; after a _TooManyPairs, call it again with fewer."""
        ranks, pairs = np.arange(start, stop), _Pairs.none()
        reached, queries = np.empty(0, np.int64), np.empty(0, np.float32)
        if self.vectors is not None:
            reached = self.reached + self._per_cluster(ranks)
            queries = self.vectors.read(self.vectors.rows[ranks])
            self._match_earlier(ranks, queries)
        captions = self.captions[ranks]
        known = np.where(captions >= 0, self.keepers[captions], -1)
        same = (self.found.kind[ranks] != AGAINST) & (known >= 0) & (known < self.tests)
        self.found.set(ranks[same], known[same], np.nan, AGAINST)
        if self.vectors is not None:
            left = self.found.kind[ranks] == KEPT
            pairs = self._pairs_within(ranks[left], queries[left], reached, stop - start > SMALLEST_BLOCK)
            self.reached = reached
        self._keep_first(ranks, pairs)
        if self.vectors is not None:
            self.alive[self.vectors.rows[ranks]] = self.found.kind[ranks] == KEPT

    def _match_earlier(self, ranks: np.ndarray, queries: np.ndarray) -> None:
        """Record the most similar image before the block: of the evaluation sets, or else of those that are kept."""
        assert self.vectors is not None
        cosine = np.full((2, len(ranks)), -np.inf, np.float32)  # of evaluation sets, of the set itself
        of = np.full((2, len(ranks)), -1)
        for some, rows, cosines in self._products(ranks, queries, self.vectors.starts[:-1], self.reached):
            others = self.vectors.ranks[rows]
            split = int(np.searchsorted(others, self.tests))
            for which, part in enumerate((slice(0, split), slice(split, len(rows)))):
                if part.start == part.stop:
                    continue
                best = cosines[:, part].max(axis=1)
                better = np.flatnonzero((best >= self.above) & (best > cosine[which, some]))
                if len(better):
                    cosine[which, some[better]] = best[better]
                    of[which, some[better]] = others[part][cosines[better, part].argmax(axis=1)]
        for which, kind in ((1, NEAR), (0, AGAINST)):
            hit = of[which] >= 0
            self.found.set(ranks[hit], of[which, hit], cosine[which, hit], kind)

    def _pairs_within(self, ranks: np.ndarray, queries: np.ndarray, reached: np.ndarray, limit: bool) -> "_Pairs":
        """The similar pairs among some images of the block, sorted by the later image."""
        assert self.vectors is not None
        mine = self.vectors.rows[ranks]
        self.alive[mine] = True
        pairs, count = [_Pairs.none()], 0
        for some, rows, cosines in self._products(ranks, queries, self.reached, reached):
            later, earlier = np.nonzero(cosines >= self.above)
            before = self.vectors.ranks[rows[earlier]] < ranks[some[later]]
            later, earlier = later[before], earlier[before]
            count += len(later)
            if limit and count > MOST_PAIRS:
                self.alive[mine] = False
                raise _TooManyPairs
            found = cosines[later, earlier]
            pairs.append(_Pairs(ranks[some[later]], self.vectors.ranks[rows[earlier]], found))
        return _Pairs.joined(pairs)

    def _keep_first(self, ranks: np.ndarray, pairs: "_Pairs") -> None:
        """Go through the images that may match one of their block, or share a caption, in the order of their ranks."""
        captions = self.captions[ranks]
        unsure = np.union1d(pairs.later, ranks[(captions >= 0) & self.shared[captions]])
        bounds = np.searchsorted(pairs.later, [unsure, unsure + 1]).T
        kept = self.found.kind == KEPT
        for image, (start, stop) in zip(unsure.tolist(), bounds.tolist(), strict=True):
            if not kept[image]:
                continue
            earlier, caption = pairs.earlier[start:stop], self.captions[image]
            cosines = np.where(kept[earlier], pairs.cosine[start:stop], -np.inf)
            if start < stop and cosines.max() >= self.above:
                best = int(cosines.argmax())
                self.found.set(image, earlier[best], cosines[best], NEAR)
            elif caption >= 0 and self.keepers[caption] >= 0:
                self.found.set(image, self.keepers[caption], np.nan, CAPTION)
            elif caption >= 0:
                self.keepers[caption] = image
            kept[image] = self.found.kind[image] == KEPT

    def _products(
        self, ranks: np.ndarray, queries: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Compare images with the images of their nearest clusters that are alive, in rows `low` to `high`.

        Yields:
            places in `ranks` int64 [some], rows int64 [others], ascending, and cosines float32 [some, others].
        """
        assert self.vectors is not None
        nearest = self.vectors.nearest[ranks]
        order = np.argsort(nearest, axis=None, kind="stable")
        clusters, first = np.unique(nearest.ravel()[order], return_index=True)
        places = np.split(order // nearest.shape[1], first[1:])
        for cluster, some in zip(clusters.tolist(), places, strict=len(ranks) > 0):
            rows = low[cluster] + np.flatnonzero(self.alive[low[cluster] : high[cluster]])
            for start in range(0, len(rows), MOST_ROWS):
                part = rows[start : start + MOST_ROWS]
                others = torch.from_numpy(self.vectors.read(part))
                step = max(1, MOST_COSINES // len(part))
                for place in range(0, len(some), step):
                    those = some[place : place + step]
                    # By torch, as the conversion to float32: the threads of NumPy's products would disturb its own.
                    yield those, part, (torch.from_numpy(queries[those]) @ others.T).numpy()

    def _per_cluster(self, ranks: np.ndarray) -> np.ndarray:
        """How many of some images each cluster has: int64 [clusters]."""
        assert self.vectors is not None
        return np.bincount(self.vectors.nearest[ranks, 0], minlength=len(self.vectors.starts) - 1)


@dataclass
class _Pairs:
    """Pairs of similar images: ranks int64 [pairs], and cosines float32 [pairs]."""

    later: np.ndarray
    earlier: np.ndarray
    cosine: np.ndarray

    @staticmethod
    def none() -> "_Pairs":
        return _Pairs(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))

    @staticmethod
    def joined(parts: list["_Pairs"]) -> "_Pairs":
        """All pairs, sorted by the later image, then by the earlier one."""
        later, earlier, cosine = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("later", "earlier", "cosine")
        )
        order = np.lexsort((earlier, later))
        return _Pairs(later[order], earlier[order], cosine[order])
