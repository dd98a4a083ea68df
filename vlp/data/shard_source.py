"""Shards as a source of streamed reading: how many units they make, and how many samples they hold."""

import logging
from collections.abc import Iterator

from vlp.data.bad_samples import BadSample
from vlp.data.byte_stream import Access
from vlp.data.data_index import open_index
from vlp.data.sample_lists import SampleList, uid_numbers
from vlp.data.score_tables import image_uid
from vlp.data.shard_stream import read_shard
from vlp.data.shards import Sample
from vlp.errors import UserError, WorkError
from vlp.remote import ExpiredCredentialsError

MOST_PARTS = 4  # of a shard, each of which reads the whole of it: so many requests a pass

log = logging.getLogger("vlp")


class ShardSource:
    """Shards; each is split into parts where there are fewer than streams: sample i is in part i % parts."""

    def __init__(self, paths: list[str], streams: int, access: Access, keep: SampleList | None = None, index: str = ""):
        """Nothing is read yet.

        Args:
            keep: the samples to use; others are passed over. None uses all.
            index: an index of the shards, which knows how many samples they hold; empty: none.
        """
        self.paths, self.access, self.keep, self.index = paths, access, keep, index
        self.parts = min(MOST_PARTS, -(-streams // len(paths)))

    def units(self) -> int:
        """The number of parts of all shards."""
        return len(self.paths) * self.parts

    def read(self, unit: int) -> Iterator[Sample | BadSample]:
        """The samples of a unit; one that cannot be read to its end gives an "unreadable shard".

        Raises:
            ExpiredCredentialsError: no further shard can be read.
        """
        path, part = self.paths[unit // self.parts], unit % self.parts
        try:
            for number, item in enumerate(read_shard(path, self.access)):
                if number % self.parts == part and self._is_used(item):
                    yield item
        except ExpiredCredentialsError:
            raise
        except (UserError, WorkError) as error:
            log.warning("gave up a shard: %s", error)
            yield BadSample(path, "", "unreadable shard")

    def count(self) -> int:
        """The number of samples: those of the index, or an estimate from the first shard; no more than `keep` lists.

        Raises:
            UserError: the first shard or the index does not exist or cannot be read.
            WorkError: the first shard cannot be read.
        """
        count = int(open_index(self.index, self.paths).counts.sum()) if self.index else self._estimate()
        return count if self.keep is None else min(count, len(self.keep.pairs))

    def _estimate(self) -> int:
        first = sum(isinstance(item, Sample) for item in read_shard(self.paths[0], self.access))
        if len(self.paths) > 1:
            about = "%s has %d samples, so its %d shards are taken to have %d; set samples of the source if you know it"
            log.info(about, self.paths[0], first, len(self.paths), first * len(self.paths))
        return first * len(self.paths)

    def _is_used(self, item: Sample | BadSample) -> bool:
        if self.keep is None or isinstance(item, BadSample):
            return True
        uids = uid_numbers([image_uid(item.image, item.info)]) if self.keep.by_uid else None
        return bool(self.keep.listed(item.shard, [item.key], uids)[0])
