"""Finds images that occur twice in a set or also in an evaluation set, by their bytes and their embeddings."""

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

EMBEDDINGS, DUPLICATES = "embeddings", "duplicates"  # names of the tables next to the shards
BLOCK = 4096  # images that are compared with each other and with the images before them at once
KEPT_BLOCK = 65_536  # images before them that are in memory at once
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("duplicate_of", pa.string()),  # SHARD#KEY of the image that is kept or in the evaluation set
        ("kind", pa.string()),  # "exact": the same bytes; "near": by cosine; "against": either, with an evaluation set
        ("cosine", pa.float32()),
    ]
)


@dataclass
class DuplicateCounts:
    """How many images were compared, and how many of them are duplicates of each kind (see `SCHEMA`)."""

    images: int = 0
    exact: int = 0
    near: int = 0
    against: int = 0
    bad: dict[str, int] = field(default_factory=dict)  # bad samples by reason; not part of `images`


@dataclass
class _Matches:
    """The match of every image. Images are numbered: first those of the evaluation sets, then the set in shard order.

    Attributes:
        first: int64 [images], the first image with the same bytes; only that one is compared by its embedding.
        of: int64 [images], the image that this one duplicates; -1 if it is kept.
        cosine: float32 [images], the cosine with that image.
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
    """Write a table of the duplicate images next to each shard, `SHARD.duplicates.parquet`.

    Images are compared in shard order. An image is a duplicate if it has the same bytes (sha256) as an image of an
    evaluation set or an earlier image that is kept, or if the cosine of their embeddings is at least `above`. Memory
    holds blocks of embeddings and the names of all images. Every image is compared with every image that is kept, so
    the time grows with the square of their number.

    Args:
        model: a BLIP model. Its embeddings are stored in `SHARD.embeddings.parquet` and reused by the next call.
        against: shards of evaluation sets.

    Raises:
        UserError: no shard matches, `above` is out of range, a shard is in `shards` and `against`, or `model` is not a
            BLIP model.
        WorkError: a table cannot be written.
    """
    if not 0 < above <= 1:
        raise UserError(f"above must be a cosine greater than 0 and at most 1, not {above}.")
    scorers = load_scorers([], model, precision)
    if not scorers.filters:
        raise UserError(f"{model} has no image embeddings for duplicates; give the folder of a BLIP model.")
    paths, tests = expand_shards(shards), expand_shards(against) if against else []
    if both := sorted({*paths} & {*tests}):
        raise UserError(f"{both[0]} is in both --shards and --against; leave it out of one of them.")
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
            raise WorkError(f"{folder} cannot hold the temporary embeddings: {error.strerror or error}.") from None
    counts = _write_tables(paths, tests, found, {**settings, "against": tests, "above": above})
    counts.bad = dict(bad.counts)
    return counts


@constant_weights()
def _embed_shard(
    shard: str, scorers: Scorers, settings: dict, batch_size: int, bad: BadSamples, progress: Progress
) -> None:
    """Write a shard's embeddings next to it, unless that is done; adds its bad samples to `bad`."""
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


def _compare(paths: list[str], tests: list[str], above: float, progress: Progress) -> _Matches:
    offset, first = _rows(tests), _first_of_equal([*tests, *paths])
    found = _Matches(first, np.full(len(first), -1), np.zeros(len(first), np.float32))
    of, cosine = found.of, found.cosine
    with tempfile.TemporaryFile(dir=_embeddings(paths[0]).parent) as file:
        kept = _KeptEmbeddings(file)
        for rows, vectors in _blocks(paths, offset):
            equal = rows[first[rows] < offset]
            of[equal], cosine[equal] = first[equal], 1
            for numbers, others in _blocks(tests, 0):
                _match(rows, vectors, numbers, others, above, found)
            left = (of[rows] < 0) & (first[rows] == rows)
            for numbers, others in kept.blocks(vectors.shape[1]):
                _match(rows[left], vectors[left], numbers, others, above, found)
            new = _first_of_near(rows, vectors, left & (of[rows] < 0), above, found)
            kept.add(rows[new], vectors[new])
            progress.add("compare", len(rows))
    again = np.flatnonzero((of < 0) & (first != np.arange(len(first))))
    again = again[again >= offset]
    same = first[again]  # this image may itself be a duplicate of one that is kept
    of[again], cosine[again] = np.where(of[same] < 0, same, of[same]), np.where(of[same] < 0, 1, cosine[same])
    return found


class _KeptEmbeddings:
    """The embeddings of the images that are kept, on disk, and the numbers of these images."""

    def __init__(self, file: IO[bytes]):
        self.file, self.numbers = file, []

    def add(self, numbers: np.ndarray, vectors: np.ndarray) -> None:
        self.file.seek(0, 2)
        self.file.write(np.ascontiguousarray(vectors).tobytes())
        self.numbers.append(numbers)

    def blocks(self, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Numbers int64 [images] and vectors float32 [images, width], `KEPT_BLOCK` at a time."""
        if self.numbers:
            self.numbers = [np.concatenate(self.numbers)]
            self.file.seek(0)
            for start in range(0, len(self.numbers[0]), KEPT_BLOCK):
                numbers = self.numbers[0][start : start + KEPT_BLOCK]
                data = self.file.read(len(numbers) * width * 4)
                yield numbers, np.frombuffer(data, np.float32).reshape(len(numbers), width)


def _match(
    rows: np.ndarray, vectors: np.ndarray, numbers: np.ndarray, others: np.ndarray, above: float, found: _Matches
) -> None:
    """Record for each row the most similar of `numbers`, if its cosine reaches `above` and beats the recorded one."""
    if not len(rows):
        return
    cosines, places = faiss.knn(vectors, others, 1, metric=faiss.METRIC_INNER_PRODUCT)
    best, places = cosines[:, 0], places[:, 0]
    better = (best >= np.float32(above)) & ((found.of[rows] < 0) | (best > found.cosine[rows]))
    found.of[rows[better]] = numbers[places[better]]
    found.cosine[rows[better]] = best[better]


def _first_of_near(
    rows: np.ndarray, vectors: np.ndarray, candidates: np.ndarray, above: float, found: _Matches
) -> np.ndarray:
    """Which candidates of a block are kept, bool [rows]; records the most similar kept image of all others."""
    kept = candidates.copy()
    cosines = vectors @ vectors.T
    for place in np.flatnonzero(candidates & (np.tril(cosines, -1) >= np.float32(above)).any(axis=1)):
        before = np.where(kept[:place], cosines[place, :place], -np.inf)
        if (best := before.max()) >= np.float32(above):
            kept[place] = False
            found.of[rows[place]], found.cosine[rows[place]] = rows[before.argmax()], best
    return kept


def _first_of_equal(shards: list[str]) -> np.ndarray:
    """The number of the first image with the same bytes, int64 [images]; compares 128 bits of the hashes."""
    digests = [np.empty((0, 2), np.uint64)]
    for shard in shards:
        column = pq.read_table(_embeddings(shard), columns=["sha256"])["sha256"]
        digests.append(np.frombuffer(b"".join(column.to_pylist()), np.uint64).reshape(-1, 4)[:, :2])
    both = np.concatenate(digests)
    order = np.lexsort((both[:, 1], both[:, 0]))  # stable: equal hashes keep the order of the shards
    new = np.ones(len(both), bool)
    new[1:] = (both[order][1:] != both[order][:-1]).any(axis=1)
    first = np.empty(len(both), np.int64)
    first[order] = order[np.flatnonzero(new)[np.cumsum(new) - 1]]
    return first


def _blocks(shards: list[str], start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Embeddings in shard order: image numbers from `start`, int64 [images], and float32 [images, embed_dim]."""
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


def _write_tables(paths: list[str], tests: list[str], found: _Matches, settings: dict) -> DuplicateCounts:
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
        stored = read_settings(path, EMBEDDINGS) or {}
        state = {name: stored[name] for name in ("shard", "shard_sha256")}  # when the embeddings were made
        write_beside(path, pa.table(columns, SCHEMA.names).cast(SCHEMA), settings, state, DUPLICATES)
        start += len(keys)
    return DuplicateCounts(start - offset, kinds["exact"], kinds["near"], kinds["against"])


def _names(shard: str) -> pa.Array:
    keys = pq.read_table(_embeddings(shard), columns=["key"])["key"].combine_chunks()
    return pc.binary_join_element_wise(pa.scalar(shard), keys, "#")
