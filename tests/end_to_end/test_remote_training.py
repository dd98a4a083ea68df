"""Training from a real S3 server, whose requests fail on purpose; the run equals one from local files."""

import json
import time
from pathlib import Path

import pytest
import s3fs

from tests.flaky_server import EXPIRED, OK, RESET, SHORT, Faults, proxy
from tests.processes import run_vlp
from vlp.config_reader import save_config
from vlp.data import byte_stream
from vlp.errors import UserError, WorkError
from vlp.log import read_log
from vlp.training.checkpoint import checkpoints
from vlp.training.loop import train

SETTINGS = ("data.streams=4", "data.shuffle_buffer=30", "objective.queue_size=16", "data.reading=streamed")


@pytest.fixture
def through(s3, scenes, monkeypatch):
    """A function that puts a proxy with faults before the S3 server for this process; the address of the shards."""
    url = s3.upload(scenes, "web")
    opened = []
    monkeypatch.setattr(byte_stream, "FIRST_DELAY", 0.02)

    def start(faults: Faults) -> str:
        server = proxy(s3.endpoint, faults)
        opened.append(server)
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.__enter__())
        s3fs.S3FileSystem.clear_instance_cache()
        return f"data.sources=[{{shards: '{url}/0000*.tar'}}]"

    yield start
    for server in reversed(opened):
        server.__exit__(None, None, None)


def losses(config) -> list[float]:
    return [record["loss"] for record in read_log(f"{config.output}/log.jsonl")]


def shards_from(first: int, answer: int) -> Faults:
    """Faults that give one answer to all requests for shards after the first few."""
    faults = Faults()
    faults.answer = lambda _number, path: answer if is_shard(path) and faults.requests.total() > first else OK
    return faults


def is_shard(path: str) -> bool:
    return path.endswith(".tar")


def test_a_run_with_failing_and_slow_requests_equals_one_from_files(run_config, through, scenes):
    local = run_config("local", *SETTINGS)
    train(local)
    fault = (RESET, SHORT, 503)
    faults = Faults(lambda number, path: fault[number % 3] if is_shard(path) and number % 10 == 3 else OK, delay=0.01)
    remote = run_config("remote", *SETTINGS, through(faults), "data.reading=auto", "data.workers=1")
    train(remote)
    assert losses(remote) == losses(local)
    assert "streams: 4" in Path(remote.output, "config.yaml").read_text()


AWAY = 1.0  # seconds


def test_a_run_waits_for_a_server_that_goes_away(run_config, through, monkeypatch):
    monkeypatch.setattr(byte_stream, "FIRST_DELAY", 0.02)  # with eight retries it waits for more than two seconds
    whole = run_config("whole", *SETTINGS, through(Faults()))
    train(whole)
    gone = []

    def away(number, path):
        if is_shard(path) and number > 8:
            gone.append(time.monotonic())
            return RESET if gone[-1] - gone[0] < AWAY else OK
        return OK

    part = run_config("part", *SETTINGS, through(Faults(away)), "data.retries=8")
    train(part)
    assert len(gone) > 3
    assert losses(part) == losses(whole)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_expired_token_leaves_a_checkpoint_and_a_resume_equals_an_undisturbed_run(run_config, through, accumulation):
    common = *SETTINGS, "steps=20", "batch_size=16", f"accumulation={accumulation}"
    whole = run_config("whole", *common, through(Faults()))
    train(whole)
    config = run_config("part", *common, through(shards_from(9, EXPIRED)))
    with pytest.raises(WorkError, match="the credentials have expired"):
        train(config)
    (checkpoint,) = checkpoints(Path(config.output))
    assert 0 < json.loads((checkpoint / "progress.json").read_text())["step"] < 20
    resumed = run_config("part", *common, through(Faults()), "data.retries=2", "data.workers=1")
    train(resumed, resume=True)
    assert losses(resumed) == losses(whole)


def test_a_store_that_denies_access_in_the_middle_ends_the_run_after_ten_shards(run_config, through):
    config = run_config("run", *SETTINGS, through(shards_from(9, 403)), "steps=60", "data.max_bad_share=1")
    with pytest.raises(WorkError, match=r"10 shards in a row could not be read, .*resume the run"):
        train(config)
    assert checkpoints(Path(config.output))


def test_two_processes_resume_a_run_of_one(run_config, through, tmp_path):
    sources = through(Faults())
    part = run_config("part", *SETTINGS, sources, "steps=4", "optim.decay=constant")
    train(part)
    steady = run_config("steady", *SETTINGS, sources, "optim.decay=constant")
    train(steady)
    more = run_config("part", *SETTINGS, sources, "optim.decay=constant")
    save_config(more, tmp_path / "more.yaml")
    run_vlp(tmp_path / "printed", "pretrain", tmp_path / "more.yaml", "--resume", count=2)
    assert losses(more) == pytest.approx(losses(steady), abs=1e-4)


def test_wrong_addresses_are_refused_before_the_first_step(run_config, through, s3, tmp_path):
    through(Faults())
    for sources, message in (
        ("s3://no-such-bucket-here/0.tar", "its bucket does not exist"),
        (f"{s3.url}/none.tar", "does not exist"),
        (f"{s3.url}/none-*.tar", "No shard matches"),
    ):
        with pytest.raises(UserError, match=message):
            train(run_config("run", *SETTINGS, f"data.sources=[{{shards: '{sources}'}}]"))
        assert not checkpoints(tmp_path / "run")
    through(Faults(lambda _number, path: 403 if is_shard(path) else OK))
    with pytest.raises(UserError, match="access is denied"):
        train(run_config("denied", *SETTINGS, f"data.sources=[{{shards: '{s3.url}/web/00000.tar'}}]"))
