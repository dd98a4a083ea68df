"""CapFilt on an S3 server whose requests fail: the same tables and shards as from a server that does not."""

import hashlib
import json
import time

import pytest
import s3fs

from tests.flaky_server import EXPIRED, OK, RESET, SHORT, Faults, proxy
from tests.scoring import score_shards
from vlp.capfilt.selection import select
from vlp.config import SamplingOverrides
from vlp.data.score_tables import open_table
from vlp.errors import WorkError

DECODING = SamplingOverrides(max_length=10, min_length=3)
AWAY = 2.0  # seconds


def contents(s3, folder: str) -> dict[str, str]:
    """A hash of each table's rows and of each other object's bytes in a folder of the bucket."""
    found = {}
    for name in s3.names(folder):
        if name.endswith(".parquet"):
            with open_table(f"{s3.url}/{name}") as file:
                found[name] = hashlib.sha256(str(file.read().to_pylist()).encode()).hexdigest()
        else:
            found[name] = hashlib.sha256(s3.files.cat_file(f"{s3.url}/{name}")).hexdigest()
    return {name.partition("/")[2]: digest for name, digest in found.items()}


def score_and_select(s3, models, name: str) -> None:
    shards, tables, output = f"{s3.url}/web/*.tar", f"{s3.url}/{name}-tables", f"{s3.url}/{name}"
    counts = score_shards(shards, *models, DECODING, precision="fp32", tables=tables)
    assert (counts.shards, counts.bad) == (3, {})
    select(f"{tables}/*.capfilt.parquet", "itm >= 0.3 and best(1)", output, quiet=True)


def some_fail() -> Faults:
    """One request in ten fails, in three ways, and every answer is slow."""
    return Faults(lambda number, _path: (RESET, SHORT, 503)[number % 3] if number % 10 == 4 else OK, delay=0.01)


def goes_away() -> Faults:
    """The server answers nothing for some seconds, from a request in the middle of the work on."""
    since: list[float] = []

    def answer(number: int, _path: str) -> int:
        if number < 12:
            return OK
        since.append(time.monotonic())
        return RESET if since[-1] - since[0] < AWAY else OK

    return Faults(answer)


@pytest.mark.parametrize("faults", [some_fail, goes_away])
def test_scores_and_selections_do_not_depend_on_failures(s3, web_scenes, models, monkeypatch, tmp_path, faults):
    monkeypatch.chdir(tmp_path)
    s3.upload(web_scenes, "web")
    score_and_select(s3, models, "whole")
    failing = faults()
    with proxy(s3.endpoint, failing) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        s3fs.S3FileSystem.clear_instance_cache()
        score_and_select(s3, models, "failing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    assert failing.requests.total() > 20
    for kind in ("", "-tables"):
        whole = contents(s3, f"whole{kind}/")
        assert len(whole) >= 3 and contents(s3, f"failing{kind}/") == whole


def test_an_expired_token_in_the_middle_loses_nothing(s3, web_scenes, models, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shards, tables = f"{s3.upload(web_scenes, 'web')}/*.tar", str(tmp_path / "tables")
    expired = Faults(lambda _number, path: EXPIRED if path.endswith("00002.tar") else OK)
    with proxy(s3.endpoint, expired) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(WorkError, match="1 shard has no score table"):
            score_shards(shards, *models, DECODING, precision="fp32", tables=tables)
    (failure,) = map(json.loads, (tmp_path / "tables/capfilt-failures.jsonl").read_text().splitlines())
    assert failure["shard"].endswith("00002.tar") and "the credentials have expired" in failure["error"]
    assert len(list((tmp_path / "tables").glob("*.parquet"))) == 2
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    counts = score_shards(shards, *models, DECODING, precision="fp32", tables=tables)
    assert (counts.shards, counts.skipped_shards) == (1, 2)
