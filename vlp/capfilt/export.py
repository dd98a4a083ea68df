"""Exports embeddings, texts and scores in the layouts that clip-retrieval and DataComp's tools read.

clip-retrieval (`clip_retrieval/clip_inference/writer.py`): three folders with a file per partition, whose rows belong
together and whose names sort in the order of the partitions.
DataComp (`baselines/apply_filter.py`): per shard a parquet table, and next to it an .npz with the same rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlp.capfilt.image_tables import ImageTables, write_image_tables
from vlp.capfilt.uids import DIGITS
from vlp.config import Precision
from vlp.data.score_tables import check_table, read_table
from vlp.data.shard_index import expand_shards
from vlp.errors import UserError
from vlp.files import prepare_output, writing, writing_shards
from vlp.log import Progress
from vlp.models.constant_weights import constant_weights

Layout = Literal["clip-retrieval", "datacomp"]
SCORES = ("itm", "itc", "clip", "nll")
UID = f"^[0-9a-fA-F]{{{DIGITS}}}"


@dataclass
class ExportCounts:
    """What was exported."""

    images: int = 0
    texts: int = 0
    files: int = 0
    bad: dict[str, int] = field(default_factory=dict)  # bad samples by reason; not part of `images`


@dataclass
class _Rows:
    """The images of one shard.

    Attributes:
        table: columns of the image table, and the scores of each image's text where a score table is given.
        images: float16 [images, width], embeddings of length 1.
        texts: float16 [images, width], embeddings of length 1, zeros without a text; None where no image of any shard
            has a text.
    """

    shard: str
    table: pa.Table
    images: np.ndarray
    texts: np.ndarray | None


def export(
    shards: str | list[str],
    model: str,
    layout: Layout,
    output: str,
    scores: str = "",
    folder: str = "",
    name: str = "blip",
    batch_size: int = 64,
    precision: Precision = "auto",
    quiet: bool = False,
) -> ExportCounts:
    """Write the embeddings of a set's images and of their first captions, with scores, for other tools.

    Every image has a row, in shard order. A caption's scores are those of the same text in the score table; they are
    null where it has none. The output appears when it is complete.

    Args:
        model: a BLIP model. Embeddings that are next to the shards are reused, as in `find_duplicates`.
        layout: "clip-retrieval": `img_emb/img_emb_N.npy`, `text_emb/text_emb_N.npy` and
            `metadata/metadata_N.parquet`, where N counts the shards that have images. "datacomp": `SHARD.parquet` and
            `SHARD.npz` with the arrays `NAME_img` and `NAME_txt`.
        output: a new folder, or an address in an object store.
        scores: the name of the score tables, such as "capfilt"; "" for none.
        folder: the folder of the score tables, or its URL; "": next to the shards.
        name: NAME in "datacomp".

    Raises:
        UserError: no shard matches, `model` is not a BLIP model, a score table is missing, the output exists; in
            "datacomp", two shards have the same file name or a uid does not begin with 32 hexadecimal digits.
        WorkError: the output cannot be written.
    """
    if layout not in get_args(Layout):
        raise UserError(f"The layout must be clip-retrieval or datacomp, not {layout!r}.")
    if not name.isidentifier():
        raise UserError(f"The name of the embeddings must be a word such as blip or l14, not {name!r}.")
    prepare_output(output, remote=True)
    paths = expand_shards(shards)
    if layout == "datacomp":
        _check_names(paths)
    for path in paths if scores else ():
        check_table(path, scores, folder)
    tables = write_image_tables(paths, model, batch_size, precision, quiet)
    counts = ExportCounts(bad=tables.bad)
    filled = [path for path in paths if tables.count([path])]
    with writing_shards(output) as target, Progress("images", tables.count(paths), quiet=quiet) as progress:
        for number, rows in enumerate(_read(filled, tables, scores, folder, batch_size)):
            if layout == "datacomp":
                _write_datacomp(target, rows, name)
            else:
                _write_clip_retrieval(target, rows, f"{number:0{len(str(len(filled)))}d}")
            counts.images += len(rows.table)
            counts.texts += len(rows.table) - rows.table["text"].null_count
            counts.files += 1
            progress.add("export", len(rows.table))
    return counts


def _check_names(paths: list[str]) -> None:
    """Raise a UserError for two shards of the same file name."""
    seen: dict[str, str] = {}
    for path in paths:
        other = seen.setdefault(Path(path).stem, path)
        if other != path:
            raise UserError(f"{other} and {path} have the same file name; export them into two folders.")


def _read(paths: list[str], tables: ImageTables, scores: str, folder: str, batch_size: int) -> Iterator[_Rows]:
    with_texts = any(tables.column(path, "text").null_count < tables.count([path]) for path in paths)
    for path in paths:
        table = tables.rows(path)
        if scores:
            table = _add_scores(table, read_table(path, scores, folder))
        texts = _embed_texts(table["text"].to_pylist(), tables, batch_size) if with_texts else None
        yield _Rows(path, table, tables.embeddings(path), texts)


def _add_scores(table: pa.Table, scores: pa.Table) -> pa.Table:
    """Add the columns `SCORES` of the row of a score table with the same key and text."""
    rows = {pair: row for row, pair in reversed(list(enumerate(_pairs(scores))))}  # of several, the first
    places = pa.array([rows.get(pair) for pair in _pairs(table)], pa.int64())
    for name in SCORES:
        table = table.append_column(name, scores[name].combine_chunks().cast(pa.float32()).take(places))
    return table


def _pairs(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["key"].to_pylist(), table["text"].to_pylist(), strict=True))


@constant_weights()
def _embed_texts(texts: list[str | None], tables: ImageTables, batch_size: int) -> np.ndarray:
    """Embeddings of texts, float16 [texts, width]; zeros for None."""
    assert tables.model is not None
    places = [place for place, text in enumerate(texts) if text is not None]
    vectors = np.zeros((len(texts), tables.model.config.embed_dim), np.float16)
    vectors[places] = tables.model.embed_texts([text for text in texts if text is not None], batch_size).numpy()
    return vectors


def _write_clip_retrieval(folder: str, rows: _Rows, number: str) -> None:
    _save_array(f"{folder}/img_emb/img_emb_{number}.npy", rows.images)
    if rows.texts is not None:
        _save_array(f"{folder}/text_emb/text_emb_{number}.npy", rows.texts)
    table = rows.table.drop_columns(["text", "sha256"])
    table = table.add_column(0, "image_path", rows.table["key"])
    if rows.texts is not None:
        table = table.add_column(1, "caption", pc.fill_null(rows.table["text"], ""))
    table = table.append_column("shard", pa.array([rows.shard] * len(table), pa.string()))
    with writing(f"{folder}/metadata/metadata_{number}.parquet") as temporary:
        pq.write_table(table.replace_schema_metadata(None), temporary)


def _save_array(path: str, array: np.ndarray) -> None:
    with writing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def _write_datacomp(folder: str, rows: _Rows, name: str) -> None:
    table = rows.table
    arrays: dict[str, Any] = {f"{name}_img": rows.images}
    columns = {
        "uid": _datacomp_uids(table["uid"], rows.shard),
        "url": table["url"],
        "text": pc.fill_null(table["text"], ""),
        "original_width": table["width"],
        "original_height": table["height"],
        "key": table["key"],
        "sha256": pa.array([digest.hex() for digest in table["sha256"].to_pylist()], pa.string()),
    }
    if rows.texts is not None:
        arrays[f"{name}_txt"] = rows.texts
        cosines = (rows.images.astype(np.float32) * rows.texts.astype(np.float32)).sum(axis=1)
        columns[f"clip_{name}_similarity_score"] = pa.array(cosines, mask=np.asarray(table["text"].is_null()))
    columns |= {score: table[score] for score in SCORES if score in table.column_names}
    path = f"{folder}/{Path(rows.shard).stem}"
    with writing(f"{path}.parquet") as temporary:
        pq.write_table(pa.table(columns), temporary)
    with writing(f"{path}.npz") as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def _datacomp_uids(uids: pa.ChunkedArray, shard: str) -> pa.ChunkedArray:
    """The first 32 digits, which DataComp's tools read as a number of 128 bits."""
    right = pc.match_substring_regex(uids, UID)
    if not pc.all(right).as_py():
        (first, *_) = uids.filter(pc.invert(right)).to_pylist()
        raise UserError(
            f"The uid {first!r} in {shard} does not begin with {DIGITS} hexadecimal digits, which DataComp's tools "
            "need; export to clip-retrieval."
        )
    return pc.utf8_slice_codeunits(uids, 0, DIGITS)
