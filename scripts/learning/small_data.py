"""Compact Transformers' claim for small data: a CCT beside a ViT-Lite of its size, on digits and on shapes.

Example, some minutes on two CPU cores: python scripts/learning/small_data.py out/shapes --data shapes --seeds 3

The digits are scikit-learn's, in the middle of their images; the shapes are single objects of the demo's scenes in any
place, color and size.

Both have the same width, layers and number of tokens, nearly equal parameters, and train for the same steps on the same
batches of the same images. OUT/results.json keeps what is finished; a rerun continues.
"""

import argparse
import io
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from PIL import Image
from shared import run_script

from vlp.config import RunConfig
from vlp.config_reader import load_config
from vlp.data.shard_writer import ShardWriter
from vlp.demo.classification_scenes import make_classification_scenes
from vlp.demo.stages import claim
from vlp.files import remove, write_json
from vlp.model import load_model
from vlp.report.tables import markdown_table
from vlp.training.loop import train

# How each encoder makes 64 tokens of an image, with nearly equal parameters.
ENCODERS = {
    "digits": {
        "vit_lite": "name: vit_lite, image_size: 16, patch_size: 2, feed_forward: 128",
        "cct": "name: cct, image_size: 16, kernel: 3, convolutions: 1, feed_forward: 128",
    },
    "shapes": {
        "vit_lite": "name: vit_lite, image_size: 32, patch_size: 4, feed_forward: 152",
        "cct": "name: cct, image_size: 32, kernel: 7, convolutions: 1, feed_forward: 128",
    },
}


def write_images(data: str, folder: Path, train_images: int) -> None:
    """Write FOLDER/train and FOLDER/test, of "digits" or "shapes". An interrupted call can be repeated."""
    if data == "digits":
        write_digits(folder, train_images)
    else:
        for name, count in (("train", train_images), ("test", 1000)):
            if not (folder / name).exists():
                remove(folder / "made" / name)
                make_classification_scenes(folder / "made" / name, count, 32, name)
                (folder / "made" / name / "shape").rename(folder / name)


def write_digits(folder: Path, train_images: int, seed: int = 0) -> None:
    """Write scikit-learn's digits as FOLDER/train and FOLDER/test: `train_images` random images, and all others."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.images))
    for name, rows in (("train", order[:train_images]), ("test", order[train_images:])):
        with ShardWriter(str(folder / name), 1000) as writer:
            for row in rows.tolist():
                pixels = (digits.images[row] * (255 / 16)).astype(np.uint8)
                file = io.BytesIO()
                Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC).convert("RGB").save(file, "PNG")
                label = str(digits.target[row]).encode()
                writer.write(f"{row:04d}", file.getvalue(), "png", None, {}, {"cls": label})
        (folder / name / "classnames.txt").write_text("\n".join(map(str, range(10))) + "\n")


def run(folder: Path, data: str, encoder: str, seed: int, steps: int) -> dict[str, Any]:
    """Train an encoder of `ENCODERS[data]` on FOLDER/train and score it on FOLDER/test."""
    output = folder / f"{encoder}-{seed}"
    config = load_config(
        RunConfig,
        None,
        [
            "task=classification",
            f"output={output}",
            f"seed={seed}",
            f"data.sources=[{{shards: '{folder}/train/*.tar'}}]",
            f"validation={folder}/test/*.tar",
            "data.workers=0",
            "data.augment={crop_min: 0.8, flip: false, operations: 0}",
            "model.network=classifier",
            f"model.image_encoder={{{ENCODERS[data][encoder]}, width: 64, layers: 2, heads: 2}}",
            f"optim={{learning_rate: 1e-3, warmup_steps: {steps // 10}, decay: cosine, weight_decay: 0.06}}",
            "batch_size=32",
            f"steps={steps}",
            "precision=fp32",
            "log_every=0",
            "checkpoint_every=0",
        ],
    )
    results = train(config, resume=output.exists())
    network = load_model(output / "model", "cpu").network
    return {
        "encoder": encoder,
        "seed": seed,
        "acc1": results["acc1"],
        "parameters": sum(weight.numel() for weight in network.parameters()),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracies in percent of the test images, by encoder: of each seed, their mean and standard deviation."""
    seeds = sorted({row["seed"] for row in rows})
    lines = []
    for encoder in dict.fromkeys(row["encoder"] for row in rows):
        of_it = sorted((row for row in rows if row["encoder"] == encoder), key=lambda row: row["seed"])
        scores = [100 * row["acc1"] for row in of_it]
        deviation = f"{stdev(scores):.2f}" if len(scores) > 1 else "-"
        cells = [encoder, f"{of_it[0]['parameters']:,}", *(f"{one:.2f}" for one in scores), f"{mean(scores):.2f}"]
        lines.append([*cells, deviation])
    return markdown_table(["encoder", "parameters", *(f"seed {seed}" for seed in seeds), "mean", "deviation"], lines)


def main(given: list[str]) -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the data, the runs and results.json")
    parser.add_argument("--data", choices=list(ENCODERS), default="digits")
    parser.add_argument("--images", type=int, default=500, help="training images")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args(given)
    settings = {"data": arguments.data, "images": arguments.images, "steps": arguments.steps}
    claim(arguments.out, "a small-data experiment", settings)
    if not (arguments.out / "test" / "classnames.txt").exists():
        write_images(arguments.data, arguments.out, arguments.images)
    path = arguments.out / "results.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    for seed in range(arguments.seeds):
        for encoder in ENCODERS[arguments.data]:
            if not any(row["encoder"] == encoder and row["seed"] == seed for row in rows):
                rows.append(run(arguments.out, arguments.data, encoder, seed, arguments.steps))
                write_json(path, rows)
    print(table(rows))


if __name__ == "__main__":
    run_script(main)
