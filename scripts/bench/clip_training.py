"""CLIP training by vlp and by open_clip's own trainer: the same shards, weights, batch, precision and steps, in turns.

python scripts/bench/clip_training.py 'data/*.tar' OUT --model ViT-B-32 --batch 64 --steps 60

Both start from one model with random weights, which the converter writes for both, and both crop, decay and step alike.
Each turn trains a seed with each trainer in a process of its own. Speed is the median over a turn's log records without
the first; the loss is the mean of the last record. Prints medians over turns as Markdown and writes OUT/results.json.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vlp.bench.peers import KEEP_FREED_MEMORY
from vlp.config_model import ImageEncoderConfig, ModelConfig, TextTowerConfig
from vlp.convert.clip_tokenizers import read_clip_tokenizer
from vlp.convert.open_clip_write import write_open_clip
from vlp.data.shards import expand_shards, iterate_samples
from vlp.model_folder import SavedModel, save_model
from vlp.models.clip import Clip

RECORD = re.compile(r"Batch \(t\): ([\d.]+), .* Loss: ([\d.]+)")  # in open_clip's log
RATE, WEIGHT_DECAY, BETAS, WARMUP = 5e-4, 0.2, (0.9, 0.98), 20
# Width, layers and heads of the image and the text tower, patch size, image size, embed_dim.
MODELS = {
    "tiny": ((64, 2, 2), (64, 2, 2), 16, 64, 64),
    "small": ((192, 12, 3), (128, 12, 2), 16, 128, 128),
    "flickr8k": ((192, 4, 3), (192, 4, 3), 16, 128, 128),  # as in configs/flickr8k.yaml, with patches
    "ViT-B-32": ((768, 12, 12), (512, 12, 8), 32, 224, 512),
    "ViT-B-16": ((768, 12, 12), (512, 12, 8), 16, 224, 512),
}


@dataclass
class Turn:
    """One training.

    Attributes:
        pairs_per_second: the median over log records.
        loss: the mean of the last log record.
    """

    trainer: str
    precision: str
    seed: int
    pairs_per_second: float
    loss: float


def write_models(name: str, folder: Path) -> None:
    """A CLIP with random weights, as FOLDER/vlp and FOLDER/open_clip."""
    image, text, patch_size, image_size, embed_dim = MODELS[name]
    tokenizer = read_clip_tokenizer(name, {"context_length": 77}, reads_padding=False)
    width, layers, heads = image
    encoder = ImageEncoderConfig(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        layers=layers,
        heads=heads,
        norm_eps=1e-5,
        pre_norm=True,
        resize="shortest",
    )
    width, layers, heads = text
    tower = TextTowerConfig(
        len(tokenizer),
        width,
        layers,
        heads,
        4 * width,
        positions=77,
        dropout=0.0,
        norm_eps=1e-5,
        causal=True,
        pooling="end",
        name="clip",
    )
    torch.manual_seed(0)
    saved = SavedModel(Clip(ModelConfig(encoder, tower, embed_dim, network="clip")).eval(), tokenizer)
    save_model(saved.network, tokenizer, folder / "vlp")
    write_open_clip(saved, folder / "open_clip")


def train_vlp(options: argparse.Namespace, out: Path, precision: str, seed: int) -> list[tuple[float, float]]:
    """Train with vlp; returns pairs/s and the mean loss of each log record."""
    config: dict[str, Any] = {
        "task": "contrastive",
        "output": str(out),
        "start_from": str(options.out / "models" / "vlp"),
        "data": {
            "sources": [{"shards": options.shards}],
            "workers": options.workers,
            "max_tokens": 77,
            "augment": {"crop_min": 0.9, "flip": False, "operations": 0},
        },
        "optim": {
            "learning_rate": RATE,
            "warmup_start": 0.0,
            "warmup_steps": WARMUP,
            "decay": "cosine",
            "floor": 0.0,
            "weight_decay": WEIGHT_DECAY,
            "betas": list(BETAS),
        },
        "batch_size": options.batch,
        "steps": options.steps,
        "precision": precision,
        "log_every": options.log_every,
        "seed": seed,
    }
    path = out.with_suffix(".json")  # JSON is YAML
    path.write_text(json.dumps(config))
    run([sys.executable, "-m", "vlp", "pretrain", str(path)], out)
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [(one["pairs_per_second"], one["itc"]) for one in records if "pairs_per_second" in one]


def train_open_clip(options: argparse.Namespace, out: Path, precision: str, seed: int) -> list[tuple[float, float]]:
    """Train with open_clip; returns pairs/s and the loss of each log record, which is that of its last step."""
    settings = {
        "model": f"local-dir:{options.out / 'models' / 'open_clip'}",
        "train-data": "::".join(expand_shards(options.shards)),
        "train-num-samples": options.steps * options.batch,
        "dataset-type": "webdataset",
        "batch-size": options.batch,
        "epochs": 1,
        "workers": options.workers,
        "precision": "amp_bf16" if precision == "bf16" else "fp32",
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "lr": RATE,
        "wd": WEIGHT_DECAY,
        "beta1": BETAS[0],
        "beta2": BETAS[1],
        "eps": 1e-8,  # as in vlp
        "warmup": WARMUP,
        "seed": seed,
        "log-every-n-steps": 1,
        "logs": str(out.parent),
        "name": out.name,
        "save-frequency": 0,
    }
    command = [sys.executable, str(Path(__file__).with_name("open_clip_trainer.py"))]
    command += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    run(command, out)
    found = RECORD.findall((out / "out.log").read_text())
    steps = [(float(seconds), float(loss)) for seconds, loss in found]
    parts = [steps[start : start + options.log_every] for start in range(0, len(steps), options.log_every)]
    return [
        (len(part) * options.batch / sum(seconds for seconds, _ in part), statistics.mean(loss for _, loss in part))
        for part in parts
    ]


TRAINERS = {"vlp": train_vlp, "open_clip": train_open_clip}


def measure(options: argparse.Namespace) -> list[Turn]:
    """All trainings, in turns."""
    turns = []
    for seed in range(options.turns):
        for precision in options.precision.split(","):
            for trainer, train in TRAINERS.items():
                out = options.out / f"{trainer}-{precision}-{seed}"
                records = train(options, out, precision, seed)
                shutil.rmtree(out)  # weights and optimizer states, gigabytes for a large model
                speed = statistics.median(rate for rate, _ in records[1:] or records)
                turns.append(Turn(trainer, precision, seed, speed, records[-1][1]))
                print(f"{trainer} {precision} seed {seed}: {speed:.1f} pairs/s, loss {records[-1][1]:.3f}", flush=True)
    return turns


def table(turns: list[Turn]) -> str:
    """The medians over turns, as a table in Markdown; losses with their standard deviation over seeds."""
    lines = [
        "| precision | vlp, pairs/s | open_clip, pairs/s | ratio | vlp, loss | open_clip, loss |",
        "| --- " * 6 + "|",
    ]
    for precision in dict.fromkeys(turn.precision for turn in turns):
        speeds, losses = [], []
        for trainer in TRAINERS:
            own = [turn for turn in turns if (turn.trainer, turn.precision) == (trainer, precision)]
            speeds.append(statistics.median(turn.pairs_per_second for turn in own))
            spread = statistics.stdev(turn.loss for turn in own) if len(own) > 1 else 0.0
            losses.append(f"{statistics.mean(turn.loss for turn in own):.3f} ± {spread:.3f}")
        ratio = speeds[0] / speeds[1]
        lines.append(f"| {precision} | {speeds[0]:.1f} | {speeds[1]:.1f} | {ratio:.2f} | {losses[0]} | {losses[1]} |")
    return "\n".join(lines)


def run(command: list[str], out: Path) -> None:
    """Run a training to its end; what it prints goes to OUT.txt."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if "-m" not in command:
        environment |= KEEP_FREED_MEMORY  # vlp sets its allocator by itself
    with out.with_suffix(".txt").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"The training failed; see {log.name}")


def main() -> None:
    """Measure, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", help="pattern of local shards with captions")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--model", choices=MODELS, default="ViT-B-32")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--precision", default="fp32,bf16")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=10)
    options = parser.parse_args()
    options.out = options.out.absolute()
    options.out.mkdir(parents=True)
    samples = sum(1 for _ in iterate_samples(expand_shards(options.shards)))
    if samples < options.batch:
        raise SystemExit(f"The shards have {samples} samples, fewer than a batch.")
    warnings.simplefilter("ignore")
    write_models(options.model, options.out / "models")
    turns = measure(options)
    print(table(turns))
    results = {
        "model": options.model,
        "batch": options.batch,
        "steps": options.steps,
        "threads": torch.get_num_threads(),
    }
    (options.out / "results.json").write_text(
        json.dumps({**results, "turns": [asdict(turn) for turn in turns]}, indent=2)
    )


if __name__ == "__main__":
    main()
