"""Streamed reading: the same batches for any number of processes and workers, exact passes and resumes."""

import itertools
from collections import Counter

import pytest
import torch

from tests.data.test_loader import spoiled
from vlp.config import AugmentConfig, DataConfig, SourceConfig
from vlp.data.examples import CaptionExamples
from vlp.data.sample_stream import ShuffledSource
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import Sample, iterate_samples
from vlp.data.streamed_loader import StreamedLoader
from vlp.data.tokenizer import load_tokenizer
from vlp.errors import UserError, WorkError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # three workers on two cores
PLAIN = AugmentConfig(crop_min=1.0, flip=False, operations=0)


@pytest.fixture
def loader_of(scenes, tokenizer_folder):
    tokenizer = load_tokenizer(str(tokenizer_folder))

    def make(batch_size=8, rank=0, world=1, workers=0, shards=None, augment=PLAIN, sources=None, **settings):
        sources = sources or [SourceConfig(shards or f"{scenes}/*.tar")]
        settings = {"streams": 4, "shuffle_buffer": 40} | settings
        data = DataConfig(sources, "streamed", workers, max_tokens=16, augment=augment, **settings)
        return StreamedLoader(data, 32, CaptionExamples(tokenizer, 16), batch_size, rank, world, seed=5)

    return make


def take(loader, count):
    batches = iter(loader)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def keys(batches):
    return [batch.keys for batch in batches]


class Numbers:
    """A source whose samples are numbers: unit u holds `sizes[u]` samples, named u-0, u-1, ..."""

    def __init__(self, sizes):
        self.sizes, self.reads = sizes, Counter()

    def units(self):
        return len(self.sizes)

    def read(self, unit):
        self.reads[unit] += 1
        for number in range(self.sizes[unit]):
            yield Sample(f"{unit}-{number}", "", b"", None, [], {})


@pytest.mark.parametrize("streams", [1, 3, 8])
@pytest.mark.parametrize("sizes", [[5, 0, 9, 30, 1], [7], [3] * 40])
def test_every_pass_reads_every_unit_once(streams, sizes):
    source = Numbers(sizes)
    parts = [ShuffledSource(source, 0, stream, streams, 6.0, seed=2) for stream in range(streams)]
    units = [[part._unit(number) for part in parts] for number in range(3 * len(sizes))]
    line = [unit for turn in units for unit in turn]
    for start in range(0, len(line) - len(sizes), len(sizes)):
        assert sorted(line[start : start + len(sizes)]) == list(range(len(sizes)))


def test_shuffling_moves_samples_within_the_window_and_loses_none():
    source = Numbers([50] * 20)
    stream = ShuffledSource(source, 0, 0, 1, 100.0, seed=3)
    numbers = [stream.draw().number for _ in range(900)]
    assert len(set(numbers)) == 900 and set(range(800)) <= set(numbers)
    moves = [place - number for place, number in enumerate(numbers)]
    assert max(map(abs, moves)) <= 101
    assert sum(map(abs, moves)) / len(moves) > 20  # a uniform window of 100 moves by a third on average
    assert len(stream.heap) <= 101


@pytest.mark.parametrize("window", [0.0, 7.0, 60.0])
def test_a_stream_resumes_at_any_sample_and_reads_only_what_it_needs(window):
    sizes = [3, 20, 1, 0, 11]
    whole = ShuffledSource(Numbers(sizes), 0, 1, 2, window, seed=4)
    drawn, states = [], []
    for _ in range(120):
        states.append(whole.state())
        one = whole.draw()
        drawn.append((one.number, one.sample.key))
    for place in range(0, 100, 7):
        again = ShuffledSource(Numbers(sizes), 0, 1, 2, window, seed=4)
        again.resume(states[place])
        assert [(one.number, one.sample.key) for one in (again.draw() for _ in range(20))] == drawn[place : place + 20]
        assert again.state()[0] == whole.state()[0] or place + 20 < 120
        assert min(number for number, _ in drawn[place:]) - states[place][2] < 20  # within one unit


def test_global_batches_do_not_depend_on_processes_or_workers(loader_of):
    whole = take(loader_of(augment=AugmentConfig()), 15)
    for world, workers in ((1, 1), (1, 3), (2, 0), (2, 2), (4, 0), (4, 1)):
        parts = [take(loader_of(8, rank, world, workers, augment=AugmentConfig()), 15) for rank in range(world)]
        for one, *ranks in zip(whole, *parts, strict=True):
            assert one.keys == [key for part in ranks for key in part.keys]
            assert one.texts == [text for part in ranks for text in part.texts]
            assert torch.equal(one.images, torch.cat([part.images for part in ranks]))
            assert torch.equal(one.image_hashes, torch.cat([part.image_hashes for part in ranks]))


@pytest.mark.parametrize("shards", ["{00000..00004}", "00004"])  # more and fewer shards than streams
def test_epochs_are_nearly_even(loader_of, scenes, shards):
    path = f"{scenes}/{shards}.tar"
    every = {sample.key for sample in iterate_samples(path)}
    loader = loader_of(4, shards=path, shuffle_buffer=8)
    counts = Counter(key for batch in take(loader, 20 * len(every) // 4) for key in batch.keys)
    assert counts.keys() == every
    assert 14 <= min(counts.values()) <= max(counts.values()) <= 26


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_state_resumes_exactly_and_on_other_numbers_of_processes(loader_of, scenes, tmp_path, workers):
    shards = spoiled(tmp_path, scenes, 4)
    settings = {"shards": shards, "max_bad_share": 0.5}
    whole = loader_of(workers=workers, **settings)
    batches = keys(take(whole, 20))
    for before, after, place in ((1, 1, 1), (1, 1, 13), (1, 2, 5), (2, 1, 8), (4, 2, 3)):
        first = [loader_of(8, rank, before, workers, **settings) for rank in range(before)]
        for loader in first:
            take(loader, place)
        states = [loader.state() for loader in first]
        resumed = [loader_of(8, rank, after, workers, **settings) for rank in range(after)]
        parts = []
        for loader in resumed:
            loader.load_states(states)
            parts.append(keys(take(loader, 20 - place)))
        assert [list(itertools.chain(*turn)) for turn in zip(*parts, strict=True)] == batches[place:]
        assert sum((Counter(loader.bad_counts) for loader in resumed), Counter()) == whole.bad_counts
        streams = {number: one for loader in resumed for number, one in loader.state()["streams"].items()}
        assert streams == whole.state()["streams"]


def test_sources_are_mixed_by_weight(loader_of, scenes, web_scenes):
    sources = [SourceConfig(f"{scenes}/*.tar", weight=1), SourceConfig(f"{web_scenes}/*.tar", weight=3)]
    loader = loader_of(8, sources=sources)
    assert loader.epoch_size == 100 + 3 * 60  # estimated from the first shards, of 20 samples each
    hashes = {sample.key for sample in iterate_samples(f"{web_scenes}/*.tar")}
    assert hashes
    drawn = Counter()
    for part in itertools.islice(iter(loader.reader), 100):
        drawn.update(part.chunk.sources)
    assert abs(drawn[1] / drawn.total() - 180 / 280) < 0.06
    counted = loader_of(8, sources=[SourceConfig(f"{scenes}/*.tar", samples=87)])
    assert counted.epoch_size == 87


def test_bad_samples_are_skipped_and_batches_stay_full(loader_of, scenes, tmp_path):
    loader = loader_of(8, shards=spoiled(tmp_path, scenes, 10), max_bad_share=0.2)
    batches = take(loader, 20)
    assert {len(batch.keys) for batch in batches} == {8}
    assert all(int(key) % 10 for batch in batches for key in batch.keys)
    assert loader.bad_counts["image undecodable"] >= 9
    with pytest.raises(WorkError, match="image undecodable"):
        take(loader_of(8, shards=str(tmp_path / "spoiled/*.tar"), max_bad_share=0.01), 40)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_source_without_any_text_or_good_sample_ends_the_run(loader_of, scenes, tmp_path, workers):
    image = next(iterate_samples(f"{scenes}/*.tar")).image
    with ShardWriter(tmp_path / "silent") as writer:
        for number in range(5):
            writer.write(str(number), image, "png", None, {})
    with pytest.raises(WorkError, match=r"data\.sources\[0\]: none of the first \d+ samples could be used"):
        take(loader_of(workers=workers, shards=str(tmp_path / "silent/*.tar")), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_leaves_the_global_random_state_alone(loader_of, workers):
    before = torch.get_rng_state()
    take(loader_of(workers=workers), 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_calls(loader_of):
    with pytest.raises(UserError, match=r"set data\.streams to 3"):
        loader_of(9, world=3)
    with pytest.raises(UserError, match=r"set data\.streams to 8"):
        loader_of(24, world=8, streams=6)
    with pytest.raises(UserError, match="multiple"):
        loader_of(8, world=3)
    with pytest.raises(UserError, match="No shard"):
        loader_of(shards="nowhere/*.tar")


def test_a_buffer_larger_than_the_source_does_not_mix_more_than_two_passes(loader_of):
    batches = take(loader_of(shuffle_buffer=100_000, streams=1), 33)  # 264 samples: three passes of 87, and a little
    counts = Counter(key for batch in batches for key in batch.keys)
    assert len(counts) == 87 and set(counts.values()) <= {2, 3, 4}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_page_locked_on_a_machine_with_a_gpu(loader_of):
    assert all(batch.images.is_pinned() for batch in take(loader_of(workers=2), 3))
