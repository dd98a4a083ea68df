"""Shards over a network: how many requests they take, and what happens when requests fail."""

import errno
import logging
import os

import pytest

from tests.flaky_server import OK, RESET, SHORT, Faults, proxy, serve_folder
from vlp.data import shard_cache
from vlp.data.bad_samples import BadSample, BadSamples
from vlp.data.byte_stream import PROGRESS, Access, open_stream
from vlp.data.shard_stream import read_shard, stream_samples
from vlp.data.shards import iterate_samples
from vlp.errors import UserError, WorkError

QUICK = Access(delay=0.001)


@pytest.fixture
def folder(tmp_path, scenes):
    """Two shards, and three MiB of bytes."""
    (tmp_path / "web").mkdir()
    for number in range(2):
        (tmp_path / f"web/{number}.tar").write_bytes((scenes / f"0000{number}.tar").read_bytes())
    (tmp_path / "web/large.bin").write_bytes(bytes(range(256)) * 4 * (PROGRESS // 1024) * 3)
    return tmp_path / "web"


def keys(path, access=QUICK):
    return [sample.key for sample in read_shard(path, access)]


def test_a_shard_takes_one_request(folder):
    faults = Faults()
    with serve_folder(folder, faults) as address:
        assert keys(f"{address}/0.tar") == keys(str(folder / "0.tar"))
        assert keys(f"{address}/0.tar?token=a%20b") == keys(str(folder / "0.tar"))
        assert faults.requests == {"/0.tar": 2}
        assert [s.key for s in iterate_samples(f"{address}/{{0,1}}.tar")] == [
            sample.key for sample in iterate_samples(str(folder / "{0,1}.tar"))
        ]
        assert faults.requests == {"/0.tar": 3, "/1.tar": 1}


def test_an_s3_shard_takes_one_request(s3, folder, monkeypatch):
    url = s3.upload(folder, "web")
    faults = Faults()
    with proxy(s3.endpoint, faults) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        type(s3.files).clear_instance_cache()
        assert keys(f"{url}/0.tar") == keys(str(folder / "0.tar"))
        with open_stream(f"{url}/large.bin", QUICK) as stream:
            assert stream.read(2**30) == (folder / "large.bin").read_bytes()
    assert sum(faults.requests.values()) == 2


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", [RESET, SHORT, 429, 500, 503])
def test_failed_requests_are_repeated_from_the_byte_where_they_broke(folder, ranges, fault):
    faults = Faults(lambda number, _path: fault if number % 3 < 2 else OK, ranges=ranges)
    with serve_folder(folder, faults) as address, open_stream(f"{address}/large.bin", QUICK) as stream:
        assert stream.read(2**30) == (folder / "large.bin").read_bytes()


def test_a_server_that_fails_one_request_in_ten_gives_the_same_samples(folder):
    faults = Faults(lambda number, _path: (RESET, SHORT, 500)[number % 3] if number % 10 == 0 else OK)
    with serve_folder(folder, faults) as address:
        for number in range(30):
            assert keys(f"{address}/{number % 2}.tar") == keys(str(folder / f"{number % 2}.tar"))


@pytest.mark.parametrize(("fault", "requests"), [(RESET, 4), (500, 4), (404, 1), (403, 1), (401, 1), (400, 1)])
def test_only_transient_errors_are_repeated(folder, fault, requests):
    faults = Faults(lambda _number, _path: fault)
    with serve_folder(folder, faults) as address, pytest.raises((UserError, WorkError)) as error:
        keys(f"{address}/0.tar", Access(retries=3, delay=0.001))
    assert faults.requests.total() == requests
    assert f"{address}/0.tar" in str(error.value) and str(error.value).count("\n") == 0
    assert isinstance(error.value, UserError) == (requests == 1)


def test_a_shard_that_changes_while_it_is_read_is_named(folder):
    def change(number, _path):
        if number == 1:
            (folder / "large.bin").write_bytes(bytes(PROGRESS))
        return SHORT if number == 0 else OK

    with (
        serve_folder(folder, Faults(change)) as address,
        pytest.raises(WorkError, match="changed while it was read"),
        open_stream(f"{address}/large.bin", QUICK) as stream,
    ):
        stream.read(2**30)


def test_addresses_of_other_schemes_are_copied_and_closed(folder, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    files = fsspec.filesystem("memory")
    files.pipe_file("/streams/0.tar", (folder / "0.tar").read_bytes())
    try:
        assert keys("memory://streams/0.tar") == keys(str(folder / "0.tar"))
        with pytest.raises(UserError, match=r"memory://streams/none\.tar does not exist"):
            keys("memory://streams/none.tar")
    finally:
        files.rm("/streams", recursive=True)
    assert [path.name for path in tmp_path.iterdir()] == ["web"]


def test_commands_are_read_and_must_succeed(folder):
    assert keys(f"pipe:cat {folder}/0.tar") == keys(str(folder / "0.tar"))
    samples = read_shard(f"pipe:cat {folder}/0.tar {folder}/large.bin", QUICK)
    next(samples)
    samples.close()  # the command ends by SIGPIPE
    bad = BadSamples(1.0)
    with pytest.raises(WorkError, match="exit"):
        list(stream_samples(f"pipe:cat {folder}/0.tar; exit 3", bad, Access(retries=1, delay=0.001)))
    with pytest.raises(WorkError, match="exit"):
        keys("pipe:no-such-command-at-all 2>/dev/null", Access(retries=1, delay=0.001))


def test_the_second_reading_comes_from_the_cache_within_its_limit(folder, tmp_path):
    faults, cache = Faults(), tmp_path / "cache"
    size = (folder / "0.tar").stat().st_size
    access = Access(delay=0.001, cache=str(cache), cache_gib=1.5 * size / 2**30)
    with serve_folder(folder, faults) as address:
        samples = read_shard(f"{address}/0.tar", access)
        next(samples)
        samples.close()  # not read to the end: no copy
        assert not list(cache.glob("*.tar")) and not list(cache.glob(".*.tmp"))
        for _ in range(3):
            assert keys(f"{address}/0.tar", access) == keys(str(folder / "0.tar"))
        assert faults.requests == {"/0.tar": 2}
        keys(f"{address}/1.tar", access)
        keys(f"{address}/1.tar", access)
        assert faults.requests["/1.tar"] == 1
        assert len(list(cache.glob("*.tar"))) == 1  # the one used last
        keys(f"{address}/0.tar", access)
        assert faults.requests["/0.tar"] == 3
        keys(f"{address}/large.bin", access)  # larger than the cache
        assert len(list(cache.glob("*.tar"))) == 1 and not list(cache.glob(".*.tmp"))
        assert faults.heads == {"/0.tar": 1, "/1.tar": 1, "/large.bin": 1}


@pytest.mark.parametrize("tags", [True, False])
def test_a_shard_that_was_uploaded_again_is_read_again(folder, tmp_path, tags, caplog):
    faults, cache = Faults(tags=tags), tmp_path / "cache"
    old, new = ((folder / f"{number}.tar").read_bytes() for number in (0, 1))
    size = max(len(old), len(new))  # a copy of the same size is told apart by its time
    (folder / "0.tar").write_bytes(old.ljust(size, b"\0"))

    def read(address: str, times: int = 1) -> list[str]:
        """The keys in a run of its own, whose passes agree."""
        run = Access(retries=0, delay=0.001, cache=str(cache))
        first, *others = (keys(f"{address}/0.tar", run) for _ in range(times))
        assert all(other == first for other in others)
        return first

    with serve_folder(folder, faults) as address:
        before = read(address, times=3)
        assert read(address) == before and (faults.requests, faults.heads) == ({"/0.tar": 1}, {"/0.tar": 2})
        (folder / "0.tar").write_bytes(new.ljust(size, b"\0"))
        os.utime(folder / "0.tar", (10**9, 10**9))  # HTTP has no fractions of seconds
        after = read(address, times=2)
        assert after == keys(str(folder / "0.tar")) != before
        assert (faults.requests, faults.heads) == ({"/0.tar": 2}, {"/0.tar": 3})
        assert len(list(cache.glob("*.tar"))) == 1, "the new copy replaces the old one"
        faults.answer = lambda _number, _path: 503
        assert read(address, times=2) == after, "the copy is used while the server does not answer"
        assert caplog.text.count("whether the shards have changed is unknown") == 1


def test_a_disk_that_fills_while_caching_is_named_once(folder, tmp_path, monkeypatch, caplog):
    class Full:
        def __init__(self, file):
            self.file, self.close = file, file.close

        def write(self, _data):
            raise OSError(errno.ENOSPC, "No space left on device")

    start = shard_cache.CachedCopy.__init__

    def full(self, *arguments):
        start(self, *arguments)
        self.file = self.file and Full(self.file)

    monkeypatch.setattr(shard_cache.CachedCopy, "__init__", full)
    access = Access(delay=0.001, cache=str(tmp_path / "cache"))
    with serve_folder(folder, Faults()) as address, caplog.at_level(logging.WARNING, "vlp"):
        for number in (0, 1, 0):
            assert keys(f"{address}/{number}.tar", access) == keys(str(folder / f"{number}.tar"))
    assert [record.getMessage() for record in caplog.records] == [
        f"data.cache {tmp_path}/cache cannot be written (No space left on device); "
        "shards are read without it from now on"
    ]
    assert not [one for one in (tmp_path / "cache").iterdir() if one.suffix != ".stamp"]


def test_errors_of_s3_are_one_sentence(s3, folder, monkeypatch):
    url = s3.upload(folder, "web")
    with pytest.raises(UserError, match=r"none\.tar cannot be read, because it does not exist"):
        keys(f"{url}/none.tar")
    with pytest.raises(UserError, match="its bucket does not exist"):
        keys("s3://no-such-bucket-anywhere/0.tar")
    with pytest.raises(UserError, match="No shard matches"):
        list(iterate_samples(f"{url}/nothing-*.tar"))
    with proxy(s3.endpoint, Faults(lambda _number, _path: 403)) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        type(s3.files).clear_instance_cache()
        with pytest.raises(UserError, match="access is denied"):
            keys(f"{url}/0.tar")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    type(s3.files).clear_instance_cache()
    with pytest.raises(UserError, match="no credentials"):
        keys(f"{url}/0.tar")


def test_a_bad_sample_of_a_remote_shard_is_counted(folder):
    cut = (folder / "0.tar").read_bytes()[:9000]
    (folder / "0.tar").write_bytes(cut)
    with serve_folder(folder, Faults()) as address:
        bad = [item for item in read_shard(f"{address}/0.tar", QUICK) if isinstance(item, BadSample)]
    assert [one.reason for one in bad] == ["truncated"]
