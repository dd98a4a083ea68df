"""Groups embeddings by k-means clusters in a temporary file, so that only near clusters need to be compared."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch

from vlp.extras import extra
from vlp.log import Progress

with extra("capfilt"):
    import faiss

EXHAUSTIVE = 50_000  # up to so many images, every image is compared with every other
PROBES = 16  # nearest clusters whose images an image is compared with
SAMPLE = 64  # images per cluster on which k-means is run
ITERATIONS = 8  # of k-means
ZEROS = 2**24  # bytes that are reserved on disk at once


@dataclass
class ClusteredVectors:
    """Embeddings of images that are numbered by rank: cluster by cluster, and by rank within a cluster.

    Attributes:
        vectors: float16 [images, width], memory-mapped.
        ranks: int64 [images], the rank of the image in each row.
        rows: int64 [images], the row of the image of each rank.
        starts: int64 [clusters + 1], the first row of each cluster.
        nearest: int32 [images, probes], by rank: the nearest clusters, and first of them the image's own.
    """

    vectors: np.ndarray
    ranks: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    nearest: np.ndarray

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The embeddings in some rows, as float32 [rows, width]."""
        if not len(rows):
            return np.empty((0, self.vectors.shape[1]), np.float32)
        first, last = int(rows[0]), int(rows[-1])
        together = last - first + 1 == len(rows) and first <= last  # consecutive rows need no gathering
        part = self.vectors[first : last + 1] if together and (np.diff(rows) == 1).all() else self.vectors[rows]
        return to_float32(part)


def cluster_count(images: int) -> int:
    """How many clusters make the comparison fastest: 1, which is exhaustive, for few images.

    An image is compared with every centroid, and on average with half of the images of its nearest clusters, because
    only those before it count. The sum is smallest when both are as many.
    """
    return 1 if images <= EXHAUSTIVE else round(math.sqrt(PROBES * images / 2))


def cluster_vectors(
    blocks: Callable[[], Iterator[np.ndarray]],
    ranks: np.ndarray,
    width: int,
    clusters: int,
    probes: int,
    seed: int,
    file: IO[bytes],
    quiet: bool = False,
) -> ClusteredVectors:
    """Cluster embeddings and write them to a file in the order of their clusters.

    The embeddings are read in blocks, three times: a sample for k-means, the nearest clusters, the writing. The result
    is the same for the same seed and number of threads.

    Args:
        blocks: starts reading all embeddings in order: float16 [images of a block, width].
        ranks: int64 [images of all blocks]: the rank of each; -1 leaves an image out.
        probes: how many nearest clusters are found for each image, at most `clusters`.
        file: an empty file, open for reading and writing.
        quiet: print no progress.

    Raises:
        OSError: the file cannot hold the embeddings.
    """
    images = int((ranks >= 0).sum())
    nearest = np.zeros((images, min(probes, clusters)), np.int32)
    if clusters > 1:
        Progress("images", quiet=quiet).say(f"clustering: k-means with {clusters:,} clusters")
        centroids = _centroids(blocks, ranks, clusters, seed)
        with Progress("images", images, quiet=quiet) as progress:
            for mine, vectors in _taking_part(blocks, ranks):
                found = faiss.knn(to_float32(vectors), centroids, nearest.shape[1], metric=faiss.METRIC_INNER_PRODUCT)
                nearest[mine] = found[1]
                progress.add("cluster", len(mine))
    by_row = np.argsort(nearest[:, 0], kind="stable")  # ranks, in the order of the rows
    rows = np.empty(images, np.int64)
    rows[by_row] = np.arange(images)
    starts = np.searchsorted(nearest[by_row, 0], np.arange(clusters + 1))
    stored = _reserve(file, images, width)
    for mine, vectors in _taking_part(blocks, ranks):
        stored[rows[mine]] = vectors
    return ClusteredVectors(stored, by_row, rows, starts, nearest)


def to_float32(vectors: np.ndarray) -> np.ndarray:
    """float16 to float32; torch converts ten times faster than NumPy."""
    return torch.from_numpy(np.ascontiguousarray(vectors)).float().numpy()


def _taking_part(
    blocks: Callable[[], Iterator[np.ndarray]], ranks: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The images that take part, block by block: ranks int64 [images] and float16 [images, width]."""
    start = 0
    for vectors in blocks():
        mine = ranks[start : start + len(vectors)]
        start += len(vectors)
        yield mine[mine >= 0], vectors[mine >= 0]


def _centroids(blocks: Callable[[], Iterator[np.ndarray]], ranks: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Spherical k-means on a random sample of the images: float32 [clusters, width], of length 1."""
    images = int((ranks >= 0).sum())
    taken = np.zeros(images, bool)
    size = min(images, SAMPLE * clusters)
    taken[np.random.default_rng(seed).choice(images, size, replace=False, shuffle=False)] = True
    sample = np.concatenate([vectors[taken[mine]] for mine, vectors in _taking_part(blocks, ranks)])
    kmeans = faiss.Kmeans(
        sample.shape[1], clusters, niter=ITERATIONS, spherical=True, seed=seed, min_points_per_centroid=1
    )
    kmeans.train(to_float32(sample))
    return np.asarray(kmeans.centroids)


def _reserve(file: IO[bytes], images: int, width: int) -> np.ndarray:
    """A memory map of a file of float16 [images, width]; a full disk is an error now, not a crash later."""
    left = images * width * 2
    while left > 0:
        left -= file.write(bytes(min(ZEROS, left)))
    file.flush()
    if not images:
        return np.empty((0, width), np.float16)
    return np.asarray(np.memmap(file, np.float16, "r+", shape=(images, width)))
