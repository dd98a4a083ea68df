"""The order of samples: exact epochs, weights, wide and repeatable shuffling."""

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


def test_seeds_and_epochs_differ_and_shuffling_goes_far():
    one, two = SampleOrder([[1000]], [1.0], 300, seed=1), SampleOrder([[1000]], [1.0], 300, seed=2)
    assert (epoch(one, 0) != epoch(two, 0)).mean() > 0.9
    assert (epoch(one, 0) != epoch(one, 1)).mean() > 0.9
    moved = np.abs(epoch(one, 0) - np.arange(1000))
    assert moved.mean() > 50
    assert moved.max() <= 300
    shards = SampleOrder([[100] * 10], [1.0], 1, seed=1)
    assert (np.abs(np.diff(epoch(shards, 0))) == 1).mean() > 0.9  # within shards; the shards themselves are shuffled
    assert epoch(shards, 0)[0] != 0 or epoch(shards, 1)[0] != 0
