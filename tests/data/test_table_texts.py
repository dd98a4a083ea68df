"""Texts from score tables in streamed reading: those that indexed reading gives, found by key."""

import itertools
from pathlib import Path

import pytest

from tests.data.test_text_choice import shards  # noqa: F401
from vlp.config import DataConfig, SourceConfig, TextChoiceConfig
from vlp.data.bad_samples import BadSampleError
from vlp.data.examples import CaptionExamples
from vlp.data.score_tables import table_path
from vlp.data.shard_index import expand_shards, index_shard
from vlp.data.streamed_loader import StreamedLoader
from vlp.data.table_texts import TableTexts
from vlp.data.text_choice import TextReader
from vlp.data.tokenizer import load_tokenizer
from vlp.errors import UserError


def test_texts_by_key_are_those_by_row(shards):  # noqa: F811
    by_key, by_row, choice = TableTexts(1), TextReader(1), TextChoiceConfig()
    for shard in expand_shards(shards):
        index = index_shard(shard)
        for row, key in enumerate(index.keys):
            found, expected = by_key.read(shard, key, choice), by_row.read(index, row, choice)
            assert expected and repr(found) == repr(expected)  # scores may be nan
        assert by_key.read(shard, "no such key", choice) == []
    assert len(by_key.tables) == 1
    with pytest.raises(BadSampleError, match="unreadable score table"):
        by_key.read("none.tar", "a", choice)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_streamed_loader_draws_each_images_own_texts(shards, tokenizer_folder, workers):  # noqa: F811
    choice = TextChoiceConfig(web=0.5, synthetic=0.5)
    source = SourceConfig(shards, texts=choice)
    data = DataConfig([source], "streamed", workers, shuffle_buffer=20, streams=4)
    tokenizer = load_tokenizer(str(tokenizer_folder))
    loader = StreamedLoader(data, 32, CaptionExamples(tokenizer), 8)
    batches = list(itertools.islice(iter(loader), 12))
    named = {(key, text.split(" ", 2)[1]) for one in batches for key, text in zip(one.keys, one.texts, strict=True)}
    assert all(key == name for key, name in named)
    assert {text.split()[0] for one in batches for text in one.texts} >= {"web"}
    Path(table_path(expand_shards(shards)[1])).unlink()
    with pytest.raises(UserError, match="score"):
        StreamedLoader(data, 32, CaptionExamples(tokenizer), 8)
