"""Matches the images of image tables with each other: by bytes, by embedding and by caption."""

import hashlib
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from vlp.capfilt.clustered_vectors import PROBES, ClusteredVectors, cluster_count, cluster_vectors
from vlp.capfilt.duplicate_search import AGAINST, EXACT, KEPT, Matches, search_duplicates
from vlp.capfilt.image_tables import ImageTables
from vlp.data.transforms import LONGEST_CAPTION, clean_caption
from vlp.errors import WorkError
from vlp.log import Progress
from vlp.remote import is_remote

NOT_A_WORD = re.compile(r"[\W_]+")
By = Literal["images", "captions", "both"]


def match_images(
    paths: list[str],
    tests: list[str],
    tables: ImageTables,
    order: np.ndarray,
    above: float,
    by: By = "images",
    seed: int = 0,
    quiet: bool = False,
    clusters: int | None = None,
) -> Matches:
    """Find the duplicates among the images of tables that exist.

    Args:
        order: int64 [images], the images in the order in which they are kept. Images are numbered in the order of the
            tables: first those of the evaluation sets, then those of the set.
        clusters: how many clusters; None for a number that fits the number of images.

    Raises:
        WorkError: there is no space for the temporary embeddings.
    """
    shards, offset = [*tests, *paths], tables.count(tests)
    found, first = Matches.none(len(order)), np.arange(len(order))
    if by != "captions":
        first = _first_of_equal(_hashes(shards, tables, "sha256", _sha256), order)
    taking_part = order[first[order] == order]  # of equal files, the first
    ranks = np.full(len(order), -1)
    ranks[taking_part] = np.arange(len(taking_part))
    captions = None
    if by != "images":
        digests = _hashes(shards, tables, "text", _caption_digests)[taking_part]
        same = _first_of_equal(digests, np.arange(len(digests)))
        captions = np.unique(same, return_inverse=True)[1]
        captions[~digests.any(axis=1)] = -1
    table, near = tables.path(paths[0]), Matches.none(0)
    folder = tempfile.gettempdir() if is_remote(table) else str(Path(table).parent)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            vectors = None
            if by != "captions":
                vectors = _cluster(shards, tables, ranks, len(taking_part), clusters, seed, file, quiet)
            test_count = int((taking_part < offset).sum())
            with Progress("images", len(taking_part), quiet=quiet) as progress:
                near = search_duplicates(len(taking_part), test_count, vectors, captions, above, progress)
    except OSError as error:
        raise WorkError(f"{folder} cannot hold the temporary embeddings: {error.strerror or error}.") from None
    found.set(taking_part, np.where(near.of >= 0, taking_part[near.of], -1), near.cosine, KEPT)
    found.kind[taking_part] = near.kind
    _copy_to_equal(found, first, offset)
    return found


def _cluster(
    shards: list[str],
    tables: ImageTables,
    ranks: np.ndarray,
    images: int,
    clusters: int | None,
    seed: int,
    file: Any,
    quiet: bool,
) -> ClusteredVectors:
    count = cluster_count(images) if clusters is None else clusters
    width = tables.width(shards[0])
    return cluster_vectors(lambda: tables.blocks(shards), ranks, width, count, PROBES, seed, file, quiet)


def _copy_to_equal(found: Matches, first: np.ndarray, offset: int) -> None:
    """Give images with the same bytes as one before them their match: that image, or what that image duplicates."""
    again = np.flatnonzero(first != np.arange(len(first)))
    again = again[again >= offset]
    same = first[again]
    kept = found.of[same] < 0
    found.of[again] = np.where(kept, same, found.of[same])
    found.cosine[again] = np.where(kept, 1, found.cosine[same])
    found.kind[again] = np.where(kept, np.where(same < offset, AGAINST, EXACT), found.kind[same])


def _first_of_equal(digests: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The first image in `order` with the same digest as each image, int64 [images]; digests are uint64 [images, 2]."""
    high, low = digests[order].T
    by_digest = np.lexsort((low, high))  # stable: equal digests keep their order
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(high[by_digest]) != 0) | (np.diff(low[by_digest]) != 0)
    first = np.empty(len(order), np.int64)
    first[order[by_digest]] = order[by_digest][np.flatnonzero(new)[np.cumsum(new) - 1]]
    return first


def _hashes(
    shards: list[str], tables: ImageTables, column: str, digests: Callable[[pa.Array], np.ndarray]
) -> np.ndarray:
    """128 bits of a hash of a column for every image: uint64 [images, 2]."""
    parts = [digests(tables.column(shard, column)) for shard in shards]
    return np.concatenate([np.empty((0, 2), np.uint64), *parts])


def _sha256(column: pa.Array) -> np.ndarray:
    data = np.frombuffer(column.buffers()[1] or b"", np.uint64).reshape(-1, 4)
    return data[column.offset : column.offset + len(column), :2]


def _caption_digests(column: pa.Array) -> np.ndarray:
    data = b"".join(caption_digest(text or "") for text in column.to_pylist())
    return np.frombuffer(data, np.uint64).reshape(-1, 2)


def caption_digest(text: str) -> bytes:
    """A hash of 16 bytes that is the same for captions which differ in case, punctuation and white space only.

    It is all zeros for a caption without a letter or digit, which equals no other.
    """
    words = NOT_A_WORD.sub(" ", clean_caption(text, max_words=LONGEST_CAPTION)).strip()
    return hashlib.blake2b(words.encode(), digest_size=16).digest() if words else bytes(16)
