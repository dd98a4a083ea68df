"""The progress of all processes of a scoring run, on the first one's bar."""

import torch.distributed as dist

from vlp.data.shard_index import index_shard
from vlp.distributed import is_main
from vlp.log import Progress
from vlp.remote import is_remote


class SharedProgress:
    """The progress of all processes: each counts in the store, and the first one shows the sums.

    The total is estimated from the scored shards, because counting the images would mean reading every shard.
    """

    def __init__(self, store: dist.Store, bar: Progress, shards: list[str]):
        self.store, self.bar, self.shards = store, bar, len(shards)
        known = is_main() and shards and not is_remote(shards[0])  # a remote shard would be read whole
        self.first = len(index_shard(shards[0]).keys) if known else 0

    def start_shard(self) -> None:
        self.current = 0  # images of the shard in progress

    def count(self, stage: str, images: int) -> None:
        self.current += images
        self.store.add("images", images)
        self.show(stage)

    def finish_shard(self, images: int) -> None:
        self.store.add("scored shards", 1)
        self.store.add("images of scored shards", images)

    def take_back(self) -> None:
        """Uncount the shard in progress, which failed."""
        self.store.add("images", -self.current)

    def leave_out(self) -> None:
        """Count a shard that is not scored: its table is finished, or it was given up."""
        self.store.add("left out", 1)

    def show(self, stage: str) -> None:
        """Update the first process's bar."""
        if is_main():
            shards, images = self.store.add("scored shards", 0), self.store.add("images of scored shards", 0)
            average = images / shards if shards else self.first
            self.bar.total = round(average * (self.shards - self.store.add("left out", 0))) or None
            self.bar.add(stage, self.images() - self.bar.done)

    def images(self) -> int:
        """The number of images that all processes have scored."""
        return self.store.add("images", 0)
