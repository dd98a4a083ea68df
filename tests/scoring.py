"""Score shards in the test's process, as `vlp capfilt score` does."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from vlp.capfilt import run
from vlp.capfilt.score import ScoreCounts
from vlp.config import CapFiltConfig, SamplingOverrides
from vlp.data.score_tables import METADATA


def lose_shard(table: str | Path) -> None:
    """Remove the shard next to a table, which seems to have been made from it."""
    shard = Path(str(table).removesuffix(".capfilt.parquet") + ".tar")
    stored = pq.read_table(table)
    settings = {**json.loads(stored.schema.metadata[METADATA.encode()]), "path": str(shard)}
    pq.write_table(stored.replace_schema_metadata({METADATA: json.dumps(settings)}), table)
    shard.unlink()


def score_shards(
    shards: str, captioner: str | list[str], filter: str | list[str], decoding: SamplingOverrides, **settings: Any
) -> ScoreCounts:
    """`settings` are fields of `CapFiltConfig`."""
    return run.score_shards(
        CapFiltConfig(shards=shards, captioner=captioner, filter=filter, decoding=decoding, **settings)
    )
