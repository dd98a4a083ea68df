"""Score tables do not depend on which process scores them, on bad shards, on signals, or on kills."""

import json
import logging
import os
import random
import shutil
import signal
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from typer.testing import CliRunner

from tests.processes import finish, start, start_vlp
from vlp.capfilt import STOPPED, scoring_batches
from vlp.capfilt.run import parse_part, score_shards
from vlp.capfilt.score import ScoreCounts
from vlp.cli.main import app
from vlp.config import CapFiltConfig, SamplingOverrides
from vlp.config_reader import save_config
from vlp.data.score_tables import table_path
from vlp.data.shard_index import expand_shards
from vlp.data.shards import Sample, iterate_samples
from vlp.demo.scenes import write_scenes
from vlp.errors import UserError, WorkError


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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_by_a_signal_is_one_sentence_and_no_crash(config, expected, tmp_path, number):
    """As SLURM, Kubernetes and spot machines stop a process; the launcher and the scheduler may both send a signal."""
    save_config(config, tmp_path / "capfilt.yaml")
    given = [f"output={tmp_path / 'new'}", "rules=itm >= 0"]
    command = start_vlp(tmp_path / "printed", "capfilt", "run", tmp_path / "capfilt.yaml", *given)
    (process,) = command.processes
    while not tables(config) and process.is_alive():
        process.join(0.001)
    os.kill(process.pid, number)
    os.kill(process.pid, number)
    assert command.finish() == [1], command.err
    assert command.err == f"vlp: {STOPPED}\n"
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
        for marker in (tmp_path / "web").glob(".*.in-progress-*"):
            marker.unlink()  # by chance two kills may meet one shard, which would then be given up
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

    def decode_or_die(sample: Sample, scorers) -> scoring_batches._DecodedImage:
        if sample.image == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(sample, scorers)

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
