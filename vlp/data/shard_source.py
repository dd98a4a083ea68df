"""Shards as a source of streamed reading: how many units they make, and how many samples they hold."""

import logging
from collections.abc import Iterator

from vlp.data.bad_samples import BadSample
from vlp.data.byte_stream import Access
from vlp.data.shard_stream import read_shard
from vlp.data.shards import Sample
from vlp.errors import UserError, WorkError
from vlp.remote import ExpiredCredentialsError

MOST_PARTS = 4  # of a shard, each of which reads the whole of it: so many requests a pass

log = logging.getLogger("vlp")


class ShardSource:
    """Shards; each is split into parts where there are fewer than streams: sample i is in part i % parts."""

    def __init__(self, paths: list[str], streams: int, access: Access):
        """Nothing is read yet."""
        self.paths, self.access = paths, access
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
                if number % self.parts == part:
                    yield item
        except ExpiredCredentialsError:
            raise
        except (UserError, WorkError) as error:
            log.warning("gave up a shard: %s", error)
            yield BadSample(path, "", "unreadable shard")

    def count(self) -> int:
        """The number of good samples, estimated from the first shard.

        Raises:
            UserError: the first shard does not exist, or access is denied.
            WorkError: it cannot be read.
        """
        first = sum(isinstance(item, Sample) for item in read_shard(self.paths[0], self.access))
        if len(self.paths) > 1:
            about = "%s has %d samples, so its %d shards are taken to have %d; set samples of the source if you know it"
            log.info(about, self.paths[0], first, len(self.paths), first * len(self.paths))
        return first * len(self.paths)
