"""Finds the nearest vectors with faiss: exactly up to a million images, by clusters (IVF) beyond.

The vectors are in segments, files of consecutive images that are mapped into memory and searched in parallel. An exact
segment holds float16 vectors. A clustered one holds 8 bits a value (4 of wide vectors), and the best candidates are
scored again with the float16 vectors of the parts. All clustered segments share one set of clusters, so an index grows
by adding to its last segment; it is trained again when it has grown to four times its size.
"""

import math
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vlp.errors import UserError
from vlp.extras import extra
from vlp.files import writing
from vlp.index.manifest import Manifest
from vlp.log import ReportProgress

EXACT = 1_000_000  # up to so many images, every image is compared with the query
EXACT_SEGMENT, CLUSTERED_SEGMENT = 262_144, 2_097_152  # images
SAMPLE = 40  # images per cluster on which k-means is run
ITERATIONS = 8  # of k-means
COMPARED, FEWEST_PROBED = EXACT, 16  # images in the nearest clusters, which are searched; the fewest clusters
WIDE = 384  # values of a vector from which clusters keep 4 bits of each instead of 8
RESCORED, FEWEST_RESCORED = 4, 256  # candidates per result that are scored again, and the fewest
GROWTH = 4  # times the images that the clusters were trained on, from which they are trained again
BLOCK = 16_384  # vectors converted at once
AGAIN = "write the index again, into another folder"
NAME = re.compile(r"(exact|clustered)-(\d+)-(\d+)(?:-\d+)?\.faiss")

Read = Callable[[int, int], np.ndarray]  # (first, end) -> vectors [end - first, width], float16 or float32


@dataclass
class _Segment:
    """The images from `first` to `end`."""

    first: int
    end: int
    index: Any


class Neighbors:
    """Open segments. Threads may share it."""

    def __init__(self, segments: list[_Segment], exact: bool):
        """`exact`: whether scores and order are exact."""
        self.segments, self.exact = segments, exact
        self.pool = ThreadPoolExecutor(cpu_count() or 1)

    def search(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The numbers (int64) and scores (float32) of about `k` nearest images, best first; fewer where there are few.

        Args:
            query: float32 [width].
        """
        k = k if self.exact else max(RESCORED * k, FEWEST_RESCORED)
        found = list(
            self.pool.map(lambda one: one.index.search(query[None], min(k, one.end - one.first)), self.segments)
        )
        scores = np.concatenate([one[0][0] for one in found] or [np.empty(0, np.float32)])
        numbers = [
            part[1][0] + np.where(part[1][0] < 0, 0, one.first) for part, one in zip(found, self.segments, strict=True)
        ]
        numbers = np.concatenate(numbers or [np.empty(0, np.int64)])
        scores, numbers = scores[numbers >= 0], numbers[numbers >= 0]
        order = np.lexsort((numbers, -scores))[:k]
        return numbers[order], scores[order]


def _faiss() -> Any:
    """The module `faiss`; a search without an index does not need it. Raises UserError if it is not installed."""
    with extra("index"):
        import faiss
    return faiss


def open_neighbors(folder: Path, manifest: Manifest) -> Neighbors:
    """The segments of an index, mapped into memory.

    Raises:
        UserError: a file is missing or damaged.
    """
    segments = []
    for name in manifest.neighbors:
        first, end = _range(name)
        index = _read(folder / "neighbors" / name, _faiss().IO_FLAG_MMAP_IFC)
        if (index.ntotal, index.d) != (end - first, manifest.model.width):
            raise UserError(f"{folder / 'neighbors' / name} does not belong to this index; {AGAIN}.")
        if manifest.clusters:
            index.nprobe = max(FEWEST_PROBED, math.ceil(index.nlist * min(1.0, COMPARED / manifest.starts[-1])))
        segments.append(_Segment(first, end, index))
    return Neighbors(segments, not manifest.clusters)


def neighbors_in_memory(read: Read, images: int, width: int) -> Neighbors:
    """An exact search over vectors that no index keeps; they are copied as float16."""
    segments = []
    for first in range(0, images, EXACT_SEGMENT):
        end = min(first + EXACT_SEGMENT, images)
        segments.append(_Segment(first, end, _add(_exact_index(width), read, first, end)))
    return Neighbors(segments, True)


def update_neighbors(folder: Path, manifest: Manifest, read: Read, width: int, report: ReportProgress) -> None:
    """Make the segments cover all images of the manifest, and name their files in it. Only new images are added.

    Raises:
        FullDiskError, WorkError: the disk is full; a file cannot be written for another reason.
    """
    images = int(manifest.starts[-1])
    clustered = images > EXACT
    if clustered and (not manifest.clusters or images > GROWTH * manifest.trained):
        manifest.trained, manifest.clusters = images, f"clusters-{images}.faiss"
        report("train clusters", 0)
        _write(folder / "neighbors" / manifest.clusters, _train(read, images, width))
    kind, size = ("clustered", CLUSTERED_SEGMENT) if clustered else ("exact", EXACT_SEGMENT)
    ending = f"-{manifest.trained}.faiss" if clustered else ".faiss"
    before, manifest.neighbors = set(manifest.neighbors), []
    for first in range(0, images, size):
        end = min(first + size, images)
        name = f"{kind}-{first}-{end}{ending}"
        manifest.neighbors.append(name)
        if name in before:
            report("add to the index", end - first)
            continue
        start = [one for one in before if one.startswith(f"{kind}-{first}-") and one.endswith(ending)]
        if start:
            index, done = _read(folder / "neighbors" / start[0]), _range(start[0])[1]
        elif clustered:
            index, done = _read(folder / "neighbors" / manifest.clusters), first
        else:
            index, done = _exact_index(width), first
        report("add to the index", done - first)
        _write(folder / "neighbors" / name, _add(index, read, done, end, report))


def _range(name: str) -> tuple[int, int]:
    """The first image of a segment, and the end, by its name."""
    matched = NAME.fullmatch(name)
    if matched is None:
        raise UserError(f"The index names {name!r}, which is no file of neighbors; {AGAIN}.")
    return int(matched[2]), int(matched[3])


def _exact_index(width: int) -> Any:
    faiss = _faiss()
    return faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


def _add(index: Any, read: Read, first: int, end: int, report: ReportProgress = lambda stage, count: None) -> Any:
    """The index with further images."""
    for start in range(first, end, BLOCK):
        vectors = read(start, min(start + BLOCK, end))
        if isinstance(index, _faiss().IndexScalarQuantizer):  # its codes are the float16 values themselves
            index.add_sa_codes(np.ascontiguousarray(vectors, np.float16).view(np.uint8).reshape(len(vectors), -1))
        else:
            index.add(to_float32(vectors))
        report("add to the index", len(vectors))
    return index


def _train(read: Read, images: int, width: int) -> Any:
    """An empty clustered index, trained on a sample."""
    clusters = max(1, round(2 * math.sqrt(images)))
    rows = np.sort(
        np.random.default_rng(0).choice(images, min(images, SAMPLE * clusters), replace=False, shuffle=False)
    )
    sample = []
    for start in range(0, images, BLOCK):
        here = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + BLOCK)]
        if len(here):
            sample.append(to_float32(read(start, min(start + BLOCK, images))[here - start]))
    faiss = _faiss()
    index = faiss.index_factory(width, f"IVF{clusters},{'SQ8' if width < WIDE else 'SQ4'}", faiss.METRIC_INNER_PRODUCT)
    index.cp.niter, index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = ITERATIONS, 1, SAMPLE
    index.train(np.concatenate(sample))
    return index


def to_float32(vectors: np.ndarray) -> np.ndarray:
    """float16 or float32 to float32, contiguous; torch converts ten times faster than NumPy."""
    return torch.from_numpy(np.array(vectors, order="C")).float().numpy()


def _read(path: Path, flags: int = 0) -> Any:
    try:
        return _faiss().read_index(str(path), flags)
    except RuntimeError:
        raise UserError(f"{path} cannot be read; {AGAIN}.") from None


def _write(path: Path, index: Any) -> None:
    with writing(path) as temporary:
        _faiss().write_index(index, str(temporary))
