"""Predictions over shards or lists of items, batch by batch: in one or several processes, and resumable."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from torch.utils.data import Dataset

from vlp.data.bad_samples import BadSamples
from vlp.data.batch import EvaluationBatch
from vlp.data.cache import identity
from vlp.data.data_index import stamps_of
from vlp.data.dataset_source import DatasetSource
from vlp.data.evaluation_loader import evaluation_batches, row_batches
from vlp.data.index_writer import cached_index
from vlp.data.shard_index import expand_shards
from vlp.data.workers import start_workers
from vlp.distributed import gather_objects, rank, run_on_main, shared_count, world_size
from vlp.evaluation.partial import FinishedBatch, append, appending, open_partial
from vlp.evaluation.results import skipped_metrics
from vlp.evaluation.settings import EvaluationSettings
from vlp.remote import is_remote

Item = TypeVar("Item")
Row = dict[str, Any]
Numbered = Iterator[tuple[int, Any, int, dict[str, int]]]  # number, batch, its samples, those skipped by reason


@dataclass
class Predictions:
    """Rows in the order of the data, and the skipped samples and items by reason; the same in every process."""

    rows: list[Row]
    skipped: dict[str, int] = field(default_factory=Counter)

    def counts(self) -> dict[str, int]:
        """The metrics that tell how many were skipped."""
        return skipped_metrics(self.skipped)


def predict(
    shards: str | list[str],
    image_size: int,
    settings: EvaluationSettings,
    make: Callable[[EvaluationBatch], list[Row]],
    stage: str,
    need_text: bool = False,
    images_per_sample: int = 1,
) -> Predictions:
    """Run `make` over every good sample of shards.

    A batch holds the same samples whatever the number of processes, so that the rows do not depend on it.

    Args:
        make: returns the rows of a batch, in order: any number, of JSON values (a tuple comes back as a list). A row
            with `skipped` names the reason why an item has no prediction; it is counted and left out.
        stage: the name of this work in the progress and in the partial folder; each of several calls has its own.
        need_text: skip samples without a text.
        images_per_sample: 1, or 2 for pairs: `EvaluationBatch.images` is then [batch, 2, 3, size, size].

    Returns:
        The rows of all processes if `settings.spread`. Unreadable samples are skipped, named in the log and counted.

    Raises:
        UserError: no shard matches, or the partial folder holds another evaluation.
        WorkError: a shard or the partial folder fails.
        SystemExit: another process failed, which shows the error.
    """
    bad = BadSamples(max_share=1.0)
    paths = expand_shards(shards)

    def read(finished: frozenset[int], process: int, processes: int) -> Numbered:
        batches = evaluation_batches(
            shards,
            image_size,
            settings.batch_size,
            settings.workers,
            process,
            processes,
            settings.limit,
            bad,
            need_text,
            finished,
            images_per_sample,
        )
        for batch in batches:
            yield batch.number, batch, len(batch.keys) + sum(batch.skipped.values()), batch.skipped

    if settings.expect and not any(map(is_remote, paths)):
        total = int(cached_index(paths).counts.sum())
        settings.expect(min(total, settings.limit or total))
    facts = {"shards": list(map(identity, paths)), "sizes and times": stamps_of(paths), "image size": image_size}
    return _collect(read, settings, make, stage, facts, bad)


def predict_rows(
    rows: DatasetSource,
    image_size: int,
    settings: EvaluationSettings,
    make: Callable[[EvaluationBatch], list[Row]],
    stage: str,
) -> Predictions:
    """Run `make` over every good row of a data set; as `predict` does over the samples of shards."""
    bad = BadSamples(max_share=1.0)

    def read(finished: frozenset[int], process: int, processes: int) -> Numbered:
        size, workers, limit = settings.batch_size, settings.workers, settings.limit
        for batch in row_batches(rows, image_size, size, workers, process, processes, limit, bad, finished):
            yield batch.number, batch, len(batch.keys) + sum(batch.skipped.values()), batch.skipped

    total = rows.count()
    if settings.expect:
        settings.expect(min(total, settings.limit or total))
    stamps = stamps_of(list(rows.opened.files))
    facts = {"data set": identity(rows.opened.name), "split": str(rows.opened.rows.split), "rows": total}
    return _collect(read, settings, make, stage, facts | {"times": stamps, "image size": image_size}, bad)


def predict_items(
    items: Sequence[Item],
    settings: EvaluationSettings,
    make: Callable[[Any], list[Row]],
    stage: str,
    facts: dict[str, Any],
    load: Callable[[Sequence[Item]], Any] | None = None,
) -> Predictions:
    """Run `make` over a list that every process has, `settings.batch_size` items at once; for data outside of shards.

    Args:
        make, stage: as in `predict`.
        facts: JSON values that tell the list from others, such as the path and the time of its file.
        load: turns the items of a batch into what `make` takes, in `settings.workers` processes, as by decoding files.
    """
    items = items[: settings.limit]
    size = settings.batch_size

    def read(finished: frozenset[int], process: int, processes: int) -> Numbered:
        missing = (number for number in range(-(-len(items) // size)) if number not in finished)
        numbers = list(islice(missing, process, None, processes))
        parts = [items[number * size : (number + 1) * size] for number in numbers]
        for number, part, batch in zip(numbers, parts, _load(parts, load, settings.workers), strict=True):
            yield number, batch, len(part), {}

    if settings.expect:
        settings.expect(len(items))
    return _collect(read, settings, make, stage, facts | {"items": len(items)}, BadSamples(max_share=1.0))


class _Loading(Dataset):
    """A function of a batch's items; for worker processes."""

    def __init__(self, load: Callable[[Sequence[Any]], Any]):
        self.load = load

    def __getitem__(self, items: Sequence[Any]) -> Any:
        return self.load(items)


def _load(parts: list[Any], load: Callable[[Sequence[Any]], Any] | None, workers: int) -> Iterator[Any]:
    """What `load` makes of the items of each batch; the items themselves if it is None."""
    if load is None:
        return iter(parts)
    return start_workers(_Loading(load), workers, 2, False, iter(parts)) if workers and parts else map(load, parts)


def _collect(
    read: Callable[[frozenset[int], int, int], Numbered],
    settings: EvaluationSettings,
    make: Callable[[Any], list[Row]],
    stage: str,
    facts: dict[str, Any],
    bad: BadSamples,
) -> Predictions:
    """Make the rows of the missing batches, keep them, and gather those of all processes."""
    process, processes = (rank(), world_size()) if settings.spread else (0, 1)
    kept: list[FinishedBatch] = []  # in the first process only
    about = {**settings.about, **facts, "batch size": settings.batch_size, "limit": settings.limit}

    def resume() -> list[int]:
        kept.extend(open_partial(settings.partial, stage, about))
        return [one.batch for one in kept]

    finished: frozenset[int] = frozenset()
    if settings.partial:
        finished = frozenset(run_on_main(resume) if settings.spread else resume())
    made: list[FinishedBatch] = []
    with ExitStack() as stack:
        progress = stack.enter_context(shared_count(partial(settings.progress, stage), settings.spread))
        progress(sum(one.samples for one in kept))
        file = stack.enter_context(appending(settings.partial, stage, process)) if settings.partial else None
        for number, batch, samples, skipped in read(finished, process, processes):
            one = FinishedBatch(number, make(batch), samples, dict(skipped))
            made.append(one)
            if file:
                append(file, one)
            progress(one.samples)
    # Damage that is found when a shard is opened is counted anew in every call, that of a batch is kept with it.
    skipped = sum((Counter(one.skipped) for one in kept), Counter(bad.counts) + Counter(bad.filtered))
    parts = gather_objects((kept + made, skipped)) if settings.spread else [(kept + made, skipped)]
    batches = sorted((one for part, _ in parts for one in part), key=lambda one: one.batch)
    rows = json.loads(json.dumps([row for one in batches for row in one.rows]))  # as a resumed call reads them
    items = Counter(row["skipped"] for row in rows if row.get("skipped"))
    return Predictions([row for row in rows if not row.get("skipped")], sum((part for _, part in parts), items))
