"""The loader: exact cover on any number of processes and workers, resume, bad samples."""

import io
import itertools
import tarfile
from collections import Counter

import pytest
import torch

from vlp.config import AugmentConfig, DataConfig, SourceConfig
from vlp.data import indexed_loader, workers
from vlp.data.bad_samples import BadSamples
from vlp.data.evaluation_loader import evaluation_batches
from vlp.data.examples import CaptionExamples
from vlp.data.indexed_loader import IndexedLoader
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import iterate_samples
from vlp.data.tokenizer import load_tokenizer
from vlp.data.workers import pins_memory
from vlp.errors import UserError, WorkError

PLAIN = AugmentConfig(crop_min=1.0, flip=False, operations=0)


@pytest.fixture
def loader_of(scenes, tokenizer_folder):
    tokenizer = load_tokenizer(str(tokenizer_folder))

    def make(batch_size, rank=0, world=1, workers=0, shards=None, augment=PLAIN, **settings):
        data = DataConfig(
            [SourceConfig(shards or f"{scenes}/*.tar")], workers=workers, max_tokens=16, augment=augment, **settings
        )
        return IndexedLoader(data, 32, CaptionExamples(tokenizer, 16), batch_size, rank, world, seed=5)

    return make


def take(loader, count):
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("shards", ["{00000..00004}", "00004"])  # five uneven shards, and fewer than workers
def test_processes_and_workers_cover_epochs_exactly(loader_of, scenes, world, workers, shards):
    path = f"{scenes}/{shards}.tar"
    count = len(list(iterate_samples(path)))
    steps = count  # with a batch of `world x 1` each, that is `world` epochs
    keys = []
    for rank in range(world):
        loader = loader_of(world, rank, world, workers, path)
        assert loader.epoch_size == count
        keys.append([batch.keys[0] for batch in take(loader, steps)])
    together = [key for step in zip(*keys, strict=True) for key in step]  # the stream, reassembled
    for number in range(world):
        assert len(set(together[number * count : (number + 1) * count])) == count


def test_an_empty_shard_does_not_hang(loader_of, scenes, tmp_path):
    tarfile.open(tmp_path / "empty.tar", "w").close()
    loader = loader_of(4, shards=[str(tmp_path / "empty.tar"), f"{scenes}/00004.tar"], max_bad_share=0.5)
    assert len(take(loader, 5)) == 5


def test_global_batches_are_the_same_for_one_and_two_processes(loader_of):
    whole = take(loader_of(8, augment=AugmentConfig()), 15)
    parts = [take(loader_of(8, rank, 2, augment=AugmentConfig()), 15) for rank in range(2)]
    for one, left, right in zip(whole, *parts, strict=True):
        assert one.keys == left.keys + right.keys
        assert one.texts == left.texts + right.texts
        assert torch.equal(one.images, torch.cat([left.images, right.images]))
        assert torch.equal(one.image_hashes, torch.cat([left.image_hashes, right.image_hashes]))


def test_the_order_depends_on_the_seed_and_not_on_the_workers(loader_of, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: {0})  # more workers than cores raise no warning
    first, second = (take(loader_of(8, workers=workers, augment=AugmentConfig()), 12) for workers in (0, 2))
    for one, two in zip(first, second, strict=True):
        assert (one.keys, one.texts) == (two.keys, two.texts)
        assert torch.equal(one.images, two.images)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_state_resumes_exactly(loader_of, workers):
    whole = take(loader_of(8, workers=workers), 20)
    loader = loader_of(8, workers=workers)
    take(loader, 13)
    again = loader_of(8, workers=workers)
    again.load_states([loader.state()])
    assert [batch.keys for batch in take(again, 7)] == [batch.keys for batch in whole[13:]]


def test_a_state_of_another_order_is_refused(loader_of):
    loader = loader_of(8)
    old = {name: value for name, value in loader.state().items() if name != "format"}
    with pytest.raises(UserError, match="another order"):
        loader.load_states([old])


def test_prefetch_and_pinning_are_settings_of_the_workers(loader_of, monkeypatch):
    made = []
    real = workers.DataLoader
    monkeypatch.setattr(workers, "DataLoader", lambda *a, **named: made.append(named) or real(*a, **named))
    take(loader_of(4, workers=1, prefetch=7), 2)
    assert (made[0]["prefetch_factor"], made[0]["pin_memory"]) == (7, False)  # auto: there is no GPU
    with pytest.raises(UserError, match=r"data\.pin_memory"):
        take(loader_of(4, workers=1, pin_memory="on"), 1)
    assert [pins_memory("off"), pins_memory("auto")] == [False, torch.cuda.is_available()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_page_locked_on_a_machine_with_a_gpu(loader_of, scenes, tmp_path):
    loader = loader_of(4, workers=2, shards=spoiled(tmp_path, scenes, 5), max_bad_share=0.4)
    assert all(batch.images.is_pinned() for batch in take(loader, 6))


def test_after_a_bad_sample_no_image_is_copied_that_the_batch_does_not_have(loader_of, scenes, tmp_path, monkeypatch):
    joined = []
    real = indexed_loader.join_chunks
    monkeypatch.setattr(
        indexed_loader, "join_chunks", lambda chunks: joined.append([len(one.keys) for one in chunks]) or real(chunks)
    )
    take(loader_of(8, shards=spoiled(tmp_path, scenes, 10), max_bad_share=0.2), 12)
    assert {sum(sizes) for sizes in joined} == {8} and max(map(len, joined)) == 2


def spoiled(tmp_path, scenes, every):
    """The scenes, with every n-th image truncated."""
    with ShardWriter(str(tmp_path / "spoiled"), 50) as writer:
        for number, sample in enumerate(iterate_samples(f"{scenes}/*.tar")):
            image = sample.image[:60] if number % every == 0 else sample.image
            writer.write(sample.key, image, "png", sample.text, sample.info)
    return str(tmp_path / "spoiled" / "*.tar")


def test_bad_samples_are_skipped_and_batches_stay_full(loader_of, scenes, tmp_path):
    loader = loader_of(8, shards=spoiled(tmp_path, scenes, 10), max_bad_share=0.2)
    batches = take(loader, 20)
    assert {len(batch.keys) for batch in batches} == {8}
    assert all(int(key) % 10 for batch in batches for key in batch.keys)
    assert loader.bad_counts["image undecodable"] >= 9
    again = loader_of(8, shards=str(tmp_path / "spoiled" / "*.tar"), max_bad_share=0.2)
    take(again, 11)
    resumed = loader_of(8, shards=str(tmp_path / "spoiled" / "*.tar"), max_bad_share=0.2)
    resumed.load_states([again.state()])
    assert [batch.keys for batch in take(resumed, 9)] == [batch.keys for batch in batches[11:]]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resume_counts_no_bad_sample_twice(loader_of, scenes, tmp_path, workers):
    shards = spoiled(tmp_path, scenes, 4)
    whole, first, resumed = (loader_of(3, shards=shards, max_bad_share=0.5, workers=workers) for _ in range(3))
    take(whole, 20)
    take(first, 7)
    resumed.load_states([first.state()])
    take(resumed, 13)
    assert resumed.state() == whole.state()
    assert first.state()["bad"]["image undecodable"] < first.state()["place"] == first.place


def test_a_sample_with_an_empty_key_and_no_text_is_skipped(loader_of, scenes, tmp_path):
    image = next(iterate_samples(f"{scenes}/*.tar")).image
    with ShardWriter(str(tmp_path / "nameless")) as writer:
        writer.write("", image, "png", None, {})  # the member is named ".png"
        writer.write("named", image, "png", "a red circle", {})
    loader = loader_of(1, shards=str(tmp_path / "nameless/*.tar"), max_bad_share=0.9)
    assert {batch.keys[0] for batch in take(loader, 3)} == {"named"}
    assert not loader.bad_counts and loader.filtered_counts["no text"] >= 2


@pytest.fixture
def half_silent(scenes, tmp_path):
    """Thirty samples; every second one has no text, in one of several ways."""
    image = next(iterate_samples(f"{scenes}/*.tar")).image
    with ShardWriter(tmp_path / "silent", 10) as writer:
        for number in range(30):
            text, captions = [("a red circle", []), (None, []), ("a star", ["one", "two"]), ("...", ["!", ""])][
                number % 4
            ]
            writer.write(f"{number:02d}", image, "png", text, {"captions": captions})
    return str(tmp_path / "silent/*.tar")


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("workers", [0, 1])
def test_samples_without_a_text_are_filtered_and_not_bad(loader_of, half_silent, workers, world):
    many = [
        [loader_of(3 * world, rank, world, workers, half_silent, max_bad_share=0.0) for rank in range(world)]
        for _ in range(3)
    ]
    for whole, first, resumed in zip(*many, strict=True):
        expected = take(whole, 25)
        assert {int(key) % 2 for batch in expected for key in batch.keys} == {0}
        assert not whole.bad_counts
        assert abs(whole.filtered_counts["no text"] - 75) < 40
        assert [batch.keys for batch in take(first, 12)] == [batch.keys for batch in expected[:12]]
        resumed.load_states([first.state()])
        assert [batch.keys for batch in take(resumed, 13)] == [batch.keys for batch in expected[12:]]
        assert resumed.state() == whole.state()
        assert whole.state()["filtered"].keys() == {"no text"}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_without_any_text_ends_the_run(loader_of, scenes, tmp_path, workers):
    image = next(iterate_samples(f"{scenes}/*.tar")).image
    with ShardWriter(tmp_path / "silent") as writer:
        for number in range(5):
            writer.write(str(number), image, "png", None, {})
    loader = loader_of(4, workers=workers, shards=str(tmp_path / "silent/*.tar"))
    with pytest.raises(
        WorkError, match=r"data\.sources\[0\]: none of the first 10 samples could be used \(.*no text\)"
    ):
        take(loader, 1)
    both = loader_of(4, workers=workers, shards=f"{scenes}/*.tar")
    both.data.sources.append(SourceConfig(str(tmp_path / "silent/*.tar")))
    with pytest.raises(WorkError, match=r"data\.sources\[1\]"):
        take(IndexedLoader(both.data, 32, both.examples, 4), 200)


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_leaves_the_global_random_state_alone(loader_of, workers):
    before = torch.get_rng_state()
    take(loader_of(4, workers=workers), 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_as_many_files_stay_open_as_a_shuffle_window_spans(loader_of, tmp_path, scenes):
    image = next(iterate_samples(f"{scenes}/*.tar")).image
    with ShardWriter(tmp_path / "small", samples_per_shard=2) as writer:
        for number in range(100):
            writer.write(f"{number:02d}", image, "png", "a star", {})
    loader = loader_of(4, shards=str(tmp_path / "small/*.tar"), shuffle_buffer=40)
    opened = Counter()
    start = loader.dataset.reader._part

    def count(index, *rest):
        opened[index.path] += index.path not in loader.dataset.reader.files
        return start(index, *rest)

    loader.dataset.reader._part = count
    take(loader, 25)
    assert len(opened) == 50 and set(opened.values()) == {1}  # each shard is opened once an epoch
    assert 16 < len(loader.dataset.reader.files) <= 42


def add_member(archive, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    archive.addfile(header, io.BytesIO(data))


@pytest.mark.parametrize(
    ("name", "texts", "reason"),
    [
        ("half", {"json": b'{"captions": ["half \\ud800 a pair"]}'}, "text not UTF-8"),
        ("raw", {"txt": b"a red circle", "json": b'{"sentence": "\xed\xa0\x80"}'}, "text not UTF-8"),
        ("question", {"txt": b"a red circle", "json": b'{"questions": [{"question": "\\uD83d"}]}'}, "text not UTF-8"),
        ("pair", {"txt": b"a red circle", "json": b'{"sentence": "\\ud83d\\ude00"}'}, None),
        ("title", {"txt": b"a red circle", "json": b'{"title": "\\ud83d"}'}, None),  # no task reads it
        ("deep", {"txt": b"a", "json": b"[" * 200_000}, "bad json"),
        ("dots", {"txt": b"...!"}, "no text"),
        (b"k\xff".decode("utf-8", "surrogateescape"), {"txt": b"a red circle"}, None),  # an odd key, a good sample
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_odd_samples_do_not_stop_the_loader(loader_of, scenes, tmp_path, name, texts, reason, workers):
    image = next(iterate_samples(f"{scenes}/*.tar")).image
    with tarfile.open(tmp_path / "odd.tar", "w") as archive:
        for key, members in [(name, texts), ("good", {"txt": b"a red circle"})]:
            for extension, data in {"png": image, **members}.items():
                add_member(archive, f"{key}.{extension}", data)
    loader = loader_of(2, workers=workers, shards=str(tmp_path / "odd.tar"), max_bad_share=0.9)
    batches = take(loader, 4)
    counts = loader.filtered_counts if reason == "no text" else loader.bad_counts
    readable = name.encode("utf-8", "backslashreplace").decode()
    assert set(counts) == ({reason} if reason else set())
    assert {key for batch in batches for key in batch.keys} == ({"good"} if reason else {"good", readable})


def test_a_crop_of_any_area_is_allowed(loader_of):
    assert take(loader_of(4, augment=AugmentConfig(crop_min=0.0)), 1)


def test_too_many_bad_samples_stop_the_run(loader_of, scenes, tmp_path):
    with pytest.raises(WorkError, match="image undecodable"):
        take(loader_of(8, shards=spoiled(tmp_path, scenes, 2)), 40)


def test_every_caption_of_an_image_is_drawn(loader_of, tmp_path, scenes):
    image = next(iterate_samples(f"{scenes}/*.tar")).image
    with ShardWriter(str(tmp_path / "many")) as writer:
        for number in range(4):
            writer.write(str(number), image, "png", None, {"captions": [f"red {word}" for word in ("a", "b", "c")]})
    texts = {text for batch in take(loader_of(4, shards=str(tmp_path / "many/*.tar")), 20) for text in batch.texts}
    assert texts == {"red a", "red b", "red c"}


def test_the_tensors_of_a_batch(loader_of):
    (batch,) = take(loader_of(6), 1)
    assert batch.images.shape == (6, 3, 32, 32)
    assert batch.images.dtype == torch.uint8
    assert batch.text_ids.shape == batch.text_mask.shape
    assert batch.text_ids.shape[1] in (8, 16)
    equal = [[a == b for b in batch.texts] for a in batch.texts]
    assert (batch.text_hashes[:, None] == batch.text_hashes).tolist() == equal


def test_wrong_calls(loader_of):
    with pytest.raises(UserError, match="multiple"):
        loader_of(7, world=2)
    with pytest.raises(UserError, match="No shard"):
        loader_of(8, shards="nowhere/*.tar")


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_sample_once_in_order(scenes, world, workers):
    keys: list[list[str]] = []
    for rank in range(world):
        batches = evaluation_batches(f"{scenes}/*.tar", 32, 10, workers, rank, world)
        keys.append([batch.keys for batch in batches])
    turns = [part for turn in itertools.zip_longest(*keys, fillvalue=[]) for part in turn]
    assert [key for part in turns for key in part] == [f"{number % 87:08d}" for number in range(87)]


def test_evaluation_may_leave_out_samples_without_a_text(half_silent):
    bad = BadSamples(0.0)
    every = list(evaluation_batches(half_silent, 32, 8, bad=bad))
    assert (sum(len(batch.keys) for batch in every), bad.filtered) == (30, {})
    assert [texts for batch in every for texts in batch.captions][1:3] == [[], ["one", "two"]]
    speaking = list(evaluation_batches(half_silent, 32, 8, bad=bad, need_text=True))
    assert (sum(len(batch.keys) for batch in speaking), bad.filtered) == (15, {"no text": 15})


def test_evaluation_decodes_pairs(tmp_path, scenes):
    samples = list(itertools.islice(iterate_samples(f"{scenes}/*.tar"), 4))
    with ShardWriter(str(tmp_path / "pairs"), 50) as writer:
        for number, (sample, other) in enumerate(zip(samples, samples[1:] + samples[:1], strict=True)):
            extra = {"right.png": other.image[: 60 if number == 2 else None]} if number != 1 else {}
            writer.write(f"{number}", sample.image, "png", None, {"images": 2}, extra)
    shards, bad = str(tmp_path / "pairs" / "*.tar"), BadSamples(1.0)
    (batch,) = evaluation_batches(shards, 32, 4, bad=bad, images_per_sample=2)
    assert batch.keys == ["0", "3"] and batch.images.shape == (2, 2, 3, 32, 32)
    assert bad.counts == batch.skipped == {"no second image": 2}
    (single,) = evaluation_batches(f"{scenes}/00000.tar", 32, 4, limit=4)
    assert batch.images[0].equal(single.images[:2]) and batch.images[1, 1].equal(single.images[0])


def test_evaluation_counts_what_it_skips(scenes, tmp_path):
    bad = BadSamples(1.0)
    batches = list(evaluation_batches(spoiled(tmp_path, scenes, 10), 32, 16, bad=bad, limit=50))
    assert sum(len(batch.keys) for batch in batches) == 45
    assert bad.counts == {"image undecodable": 5}


class Pairs:
    """Examples that need both images of a sample."""

    images = 2
    label = None

    def draw(self, sample, rng):
        return sample.key

    def batch(self, chunk):
        return chunk


def test_a_task_that_needs_two_images_skips_and_names_samples_with_one(loader_of):
    data = loader_of(4).data
    with pytest.raises(WorkError, match="no second image"):
        next(iter(IndexedLoader(data, 32, Pairs(), 4)))
