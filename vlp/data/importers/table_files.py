"""Checks that files are tables of equal columns; a file of another kind is named as what it looks like."""

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from vlp.data.score_tables import METADATA
from vlp.errors import UserError
from vlp.remote import is_remote

BEGINNINGS = {  # the first bytes of files that are mistaken for parquet tables
    b"\x93NUMPY": "a NumPy array",
    b"PK\x03\x04": "a zip file, such as .npz",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
    b"ARROW1": "an Arrow file; use `vlp data import hf`",
    b"{": "JSON; `vlp data import --help` lists commands for JSON files",
    b"[": "JSON; `vlp data import --help` lists commands for JSON files",
}


def check_tables(files: list[str]) -> pa.Schema:
    """The schema of parquet files with equal columns.

    Raises:
        UserError: a file is remote, is no parquet file, or is another kind of table, two of its columns differ only in
            case, or the columns of two files differ.
    """
    schemas: list[pa.Schema] = []
    for path in files:
        if is_remote(path):
            raise UserError(f"{path} is remote; copy or mount the tables, and give their local paths.")
        try:
            schema = pq.read_schema(path)
        except (OSError, pa.ArrowException):
            raise UserError(f"{path} is not a parquet table; it looks like {_looks_like(path)}.") from None
        if METADATA.encode() in (schema.metadata or {}):
            raise UserError(f"{path} is a score table of vlp already; name it in rules by --also NAME={path}.")
        if any(pa.types.is_struct(one.type) and one.type.get_field_index("bytes") >= 0 for one in schema):
            raise UserError(f"{path} holds images, as a Hugging Face data set; use `vlp data import hf`.")
        counts = Counter(map(str.lower, schema.names))
        same = [name for name in schema.names if counts[name.lower()] > 1]
        if same:
            raise UserError(f"{path} has columns that SQL takes for the same ({', '.join(same)}); rename all but one.")
        schemas.append(schema)
        different = set(schemas[0].names) ^ set(schema.names)
        if different:
            raise UserError(
                f"{files[0]} and {path} have different columns ({', '.join(sorted(different))}); import them one after "
                "the other, each with a --name."
            )
    return schemas[0]


def _looks_like(path: str) -> str:
    try:
        with open(path, "rb") as file:
            beginning = file.read(512)
    except OSError:
        return "an unreadable file"
    if not beginning:
        return "an empty file"
    if beginning[257:262] == b"ustar":
        return "a tar; use `vlp data import datacompdr` for shards of DataCompDR"
    kind = next((kind for start, kind in BEGINNINGS.items() if beginning.lstrip().startswith(start)), None)
    if kind:
        return kind
    return "TSV or CSV; see `vlp data import conceptual --help`" if b"\t" in beginning or b"," in beginning else "text"
