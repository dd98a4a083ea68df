"""The image of a row of a score table, read from its shard by offset, as a small JPEG."""

import threading
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from vlp.data.bad_samples import BadSampleError
from vlp.data.find_tables import ScoreTable
from vlp.data.image_decoding import decode_image
from vlp.data.image_encoding import small_jpeg
from vlp.data.score_tables import is_same_shard, shard_exists, table_settings
from vlp.data.shard_index import ShardIndex, index_shard
from vlp.data.shards import Sample, ShardReader
from vlp.errors import UserError

PIXELS = 512  # longer side of a picture
INDEXES = 32  # in memory


class ReviewImages:
    """Reads samples of scored shards. Several threads may use it at once."""

    def __init__(self) -> None:
        self.reader = ShardReader()
        self.lock = threading.Lock()
        self._index = lru_cache(INDEXES)(_index)

    def sample(self, table: ScoreTable, key: str) -> Sample:
        """The sample with a key.

        Raises:
            UserError: the shard is missing or has changed since it was scored, or the sample cannot be read.
        """
        shard = table.shard
        if not shard_exists(shard):
            raise UserError(f"The shard {shard} is missing, so its images cannot be shown; restore it.")
        if not is_same_shard(shard, table_settings(table.file) or {}):
            raise UserError(f"{shard} was changed after it was scored; score it again.")
        with self.lock:
            index, keys = self._index(shard)
            row = pc.index(keys, key).as_py()
            if row < 0:
                raise UserError(f"{shard} has no sample {key}; score the shard again.")
            try:
                return self.reader.read(index, row)
            except BadSampleError as error:
                self._index.cache_clear()
                raise UserError(f"The sample {key} of {shard} cannot be read: {error.reason}.") from None

    def jpeg(self, table: ScoreTable, key: str) -> bytes:
        """The upright image of a sample as a JPEG of at most `PIXELS`; raises what `sample` does."""
        sample = self.sample(table, key)
        try:
            picture = decode_image(sample.image, shortest=PIXELS)
        except BadSampleError as error:
            raise UserError(f"The image of {key} in {table.shard} cannot be shown: {error.reason}.") from None
        return small_jpeg(picture, PIXELS)

    def close(self) -> None:
        """Close the shards."""
        self.reader.close()


def _index(shard: str) -> tuple[ShardIndex, pa.Array]:
    index = index_shard(shard)
    return index, index.keys.arrow()
