"""Training from score tables: probabilities, any number of processes and workers, incomplete and damaged tables."""

import itertools
import math
import os
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import get_args

import pyarrow.parquet as pq
import pytest

from vlp.config import AugmentConfig, DataConfig, RunConfig, ScoreName, SourceConfig, TextChoiceConfig
from vlp.config_reader import from_dict
from vlp.data import score_tables
from vlp.data.bad_samples import FilteredSampleError
from vlp.data.examples import CaptionExamples
from vlp.data.loader import training_loader
from vlp.data.score_tables import SCHEMA, Scored, table_path, write_table
from vlp.data.shard_index import expand_shards, index_shard
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import iterate_samples
from vlp.data.text_choice import SOURCES, Text, TextReader, choose_texts, read_texts
from vlp.data.tokenizer import load_tokenizer
from vlp.errors import UserError
from vlp.log import read_log
from vlp.training.loop import train

PLAIN = AugmentConfig(crop_min=1.0, flip=False, operations=0)
DRAWS = 4000


@pytest.fixture
def shards(web_scenes, tmp_path):
    """A copy of the web scenes (three shards of 20) whose tables hold two web and two synthetic texts an image."""
    shutil.copytree(web_scenes, tmp_path / "web")
    for shard in expand_shards(str(tmp_path / "web/*.tar")):
        rows = [Scored("of no image", "web", "elsewhere", 1.0, 1.0)]
        for sample in reversed(list(iterate_samples([shard]))):  # not in the shard's order
            scores = [("web", 0.2), ("synthetic", 0.9), ("web", 0.6), ("synthetic", 0.4)]
            rows += [Scored(sample.key, kind, f"{kind} {sample.key} {itm}", itm, -itm) for kind, itm in scores]
            rows += [Scored(sample.key, "of later days", "unknown", 1.0, 1.0)]
        write_table(shard, rows, {})
    return str(tmp_path / "web/*.tar")


@pytest.fixture
def loader_of(shards, tokenizer_folder):
    tokenizer = load_tokenizer(str(tokenizer_folder))

    def make(batch_size=12, rank=0, world=1, workers=0, max_bad_share=0.1, **choice):
        sources = [SourceConfig(shards, texts=TextChoiceConfig(**choice))]
        data = DataConfig(sources, workers=workers, max_tokens=16, max_bad_share=max_bad_share, augment=PLAIN)
        return training_loader(data, 32, CaptionExamples(tokenizer, 16), batch_size, rank, world, seed=5)

    return make


def take(loader, count):
    return list(itertools.islice(loader, count))


def drawn(texts, **choice):
    """The share of each text over many draws."""
    settings = TextChoiceConfig(**choice)
    draws = (choose_texts(texts, settings, random.Random(f"caption 0 {place}"))[0] for place in range(DRAWS))
    return {text: count / DRAWS for text, count in Counter(draws).items()}


def assert_shares(found, expected):
    """Within three standard deviations of a binomial count."""
    assert found.keys() == expected.keys()
    for text, share in expected.items():
        assert abs(found[text] - share) <= 3 * math.sqrt(share * (1 - share) / DRAWS) + 1e-12, (text, found[text])


WEB, OTHER_WEB = Text("web", "a web text", 0.2), Text("web", "another web text", 0.6)
HUMAN, MADE = Text("human", "a human text", 0.5), Text("synthetic", "a made text", 0.9)


@pytest.mark.parametrize(
    ("texts", "choice", "expected"),
    [
        ([WEB, HUMAN, MADE], {"web": 0.2, "human": 0.3, "synthetic": 0.5}, (0.2, 0.3, 0.5)),
        ([WEB, MADE], {"web": 0.2, "human": 0.3, "synthetic": 0.5}, (2 / 7, 5 / 7)),  # rescaled
        (
            [WEB, OTHER_WEB, MADE],
            {"web": 3.0, "synthetic": 1.0},
            (0.375, 0.375, 0.25),
        ),  # first the source, then the text
        ([WEB, MADE], {"web": 0.0}, (0.0, 1.0)),
        ([WEB, MADE], {"fallback": 0.2}, (0.5, 0.5)),  # exactly at the limit
        ([WEB, MADE, HUMAN], {"web": 0.5, "human": 0.5, "synthetic": 0.0, "fallback": 0.3}, (0.0, 0.5, 0.5)),
        ([WEB, OTHER_WEB, MADE], {"fallback": 0.3}, (0.0, 0.5, 0.5)),  # another web text is above the limit
        ([WEB, HUMAN], {"web": 0.9, "human": 0.1, "fallback": 0.3}, (0.0, 1.0)),  # no synthetic text
        ([WEB, HUMAN, MADE], {"floor": 0.5}, (0.0, 0.5, 0.5)),
        ([WEB, Text("web", "...!", 0.9)], {}, (1.0, 0.0)),  # nothing but punctuation
        ([Text("web", "no score", math.nan), MADE], {"floor": 0.1}, (0.0, 1.0)),
        ([Text("web", "no score", math.nan), MADE], {}, (0.5, 0.5)),
    ],
)
def test_texts_are_drawn_with_the_stated_chances(texts, choice, expected):
    shares = {text.text: share for text, share in zip(texts, expected, strict=True) if share}
    assert_shares(drawn(texts, **choice), shares)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_sampling_by_score_is_a_softmax(temperature):
    texts = [Text("synthetic", str(score), score) for score in (0.1, 0.5, 0.6)] + [Text("synthetic", "?", math.nan)]
    powers = {str(text.score): math.exp(text.score / temperature) for text in texts[:3]}
    expected = {text: power / sum(powers.values()) for text, power in powers.items()}
    assert_shares(drawn(texts, sampling=temperature), expected)


def test_a_low_temperature_takes_the_best_text_without_overflow():
    assert drawn([WEB, OTHER_WEB], sampling=1e-5) == {OTHER_WEB.text: 1.0}


@pytest.mark.parametrize("choice", [{"floor": 0.95}, {"fallback": 0.9, "synthetic": 0.0}, {"web": 0.0}])
def test_a_sample_whose_texts_are_all_refused_is_filtered(choice):
    with pytest.raises(FilteredSampleError, match="no text chosen"):
        choose_texts([WEB], TextChoiceConfig(**choice), random.Random(0))
    for texts, reason in (([], "not scored"), ([Text("web", " ...! ", 1.0)], "no text")):
        with pytest.raises(FilteredSampleError, match=f"^{reason}$"):
            choose_texts(texts, TextChoiceConfig(**choice), random.Random(0))


def test_an_epoch_has_exactly_the_samples_with_a_usable_text(tmp_path):
    """`ShardTexts.usable` against `choose_texts` itself, for random texts and choices."""
    rng = random.Random(0)
    with ShardWriter(tmp_path) as writer:
        for number in range(60):
            writer.write(str(number), b"image", "jpg", None, {})
    shard = str(tmp_path / "00000.tar")
    words = ["a dog", "...", "", " \u00a0\n", "\u3000~"]
    rows = [
        Scored(str(rng.randrange(60)), rng.choice(SOURCES), rng.choice(words), rng.choice([0.2, 0.5, math.nan]), None)
        for _ in range(200)
    ]
    write_table(shard, rows, {})
    reader, index = TextReader(), index_shard(shard)
    for _ in range(200):
        chances = {name: rng.choice([0.0, 0.0, 1.0]) for name in SOURCES}
        limits = {name: rng.choice([None, 0.2, 0.3]) for name in ("floor", "fallback")}
        choice = TextChoiceConfig(
            **{**chances, "web": chances["web"] or 0.1}, **limits, sampling=rng.choice([0.0, 0.1])
        )
        found = read_texts(index, choice).usable(choice)
        for row in range(60):
            try:
                choose_texts(reader.read(index, row, choice), choice, rng)
                assert found[row]
            except FilteredSampleError:
                assert not found[row]


def test_the_loader_draws_each_images_own_texts(loader_of):
    batches = take(loader_of(web=0.25, synthetic=0.75), 40)
    counts = Counter()
    for key, text in ((key, text) for batch in batches for key, text in zip(batch.keys, batch.texts, strict=True)):
        kind, name, _ = text.split(" ", 2)
        assert name == key
        counts[kind] += 1
    assert abs(counts["web"] - 120) <= 3 * math.sqrt(480 * 0.25 * 0.75)


def test_another_score_and_another_name_may_be_chosen(loader_of, shards):
    for shard in expand_shards(shards):
        Path(table_path(shard)).rename(table_path(shard, "second"))
    texts = {
        text.rsplit(" ", 1)[1]
        for batch in take(loader_of(table="second", score="itc", floor=-0.5), 10)
        for text in batch.texts
    }
    assert texts == {"2", "4"}  # 0.2 and 0.4 after cleaning; the cosines are -itm here


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_processes_and_workers_change_no_text(loader_of, world, workers):
    choice = {"fallback": 0.3, "sampling": 0.2}
    whole = take(loader_of(**choice), 8)
    parts = [take(loader_of(rank=rank, world=world, workers=workers, **choice), 8) for rank in range(world)]
    for one, *several in zip(whole, *parts, strict=True):
        assert one.keys == [key for part in several for key in part.keys]
        assert one.texts == [text for part in several for text in part.texts]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resume_draws_the_same_texts(loader_of, workers):
    whole, first, again = (loader_of(workers=workers) for _ in range(3))
    expected = take(whole, 12)
    take(first, 7)
    again.load_states([first.state()])
    assert [batch.texts for batch in take(again, 5)] == [batch.texts for batch in expected[7:]]


def test_only_the_last_few_tables_are_kept(loader_of, monkeypatch):
    free = loader_of()
    monkeypatch.setattr("vlp.data.indexed_loader._file_limit", lambda: 2)
    loader = loader_of()
    texts = [batch.texts for batch in take(loader, 10)]
    assert len(loader.dataset.texts.tables) == len(loader.dataset.reader.files) == 2
    assert [batch.texts for batch in take(free, 10)] == texts
    assert len(free.dataset.texts.tables) == len(free.dataset.reader.files) == 3  # all that a shuffle window spans


def rewrite(shard, keep):
    """Write a shard's table again with some of its rows."""
    rows = [Scored(**row) for row in pq.read_table(table_path(shard)).to_pylist()]
    write_table(shard, [row for row in rows if keep(row)], {})


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_its_table_lacks_leaves_the_epoch(loader_of, shards, workers):
    shard = expand_shards(shards)[1]
    gone = next(iterate_samples([shard])).key
    rewrite(shard, lambda row: row.key != gone)
    loader = loader_of(10, workers=workers, max_bad_share=0.0)
    assert loader.epoch_size == 59
    assert gone not in {key for batch in take(loader, 10) for key in batch.keys}
    assert (loader.bad_counts, sum(loader.filtered_counts.values())) == ({}, 1)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
def test_samples_below_the_floor_leave_the_epoch_and_do_not_count_as_bad(loader_of, shards, workers, world):
    for shard in expand_shards(shards):
        rewrite(shard, lambda row: row.itm < 0.5 or row.key > "00000014")
    loaders = [loader_of(2 * world, rank, world, workers, 0.0, floor=0.5) for rank in range(world)]
    kept = 45
    assert {loader.epoch_size for loader in loaders} == {kept}
    steps = zip(*(take(loader, kept) for loader in loaders), strict=True)
    hashes = [one for step in steps for batch in step for one in batch.image_hashes.tolist()]
    for epoch in range(2 * world):
        assert len(set(hashes[epoch * kept : (epoch + 1) * kept])) == kept
    for loader in loaders:
        assert (loader.bad_counts, loader.filtered_counts) == ({}, {"no text chosen": 15})


def test_a_source_without_a_usable_text_is_refused_at_the_start(loader_of):
    with pytest.raises(UserError, match=r"data\.sources\[0\]: .* no text to use for any of its 60 samples; lower"):
        loader_of(floor=0.95)


def test_a_table_damaged_during_training_makes_bad_samples(loader_of, shards):
    loader = loader_of(max_bad_share=0.9)
    path = Path(table_path(expand_shards(shards)[0]))
    path.write_bytes(path.read_bytes()[:100])
    take(loader, 5)
    assert set(loader.bad_counts) == {"unreadable score table"}


def test_a_copied_data_set_is_hashed_once(loader_of, shards, monkeypatch):
    hashed, sha256 = [], score_tables._sha256
    monkeypatch.setattr(score_tables, "_sha256", lambda path: hashed.append(path) or sha256(path))
    loader_of()
    assert not hashed
    for shard in expand_shards(shards):
        os.utime(shard, (1, 1))  # as after a copy
    for _ in range(3):
        loader_of()
    assert sorted(hashed) == expand_shards(shards)


def test_missing_and_stale_tables_and_missing_scores_are_refused_at_the_start(loader_of, shards):
    first, second, _ = expand_shards(shards)
    with pytest.raises(UserError, match="has no clip scores"):
        loader_of(score="clip", floor=0.2)
    assert loader_of(score="clip")  # the score is not used
    with pytest.raises(UserError, match=f"{first} has no score table"):
        loader_of(table="other")
    with open(second, "ab") as file:
        file.write(bytes(512))
    with pytest.raises(UserError, match=f"{second} was changed after it was scored"):
        loader_of()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"web": -0.1}, "texts.web must be at least 0"),
        ({"human": math.nan}, "texts.human must be"),
        ({"sampling": -1}, "texts.sampling must be"),
        ({"web": 0, "human": 0, "synthetic": 0}, "all 0"),
        ({"score": "nll"}, "data.sources[0].texts.score must be one of itm, itc, clip"),
        ({"fallbak": 0.3}, "data.sources[0].texts.fallbak; did you mean fallback?"),
        ({"table": ""}, "texts.table must consist of letters"),
    ],
)
def test_wrong_choices_are_named(values, says):
    with pytest.raises(UserError) as error:
        from_dict(RunConfig, {"data": {"sources": [{"shards": "a.tar", "texts": values}]}})
    assert says in str(error.value)


def test_a_run_learns_from_tables(run_config, shards):
    source = f"data.sources=[{{shards: '{shards}', texts: {{web: 0.5, synthetic: 0.5, fallback: 0.3}}}}]"
    train(run_config("run", source, "steps=2", "data.workers=1"))
    records = read_log(run_config("run").output + "/log.jsonl")
    assert [record["step"] for record in records] == [1, 2]
    assert all(math.isfinite(record["loss"]) for record in records)


def test_every_score_is_a_column():
    assert set(get_args(ScoreName)) <= set(SCHEMA.names)
