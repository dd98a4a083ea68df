"""The queue of shards: failing shards are retried and listed, and dead processes neither hang nor accuse others."""

import json
import os
import signal
import sys
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.processes import finish, start
from vlp.capfilt import shard_queue
from vlp.capfilt.crash_markers import count_crashes, crash_marker
from vlp.capfilt.score import ScoreCounts
from vlp.capfilt.shard_queue import ShardQueue
from vlp.distributed import gather_objects
from vlp.errors import WorkError


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
