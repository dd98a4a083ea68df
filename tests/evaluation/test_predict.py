"""Predictions do not depend on the number of processes, on worker processes or on interruptions."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist
from typer.testing import CliRunner

from tests.processes import run_ranks, start, start_vlp
from vlp.cli.main import app
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import iterate_samples
from vlp.errors import UserError, WorkError
from vlp.evaluation.predict import predict, predict_items
from vlp.evaluation.settings import EvaluationSettings
from vlp.model import Model


def describe(batch):
    """A row a sample and one more for every third, as for a sample with several questions."""
    rows = []
    for key, image, captions in zip(batch.keys, batch.images, batch.captions, strict=True):
        number = int(key)
        rows.append({"key": key, "mean": image.float().mean().item(), "captions": captions})
        if number % 3 == 0:
            rows.append({"key": key, "skipped": "no answer"} if number % 2 else {"key": key, "again": True})
    return rows


@pytest.fixture(scope="module")
def shards(tmp_path_factory, scenes) -> str:
    """Three shards with 53 scenes, every tenth of them broken and every seventh without a text."""
    folder = tmp_path_factory.mktemp("spoiled") / "shards"
    with ShardWriter(str(folder), 20) as writer:
        for number, sample in enumerate(iterate_samples(f"{scenes}/*.tar")):
            if number < 53:
                image = sample.image[:60] if number % 10 == 0 else sample.image
                writer.write(sample.key, image, "png", None if number % 7 == 1 else sample.text, {})
    return f"{folder}/*.tar"


def told(shards: str, settings: EvaluationSettings, make=describe) -> dict:
    found = predict(shards, 16, settings, make, "describe", need_text=True)
    return {"rows": found.rows, "skipped": found.skipped}


@pytest.fixture(scope="module")
def expected(shards) -> dict:
    return told(shards, EvaluationSettings(4))


def _process(rank: int, world: int, folder: str, shards: str, settings: EvaluationSettings) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    steps: list[int] = []
    settings = replace(settings, spread=True, progress=lambda _, count: steps.append(count))
    found = told(shards, settings) | {"progress": sum(steps)}
    dist.barrier()
    Path(folder, f"found-{world}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def in_processes(world: int, folder: Path, shards: str, settings: EvaluationSettings) -> list[dict]:
    run_ranks(_process, world, str(folder), shards, settings, count=world)
    return [json.loads((folder / f"found-{world}-{rank}.json").read_text()) for rank in range(world)]


def test_rows_and_counts(expected):
    keys = [row["key"] for row in expected["rows"] if "mean" in row]
    assert keys == sorted(keys) and "00000003" in keys
    assert expected["skipped"] == {"image undecodable": 5, "no text": 8, "no answer": 8}


@pytest.mark.parametrize(("world", "limit"), [(2, None), (3, 8)])  # with a limit of 8 the third process has no batch
def test_several_processes_equal_one(shards, tmp_path, world, limit):
    settings = EvaluationSettings(4, limit=limit)
    steps = []
    one = told(shards, EvaluationSettings(4, limit=limit, progress=lambda _, count: steps.append(count)))
    first, *others = in_processes(world, tmp_path, shards, settings)
    assert first.pop("progress") == sum(steps) > 0
    for found in [first, *others]:
        found.pop("progress", None)
        assert found == one


def test_workers_change_nothing(shards, expected):
    assert told(shards, EvaluationSettings(4, workers=2)) == expected


def test_a_stream_gives_the_same_and_goes_on(shards, expected, s3, tmp_path):
    url = s3.upload(Path(shards).parent, "shards")
    remote = [f"{url}/{name}" for name in sorted(path.name for path in Path(shards).parent.glob("*.tar"))]
    settings = EvaluationSettings(4, partial=str(tmp_path / "partial"))
    with pytest.raises(KeyboardInterrupt):
        told(remote, settings, interrupted_after(5))
    assert told(remote, settings) == expected


def interrupted_after(batches: int):
    done = []

    def make(batch):
        if len(done) == batches:
            raise KeyboardInterrupt
        done.append(batch.number)
        return describe(batch)

    return make


@pytest.mark.parametrize("world", [1, 2])
def test_an_interrupted_call_goes_on_where_it_was(shards, expected, tmp_path, world):
    settings = EvaluationSettings(4, partial=str(tmp_path / "partial"))
    with pytest.raises(KeyboardInterrupt):
        told(shards, settings, interrupted_after(5))
    kept = tmp_path / "partial" / "describe.0.jsonl"
    kept.write_bytes(kept.read_bytes()[:-30])  # the last line is cut off
    if world > 1:
        (found, _) = in_processes(2, tmp_path, shards, settings)
        found.pop("progress")
        assert found == expected
    made = []
    steps = []
    settings = EvaluationSettings(
        4, partial=str(tmp_path / "partial"), progress=lambda _, count: steps.append(count), expect=steps.append
    )
    assert told(shards, settings, lambda batch: made.append(batch.number) or describe(batch)) == expected
    assert made == ([] if world > 1 else list(range(4, 14))) and steps[0] == 53
    assert told(shards, settings, lambda batch: pytest.fail("all batches are finished")) == expected


def test_the_batches_of_another_evaluation_are_refused(shards, scenes, tmp_path):
    def settings(**changed):
        return EvaluationSettings(**{"batch_size": 4, "about": {"beams": 3}, **changed}, partial=str(tmp_path / "p"))

    told(shards, settings())
    for changed, name in (
        ({"batch_size": 5}, "batch size"),
        ({"about": {"beams": 1}}, "beams"),
        ({"about": {}}, "beams"),
        ({"limit": 3}, "limit"),
    ):
        with pytest.raises(UserError, match=f"another {name}"):
            told(shards, settings(**changed))
    with pytest.raises(UserError, match="another shards"):
        told(f"{scenes}/00000.tar", settings())


def test_a_list_of_items(tmp_path):
    def make(items):
        return [{"key": item, "square": int(item) ** 2} for item in items]

    settings = EvaluationSettings(3, limit=8, partial=str(tmp_path / "partial"))
    for _ in range(2):
        found = predict_items([str(number) for number in range(20)], settings, make, "square", {"file": "a"})
        assert [row["square"] for row in found.rows] == [number**2 for number in range(8)]
    with pytest.raises(UserError, match="another file"):
        predict_items(["1"], settings, make, "square", {"file": "b"})


def _slow_process(shards: str, partial: str) -> None:
    told(shards, EvaluationSettings(4, partial=partial), lambda batch: time.sleep(0.2) or describe(batch))


def test_a_killed_process_goes_on_and_gives_the_rows_of_an_undisturbed_one(shards, expected, tmp_path):
    (killed,) = start(_slow_process, shards, str(tmp_path / "partial"))
    kept = tmp_path / "partial" / "describe.0.jsonl"
    while killed.is_alive() and not (kept.exists() and kept.read_bytes().count(b"\n") > 2):
        time.sleep(0.01)
    killed.kill()
    killed.join()
    made = []
    settings = EvaluationSettings(4, partial=str(tmp_path / "partial"))
    assert told(shards, settings, lambda batch: made.append(batch.number) or describe(batch)) == expected
    assert made and made[0] >= 3


def test_a_command_continues_its_own_results_and_no_others(models, scenes, tmp_path, monkeypatch):
    def vlp(out, *more):
        options = ["--batch-size", "4", "--precision", "fp32", "--max-length", "8", "--limit", "20", *more]
        return CliRunner().invoke(
            app, ["evaluate", "captioning", models[0], f"{scenes}/*.tar", "--out", str(tmp_path / out), *options]
        )

    assert vlp("whole.json").exit_code == 0
    caption, calls = Model.caption_tokens, []

    def interrupted(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise WorkError("Interrupted.")
        return caption(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Model, "caption_tokens", interrupted)
        assert isinstance(vlp("part.json").exception, WorkError)
    partial = tmp_path / "part.json.partial"
    assert partial.exists() and not (tmp_path / "part.json").exists()
    assert "part.json.partial holds an interrupted evaluation" in str(vlp("part.json", "--beams", "2").exception)
    assert vlp("part.json", "--workers", "1").exit_code == 0
    for name in (".json", ".predictions.jsonl"):
        assert (tmp_path / f"part{name}").read_bytes() == (tmp_path / f"whole{name}").read_bytes()
    assert not partial.exists()


@pytest.mark.parametrize("wrong", ["input of all", "one process"])
def test_a_failure_is_one_sentence_and_ends_all(models, scenes, tmp_path, wrong):
    (tmp_path / "failing.py").write_text(FAILING)
    command = ["evaluate", "captioning", models[0], f"{scenes}/*.tar", "--batch-size", "8"]
    if wrong == "input of all":
        both = start_vlp(tmp_path / "printed", *command, "--max-length", "5000", count=2)
        assert 0 not in both.finish() and both.err.count("vlp: ") == 1, both.err
        return
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command = [*launcher, "failing", *command]
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}:{os.getcwd()}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("vlp: ") == 1, done.stderr


FAILING = '''
"""vlp, of which the second process fails at its second batch."""

from vlp.cli.main import main
from vlp.distributed import rank
from vlp.errors import WorkError
from vlp.model import Model

caption, calls = Model.caption_tokens, []


def caption_or_fail(*arguments, **named):
    calls.append(1)
    if rank() == 1 and len(calls) == 2:
        raise WorkError("The second process failed.")
    return caption(*arguments, **named)


Model.caption_tokens = caption_or_fail
main()
'''
