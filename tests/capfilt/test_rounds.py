"""Rounds of CapFilt: each uses the models of the round before, and kills at any moment change no result."""

import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from vlp.capfilt.rounds import run_rounds
from vlp.config import CapFiltConfig, RoundsConfig, RunConfig, SamplingOverrides
from vlp.config_reader import load_config, save_config
from vlp.data.score_tables import folder_hash, read_settings, table_path
from vlp.data.shard_index import expand_shards
from vlp.errors import UserError

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["vlp.capfilt.rounds"])
# What differs between equal runs.
TIMED = dict.fromkeys(("training_seconds", "pairs_per_second", "data_wait_share", "memory_gib"))
STAGES = ("pretrain", "captioner", "filter")


@pytest.fixture
def config(run_config, web_scenes, scenes, models, tmp_path) -> CapFiltConfig:
    """Two rounds with four steps per training; one training's config is a file."""
    tiny = ["steps=4", "checkpoint_every=2", "data.sources=[]"]
    finetuned = ["tokenizer=''", "optim.warmup_steps=1"]
    pretrain = run_config("", *tiny)
    save_config(run_config("", *tiny, *finetuned, "task=captioning"), tmp_path / "captioner.yaml")
    filter_model = run_config("", *tiny, *finetuned, "task=retrieval")
    shutil.copytree(web_scenes, tmp_path / "web")
    return CapFiltConfig(
        shards=str(tmp_path / "web" / "*.tar"),
        human=f"{scenes}/*.tar",
        captioner=models[0],
        filter=models[1],
        output=str(tmp_path / "rounds"),
        decoding=SamplingOverrides(max_length=10, min_length=3),
        rules="top(itm, 0.5)",
        precision="fp32",
        rounds=RoundsConfig(2, pretrain, str(tmp_path / "captioner.yaml"), filter_model),
    )


def rows_of(config: CapFiltConfig, number: int) -> list[dict]:
    tables = [table_path(shard, f"capfilt-round-{number}") for shard in expand_shards(config.shards)]
    return [row for table in tables for row in pq.read_table(table).to_pylist()]


def _run(config: CapFiltConfig) -> None:
    torch.set_num_threads(1)
    run_rounds(config)


def test_rounds_train_the_next_captioner_and_filter_and_continue_after_kills(config, models):
    whole = run_rounds(config)
    root = Path(config.output)
    assert json.loads((root / "rounds.json").read_text()) == whole
    assert [one["selected"]["images"] > 0 for one in whole] == [True, True]
    shard = expand_shards(config.shards)[0]
    scorers = {1: models, 2: [root / "round-1/captioner/model", root / "round-1/filter/model"]}
    for number, (captioner, filter_model) in scorers.items():
        made_with = read_settings(shard, f"capfilt-round-{number}")
        assert made_with["captioner"] == [folder_hash(captioner)]
        assert made_with["filter"] == [folder_hash(filter_model)]
        folder = root / f"round-{number}"
        assert (folder / "selected" / "report.html").exists()
        for stage in STAGES:
            began = load_config(RunConfig, folder / stage / "config.yaml")
            sources = [config.human, *([f"{folder}/selected/*.tar"] if stage == "pretrain" else [])]
            assert [source.shards for source in began.data.sources] == sources
            assert began.start_from == ("" if stage == "pretrain" else f"{folder}/pretrain/model")
    texts = [{row["text"] for row in rows_of(config, number) if row["source"] == "synthetic"} for number in (1, 2)]
    assert texts[0] != texts[1]

    expected = {number: rows_of(config, number) for number in (1, 2)}
    shutil.rmtree(root)
    for number in (1, 2):
        for shard in expand_shards(config.shards):
            Path(table_path(shard, f"capfilt-round-{number}")).unlink()
    before: dict[Path, int] = {}
    for moment in ("round-1/pretrain/config.yaml", "round-1/filter/model", "round-2/selected"):
        process = PROCESSES.Process(target=_run, args=(config,))
        process.start()
        while process.is_alive() and not (root / moment).exists():
            process.join(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -9
        assert all(path.stat().st_mtime_ns == when for path, when in before.items()), "what was finished is kept"
        before = {path: path.stat().st_mtime_ns for path in root.glob("round-*/*/results.json")}
    again = run_rounds(config)
    assert {number: rows_of(config, number) for number in (1, 2)} == expected
    for mine, theirs in zip(again, whole, strict=True):
        for stage in ("selected", *STAGES):
            assert {**mine[stage], **TIMED} == {**theirs[stage], **TIMED}
    left = [name for _, folders, files in os.walk(root) for name in [*folders, *files] if ".tmp" in name]
    assert not left
    with pytest.raises(UserError, match="round-1/selected was started with other settings"):
        run_rounds(replace(config, rules="itm >= 0"))


def test_missing_settings_are_refused_before_anything_is_scored(config):
    rounds = config.rounds
    for wrong, message in (
        (replace(config, rounds=replace(rounds, filter="")), "rounds.filter is missing"),
        (replace(config, rounds=replace(rounds, filter=rounds.pretrain)), "it must be retrieval"),
        (replace(config, human=""), "has no data.sources"),
        (replace(config, output=""), "needs output"),
    ):
        with pytest.raises(UserError, match=message):
            run_rounds(wrong)
    assert not Path(config.output).exists()
