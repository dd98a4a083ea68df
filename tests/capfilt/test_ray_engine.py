"""Scoring on Ray: the tables of `--engine processes`, also when nodes are lost and join, and when processes crash."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vlp.capfilt import STOPPED
from vlp.capfilt.ray_engine import RayOptions, RayQueue, connected_to_ray, score_shards_on_ray
from vlp.capfilt.run import score_shards
from vlp.capfilt.score import ScoreCounts
from vlp.config import CapFiltConfig, SamplingOverrides
from vlp.demo.scenes import write_scenes
from vlp.errors import UserError, WorkError
from vlp.training.stop_signals import StopRequest

ray = pytest.importorskip("ray")
NODE = {"num_cpus": 2, "object_store_memory": 100 * 2**20}
COUNT = 20  # shards of eight images
SETTINGS = {"decoding": SamplingOverrides(max_length=30, min_length=20), "num_captions": 4, "batch_size": 4}


@pytest.fixture(scope="module")
def cluster() -> Iterator:
    """A head without cores, and one node with two, which `node` holds."""
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import this file
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 0, "object_store_memory": 100 * 2**20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=head)
        made.node = made.add_node(**NODE)
    yield made
    made.shutdown()
    for number, handler in handlers.items():  # Ray replaces SIGTERM's
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory, models) -> Path:
    """Shards and their tables, written by `--engine processes`."""
    folder = tmp_path_factory.mktemp("work") / "web"
    write_scenes(str(folder), COUNT * 8, "web", 0.5, 32, 8, seed=5)
    score_shards(make_config(folder, models))
    return folder


def make_config(folder: Path, models: list[str]) -> CapFiltConfig:
    return CapFiltConfig(str(folder / "*.tar"), captioner=models[0], filter=models[1], precision="fp32", **SETTINGS)


@pytest.fixture
def web(many_shards, tmp_path) -> Path:
    """The shards without tables."""
    return shutil.copytree(many_shards, tmp_path / "web", ignore=shutil.ignore_patterns("*.parquet"))


def rows(folder: Path) -> list[dict]:
    return [pq.read_table(path).to_pydict() for path in tables(folder)]


def tables(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def wait_for_tables(folder: Path, count: int, process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 120
    while len(tables(folder)) < count and time.monotonic() < deadline and (process is None or process.poll() is None):
        time.sleep(0.002)


def options(cluster) -> RayOptions:
    return RayOptions(cluster.address, cpus=1)


def test_tables_equal_those_of_processes_bit_for_bit_and_a_rerun_skips_them(cluster, many_shards, models):
    handler = signal.getsignal(signal.SIGTERM)
    config = replace(make_config(many_shards, models), shards=str(many_shards / "0000[0-5].tar"))
    first = tables(many_shards)[:6]
    expected = [path.read_bytes() for path in first]
    for path in first:
        path.unlink()
    counts = score_shards_on_ray(config, options(cluster))
    assert counts == ScoreCounts(shards=6, images=6 * 8, texts=6 * 8 * 5)
    assert [path.read_bytes() for path in first] == expected
    assert not list(many_shards.glob(".*"))
    assert score_shards_on_ray(config, options(cluster), part="2/3") == ScoreCounts(skipped_shards=2)
    assert signal.getsignal(signal.SIGTERM) == handler and not ray.is_initialized()


def test_a_node_is_killed_at_work_and_another_one_joins_later(cluster, web, many_shards, models):
    with ThreadPoolExecutor() as pool:  # Ray adds nodes in the main thread only
        scoring = pool.submit(score_shards_on_ray, make_config(web, models), options(cluster))
        wait_for_tables(web, 2)
        cluster.remove_node(cluster.node, allow_graceful=False)
        left = COUNT - len(tables(web))
        cluster.node = cluster.add_node(**NODE)
        counts = scoring.result(timeout=200)
    assert left > 0, "the node was killed too late"
    assert counts.shards + counts.skipped_shards == COUNT  # a table may have been finished, but not counted
    assert rows(web) == rows(many_shards)


def test_sigterm_ends_the_command_with_one_sentence_and_a_rerun_continues(cluster, web, many_shards, models):
    given = {"--shards": web / "*.tar", "--captioner": models[0], "--filter": models[1], "--precision": "fp32"}
    given |= {"--num-captions": 4, "--batch-size": 4, "--set": "decoding={max_length: 30, min_length: 20}"}
    given |= {"--engine": "ray", "--ray-cpus": 1}
    command = [sys.executable, "-m", "vlp", "capfilt", "score", *(str(word) for pair in given.items() for word in pair)]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    wait_for_tables(web, 1, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == f"vlp: {STOPPED}\n"
    finished = {path: path.stat().st_mtime_ns for path in tables(web)}
    assert 0 < len(finished) < COUNT
    counts = score_shards_on_ray(make_config(web, models), options(cluster))
    assert counts.skipped_shards >= len(finished) and counts.shards + counts.skipped_shards == COUNT
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert rows(web) == rows(many_shards)
    assert not list(web.glob(".*"))


class Work:
    """Scores nothing; what happens to a shard follows from its name. FOLDER has a line per attempt."""

    def __init__(self, folder: Path):
        self.folder = folder

    def is_finished(self, shard: str) -> bool:
        return shard == "finished"

    def score(self, shard: str) -> ScoreCounts:
        with (self.folder / shard).open("a") as file:
            file.write(f"{os.getpid()}\n")
        attempt = len((self.folder / shard).read_text().splitlines())
        if shard == "deadly" or (shard == "deadly once" and attempt == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if shard == "failing" or (shard == "failing twice" and attempt < 3):
            raise OSError("the disk is away")
        if shard == "bug":
            raise TypeError("a bug")
        return ScoreCounts(shards=1, images=10, texts=20, bad={"no image": 1})


def process(cluster, shards: list[str], make_scorer, failures: Path) -> ScoreCounts:
    stop = StopRequest()
    with connected_to_ray(ray, options(cluster), stop) as resources:
        return RayQueue(ray, shards, make_scorer, resources, failures, stop).process()


def test_failing_and_crashing_shards_are_retried_and_given_up_by_the_rules_of_the_queue(cluster, tmp_path, caplog):
    shards = ["failing", "deadly", "a", "failing twice", "deadly once", "finished", "b"]
    with pytest.raises(WorkError, match=r"2 shards have no score table, the first is ") as raised:
        process(cluster, shards, partial(Work, tmp_path), tmp_path / "list" / "failures.jsonl")
    assert "all others are scored" in str(raised.value)
    listed = [json.loads(line) for line in (tmp_path / "list" / "failures.jsonl").read_text().splitlines()]
    assert sorted(listed, key=lambda one: one["shard"]) == [
        {"shard": "deadly", "error": "its process crashed", "attempts": 2},
        {"shard": "failing", "error": "OSError: the disk is away", "attempts": 3},
    ]
    attempts = {shard: len((tmp_path / shard).read_text().splitlines()) for shard in shards if shard != "finished"}
    assert attempts == {"failing": 3, "deadly": 2, "a": 1, "failing twice": 3, "deadly once": 2, "b": 1}
    assert "failing twice failed, attempt 2 of 3: OSError: the disk is away" in caplog.text
    assert caplog.text.count("The process that scored deadly ended") == 2


def no_model() -> Work:
    raise UserError("no-model is not a model.")


def test_a_bug_and_a_wrong_model_end_the_run_with_their_own_error(cluster, tmp_path):
    with pytest.raises(TypeError, match="a bug"):
        process(cluster, ["bug"], partial(Work, tmp_path), tmp_path / "list")
    with pytest.raises(UserError, match=r"^no-model is not a model\.$"):
        process(cluster, ["a"], no_model, tmp_path / "list")


def test_it_runs_alone_and_without_usage_statistics(monkeypatch, tmp_path, web, models):
    monkeypatch.setattr(ray, "init", lambda *_, **__: seen.append(os.environ.get("RAY_USAGE_STATS_ENABLED")))
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 16.0, "GPU": 2.0}}])
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    seen: list[str | None] = []
    for given, expected in (
        (RayOptions(), {"num_cpus": 1, "num_gpus": 1}),
        (RayOptions(gpus=0), {"num_cpus": 4, "num_gpus": 0}),
        (RayOptions(cpus=7, gpus=2), {"num_cpus": 7, "num_gpus": 2}),
    ):
        with connected_to_ray(ray, given, StopRequest()) as resources:
            assert resources == expected
    assert seen == ["0"] * 3 and "RAY_USAGE_STATS_ENABLED" not in os.environ
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with (
            pytest.raises(UserError, match=rf"^Ray at {address} cannot be reached"),
            connected_to_ray(ray, RayOptions(address), StopRequest()),
        ):
            pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"without torchrun"):
        score_shards_on_ray(make_config(web, models), RayOptions())
