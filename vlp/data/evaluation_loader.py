"""Every sample of shards once, in order, for evaluation."""

from collections.abc import Iterator

import numpy as np

from vlp.data.bad_samples import BadSamples
from vlp.data.batch import EvaluationBatch
from vlp.data.sample_dataset import SampleDataset, read_chunks
from vlp.data.shard_index import expand_shards, index_shard


def evaluation_batches(
    shards: str | list[str],
    image_size: int,
    batch_size: int,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
    bad: BadSamples | None = None,
    need_text: bool = False,
) -> Iterator[EvaluationBatch]:
    """Every good sample of the shards once, in order; processes take turns by batch.

    Args:
        limit: at most this many samples, over all processes.
        bad: counts the skipped samples, and limits the share of bad ones; None allows any share.
        need_text: samples without a text are skipped as filtered ones.
    """
    indexes = [index_shard(path) for path in expand_shards(shards)]
    bad = bad or BadSamples(max_share=1.0)
    for one in (one for index in indexes for one in index.bad):
        bad.add(one)
    total = sum(len(index.keys) for index in indexes)
    numbers = np.arange(total if limit is None else min(limit, total))
    starts = range(rank * batch_size, len(numbers), world * batch_size)
    parts = [numbers[start : start + batch_size] for start in starts]
    dataset = SampleDataset([indexes], image_size, need_text=need_text)
    for chunk in read_chunks(dataset, ((part, part, part) for part in parts), workers):
        bad.seen(len(chunk.keys))
        for one in chunk.skipped:
            (bad.add_filtered if one.filtered else bad.add)(one.sample)
        if chunk.keys:
            yield EvaluationBatch(chunk.images, chunk.captions, chunk.keys, chunk.infos)
