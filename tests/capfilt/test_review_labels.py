"""Labels: none is lost by a kill, a torn line, a compaction or a second reviewer, and a read-only folder is named."""

import os
import signal
import subprocess
import sys
import threading

import pyarrow.parquet as pq
import pytest

from vlp.capfilt import review_news
from vlp.capfilt.review_labels import PARQUET, LabelStore
from vlp.capfilt.review_news import LabelNews
from vlp.errors import UserError, WorkError


@pytest.fixture(autouse=True)
def closed(monkeypatch):
    """Close every store that a test opens; what it left in its journal remains."""
    opened, plain = [], LabelStore.__init__
    monkeypatch.setattr(LabelStore, "__init__", lambda self, *given: (opened.append(self), plain(self, *given))[1])
    yield
    for store in opened:
        store.close()


def label(number, verdict="accept", reviewer="one"):
    about = {"shard": "0.tar", "key": str(number), "uid": "u", "source": "web", "caption_id": 0}
    return {**about, "text": f"text {number}", "verdict": verdict, "reviewer": reviewer, "shown": "sample"}


def keys(store):
    return sorted(int(key) for key in store.read()["key"].to_pylist())


WRITER = """
import sys
sys.path.insert(0, {root!r})
from tests.capfilt.test_review_labels import label
from vlp.capfilt.review_labels import LabelStore
store = LabelStore({folder!r})
for number in range({first}, {first} + 100_000):
    store.add(label(number))
    print(number, flush=True)
"""


def test_a_kill_loses_no_label_that_was_kept(tmp_path):
    root = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER.format(root=root, folder=str(tmp_path), first=first)],
                         stdout=subprocess.PIPE, text=True)
        for first in (0, 500_000)
    ]  # fmt: skip
    said = []
    for writer in writers:
        said += [int(writer.stdout.readline()) for _ in range(30)]
    assert set(said) <= set(keys(LabelStore(tmp_path)))  # while both write
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        said += [int(line) for line in writer.stdout.read().split("\n") if line]
        writer.wait()
        writer.stdout.close()
    with open(next(iter(tmp_path.glob("review.*.jsonl"))), "ab") as torn:
        torn.write(b'{"shard": "0.tar", "key": "to')
    store = LabelStore(tmp_path)
    assert set(said) <= set(keys(store)) and not list(tmp_path.glob("review.*.jsonl"))
    assert set(said) <= {int(key) for key in pq.read_table(tmp_path / PARQUET)["key"].to_pylist()}


def test_two_stores_and_several_threads_lose_none_while_others_compact(tmp_path):
    stores = [LabelStore(tmp_path), LabelStore(tmp_path)]

    def add(place):
        for number in range(10):
            stores[place % 2].add(label(100 * place + number))
            LabelStore(tmp_path).close()

    threads = [threading.Thread(target=add, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = sorted(100 * place + number for place in range(4) for number in range(10))
    assert keys(stores[0]) == keys(stores[1]) == expected
    stores[0].close()
    assert keys(stores[1]) == expected
    stores[1].close()
    assert keys(LabelStore(tmp_path)) == expected and not list(tmp_path.glob("review.*.jsonl"))


def test_news_are_what_others_added_and_cost_no_reading(tmp_path, monkeypatch):
    mine, other = LabelStore(tmp_path), LabelStore(tmp_path)
    other.add(label(0))
    news = LabelNews(mine)

    def looked():
        return sorted(int(one["key"]) for one in news.look())

    assert looked() == [0] and looked() == []
    mine.add(label(1))
    other.add(label(2))
    assert looked() == [2]
    with open(other.journal.name, "ab") as torn:  # another line is being written
        torn.write(b'{"shard": ')
        torn.flush()
        assert looked() == []
        torn.write(b'"of another program"}\n')
    third = LabelStore(tmp_path)
    third.add(label(3))
    third.close()  # moves the label into the parquet file before anyone looked
    assert looked() == [3] and looked() == []
    monkeypatch.setattr(review_news, "SETTLED", -1)
    looked()
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", None)
        patch.setattr("pathlib.Path.glob", None)
        assert looked() == []  # some stats only


def test_the_last_verdict_of_a_reviewer_counts_and_an_empty_one_takes_it_back(tmp_path):
    store = LabelStore(tmp_path)
    for verdict, reviewer in (("accept", "one"), ("reject", "two"), ("reject", "one"), ("accept", "one")):
        store.add(label(1, verdict, reviewer))
    found = {row["reviewer"]: row["verdict"] for row in store.read().to_pylist()}
    assert found == {"one": "accept", "two": "reject"}
    store.close()
    store.add(label(1, "", "one"))
    assert [row["reviewer"] for row in store.read().to_pylist()] == ["two"]
    store.close()
    assert [row["reviewer"] for row in LabelStore(tmp_path).read().to_pylist()] == ["two"]


def test_a_failed_write_is_named_and_the_next_label_is_whole(tmp_path, monkeypatch):
    store = LabelStore(tmp_path)
    store.add(label(1))

    def full(number):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(WorkError, match=r"cannot be written in .*: No space left on device; it was not kept\.$"):
            store.add(label(2))
    store.add(label(3))
    assert {1, 3} <= set(keys(store))


def test_a_read_only_folder_is_one_sentence_and_nothing_is_written(tmp_path, monkeypatch):
    LabelStore(tmp_path).add(label(1))
    LabelStore(tmp_path)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(os, "access", lambda *given: False)  # root may write anywhere
    store = LabelStore(tmp_path)
    with pytest.raises(UserError, match=r"^Labels cannot be written in .*, which is read-only; name a folder with --l"):
        store.add(label(2))
    assert keys(store) == [1] and sorted(tmp_path.iterdir()) == before
    with pytest.raises(UserError, match=r"There is no folder .* for the labels"):
        LabelStore(tmp_path / "none").add(label(1))
    with pytest.raises(UserError, match="'maybe' is not a verdict"):
        store.add(label(1, "maybe"))


def test_a_damaged_parquet_file_is_named_and_kept(tmp_path):
    (tmp_path / PARQUET).write_bytes(b"PAR1 broken")
    with pytest.raises(WorkError, match=r"The labels .*review.labels.parquet cannot be read: "):
        LabelStore(tmp_path).read()
    assert (tmp_path / PARQUET).read_bytes() == b"PAR1 broken"
