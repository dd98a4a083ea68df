"""The order of samples: exact epochs, weights, wide and repeatable shuffling, little memory."""

import numpy as np
import pytest

from vlp.data.order import SampleOrder


def epoch(order: SampleOrder, number: int) -> np.ndarray:
    return order.numbers(np.arange(order.epoch_size) + number * order.epoch_size)


@pytest.mark.parametrize("buffer", [0, 3, 10_000])
def test_an_epoch_holds_every_sample_once(buffer):
    order = SampleOrder([[5, 0, 17], [1], [30, 2]], [1.0, 1.0, 1.0], buffer, seed=0)
    for number in range(4):
        assert sorted(epoch(order, number)) == list(range(55))


@pytest.mark.parametrize("buffer", [0, 1, 30, 200, 10_000])
def test_no_shard_of_a_shuffle_window_is_opened_twice(buffer):
    """With `shards_at_once` shards open, least recently used first out, each shard is opened once per pass."""
    shards = [7, 20, 1, 1, 13, 30, 2, 9, 9, 9] * 5
    order = SampleOrder([shards], [1.0], buffer, seed=0)
    shard_of = np.repeat(np.arange(len(shards)), shards)
    open_shards: dict[int, None] = {}
    opened = []
    for shard in shard_of[epoch(order, 0)].tolist():
        if shard not in open_shards:
            opened.append(shard)
        open_shards.pop(shard, None)
        open_shards[shard] = None
        if len(open_shards) > order.shards_at_once():
            open_shards.pop(next(iter(open_shards)))
    assert sorted(opened) == list(range(len(shards)))
    assert order.shards_at_once() <= len(shards)


def test_a_weight_is_how_often_a_sample_is_seen():
    order = SampleOrder([[10], [20]], [2.0, 0.5], 100, seed=0)
    assert order.epoch_size == 30
    for number in range(3):
        counts = np.bincount(epoch(order, number), minlength=30)
        assert (counts[:10] == 2).all()
    both = np.concatenate([epoch(order, 0), epoch(order, 1)])
    assert (np.bincount(both, minlength=30)[10:] == 1).all()  # two half epochs see different halves


def test_a_slice_of_the_stream_equals_the_whole():
    order = SampleOrder([[9, 9]], [1.0], 5, seed=1)
    whole = order.numbers(np.arange(100))
    again = SampleOrder([[9, 9]], [1.0], 5, seed=1)
    for start in (77, 3, 50):
        assert (again.numbers(np.arange(start, start + 20)) == whole[start : start + 20]).all()


def windowed(shards: list[int], buffer: int, rng: np.random.Generator) -> np.ndarray:
    """Plain reference: a shuffle buffer as a sort of `place + U(0, buffer)` over shards in random order."""
    starts = np.cumsum(shards) - shards
    line = np.concatenate([np.arange(starts[i], starts[i] + shards[i]) for i in rng.permutation(len(shards))])
    return line[np.argsort(np.arange(len(line)) + rng.uniform(0, buffer, len(line)), kind="stable")]


def test_shuffling_is_as_good_as_a_shuffle_buffer():
    """Samples move as far, and those that meet in a batch come from as far apart."""
    shards, buffer = [100] * 100, 1000
    order = SampleOrder([np.array(shards)], [1.0], buffer, seed=1)
    rng = np.random.default_rng(0)
    for number in range(3):
        ours, theirs = epoch(order, number), windowed(shards, buffer, rng)
        moved = []
        for numbers in (ours, theirs):
            shard, row = np.divmod(numbers, 100)
            place_of_shard = np.argsort(np.argsort([np.median(np.flatnonzero(shard == one)) for one in range(100)]))
            places = place_of_shard[shard] * 100 + row  # before shuffling
            distances = np.abs(places - np.arange(10_000)).mean(), np.abs(np.diff(places)).mean()
            assert len(np.unique(shard[5000:5256])) >= 9  # a buffer holds ten shards
            moved.append(distances)
        assert moved[0][0] >= 0.9 * moved[1][0] and moved[0][1] >= 0.9 * moved[1][1]
        correlation = np.corrcoef(ours[:-1] % 100, ours[1:] % 100)[0, 1]  # of neighbours' rows in their shards
        assert abs(correlation) < 0.05


def test_samples_move_by_less_than_the_buffer_and_the_borders_of_blocks_shift():
    order = SampleOrder([[1000]], [1.0], 300, seed=1)
    reached = []
    for number in range(20):
        moved = epoch(order, number) - np.arange(1000)
        assert np.abs(moved).max() < 300 and np.abs(moved).mean() > 50
        reached.append(np.flatnonzero(np.cumsum(moved) == 0)[0] + 1)  # the first block ends here, or before
    assert len(set(reached)) > 10
    small = SampleOrder([[1000]], [1.0], 1000, seed=1)  # all samples fit in one block
    assert all((epoch(small, number)[:500] >= 500).mean() > 0.4 for number in range(20))


def test_seeds_and_epochs_differ():
    one, two = SampleOrder([[1000]], [1.0], 300, seed=1), SampleOrder([[1000]], [1.0], 300, seed=2)
    assert (epoch(one, 0) != epoch(two, 0)).mean() > 0.9
    assert (epoch(one, 0) != epoch(one, 1)).mean() > 0.9
    shards = SampleOrder([[100] * 10], [1.0], 1, seed=1)
    assert (np.diff(epoch(shards, 0)) == 1).mean() > 0.9  # within shards; the shards themselves are shuffled
    assert epoch(shards, 0)[0] != 0 or epoch(shards, 1)[0] != 0


def test_sources_are_mixed_evenly_and_exactly():
    """Every epoch has the exact share of each source, and so has every long part of an epoch, to within a few."""
    counts = [30_000, 3_000, 7, 0, 50_001]
    weights = [1.0, 2.0, 1.0, 1.0, 0.5]
    order = SampleOrder([[count // 2, count - count // 2] for count in counts], weights, 100, seed=3)
    takes = [30_000, 6_000, 7, 0, 25_000]
    ends = np.cumsum(counts)
    for number in range(3):
        source_of = np.searchsorted(ends, epoch(order, number), side="right")
        assert np.bincount(source_of, minlength=5).tolist() == takes
        for part in np.array_split(source_of, 7):
            share = np.bincount(part, minlength=5) - np.array(takes) * len(part) / order.epoch_size
            assert np.abs(share).max() < 100
        alternating = np.mean(source_of[1:] == source_of[:-1])
        assert abs(alternating - sum((take / order.epoch_size) ** 2 for take in takes)) < 0.02  # as if drawn at random


@pytest.mark.parametrize("batch", [1, 7, 5000])
def test_positions_may_be_asked_for_in_any_order(batch):
    """Processes and workers ask for different parts; none depends on what was asked for before."""
    sizes = [np.random.default_rng(0).integers(0, 900, 30), np.array([4000])]
    whole = SampleOrder(sizes, [1.0, 0.3], 250, seed=9).numbers(np.arange(40_000))
    order = SampleOrder(sizes, [1.0, 0.3], 250, seed=9)
    for start in np.random.default_rng(1).integers(0, 40_000 - batch, 50):
        assert (order.numbers(np.arange(start, start + batch)) == whole[start : start + batch]).all()


def test_a_billion_samples_take_little_memory():
    import tracemalloc

    shards = np.full(100_000, 10_000)
    tracemalloc.start()
    order = SampleOrder([shards], [1.0], 10_000, seed=0)
    for epoch_number in range(3):
        for start in np.random.default_rng(epoch_number).integers(0, 10**9, 20):
            order.numbers(epoch_number * order.epoch_size + np.arange(start, start + 256))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20 * 2**20
