"""Writes a table of a shard's images, with their hash, size, text and embedding, and reads its columns."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from vlp.capfilt.scorers import load_scorers
from vlp.capfilt.scoring_batches import ScoringBatch, read_batches
from vlp.config import Precision
from vlp.data.bad_samples import BadSample, BadSampleError, BadSamples
from vlp.data.image_decoding import EncodedImage
from vlp.data.score_tables import (
    image_uid,
    is_finished,
    open_table,
    read_settings,
    shard_state,
    table_path,
    write_beside,
)
from vlp.data.shard_index import index_shard
from vlp.data.shards import Sample, iterate_samples
from vlp.errors import UserError
from vlp.log import Progress
from vlp.model import Model
from vlp.models.constant_weights import constant_weights
from vlp.remote import is_remote

EMBEDDINGS, IMAGES = "embeddings", "images"  # names of the tables next to the shards: with embeddings, and without
BLOCK = 16_384  # embeddings that `ImageTables.blocks` yields at once
FORMAT = 2  # of these tables
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("uid", pa.string()),  # see `image_uid`
        ("sha256", pa.binary(32)),  # of the encoded file
        ("width", pa.int32()),  # of the upright image, in pixels
        ("height", pa.int32()),
        ("text", pa.string()),  # the sample's first caption; null without one
        ("url", pa.string()),  # `url` of the sample's JSON; null without one
    ]
)


@dataclass
class ImageTables:
    """The image tables of some shards, all made in the same way.

    Attributes:
        name: `EMBEDDINGS` or `IMAGES`.
        settings: what the tables depend on, apart from their shards.
        model: the model that made the embeddings; None in tables without them.
        bad: bad samples by reason; they are in no table.
        counts: the number of images by shard, as far as it was read.
    """

    name: str
    settings: dict[str, Any]
    model: Model | None = None
    bad: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def path(self, shard: str) -> str:
        """The path of a shard's table."""
        return table_path(shard, self.name)

    def state(self, shard: str) -> dict[str, str]:
        """The `shard_state` of a shard from before its table was made."""
        stored = read_settings(shard, self.name) or {}
        return {name: stored[name] for name in ("shard", "shard_sha256")}

    def count(self, shards: list[str]) -> int:
        """The number of images in the tables of some shards."""
        for shard in shards:
            if shard not in self.counts:
                with open_table(self.path(shard)) as file:
                    self.counts[shard] = file.metadata.num_rows
        return sum(self.counts[shard] for shard in shards)

    def column(self, shard: str, name: str) -> pa.Array:
        """A column of a shard's table."""
        with open_table(self.path(shard)) as file:
            return file.read([name])[name].combine_chunks()

    def rows(self, shard: str) -> pa.Table:
        """A shard's table without its embeddings."""
        with open_table(self.path(shard)) as file:
            return file.read(SCHEMA.names)

    def embeddings(self, shard: str) -> np.ndarray:
        """The embeddings of a shard's images: float16 [images, width]."""
        column = self.column(shard, "embedding")
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)

    def width(self, shard: str) -> int:
        """The length of an embedding."""
        with open_table(self.path(shard)) as file:
            return file.schema_arrow.field("embedding").type.list_size

    def blocks(self, shards: list[str]) -> Iterator[np.ndarray]:
        """The embeddings of some shards in order, at most `BLOCK` at once: float16 [images, width]."""
        for shard in shards:
            vectors = self.embeddings(shard)
            for start in range(0, len(vectors), BLOCK):
                yield vectors[start : start + BLOCK]


def write_image_tables(
    shards: list[str],
    model: str = "",
    batch_size: int = 64,
    precision: Precision = "auto",
    quiet: bool = False,
) -> ImageTables:
    """Write the image table of each shard, unless it is finished; bad samples are skipped and counted.

    Args:
        model: a folder of a BLIP or CLIP model for the embeddings; "" for tables without them.

    Raises:
        UserError: `model` is not such a folder.
        WorkError: a table cannot be written.
    """
    scorers = load_scorers([], model, precision) if model else None
    embedder = next(iter([*scorers.filters, *(clip.model for clip in scorers.clips)]), None) if scorers else None
    if scorers and embedder is None:
        raise UserError(f"{model} has no image embeddings; give the folder of a BLIP or CLIP model.")
    identity = {**scorers.identity, "batch_size": batch_size} if scorers else {}
    name, settings = (EMBEDDINGS if scorers else IMAGES), {**identity, "format": FORMAT}
    tables = ImageTables(name, settings, embedder)
    bad = BadSamples(max_share=1.0)
    remote = any(is_remote(shard) for shard in shards)  # counting their samples would read them twice
    total = None if remote else sum(len(index_shard(shard).keys) for shard in shards)
    with Progress("images", total, quiet=quiet) as progress:
        for shard in shards:
            if is_finished(shard, settings, name):
                progress.add("read", tables.count([shard]))
                continue
            state = shard_state(shard)
            if scorers and embedder:
                table = _embedded(read_batches(shard, scorers, batch_size, bad), embedder, progress)
            else:
                table = _listed(shard, bad, progress)
            write_beside(shard, table, settings, state, name)
    tables.bad = dict(bad.counts)
    return tables


def _listed(shard: str, bad: BadSamples, progress: Progress) -> pa.Table:
    """The rows of a shard's images, whose headers are read and whose pixels are not."""
    rows = []
    for sample in iterate_samples([shard], bad):
        try:
            image = EncodedImage(sample.image)
        except BadSampleError as error:
            bad.add(BadSample(shard, sample.key, error.reason), counted=True)
            continue
        rows.append(_row(sample, (image.width, image.height)))
        progress.add("read")
    return pa.Table.from_pylist(rows, SCHEMA)


@constant_weights()
def _embedded(batches: Iterator[ScoringBatch], model: Model, progress: Progress) -> pa.Table:
    """The rows of a shard's images with their embeddings, rounded to float16."""
    width = model.config.embed_dim
    rows, vectors = [], [np.empty((0, width), np.float16)]
    for batch in batches:
        images = batch.uint8[model.image_size] if batch.uint8 else batch.clip[0]  # of the only model
        embedded = model.embed_tokens(model.encode_images(images))
        vectors.append(embedded.float().numpy().astype(np.float16))
        rows += [_row(sample, size) for sample, size in zip(batch.samples, batch.sizes, strict=True)]
        progress.add("embed", len(batch.samples))
    flat = pa.array(np.concatenate(vectors).ravel(), pa.float16())
    column = pa.FixedSizeListArray.from_arrays(flat, width)
    return pa.Table.from_pylist(rows, SCHEMA).append_column("embedding", column)


def _row(sample: Sample, size: tuple[int, int]) -> dict[str, Any]:
    url = sample.info.get("url")
    return {
        "key": sample.key,
        "uid": image_uid(sample.image, sample.info),
        "sha256": hashlib.sha256(sample.image).digest(),
        "width": size[0],
        "height": size[1],
        "text": sample.captions[0] if sample.captions else None,
        "url": url if isinstance(url, str) and url.isprintable() else None,
    }
