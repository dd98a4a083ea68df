"""duckdb over parquet files: a connection that spills to disk, and how SQL names texts and files."""

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vlp.extras import extra

if TYPE_CHECKING:
    import duckdb

MOST_MEMORY = 4 * 2**30  # bytes that duckdb uses before it writes to disk


def connect(spill: Path, memory: int = MOST_MEMORY) -> "duckdb.DuckDBPyConnection":
    """An in-memory duckdb that writes to `spill` beyond `memory` bytes and downloads no extensions.

    Raises:
        UserError: duckdb is not installed.
    """
    with extra("capfilt"):
        import duckdb
    settings = {"memory_limit": f"{memory}B", "temp_directory": str(spill), "preserve_insertion_order": False}
    fetches = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
    connection = duckdb.connect(config={**settings, **fetches})
    with suppress(duckdb.InvalidInputException):  # in Jupyter without ipywidgets, which the bar would need
        connection.execute("SET enable_progress_bar = false")
    # This optimizer takes columns to be free of NaN because parquet statistics never contain NaN.
    connection.execute("SET disabled_optimizers = 'statistics_propagation'")
    return connection


def quote(text: str) -> str:
    """A text as an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    """The name of a column as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def parquet_files(paths: list[str]) -> str:
    """SQL that reads parquet files; wildcard characters in their names are escaped."""
    literal = ", ".join(quote(re.sub(r"([*?\[])", r"[\1]", path)) for path in paths)
    # By default a folder named like source=cc12m replaces the column `source` of the files in it.
    return f"read_parquet([{literal}], hive_partitioning = false)"
