"""Writes the uid list of the selected images in the format of DataComp's resharder."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlp.data.sample_lists import uid_numbers
from vlp.data.sql import connect
from vlp.errors import UserError

DIGITS = 32  # hexadecimal digits of a uid, which make two 64-bit numbers; a longer uid such as a sha256 is cut
PAIRS_AT_ONCE = 1_000_000


def write_uids(path: Path, uids: Iterable[pa.ChunkedArray], spill: Path) -> None:
    """Write a uid list: a .npy of dtype `u8,u8`, sorted, each uid once. It is sorted on disk if memory is short.

    Args:
        uids: strings of at least 32 hexadecimal digits.
        spill: a folder for temporary files.

    Raises:
        UserError: a uid does not begin with 32 hexadecimal digits.
    """
    with connect(spill) as connection:
        connection.execute("CREATE TABLE uids (high UBIGINT, low UBIGINT)")
        for one in uids:
            high, low = _checked_numbers(one).T
            connection.register("part", pa.table({"high": high, "low": low}))
            connection.execute("INSERT INTO uids SELECT DISTINCT high, low FROM part")
        connection.execute("CREATE TABLE sorted AS SELECT DISTINCT high, low FROM uids")
        ((count,),) = connection.execute("SELECT count(*) FROM sorted").fetchall()
        reader = connection.sql("SELECT high, low FROM sorted ORDER BY high, low").to_arrow_reader(PAIRS_AT_ONCE)
        with open(path, "wb") as file:
            header = {"descr": np.dtype("u8,u8").descr, "fortran_order": False, "shape": (count,)}
            np.lib.format.write_array_header_1_0(file, header)
            for batch in reader:
                file.write(np.stack([column.to_numpy() for column in batch.columns], axis=1).tobytes())


def _checked_numbers(uids: pa.ChunkedArray) -> np.ndarray:
    """The two numbers of each uid, see `uid_numbers`.

    Raises:
        UserError: a uid does not begin with 32 hexadecimal digits.
    """
    right = pc.match_substring_regex(uids, "^[0-9a-fA-F]{32}")
    if not pc.all(right, min_count=0).as_py():
        (first, *_) = uids.filter(pc.invert(right)).to_pylist()
        raise UserError(f"The uid {first!r} does not begin with {DIGITS} hexadecimal digits; use --table instead.")
    return uid_numbers(uids.to_pylist())
