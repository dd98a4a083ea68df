"""Two processes, and three, give the losses of one at the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.labelled_data import write_shards
from tests.processes import run_vlp
from tests.task_data import write_judged
from vlp.config import PRETRAINING
from vlp.config_reader import save_config
from vlp.demo.vqa_scenes import make_vqa_scenes
from vlp.log import read_log
from vlp.training.checkpoint import checkpoints
from vlp.training.loop import train

LOSSES = ("itc", "itm", "altered_accuracy", "lm", "loss", "reward", "mean_reward", "classification", "accuracy")
LEVERS = [
    "objective.patch_dropout=0.5",
    "objective.unmasked_share=0.3",
    "objective.first_image_size=16",
    "objective.first_size_share=0.5",
    "objective.altered_texts=2",
    "objective.hardness_ramp=0.8",
]


def launched(command: list[str]) -> str:
    """Run a command in two processes of torchrun; returns what they print to stderr."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "vlp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.parametrize(
    ("task", "processes", "more"),
    [
        ("pretrain", 2, ["batch_size=8", "accumulation=2", "activation_checkpointing=true"]),
        ("pretrain", 3, ["optim={name: muon, layer_decay: 0.9, clip_norm: 1, average: 0.9, warmup_steps: 2}"]),
        ("retrieval", 2, ["objective.wrong_texts=2"]),
        ("pretrain", 2, ["objective={queue_size: 0, alpha: 0}", "data.texts_per_image=3"]),  # no twin
        ("pretrain", 3, ["data.texts_per_image=3", *LEVERS]),
        ("captioning", 2, []),
        ("self_critical", 2, ["objective.reward_samples=2", "data.max_tokens=8"]),
        ("vqa", 2, ["data.texts_per_image=3"]),
        ("contrastive", 2, ["model.network=clip", "objective.gradient_cache=2"]),
        ("contrastive", 3, ["model.network=clip", "objective.contrastive=sigmoid", "data.texts_per_image=2"]),
        ("classification", 2, ["batch_size=8", "accumulation=2", "classification={mixup: 0.8, cutmix: 1.0}"]),
    ],
)
def test_several_processes_equal_one(run_config, tmp_path, captioned, task, processes, more):
    if task == "vqa":
        make_vqa_scenes(tmp_path / "vqa", 87, 32, "test")
        more = [*more, f"data.sources=[{{shards: '{tmp_path}/vqa/*.tar'}}]"]
    if task == "classification":
        shards = write_shards(tmp_path / "shards", 24)
        more = [*more, f"data.sources=[{{shards: '{shards}'}}]", "tokenizer=''", "model={network: classifier}"]
        more += ["model.image_encoder={image_size: 16, patch_size: 8, width: 32, layers: 2, heads: 2}"]
    if task == "retrieval":
        more = [*more, f"data.sources=[{{shards: '{write_judged(tmp_path / 'judged')}'}}]"]
    if task == "pretrain" and "data.texts_per_image=3" in more:
        more = [*more, f"data.sources=[{{shards: '{captioned}/*.tar'}}]"]
    common = f"task={task}", "objective.queue_size=20", "batch_size=6", *more
    one = run_config("one", *common)
    train(one)
    two = run_config("two", *common, "data.workers=1", "checkpoint_every=10")
    save_config(two, tmp_path / "two.yaml")
    command = ["pretrain" if task in PRETRAINING else "finetune", str(tmp_path / "two.yaml")]
    if "accumulation=2" in more and task == "pretrain":
        errors = launched(command)
    else:  # forked, which is faster
        errors = run_vlp(tmp_path / "printed", *command, count=processes).err
    assert "Warning" not in errors, errors[-3000:]
    (checkpoint,) = checkpoints(Path(two.output))
    assert json.loads((checkpoint / "progress.json").read_text())["processes"] == processes
    expected, got = (read_log(f"{config.output}/log.jsonl") for config in (one, two))
    assert [record["step"] for record in got] == list(range(1, 11))
    for mine, theirs in zip(expected, got, strict=True):
        for name in LOSSES:
            if name in mine:
                assert theirs[name] == pytest.approx(mine[name], abs=1e-4), (mine["step"], name)
