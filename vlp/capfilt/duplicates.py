"""Finds images that occur twice in a set or also in an evaluation set, by their bytes, embeddings and captions."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlp.capfilt.duplicate_search import KINDS, Matches
from vlp.capfilt.image_tables import ImageTables, write_image_tables
from vlp.capfilt.match_images import By, match_images
from vlp.config import Precision
from vlp.data.score_tables import check_table, read_table, write_beside
from vlp.data.shard_index import expand_shards
from vlp.errors import UserError

DUPLICATES = "duplicates"  # the name of the tables next to the shards
SCORES = ("itm", "itc", "clip")  # that `keep` can name
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("duplicate_of", pa.string()),  # SHARD#KEY of the image that is kept or in the evaluation set
        ("kind", pa.string()),  # "exact": the same bytes; "near": by cosine; "caption"; "against": an evaluation set
        ("cosine", pa.float32()),  # null for a match by caption
    ]
)


@dataclass
class DuplicateCounts:
    """How many images were compared, and how many of them are duplicates of each kind (see `SCHEMA`)."""

    images: int = 0
    exact: int = 0
    near: int = 0
    caption: int = 0
    against: int = 0
    bad: dict[str, int] = field(default_factory=dict)  # bad samples by reason; not part of `images`


def find_duplicates(
    shards: str | list[str],
    model: str = "",
    against: str | list[str] = "",
    above: float = 0.95,
    batch_size: int = 64,
    precision: Precision = "auto",
    by: By = "images",
    keep: str = "first",
    folder: str = "",
    seed: int = 0,
    quiet: bool = False,
) -> DuplicateCounts:
    """Write a table of the duplicate images next to each shard, `SHARD.duplicates.parquet`.

    The images are taken in the order that `keep` gives. An image is a duplicate if it has the same bytes (sha256) as
    an image of an evaluation set or an image before it, or if it is similar to an image of an evaluation set or to an
    image before it that is kept: the cosine of their embeddings is at least `above`, or their captions are equal after
    cleaning (see `caption_digest`). Many images are only compared with the images of their nearest clusters, see
    `vlp/capfilt/clustered_vectors.py`. Embeddings are read in blocks; about 120 bytes per image are in memory.

    Args:
        model: a BLIP or CLIP model. Its embeddings are stored in `SHARD.embeddings.parquet` and reused by the next
            call. Not needed to compare captions.
        against: shards of evaluation sets.
        by: what is compared: "images" (bytes and embeddings), "captions" (the first caption of each image) or "both".
        keep: which image of several comes first and is therefore kept: the "first" in shard order, the "largest" in
            pixels, or the one with the best score ("best:itm", "best:itc" or "best:clip"; that of the image's best text
            in the score table). Ties are broken by shard order.
        folder: the folder of the score tables, or its URL; "": next to the shards.
        seed: of the clusters. The result is the same for the same seed and number of threads.

    Raises:
        UserError: no shard matches, `above`, `by` or `keep` is invalid, a shard is in `shards` and `against`, `model`
            is missing or has no embeddings, or a score table is missing.
        WorkError: a table cannot be written.
    """
    score = _check(model, above, by, keep)
    paths, tests = expand_shards(shards), expand_shards(against) if against else []
    if both := sorted({*paths} & {*tests}):
        raise UserError(f"{both[0]} is in both --shards and --against; leave it out of one of them.")
    for path in paths if score else ():
        check_table(path, folder=folder)
    tables = write_image_tables([*tests, *paths], model if by != "captions" else "", batch_size, precision, quiet)
    facts: dict[str, Any] = {"against": tests, "above": above, "by": by, "keep": keep, "seed": seed}
    offset = tables.count(tests)
    order = np.concatenate([np.arange(offset), offset + _order(paths, tables, keep, score, folder)])
    found = match_images(paths, tests, tables, order, above, by, seed, quiet)
    counts = write_matches(paths, tests, tables, found, {**tables.settings, **facts})
    counts.bad = tables.bad
    return counts


def _check(model: str, above: float, by: str, keep: str) -> str:
    """The score that `keep` names, "" if it names none; raises a UserError for invalid arguments."""
    if not 0 < above <= 1:
        raise UserError(f"above must be a cosine greater than 0 and at most 1, not {above}.")
    if by not in get_args(By):
        raise UserError(f"by must be images, captions or both, not {by!r}.")
    rule, _, score = keep.partition(":")
    if keep not in ("first", "largest") and (rule != "best" or score not in SCORES):
        raise UserError(f"keep must be first, largest or best:SCORE with one of {', '.join(SCORES)}, not {keep!r}.")
    if by != "captions" and not model:
        raise UserError("Images are compared by their embeddings; give the folder of a BLIP or CLIP model as --model.")
    return score


def _order(paths: list[str], tables: ImageTables, keep: str, score: str, folder: str) -> np.ndarray:
    """The images of the set in the order in which they are kept: int64 [images], numbered from 0 in shard order."""
    parts = [np.empty(0)]
    for shard in paths:
        if score:
            parts.append(_best_scores(shard, tables.column(shard, "key"), score, folder))
        elif keep == "largest":
            parts.append(pc.multiply(*(tables.column(shard, side).cast(pa.int64()) for side in ("width", "height"))))
        else:
            parts.append(np.zeros(tables.count([shard])))
    return np.argsort(-np.concatenate(parts), kind="stable")


def _best_scores(shard: str, keys: pa.Array, score: str, folder: str) -> np.ndarray:
    """The best score of each image's texts in the shard's score table: float64 [images], -inf without one."""
    best = read_table(shard, folder=folder).select(["key", score]).group_by("key").aggregate([(score, "max")])
    scores = best[f"{score}_max"].combine_chunks().take(pc.index_in(keys, value_set=best["key"].combine_chunks()))
    values = scores.cast(pa.float64()).fill_null(-np.inf).to_numpy(zero_copy_only=False)
    return np.where(np.isnan(values), -np.inf, values)


def write_matches(
    paths: list[str], tests: list[str], tables: ImageTables, found: Matches, settings: dict[str, Any]
) -> DuplicateCounts:
    """Write the table of duplicates of each shard, see `SCHEMA`; the matches are numbered as in `match_images`."""
    offset = start = tables.count(tests)
    counts = Counter()
    targets = np.unique(found.of[found.of >= 0])
    names = _names([*tests, *paths], tables, targets)
    for path in paths:
        keys = tables.column(path, "key")
        places = np.flatnonzero(found.of[start : start + len(keys)] >= 0)
        rows = places + start
        kinds = pa.array(KINDS).take(pa.array(found.kind[rows]))
        of = names.take(pa.array(np.searchsorted(targets, found.of[rows])))
        columns = [keys.take(pa.array(places)), of, kinds, pa.array(found.cosine[rows], from_pandas=True)]
        write_beside(path, pa.table(columns, SCHEMA.names).cast(SCHEMA), settings, tables.state(path), DUPLICATES)
        counts.update(kinds.to_pylist())
        start += len(keys)
    return DuplicateCounts(start - offset, counts["exact"], counts["near"], counts["caption"], counts["against"])


def _names(shards: list[str], tables: ImageTables, images: np.ndarray) -> pa.LargeStringArray:
    """SHARD#KEY of some images, whose numbers are ascending.

    They are one array: `take` joins the chunks of a chunked one in every call, and fails where these exceed 2 GiB.
    """
    start, names = 0, [pa.array([], pa.large_string())]
    for shard in shards:
        stop = start + tables.count([shard])
        first, last = np.searchsorted(images, (start, stop))
        if first < last:
            keys = tables.column(shard, "key").take(pa.array(images[first:last] - start))
            names.append(pc.binary_join_element_wise(pa.scalar(shard), keys, "#").cast(pa.large_string()))
        start = stop
    return pa.concat_arrays(names)
