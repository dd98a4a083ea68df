"""Scores one shard: captions every image, and scores its own texts and the new captions."""

import hashlib
import math
import shlex
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from vlp import __version__
from vlp.capfilt.pipeline import ScoreSettings, decodings, score_batches
from vlp.capfilt.scorers import Scorers
from vlp.capfilt.scoring_batches import read_batches
from vlp.data.bad_samples import BadSamples
from vlp.data.cache import fresh_stamp
from vlp.data.score_tables import shard_state, write_table
from vlp.log import ReportProgress, no_progress
from vlp.models.constant_weights import constant_weights
from vlp.remote import is_remote


@dataclass
class ScoreCounts:
    """What was scored of one shard, by one process or by all of them.

    Attributes:
        skipped_shards: shards whose tables were finished before.
        bad: by reason, the samples that were left out, and as "empty caption" the captions without a word.
    """

    shards: int = 0
    skipped_shards: int = 0
    images: int = 0
    texts: int = 0
    bad: dict[str, int] = field(default_factory=dict)

    def add(self, other: "ScoreCounts") -> None:
        """Add other counts to these."""
        for name in ("shards", "skipped_shards", "images", "texts"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.bad = dict(Counter(self.bad) + Counter(other.bad))


@constant_weights()
def score_shard(
    shard: str, scorers: Scorers, settings: ScoreSettings, progress: ReportProgress = no_progress
) -> ScoreCounts:
    """Score a shard and write its table.

    The table does not depend on which process writes it: a batch holds samples of one shard only, and a sampled caption
    depends on the seed, the shard's file name and the sample's key.

    Raises:
        WorkError: more than `max_bad_share` of the samples are bad, or the table cannot be written.
    """
    bad = BadSamples(settings.max_bad_share)
    empty = BadSamples(math.inf)  # captions without a word; their samples are not bad
    counts, rows = ScoreCounts(shards=1), []
    digest = hashlib.sha256() if is_remote(shard) else None  # a remote shard is read once, for both
    state = {"shard": fresh_stamp(shard)} if digest else shard_state(shard)
    batches = read_batches(shard, scorers, settings.batch_size, bad, digest)
    for batch, scored in score_batches(batches, scorers, settings, shard, empty):
        rows += scored
        counts.images += len(batch.samples)
        progress("score", len(batch.samples))
    bad.finish()
    if digest:
        state["shard_sha256"] = digest.hexdigest()
    counts.texts, counts.bad = len(rows), dict(bad.counts + empty.counts)
    about = {**_provenance(scorers, settings), "bad": counts.bad}
    write_table(shard, rows, table_identity(scorers, settings), state, settings.name, about, settings.tables)
    return counts


def table_identity(scorers: Scorers, settings: ScoreSettings) -> dict[str, Any]:
    """What the rows of a table depend on. A table with another identity is scored again."""
    return {
        **scorers.identity,
        "decoding": [asdict(decoding) for decoding in decodings(scorers, settings)],
        "num_captions": settings.num_captions,
        "seed": settings.seed,
        "batch_size": settings.batch_size,  # it changes rounding
    }


def _provenance(scorers: Scorers, settings: ScoreSettings) -> dict[str, Any]:
    """What a table records about how it was made, apart from its identity."""
    return {"command": shlex.join(sys.argv), "vlp": __version__, **scorers.names, "settings": asdict(settings)}
