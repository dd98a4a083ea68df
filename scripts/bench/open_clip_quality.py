"""How well photos are found after the same minutes of training: vlp's recipes, and open_clip's trainer at their size.

python scripts/bench/open_clip_quality.py 'data/train/*.tar' 'data/val/*.tar' OUT --tokenizer TOKENIZER

vlp trains the BLIP of configs/flickr8k.yaml and the CLIP of configs/clip-flickr8k.yaml. open_clip trains a CLIP whose
towers have the same width, layers and image size, on the same pairs of images and captions, by the settings of its
documentation but for `--rate` and `--batch`. Each first runs a short trial, which tells how many steps fit into the
time. Prints R@k as Markdown. A rerun continues; `--only` runs one of the three, so that each can have its own core.
"""

import argparse
import json
import math
import shutil
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from clip_training import RECORD, run, write_models
from safetensors.torch import save_file

from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import expand_shards, iterate_samples
from vlp.files import read_json, write_json
from vlp.report.tables import machine, markdown_table

TRIAL = 30  # steps, of which the first third does not count
CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = {"blip": ("flickr8k.yaml", 64), "clip": ("clip-flickr8k.yaml", 128)}  # and their batches
TRAINERS = (*RECIPES, "open_clip")
MEASURES = ("itc_t2i_r1", "itc_t2i_r10", "t2i_r10", "itc_i2t_r1", "itc_i2t_r10", "i2t_r10")


def one_caption_a_sample(shards: str, folder: Path) -> int:
    """Write FOLDER with a sample for each caption, because open_clip reads one text of a sample; returns how many."""
    with ShardWriter(folder, 2000) as writer:
        pairs = [(sample, caption) for sample in iterate_samples(expand_shards(shards)) for caption in sample.captions]
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
        for number, (sample, caption) in enumerate(pairs[place] for place in order):
            writer.write(f"{number:08d}", sample.image, "jpg", caption, {})
    return len(pairs)


def train_vlp(options: argparse.Namespace, out: Path, steps: int, recipe: str) -> float:
    """Train a recipe of `RECIPES` for so many steps; returns the seconds of a step."""
    config, batch = RECIPES[recipe]
    command = [
        sys.executable,
        "-m",
        "vlp",
        "pretrain",
        str(CONFIGS / config),
        "--resume",
        f"output={out}",
        f"steps={steps}",
    ]
    command += [f"data.sources=[{{shards: '{options.train}'}}]", f"tokenizer={options.tokenizer}", "log_every=10"]
    run([*command, f"seed={options.seed}"], out)
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    speeds = [one["pairs_per_second"] for one in records if "pairs_per_second" in one]
    return batch / statistics.median(speeds[1:] or speeds)


def train_open_clip(options: argparse.Namespace, out: Path, steps: int) -> float:
    """As `train_vlp`, with open_clip."""
    pairs = options.out / "pairs"
    count = sum(1 for _ in iterate_samples(expand_shards(f"{pairs}/*.tar")))
    epochs = math.ceil(steps * options.batch / count)
    samples = steps * options.batch // epochs  # of each epoch; shards come in another order in each
    settings = {
        "model": f"local-dir:{options.out / 'models' / 'open_clip'}",
        "train-data": "::".join(expand_shards(f"{pairs}/*.tar")),
        "train-num-samples": samples,
        "dataset-type": "webdataset",
        "batch-size": options.batch,
        "epochs": epochs,
        "workers": 1,
        "precision": "amp_bf16",
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "lr": options.rate,
        "wd": 0.2,
        "warmup": max(1, min(150, epochs * samples // options.batch // 10)),
        "seed": options.seed,
        "log-every-n-steps": 1,
        "logs": str(out.parent),
        "name": out.name,
        "save-frequency": epochs,
    }
    command = [sys.executable, str(Path(__file__).with_name("open_clip_trainer.py"))]
    run([*command, *(word for name, value in settings.items() for word in (f"--{name}", str(value)))], out)
    seconds = [float(batch) for batch, _ in RECORD.findall((out / "out.log").read_text())]
    return statistics.median(seconds[len(seconds) // 3 :])


def to_model(options: argparse.Namespace, out: Path) -> Path:
    """The model that open_clip trained, as a model folder of vlp."""
    (checkpoint,) = (out / "checkpoints").glob("epoch_*.pt")
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    folder, model = options.out / "open_clip-weights", options.out / "open_clip-model"
    shutil.copytree(options.out / "models" / "open_clip", folder, dirs_exist_ok=True)
    (weights_file,) = folder.glob("open_clip_*.safetensors")
    save_file({name.removeprefix("module."): one.contiguous() for name, one in weights.items()}, weights_file)
    shutil.rmtree(model, ignore_errors=True)
    run([sys.executable, "-m", "vlp", "convert", f"open_clip:{folder}", str(model)], options.out / "convert")
    return model


def measure(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Train one of `TRAINERS` for the given time and score it on the validation shards."""
    train = partial(train_vlp, recipe=name) if name in RECIPES else train_open_clip
    trial = options.out / f"{name}-trial"
    seconds = train(options, trial, TRIAL)
    steps = max(TRIAL, round(60 * options.minutes / seconds))
    print(f"{name}: {seconds:.3f} s a step, so {steps:,} steps", flush=True)
    out = options.out / name
    seconds = train(options, out, steps)
    model = out / "model" if name in RECIPES else to_model(options, out)
    scores = options.out / f"{name}-scores.json"
    command = [sys.executable, "-m", "vlp", "evaluate", "retrieval", str(model), options.validation]
    rerank = ["--rerank", "16"] if name == "blip" else []  # a CLIP has no ITM
    run([*command, *rerank, "--out", str(scores)], options.out / f"{name}-evaluate")
    facts = {"steps": steps, "seconds_per_step": seconds, "minutes": steps * seconds / 60, "machine": machine()}
    return {**facts, "scores": read_json(scores)["metrics"]}


def table(results: dict[str, Any]) -> str:
    """The scores of both, in percent, as a table in Markdown."""
    rows = []
    for name, one in results.items():
        scores = [one["scores"].get(measure) for measure in MEASURES]
        cells = ["–" if score is None else f"{100 * score:.1f}" for score in scores]
        rows.append([name, f"{one['steps']:,}", f"{one['minutes']:.1f}", *cells])
    return markdown_table(["trainer", "steps", "minutes", *MEASURES], rows)


def main() -> None:
    """Measure what is missing, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", help="pattern of local shards with captions")
    parser.add_argument("validation", help="the same, to score on")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", required=True, help="of vlp's model")
    parser.add_argument("--minutes", type=float, default=20, help="of each training")
    parser.add_argument("--batch", type=int, default=128, help="of open_clip")
    parser.add_argument("--rate", type=float, default=1e-3, help="of open_clip")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TRAINERS)
    options = parser.parse_args()
    options.out = options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.only in (None, "open_clip") and not (options.out / "pairs").exists():
        write_models("flickr8k", options.out / "models")
        print(f"{one_caption_a_sample(options.train, options.out / 'pairs'):,} pairs")
    results = {}
    for name in TRAINERS:
        path = options.out / f"{name}.json"
        if not path.exists() and options.only in (None, name):
            write_json(path, measure(options, name))
        if path.exists():
            results[name] = read_json(path)
    print(table(results))


if __name__ == "__main__":
    main()
