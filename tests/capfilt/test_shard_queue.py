"""The queue of shards: the tables do not depend on which process scores them, on failures, or on kills."""

import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
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

from vlp.capfilt import STOPPED, scoring_batches, shard_queue
from vlp.capfilt.crash_markers import count_crashes, crash_marker
from vlp.capfilt.run import parse_part, score_shards
from vlp.capfilt.score import ScoreCounts
from vlp.capfilt.shard_queue import ShardQueue
from vlp.cli.main import app
from vlp.config import CapFiltConfig, SamplingOverrides
from vlp.config_reader import save_config
from vlp.data.score_tables import table_path
from vlp.data.shard_index import expand_shards
from vlp.data.shards import iterate_samples
from vlp.demo.scenes import write_scenes
from vlp.distributed import gather_objects
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
        decoding=SamplingOverrides(max_length=10, min_length=3),
        num_captions=2,
        batch_size=4,
        precision="fp32",
    )


@pytest.fixture(scope="module")
def expected(eight_shards, models) -> list[dict]:
    """The rows that one process writes."""
    decoding = SamplingOverrides(max_length=10, min_length=3)
    shards = str(eight_shards / "*.tar")
    score_shards(CapFiltConfig(shards, "", *models, decoding=decoding, num_captions=2, batch_size=4, precision="fp32"))
    return rows_of(shards)


def rows_of(shards: str) -> list[dict]:
    return [row for shard in expand_shards(shards) for row in pq.read_table(table_path(shard)).to_pylist()]


def tables(config: CapFiltConfig) -> list[Path]:
    paths = [Path(table_path(shard)) for shard in expand_shards(config.shards)]
    return [path for path in paths if path.exists()]


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


def test_all_parts_together_make_the_same_rows(config, expected, eight_shards):
    counts = [score_shards(config, part=f"{number}/3") for number in (3, 1)]
    assert [one.shards for one in counts] == [2, 3]
    names = {"--captioner": config.captioner, "--filter": config.filter, "--precision": "fp32", "--batch-size": 4}
    rest = {"--num-captions": 2, "--part": "2/3", "--set": "decoding={max_length: 10, min_length: 3}"}
    given = [str(word) for pair in {**names, **rest}.items() for word in pair]
    result = CliRunner().invoke(app, ["capfilt", "score", "--shards", config.shards, *given])
    assert "skipped_shards  0" in result.stdout, result.output
    assert rows_of(config.shards) == expected
    assert score_shards(config, part="9/9") == ScoreCounts()  # more parts than shards


def test_a_bad_shard_is_in_the_list_given_by_failures(config, tmp_path):
    first, *others = expand_shards(config.shards)
    Path(first).write_bytes(b"no shard")
    with pytest.raises(WorkError, match=r"1 shard has no score table.*00000\.tar.*bad.*3 attempts"):
        score_shards(config, part="1/3", failures=str(tmp_path / "new" / "list.jsonl"))
    assert json.loads((tmp_path / "new" / "list.jsonl").read_text())["shard"] == first
    assert [Path(table_path(shard)).exists() for shard in others[2::3]] == [True, True]
    with pytest.raises(WorkError, match=r"capfilt-failures-1-of-3\.jsonl lists"):
        score_shards(config, part="1/3")


class Work:
    """Scores nothing. Each shard of `failing` raises `error` in its first so many attempts."""

    def __init__(self, failing: dict[str, int], error: Exception):
        self.failing, self.error, self.order = failing, error, []

    def __call__(self, shard: str, progress) -> ScoreCounts:
        self.order.append(shard)
        progress("score", 10)
        if self.failing.get(shard, 0) >= self.order.count(shard):
            raise self.error
        return ScoreCounts(shards=1, images=10, texts=20, bad={"no image": 1})


def process(shards, work, failures: Path, finished=()) -> ScoreCounts:
    return ShardQueue(list(shards), failures).process(work, lambda shard: shard in finished)


def test_a_failing_shard_is_retried_after_the_others(tmp_path):
    work = Work({"a": 2, "b": 1}, OSError("the disk is away"))
    counts = process("abcd", work, tmp_path / "list", finished="d")
    assert counts == ScoreCounts(3, 1, 30, 60, {"no image": 3})
    assert work.order == ["a", "b", "c", "a", "b", "a"]
    assert not (tmp_path / "list").exists()


def test_shards_that_fail_three_times_are_listed_and_the_others_scored(tmp_path, monkeypatch):
    work = Work({"a": 9, "c": 9}, WorkError("the samples are bad."))
    with pytest.raises(WorkError, match=r"2 shards have no score table, the first is a \(the samples are bad, 3 att"):
        process("abcd", work, tmp_path / "list")
    assert sorted(work.order) == ["a"] * 3 + ["b"] + ["c"] * 3 + ["d"]
    listed = [json.loads(line) for line in (tmp_path / "list").read_text().splitlines()]
    assert listed == [{"shard": shard, "error": "the samples are bad.", "attempts": 3} for shard in ("a", "c")]
    # A launcher with --max_restarts restarts processes that end with exit code 1: that must not begin all over again.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(WorkError, match="2 shards have no score table"):
        ShardQueue(["a"], tmp_path / "list")
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    ShardQueue(["a"], tmp_path / "list")
    assert not (tmp_path / "list").exists()


def test_a_bug_ends_the_process_with_its_own_error(tmp_path):
    work = Work({"a": 9}, TypeError("a bug"))
    with pytest.raises(TypeError):
        process("ab", work, tmp_path / "list")
    assert work.order == ["a"]
    assert not count_crashes(tmp_path / "list")


def test_a_gpu_that_fails_ends_the_process_with_a_sentence(tmp_path):
    work = Work({"a": 9}, RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be"))
    with pytest.raises(WorkError, match=r"The GPU failed on a \(RuntimeError: CUDA error: device-side assert tr.*\);"):
        process("ab", work, tmp_path / "list")
    assert work.order == ["a"]


def _crash(failures: Path, shards: str) -> None:
    crashes = count_crashes(failures)
    with ExitStack() as stack:
        for shard in shards:
            stack.enter_context(crash_marker(failures, shard, crashes[shard]))
        os.kill(os.getpid(), signal.SIGKILL)


def test_suspects_of_a_crash_come_first_and_are_given_up_after_two_crashes(tmp_path):
    failures = tmp_path / "list"
    assert finish(start(_crash, failures, "ab")) == [-9]
    for failing in "abc":  # an exception does not count as a crash, and forgets none
        with pytest.raises(TypeError):
            process("abc", Work({failing: 1}, TypeError("a bug")), failures)
        assert count_crashes(failures) == {"a": 1, "b": 1}
    assert finish(start(_crash, failures, "a")) == [-9]
    work = Work({}, OSError())
    with pytest.raises(WorkError, match=r"1 shard has no score table, the first is a \(its process crashed, 2"):
        process("abc", work, failures)
    assert work.order == ["b", "c"]
    assert [path.name for path in tmp_path.iterdir()] == ["list"], "the markers are gone: the next run tries again"


def test_shards_in_progress_in_another_run_are_no_crashes(tmp_path):
    with crash_marker(tmp_path / "list", "a", 0):
        assert count_crashes(tmp_path / "list") == {}
        (marker,) = tmp_path.glob(".list.*")
        content = json.loads(marker.read_text())
        for other in ({"host": "another machine"}, {"started": 0.0}, {"process": 2**22 + 1}):
            marker.write_text(json.dumps({**content, **other}))
            assert count_crashes(tmp_path / "list") == {"a": 1}
        marker.write_text("")  # the process died before it wrote the marker
        assert count_crashes(tmp_path / "list") == {}


def _crash_together(folder: Path) -> None:
    """As in a container that is killed for memory: "guilty" kills all processes, while "slow" is in progress if it can.

    "slow" is in progress as long as "guilty" is.
    """
    dist.init_process_group("gloo")
    pids = gather_objects(os.getpid())
    queue = ShardQueue(["guilty", "slow"], folder / "list")

    def score(shard: str, progress) -> ScoreCounts:
        queue.store.set(shard, "")
        with suppress(dist.DistStoreError):
            queue.store.wait(["guilty" if shard == "slow" else "slow"], timedelta(seconds=1))
            if shard == "slow":
                queue.store.wait(["never"], timedelta(seconds=60))
        if shard == "guilty":
            for process in [*pids[: dist.get_rank()], *pids[dist.get_rank() + 1 :], os.getpid()]:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        (folder / shard).touch()
        return ScoreCounts(1, 0, 1, 1)

    try:
        queue.process(score, lambda shard: (folder / shard).exists())
    except WorkError:
        sys.exit(1)


def test_a_shard_that_only_ran_next_to_a_deadly_one_is_scored(tmp_path):
    assert finish(start(_crash_together, tmp_path, count=2)) == [-9, -9]
    assert count_crashes(tmp_path / "list") == {"guilty": 1, "slow": 1}
    assert -9 in finish(start(_crash_together, tmp_path, count=2))
    assert count_crashes(tmp_path / "list") == {"guilty": 2, "slow": 1}
    assert finish(start(_crash_together, tmp_path, count=2)) == [1, 1]
    assert [json.loads(line)["shard"] for line in (tmp_path / "list").read_text().splitlines()] == ["guilty"]
    assert (tmp_path / "slow").exists()


def test_the_bar_shows_all_processes_and_estimates_the_total(tmp_path, monkeypatch):
    shown = []

    def add(bar, stage, count):
        bar.done += count
        shown.append((bar.done, bar.total))

    monkeypatch.setattr(shard_queue.Progress, "add", add)
    process("abcd", Work({"b": 1}, OSError("the disk is away")), tmp_path / "list", finished="d")
    assert shown[0] == (10, None)  # "a" is not readable, so the total is unknown
    assert shown[1] == (20, 40)  # all shards are assumed to be like "a"
    assert shown[-1] == (30, 30)  # "d" was finished before, and the first attempt at "b" does not count


def _fail_together(folder: Path) -> None:
    dist.init_process_group("gloo")
    work = Work({"7": 9, "11": 9}, ValueError("no number"))
    try:
        process(map(str, range(20)), work, folder / "list", finished=("3", "4"))
    except WorkError as error:
        result = {"error": str(error)}
    except SystemExit as error:
        result = {"exit code": error.code}
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps({**result, "order": work.order}))


def test_processes_share_the_shards_and_the_first_reports_the_failures(tmp_path):
    assert finish(start(_fail_together, tmp_path, count=3)) == [0, 0, 0]
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert "2 shards have no score table" in results[0]["error"]
    assert [result["exit code"] for result in results[1:]] == [1, 1]
    scored = [shard for result in results for shard in result["order"]]
    assert sorted(set(scored), key=int) == [str(number) for number in range(20) if number not in (3, 4)]
    assert len(scored) == 18 + 2 * 2, "one process scored each shard, and tried the failing ones three times"
    listed = [json.loads(line) for line in (tmp_path / "list").read_text().splitlines()]
    assert {one["shard"]: one["error"] for one in listed} == dict.fromkeys(("7", "11"), "ValueError: no number")


def _wait_for_a_dead_process(folder: Path, dying: int) -> None:
    shard_queue.SILENCE = 1.0
    dist.init_process_group("gloo")
    queue = ShardQueue(["a", "b"], folder / "list")

    def score(shard: str, progress) -> ScoreCounts:
        queue.store.set(str(dist.get_rank()), "")
        queue.store.wait([str(1 - dist.get_rank())])
        if dist.get_rank() == dying:
            os.kill(os.getpid(), 9)
        if dying == 0:
            queue.store.wait(["never"])
        return ScoreCounts(1, 0, 1, 1)

    try:
        queue.process(score, lambda shard: False)
    except WorkError as error:
        (folder / "error").write_text(str(error))


@pytest.mark.parametrize(
    ("dying", "message"), [(1, "Process 1 has made no progress"), (0, "The first process of the run ended")]
)
def test_a_dead_process_does_not_hang_the_others(tmp_path, dying, message):
    codes = finish(start(_wait_for_a_dead_process, tmp_path, dying, count=2))
    assert codes[dying] == -9 and codes[1 - dying] == 0
    assert message in (tmp_path / "error").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_by_a_signal_is_one_sentence_and_no_crash(config, expected, tmp_path, number):
    """As SLURM, Kubernetes and spot machines stop a process; the launcher and the scheduler may both send a signal."""
    save_config(config, tmp_path / "capfilt.yaml")
    given = [f"output={tmp_path / 'new'}", "rules=itm >= 0"]
    command = [sys.executable, "-m", "vlp", "capfilt", "run", str(tmp_path / "capfilt.yaml"), *given]
    process = psutil.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while not tables(config) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1, error
    assert error == f"vlp: {STOPPED}\n"
    assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "web").glob(".*")), "no marker and no half table"
    finished = {path: path.stat().st_mtime_ns for path in tables(config)}
    assert 0 < len(finished) < 8
    score_shards(config)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert rows_of(config.shards) == expected


def test_kills_at_any_moment_change_no_row(config, expected, tmp_path):
    moments = random.Random()
    stray = tmp_path / "web" / ".00005.capfilt.parquet.tmp-1"
    stray.write_text("half a table")  # as if killed while writing
    killed = 0
    for finished in (0, 1, 2, 4, 6):
        (process,) = start(score_shards, config)
        while process.is_alive() and len(tables(config)) < finished:
            process.join(0.001)
        process.join(moments.uniform(0, 0.1))
        process.kill()
        process.join()
        killed += process.exitcode == -9
        before = {path: path.stat().st_mtime_ns for path in tables(config)}
        assert all(pq.read_table(path).num_rows == 24 for path in before)  # whole: 8 images, 3 texts each
    assert killed
    assert finish(start(score_shards, config)) == [0]
    assert {path: path.stat().st_mtime_ns for path in before} == before  # what was finished was not done again
    assert rows_of(config.shards) == expected
    names = [f"{number:05d}.{kind}" for number in range(8) for kind in ("capfilt.parquet", "tar")]
    assert sorted(os.listdir(tmp_path / "web")) == names


def test_four_processes_change_no_row(config, expected):
    assert finish(start(score_shards, config, count=4)) == [0, 0, 0, 0]
    assert rows_of(config.shards) == expected


def _launch(config: CapFiltConfig, restarts: int, target=score_shards, *arguments) -> None:
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


def _score_and_crash(config: CapFiltConfig, deadly: bytes, folder: Path) -> None:
    """Scores, where decoding one image kills the process; FOLDER/error gets the final error."""
    decode = scoring_batches._decode

    def decode_or_die(data: bytes, scorers) -> scoring_batches._DecodedImage:
        if data == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(data, scorers)

    scoring_batches._decode = decode_or_die
    try:
        score_shards(config)
    except WorkError as error:
        (folder / "error").write_text(str(error))
        raise SystemExit(1) from None


@pytest.mark.parametrize("launched", [True, False])
def test_a_shard_that_kills_its_process_is_given_up_and_named(config, expected, tmp_path, launched):
    guilty = expand_shards(config.shards)[1]
    deadly = next(iterate_samples(guilty)).image
    if launched:
        assert finish(start(_launch, config, 2, _score_and_crash, deadly, tmp_path)) == [1]
    else:
        codes = [finish(start(_score_and_crash, config, deadly, tmp_path))[0] for _ in range(3)]
        assert codes == [-9, -9, 1]
    message = f"1 shard has no score table, the first is {guilty} (its process crashed, 2 attempts)"
    assert message in (tmp_path / "error").read_text()
    listed = tmp_path / "web" / "capfilt-failures.jsonl"
    assert json.loads(listed.read_text()) == {"shard": guilty, "error": "its process crashed", "attempts": 2}
    assert [path.name for path in tables(config)] == [f"0000{number}.capfilt.parquet" for number in (0, *range(2, 8))]
    assert sorted(path.name for path in (tmp_path / "web").glob(".*")) == []
    score_shards(config)  # without the deadly decoder
    assert rows_of(config.shards) == expected
