"""Work that survives: whoever does it, whatever fails and whenever it is killed, the tables are the same."""

import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from typer.testing import CliRunner

from vlp.capfilt import scoring_batches, shard_queue
from vlp.capfilt.crash_markers import in_work, read_deaths
from vlp.capfilt.run import score
from vlp.capfilt.score import ScoreCounts, ShardCounts
from vlp.capfilt.shard_queue import parse_part, start_list, work_off
from vlp.cli.main import app
from vlp.config import CapFiltConfig, DecodingConfig
from vlp.data.score_tables import table_path
from vlp.data.shard_index import expand_shards
from vlp.data.shards import iterate_samples
from vlp.demo.scenes import write_scenes
from vlp.errors import UserError, WorkError

PROCESSES = multiprocessing.get_context("forkserver")  # processes that need not import torch again
PROCESSES.set_forkserver_preload(["vlp.capfilt.run"])


@pytest.fixture(scope="module")
def eight_shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "web"
    write_scenes(str(folder), 64, "web", 0.5, 32, 8, seed=5)
    return folder


@pytest.fixture
def config(eight_shards, models, tmp_path) -> CapFiltConfig:
    """For a copy of the shards without tables."""
    shutil.copytree(eight_shards, tmp_path / "web", ignore=shutil.ignore_patterns("*.parquet"))
    return CapFiltConfig(
        shards=str(tmp_path / "web" / "*.tar"),
        captioner=models[0],
        filter=models[1],
        decoding=DecodingConfig(max_length=10, min_length=3),
        num_captions=2,
        batch_size=4,
        precision="fp32",
    )


@pytest.fixture(scope="module")
def expected(eight_shards, models) -> list[dict]:
    """The rows that one process writes."""
    decoding = DecodingConfig(max_length=10, min_length=3)
    shards = str(eight_shards / "*.tar")
    score(CapFiltConfig(shards, "", *models, decoding=decoding, num_captions=2, batch_size=4, precision="fp32"))
    return rows_of(shards)


def rows_of(shards: str) -> list[dict]:
    return [row for shard in expand_shards(shards) for row in pq.read_table(table_path(shard)).to_pylist()]


def tables(config: CapFiltConfig) -> list[Path]:
    return [table_path(shard) for shard in expand_shards(config.shards) if table_path(shard).exists()]


def start(target, *arguments, count: int = 1) -> list[multiprocessing.Process]:
    """Processes of one group that run `target(*arguments)`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [PROCESSES.Process(target=_run, args=(rank, count, port, target, arguments)) for rank in range(count)]
    for process in started:
        process.start()
    return started


def _run(rank: int, count: int, port: int, target, arguments: tuple) -> None:
    torch.set_num_threads(1)
    if count > 1:
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": rank}
        os.environ.update({name: str(value) for name, value in place.items()})
    target(*arguments)


def finish(processes: list[multiprocessing.Process]) -> list[int | None]:
    """Their exit codes."""
    for process in processes:
        process.join(200)
    return [process.exitcode for process in processes]


def test_parts_are_counted_from_one():
    assert [parse_part(text) for text in ("", "1/1", "3/16", "16/16")] == [(1, 1), (1, 1), (3, 16), (16, 16)]
    for wrong in ("0/16", "17/16", "3", "a/b", "-1/3", "1/0", "3/16/2"):
        with pytest.raises(UserError, match=r"1/16 to 16/16"):
            parse_part(wrong)


def test_parts_together_are_the_whole(config, expected, eight_shards):
    counts = [score(config, part=f"{number}/3") for number in (3, 1)]
    assert [one.shards for one in counts] == [2, 3]
    names = {"--captioner": config.captioner, "--filter": config.filter, "--precision": "fp32", "--batch-size": 4}
    rest = {"--num-captions": 2, "--part": "2/3", "--set": "decoding={max_length: 10, min_length: 3}"}
    given = [str(word) for pair in {**names, **rest}.items() for word in pair]
    result = CliRunner().invoke(app, ["capfilt", "score", "--shards", config.shards, *given])
    assert "skipped_shards  0" in result.stdout, result.output
    assert rows_of(config.shards) == expected
    assert score(config, part="9/9") == ScoreCounts()  # more parts than shards


def test_a_shard_that_is_all_bad_is_listed_where_it_is_asked_for(config, tmp_path):
    first, *others = expand_shards(config.shards)
    Path(first).write_bytes(b"no shard")
    with pytest.raises(WorkError, match=r"1 of 3 shards failed 3 times.*00000\.tar.*bad"):
        score(config, part="1/3", failures=str(tmp_path / "new" / "list.jsonl"))
    assert json.loads((tmp_path / "new" / "list.jsonl").read_text())["shard"] == first
    assert [table_path(shard).exists() for shard in others[2::3]] == [True, True]
    with pytest.raises(WorkError, match=r"capfilt-failures-1-of-3\.jsonl lists them"):
        score(config, part="1/3")


class Work:
    """Scores nothing; shards fail as often as `failing` says, with what `error` says."""

    def __init__(self, failing: dict[str, int], error: Exception):
        self.failing, self.error, self.order = failing, error, []

    def __call__(self, shard: str, progress) -> ShardCounts:
        self.order.append(shard)
        progress("score", 10)
        if self.failing.get(shard, 0) >= self.order.count(shard):
            raise self.error
        return ShardCounts(10, 20, {"no image": 1})


def test_what_fails_now_and_then_is_tried_again_after_the_others(tmp_path):
    task = Work({"a": 2, "b": 1}, OSError("the disk is away"))
    counts = work_off(["a", "b", "c", "d"], task, lambda shard: shard == "d", tmp_path / "list")
    assert counts == ScoreCounts(3, 1, 30, 60, {"no image": 3})
    assert task.order == ["a", "b", "c", "a", "b", "a"]
    assert not (tmp_path / "list").exists()


def test_what_fails_three_times_is_listed_and_the_rest_is_done(tmp_path, monkeypatch):
    task = Work({"a": 9, "c": 9}, WorkError("the samples are bad."))
    with pytest.raises(WorkError, match=r"2 of 4 shards failed 3 times.*first of them a \(the samples are bad\)"):
        work_off(["a", "b", "c", "d"], task, lambda shard: False, tmp_path / "list")
    assert sorted(task.order) == ["a"] * 3 + ["b"] + ["c"] * 3 + ["d"]
    listed = [json.loads(line) for line in (tmp_path / "list").read_text().splitlines()]
    assert listed == [{"shard": shard, "error": "the samples are bad.", "attempts": 3} for shard in ("a", "c")]
    # The launcher takes exit code 1 for a reason to start everything again: that ends at once, but a new run does not.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(WorkError, match="2 shards failed 3 times"):
        start_list(tmp_path / "list")
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    start_list(tmp_path / "list")
    assert not (tmp_path / "list").exists()


@pytest.mark.parametrize("error", [TypeError("a mistake"), RuntimeError("CUDA error: device-side assert triggered")])
def test_a_mistake_and_a_dead_gpu_end_the_process(tmp_path, error):
    task = Work({"a": 9}, error)
    with pytest.raises(type(error)):
        work_off(["a", "b"], task, lambda shard: False, tmp_path / "list")
    assert task.order == ["a"]


def _die_in_work(listed: Path, shards: str) -> None:
    deaths = read_deaths(listed)
    with ExitStack() as stack:
        for shard in shards:
            stack.enter_context(in_work(listed, shard, deaths[shard]))
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_was_in_work_when_processes_died_comes_last(tmp_path):
    """An end that the process lived to see leaves no mark: a mistake of ours, as Ctrl-C."""
    listed, mistake = tmp_path / "list", TypeError("a mistake")
    with pytest.raises(TypeError):
        work_off(["a", "b"], Work({"a": 1}, mistake), lambda shard: False, listed)
    assert not read_deaths(listed)
    assert [finish(start(_die_in_work, listed, shards)) for shards in ("ab", "a")] == [[-9], [-9]]
    for failing in "abc":
        with pytest.raises(TypeError):
            work_off(["a", "b", "c"], Work({failing: 1}, mistake), lambda shard: False, listed)
        assert read_deaths(listed) == {"a": 2, "b": 1}
    task = Work({"a": 2}, OSError("the disk is away"))
    assert work_off(["a", "b", "c"], task, lambda shard: False, listed).shards == 3
    assert task.order == ["c", "b", "a", "a", "a"]
    assert not list(tmp_path.iterdir())


def _die_together(folder: Path) -> None:
    """As where memory is short and the machine kills all: "guilty" does so, when another is in work if there is one."""
    dist.init_process_group("gloo")
    store, me = shard_queue._get_default_store(), dist.get_rank()
    store.set(f"process {me}", str(os.getpid()))

    def begin(shard: str, progress) -> ShardCounts:
        store.set(shard, "")
        together = True
        try:
            store.wait(["guilty" if shard == "slow" else "slow"], timedelta(seconds=1))
        except dist.DistStoreError:
            together = False
        if shard == "guilty":
            for process in [int(store.get(f"process {rank}")) for rank in (1 - me, me)]:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        elif together:
            store.get("never")
        (folder / shard).touch()
        return ShardCounts(1, 1)

    try:
        work_off(["guilty", "slow"], begin, lambda shard: (folder / shard).exists(), folder / "list")
    except WorkError:
        sys.exit(1)


def test_what_dies_with_a_guilty_shard_is_not_given_up(tmp_path):
    for deaths in range(1, 4):
        assert -9 in finish(start(_die_together, tmp_path, count=2))
        assert read_deaths(tmp_path / "list") == {"guilty": deaths, "slow": min(deaths, 2)}
    assert finish(start(_die_together, tmp_path, count=2)) == [1, 0]
    assert [json.loads(line)["shard"] for line in (tmp_path / "list").read_text().splitlines()] == ["guilty"]
    assert (tmp_path / "slow").exists()


def test_the_progress_is_that_of_all_and_its_total_is_estimated(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(shard_queue.Progress, "add", lambda bar, what, count: advance(bar, count))

    def advance(bar, count):
        bar.done += count
        shown.append((bar.done, bar.total))

    task = Work({"b": 1}, OSError("the disk is away"))
    work_off(["a", "b", "c", "d"], task, lambda shard: shard == "d", tmp_path / "list")
    assert shown[0] == (10, None)  # "a" cannot be read, so that nothing is known yet
    assert shown[1] == (20, 40)  # each is as large as "a"
    assert shown[-1] == (30, 30)  # "d" was finished, and what "b" did at first was taken back


def _fail_together(folder: Path) -> None:
    dist.init_process_group("gloo")
    shards = [str(number) for number in range(20)]
    task = Work({"7": 9, "11": 9}, ValueError("no number"))
    try:
        counts = work_off(shards, task, lambda shard: shard in ("3", "4"), folder / "list")
        said = {"counts": vars(counts)}
    except WorkError as error:
        said = {"error": str(error)}
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps({**said, "order": task.order}))


def test_processes_share_the_shards_and_the_first_says_what_failed(tmp_path):
    assert finish(start(_fail_together, tmp_path, count=3)) == [0, 0, 0]
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert "2 of 20 shards failed 3 times" in said[0]["error"]
    done = [shard for one in said for shard in one["order"]]
    assert sorted(set(done), key=int) == [str(number) for number in range(20) if number not in (3, 4)]
    assert len(done) == 18 + 2 * 2, "each shard was one process's, those that failed three times"
    listed = [json.loads(line) for line in (tmp_path / "list").read_text().splitlines()]
    assert {one["shard"]: one["error"] for one in listed} == dict.fromkeys(("7", "11"), "ValueError: no number")


def _wait_for_the_dead(folder: Path) -> None:
    shard_queue.SILENCE = 1.0
    dist.init_process_group("gloo")

    def die_second(shard: str, progress) -> ShardCounts:
        if dist.get_rank() == 1:
            shard_queue._get_default_store().set("the second has one", "")
            os.kill(os.getpid(), 9)
        shard_queue._get_default_store().get("the second has one")  # waits for it
        return ShardCounts(1, 1)

    try:
        work_off(["a", "b"], die_second, lambda shard: False, folder / "list")
    except WorkError as error:
        (folder / "said").write_text(str(error))


def test_a_dead_process_does_not_hang_the_others(tmp_path):
    assert finish(start(_wait_for_the_dead, tmp_path, count=2)) == [0, -9]
    assert "Process 1 has given no sign" in (tmp_path / "said").read_text()


def test_kills_at_any_moment_change_no_row(config, expected, tmp_path):
    moments = random.Random()
    stray = tmp_path / "web" / ".00005.capfilt.parquet.tmp-1"
    stray.write_text("half a table")  # as if killed while writing
    killed = 0
    for finished in (0, 1, 2, 4, 6):
        (process,) = start(score, config)
        while process.is_alive() and len(tables(config)) < finished:
            process.join(0.001)
        process.join(moments.uniform(0, 0.1))
        process.kill()
        process.join()
        killed += process.exitcode == -9
        before = {path: path.stat().st_mtime_ns for path in tables(config)}
        assert all(pq.read_table(path).num_rows == 24 for path in before)  # whole: 8 images, 3 texts each
    assert killed
    assert finish(start(score, config)) == [0]
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was finished was not done again
    assert rows_of(config.shards) == expected
    names = [f"{number:05d}.{kind}" for number in range(8) for kind in ("capfilt.parquet", "tar")]
    assert sorted(os.listdir(tmp_path / "web")) == names


def test_four_processes_change_no_row(config, expected):
    assert finish(start(score, config, count=4)) == [0, 0, 0, 0]
    assert rows_of(config.shards) == expected


def _launch(config: CapFiltConfig, restarts: int, target=score, *arguments) -> None:
    """What torchrun does, and accelerate's launcher through it."""
    logging.disable()  # the launcher's own words
    how = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "start_method": "fork"}
    launch = LaunchConfig(1, 1, nproc_per_node=2, max_restarts=restarts, run_id="run", **how)
    elastic_launch(launch, target)(config, *arguments)


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_killed_process_ends_the_run_or_is_started_again_and_changes_no_row(config, expected, restarts):
    (launcher,) = start(_launch, config, restarts)
    while launcher.is_alive() and not tables(config):
        launcher.join(0.001)
    psutil.Process(launcher.pid).children()[1].kill()
    assert finish([launcher]) == [0 if restarts else 1]
    if restarts:
        assert rows_of(config.shards) == expected
    else:
        assert len(tables(config)) < 8


def _score_and_die(config: CapFiltConfig, deadly: bytes, folder: Path) -> None:
    """Scores where decoding one image kills the process; what is said at the end is in FOLDER/said."""
    decode = scoring_batches._decode

    def decode_or_die(data: bytes, scorers) -> scoring_batches._Decoded:
        if data == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(data, scorers)

    scoring_batches._decode = decode_or_die
    try:
        score(config)
    except WorkError as error:
        (folder / "said").write_text(str(error))
        raise SystemExit(1) from None


@pytest.mark.parametrize("launched", [True, False])
def test_a_shard_that_kills_its_process_is_given_up_and_named(config, expected, tmp_path, launched):
    guilty = expand_shards(config.shards)[1]
    deadly = next(iterate_samples(guilty)).image
    if launched:
        assert finish(start(_launch, config, 3, _score_and_die, deadly, tmp_path)) == [1]
    else:
        codes = [finish(start(_score_and_die, config, deadly, tmp_path))[0] for _ in range(4)]
        assert codes == [-9, -9, -9, 1]
    assert (
        f"1 of 8 shards failed 3 times and have no table, the first of them {guilty} (its process died)"
        in (tmp_path / "said").read_text()
    )
    listed = tmp_path / "web" / "capfilt-failures.jsonl"
    assert json.loads(listed.read_text()) == {"shard": guilty, "error": "its process died", "attempts": 3}
    assert [path.name for path in tables(config)] == [f"0000{number}.capfilt.parquet" for number in (0, *range(2, 8))]
    assert sorted(path.name for path in (tmp_path / "web").glob(".*")) == []
    score(config)  # the guilty image is mended
    assert rows_of(config.shards) == expected
