"""Reading in sequence gives what reading by index gives, whatever is wrong with a shard."""

from collections import Counter

import pytest

from tests.data.test_shards import picture, write_tar
from tests.end_to_end.test_bad_input_shards import READABLE
from vlp.data.bad_samples import BadSample, BadSampleError, BadSamples
from vlp.data.shard_index import scan_shard
from vlp.data.shard_stream import read_shard, stream_samples
from vlp.data.shards import Sample, ShardReader


def indexed(path: str) -> tuple[list[Sample], Counter[BadSample]]:
    index, reader = scan_shard(path), ShardReader()
    samples, bad = [], Counter(index.bad)
    for row in range(len(index.keys)):
        try:
            samples.append(reader.read(index, row))
        except BadSampleError as error:
            bad[error.sample] += 1
    reader.close()
    return samples, bad


def streamed(path: str) -> tuple[list[Sample], Counter[BadSample]]:
    items = list(read_shard(path))
    samples = [item for item in items if isinstance(item, Sample)]
    return samples, Counter(item for item in items if isinstance(item, BadSample))


@pytest.mark.parametrize("damage", READABLE)
def test_damaged_shards_give_the_same_samples_and_reasons(tmp_path, damage):
    path = tmp_path / "s.tar"
    READABLE[damage][0](path)
    assert streamed(str(path)) == indexed(str(path))


def test_a_shard_cut_anywhere_gives_the_same_samples_and_reasons(tmp_path):
    whole = tmp_path / "0.tar"
    write_tar(whole, [(f"{n}.{e}", picture() * 9) for n in range(5) for e in ("png", "txt")])
    data = whole.read_bytes()
    cuts = [*range(0, len(data), 777), *range(0, len(data), 512)]
    for cut in cuts:
        (tmp_path / "cut.tar").write_bytes(data[:cut])
        assert streamed(str(tmp_path / "cut.tar")) == indexed(str(tmp_path / "cut.tar")), cut


def test_odd_members_are_grouped_in_the_same_way(tmp_path):
    names = ["a.jpg", "a.png", "a.txt", "b.txt", "b.txt", "b.JPG", "c", "c.x.json", "d.cls", "d.cls", "d.jpg", "a.jpg"]
    names += ["__meta__", "__x__.jpg", "dir/e.jpg", ".jpg", "e.jpeg", "e.seg.png", "e.json"]
    path = write_tar(tmp_path / "0.tar", [(name, b"{}" if name.endswith("json") else name.encode()) for name in names])
    assert streamed(path) == indexed(path)


def test_a_shard_that_cannot_be_opened_is_counted(tmp_path):
    bad = BadSamples(1.0)
    assert list(stream_samples(str(tmp_path / "none.tar"), bad)) == []
    assert bad.counts == {"unreadable shard": 1}
