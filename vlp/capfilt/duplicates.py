"""Duplicates: images that a set has twice, or shares with an evaluation set, by their bytes and by their embeddings."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlp.capfilt.scorers import Scorers, load_scorers
from vlp.capfilt.scoring_batches import read_batches
from vlp.config import Precision
from vlp.data.bad_samples import BadSamples
from vlp.data.score_tables import is_finished, read_settings, shard_state, table_path, write_beside
from vlp.data.shard_index import expand_shards, index_shard
from vlp.errors import UserError, WorkError
from vlp.extras import extra
from vlp.log import Progress
from vlp.models.cpu.linear import constant_weights

with extra("capfilt"):
    import faiss

EMBEDDINGS, DUPLICATES = "embeddings", "duplicates"  # names of the tables beside the shards
BLOCK = 4096  # images that are compared with others at once; also with one another
STORED_BLOCK = 65_536  # images with which a block is compared at once
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("duplicate_of", pa.string()),  # SHARD#KEY of the image that stays instead, or of the evaluation set's
        ("kind", pa.string()),  # "exact": the same bytes; "near": the cosine; "against": either, with an evaluation set
        ("cosine", pa.float32()),
    ]
)


@dataclass
class DuplicateCounts:
    """Images by what was found of them; `exact`, `near` and `against` are those that should go."""

    images: int = 0
    exact: int = 0
    near: int = 0
    against: int = 0
    bad: dict[str, int] = field(default_factory=dict)  # not among `images`; by reason


@dataclass
class _Found:
    """What is known of every image by its number, those of the evaluation sets first, then the set's in shard order.

    Attributes:
        first: the first image with the same bytes, which alone is compared; itself for most.
        of: the image that stays instead, or one of an evaluation set; -1: this one stays.
        cosine: with that.
    """

    first: np.ndarray
    of: np.ndarray
    cosine: np.ndarray


def find_duplicates(
    shards: str | list[str],
    model: str,
    against: str | list[str] = "",
    above: float = 0.95,
    batch_size: int = 64,
    precision: Precision = "auto",
    quiet: bool = False,
) -> DuplicateCounts:
    """Write beside each shard a table of its images that are there already, `SHARD.duplicates.parquet`.

    Images are taken in shard order. One goes when it matches an image of an evaluation set, or one before it that
    stays: by its bytes (sha256), or by a cosine of the embeddings from `above` on. Memory holds blocks of embeddings,
    and names and numbers of all images; every image is compared with every one that stays, so time grows with the
    square of their number.

    Args:
        model: a BLIP model; its embeddings stay in `SHARD.embeddings.parquet`, so another run need not make them.
        against: shards of evaluation sets.

    Raises:
        UserError: nothing matches, `above` is out of range, a shard is on both sides, or `model` is no BLIP model.
        WorkError: a table cannot be written.
    """
    if not 0 < above <= 1:
        raise UserError(f"above must be a cosine over 0 and at most 1, not {above}.")
    scorers = load_scorers([], model, precision)
    if not scorers.filters:
        raise UserError(f"{model} has no embeddings that are compared here; name the folder of a BLIP model.")
    paths, tests = expand_shards(shards), expand_shards(against) if against else []
    if both := sorted({*paths} & {*tests}):
        raise UserError(f"{both[0]} is among the shards and among those that they are compared against.")
    settings, bad = {**scorers.identity, "batch_size": batch_size}, BadSamples(max_share=1.0)
    total = sum(len(index_shard(path).keys) for path in [*tests, *paths])
    with Progress("images", total, quiet=quiet) as progress:
        for path in [*tests, *paths]:
            _embed_shard(path, scorers, settings, batch_size, bad, progress)
    with Progress("images", _rows(paths), quiet=quiet) as progress:
        try:
            found = _compare(paths, tests, above, progress)
        except OSError as error:
            folder = _embeddings(paths[0]).parent
            raise WorkError(f"{folder} cannot hold what is compared: {error.strerror or error}.") from None
    counts = _write_tables(paths, tests, found, {**settings, "against": tests, "above": above})
    counts.bad = dict(bad.counts)
    return counts


@constant_weights()
def _embed_shard(
    shard: str, scorers: Scorers, settings: dict, batch_size: int, bad: BadSamples, progress: Progress
) -> None:
    """Make sure that a shard's embeddings lie beside it; adds its bad samples to `bad`."""
    if is_finished(shard, settings, EMBEDDINGS):
        progress.add("embed", _rows([shard]))
        return
    (model,), state = scorers.filters, shard_state(shard)
    keys, digests, vectors = [], [], [np.empty((0, model.config.embed_dim), np.float32)]
    for batch in read_batches(shard, scorers, batch_size, bad):
        vectors.append(model.embed_tokens(model.encode_images(batch.uint8[model.image_size])).numpy())
        keys += [sample.key for sample in batch.samples]
        digests += [hashlib.sha256(sample.image).digest() for sample in batch.samples]
        progress.add("embed", len(batch.samples))
    flat = pa.array(np.concatenate(vectors).ravel())
    columns = {
        "key": pa.array(keys, pa.string()),
        "sha256": pa.array(digests, pa.binary(32)),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, model.config.embed_dim),
    }
    write_beside(shard, pa.table(columns), settings, state, EMBEDDINGS)


def _compare(paths: list[str], tests: list[str], above: float, progress: Progress) -> _Found:
    offset, first = _rows(tests), _first_of_equal([*tests, *paths])
    found = _Found(first, np.full(len(first), -1), np.zeros(len(first), np.float32))
    of, cosine = found.of, found.cosine
    with tempfile.TemporaryFile(dir=_embeddings(paths[0]).parent) as file:
        stored = _Stored(file)
        for rows, vectors in _blocks(paths, offset):
            equal = rows[first[rows] < offset]
            of[equal], cosine[equal] = first[equal], 1
            for numbers, others in _blocks(tests, 0):
                _match(rows, vectors, numbers, others, above, found)
            left = (of[rows] < 0) & (first[rows] == rows)
            for numbers, others in stored.blocks(vectors.shape[1]):
                _match(rows[left], vectors[left], numbers, others, above, found)
            stays = _first_of_near(rows, vectors, left & (of[rows] < 0), above, found)
            stored.add(rows[stays], vectors[stays])
            progress.add("compare", len(rows))
    again = np.flatnonzero((of < 0) & (first != np.arange(len(first))))
    again = again[again >= offset]
    same = first[again]  # which may have gone itself, for another that stays
    of[again], cosine[again] = np.where(of[same] < 0, same, of[same]), np.where(of[same] < 0, 1, cosine[same])
    return found


class _Stored:
    """The embeddings that stay, on disk, with the numbers of their images."""

    def __init__(self, file: IO[bytes]):
        self.file, self.numbers = file, []

    def add(self, numbers: np.ndarray, vectors: np.ndarray) -> None:
        self.file.seek(0, 2)
        self.file.write(np.ascontiguousarray(vectors).tobytes())
        self.numbers.append(numbers)

    def blocks(self, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Numbers int64 [images] and vectors float32 [images, width], some at a time."""
        if self.numbers:
            self.numbers = [np.concatenate(self.numbers)]
            self.file.seek(0)
            for start in range(0, len(self.numbers[0]), STORED_BLOCK):
                numbers = self.numbers[0][start : start + STORED_BLOCK]
                data = self.file.read(len(numbers) * width * 4)
                yield numbers, np.frombuffer(data, np.float32).reshape(len(numbers), width)


def _match(
    rows: np.ndarray, vectors: np.ndarray, numbers: np.ndarray, others: np.ndarray, above: float, found: _Found
) -> None:
    """Note for each row which of the numbers is most like it, where it is like enough and more than any before."""
    if not len(rows):
        return
    cosines, places = faiss.knn(vectors, others, 1, metric=faiss.METRIC_INNER_PRODUCT)
    best, places = cosines[:, 0], places[:, 0]
    better = (best >= np.float32(above)) & ((found.of[rows] < 0) | (best > found.cosine[rows]))
    found.of[rows[better]] = numbers[places[better]]
    found.cosine[rows[better]] = best[better]


def _first_of_near(
    rows: np.ndarray, vectors: np.ndarray, candidates: np.ndarray, above: float, found: _Found
) -> np.ndarray:
    """Which candidates of a block stay, bool [rows]; the others are noted with the one that they are most like."""
    stays = candidates.copy()
    cosines = vectors @ vectors.T
    for place in np.flatnonzero(candidates & (np.tril(cosines, -1) >= np.float32(above)).any(axis=1)):
        before = np.where(stays[:place], cosines[place, :place], -np.inf)
        if (best := before.max()) >= np.float32(above):
            stays[place] = False
            found.of[rows[place]], found.cosine[rows[place]] = rows[before.argmax()], best
    return stays


def _first_of_equal(shards: list[str]) -> np.ndarray:
    """The number of the first image with the same bytes, int64 [images]; 128 bits of their hashes are compared."""
    digests = [np.empty((0, 2), np.uint64)]
    for shard in shards:
        column = pq.read_table(_embeddings(shard), columns=["sha256"])["sha256"]
        digests.append(np.frombuffer(b"".join(column.to_pylist()), np.uint64).reshape(-1, 4)[:, :2])
    both = np.concatenate(digests)
    order = np.lexsort((both[:, 1], both[:, 0]))  # stable: equal ones stay in the order of the shards
    new = np.ones(len(both), bool)
    new[1:] = (both[order][1:] != both[order][:-1]).any(axis=1)
    first = np.empty(len(both), np.int64)
    first[order] = order[np.flatnonzero(new)[np.cumsum(new) - 1]]
    return first


def _blocks(shards: list[str], start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Embeddings in order: numbers from `start` on, int64 [images], and float32 [images, embed_dim]."""
    for shard in shards:
        column = pq.read_table(_embeddings(shard), columns=["embedding"])["embedding"].combine_chunks()
        for place in range(0, len(column), BLOCK):
            part = column[place : place + BLOCK]
            yield np.arange(start, start + len(part)), part.flatten().to_numpy().reshape(len(part), -1)
            start += len(part)


def _rows(shards: list[str]) -> int:
    return sum(pq.read_metadata(_embeddings(shard)).num_rows for shard in shards)


def _embeddings(shard: str) -> Path:
    return table_path(shard, EMBEDDINGS)


def _write_tables(paths: list[str], tests: list[str], found: _Found, settings: dict) -> DuplicateCounts:
    names = pa.chunked_array([_names(shard) for shard in [*tests, *paths]])
    offset = start = _rows(tests)
    kinds = Counter()
    for path in paths:
        keys = pq.read_table(_embeddings(path), columns=["key"])["key"]
        of = found.of[start : start + len(keys)]
        places = np.flatnonzero(of >= 0)
        of, rows = of[places], places + start
        kind = np.where(of < offset, "against", np.where(of == found.first[rows], "exact", "near"))
        kinds.update(kind.tolist())
        columns = [keys.take(pa.array(places)), names.take(pa.array(of)), pa.array(kind), pa.array(found.cosine[rows])]
        stored = read_settings(path, EMBEDDINGS)
        state = {name: stored[name] for name in ("shard", "shard_sha256")}  # of the file that was read
        write_beside(path, pa.table(columns, SCHEMA.names).cast(SCHEMA), settings, state, DUPLICATES)
        start += len(keys)
    return DuplicateCounts(start - offset, kinds["exact"], kinds["near"], kinds["against"])


def _names(shard: str) -> pa.Array:
    keys = pq.read_table(_embeddings(shard), columns=["key"])["key"].combine_chunks()
    return pc.binary_join_element_wise(pa.scalar(shard), keys, "#")
