"""BLIP pretrained on scenes with every family of image encoders, at equal steps and nearly equal FLOPs.

    OMP_NUM_THREADS=1 python scripts/learning/encoders.py runs/encoders --seeds 0 1 2 --page docs/encoders-on-scenes.md

The shapes are those of `vlp/bench/encoder_shapes.py`. Rerun an interrupted call to continue it; finished models are
kept. Two calls for different seeds may work in one folder at the same time.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from shared import run_script

from vlp.bench.encoder_shapes import SHAPES, count, small_encoder
from vlp.bench.encoders import encoder_lines
from vlp.demo.stages import DemoSizes, claim, make_data, pretrain_config, score_model, train_once
from vlp.errors import UserError
from vlp.files import write_json, write_text
from vlp.report.tables import machine, markdown_table, mean_and_deviation

FULL = DemoSizes(
    human=6000,
    web=64,  # only the tokenizer reads them
    held_out=500,
    pretrain_steps=500,
    captioner_steps=0,
    filter_steps=0,
    warmup_steps=100,
    batch_size=64,
    filter_batch_size=0,
)
QUICK = DemoSizes(
    human=64,
    web=16,
    held_out=16,
    pretrain_steps=2,
    captioner_steps=0,
    filter_steps=0,
    warmup_steps=1,
    batch_size=16,
    filter_batch_size=0,
)
MEASURES = {
    "itc_t2i_r1": "text to image R@1, ITC",
    "itc_i2t_r1": "image to text R@1, ITC",
    "t2i_r1": "text to image R@1, after ITM",
    "i2t_r1": "image to text R@1, after ITM",
    "caption_exact": "exact captions",
}
TIMED_BATCH = 64


def learn(output: Path, shape: str, seed: int, sizes: DemoSizes) -> None:
    """Pretrain and score one encoder, unless its results exist."""
    root, name = output / f"seed-{seed}", shape.replace(", ", "-")
    results = _results(output, shape, seed)
    if results.exists():
        return
    print(f"seed {seed}: {shape}", flush=True)
    make_data(root, sizes, seed)
    config = pretrain_config(root, name, ["human"], sizes, seed)
    config.model.image_encoder = small_encoder(shape)
    train_once(config)
    results.parent.mkdir(exist_ok=True)
    write_json(results, score_model(root, name))


def measure(output: Path, shape: str, repeats: int) -> None:
    """Count and time one encoder alone, in float32, unless its numbers exist."""
    path = _speed(output, shape)
    if path.exists():
        return
    config = small_encoder(shape)
    parameters, flops = count(config)
    forward, step = encoder_lines(shape, config, "fp32", TIMED_BATCH, peers=False, repeats=repeats)
    path.parent.mkdir(exist_ok=True)
    facts = {"parameters": parameters, "flops": flops, "machine": machine()}
    write_json(path, {**facts, "forward_images_per_second": forward.ours, "step_images_per_second": step.ours})


def collect(output: Path, seeds: list[int]) -> dict:
    """All numbers in OUTPUT: {"sizes", "seeds", "shapes": {shape: {"speed", "scores": {seed: ...}}}}.

    Raises:
        UserError: the folder holds no such experiment.
    """
    mark = output / "encoders.json"
    if not mark.exists():
        raise UserError(f"{output} holds no encoders; name the output folder of scripts/learning/encoders.py.")
    shapes = {}
    for shape in SHAPES:
        scores = {seed: _results(output, shape, seed) for seed in seeds}
        speed = _speed(output, shape)
        shapes[shape] = {
            "speed": json.loads(speed.read_text()) if speed.exists() else {},
            "scores": {str(seed): json.loads(path.read_text()) for seed, path in scores.items() if path.exists()},
        }
    return {**json.loads(mark.read_text()), "seeds": seeds, "shapes": shapes}


def render(results: dict) -> str:
    """The page: what was done, and one table."""
    sizes, speeds = results["sizes"], [one["speed"] for one in results["shapes"].values()]
    rows = []
    for shape, found in results["shapes"].items():
        speed, scores = found["speed"], found["scores"].values()
        cells = [mean_and_deviation(one[key] for one in scores) for key in MEASURES]
        sized = ["–"] * 4
        if speed:
            sized = [f"{speed[f'{kind}_images_per_second']:.0f}" for kind in ("forward", "step")]
            sized += [f"{speed['parameters'] / 1e6:.2f}M", f"{speed['flops'] / 1e6:.0f}M"]
        rows.append([shape, str(len(scores)), *cells, *sized])
    heads = ["encoder", "seeds", *MEASURES.values(), "images/s, forward", "images/s, training step"]
    machines = sorted({one["machine"] for one in speeds if one})
    return "\n\n".join(
        [
            "# Image encoders on synthetic scenes",
            "    python scripts/learning/encoders.py runs/encoders --seeds " + " ".join(map(str, results["seeds"])),
            f"Each model is a BLIP that sees {sizes['human']:,} scenes of 64 pixels with correct captions for "
            f"{sizes['pretrain_steps']:,} steps of {sizes['batch_size']} pairs. Only the image encoder differs; all "
            "have nearly the same FLOPs. Retrieval is zero-shot on "
            f"{sizes['held_out']} held-out scenes; ITM re-ranks the 16 best candidates. Scores are percentages, mean ± "
            f"standard deviation over seeds. Speeds are of the encoder alone, float32, batches of {TIMED_BATCH}. "
            f"Machine: {'; '.join(machines) or 'not measured'}.",
            markdown_table([*heads, "parameters", "FLOPs of an image"], rows),
        ]
    )


def _results(output: Path, shape: str, seed: int) -> Path:
    return output / f"seed-{seed}" / "results" / f"{shape.replace(', ', '-')}.json"


def _speed(output: Path, shape: str) -> Path:
    return output / "speed" / f"{shape.replace(', ', '-')}.json"


def main(arguments: list[str]) -> None:
    """Run what the command line asks for, and write the page."""
    parser = argparse.ArgumentParser("encoders.py", description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="folder for everything, such as runs/encoders")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES), metavar="SHAPE")
    parser.add_argument("--quick", action="store_true", help="only check that everything runs")
    parser.add_argument("--page", type=Path, help="the page to write; OUTPUT/page.md by default")
    parser.add_argument("--page-only", action="store_true", help="write the page from the existing results")
    given = parser.parse_args(arguments)
    sizes = QUICK if given.quick else FULL
    if not given.page_only:
        shapes = {name: repr(shape) for name, shape in SHAPES.items()}
        claim(given.output, "encoders", {"sizes": asdict(sizes), "settings": shapes})
        for shape in given.shapes:
            measure(given.output, shape, repeats=1 if given.quick else 7)
        for seed in given.seeds:
            for shape in given.shapes:
                learn(given.output, shape, seed, sizes)
    results, page = collect(given.output, given.seeds), given.page or given.output / "page.md"
    write_json(page.with_suffix(".json"), results)
    write_text(page, render(results) + "\n")
    print(f"Wrote {page}.")


if __name__ == "__main__":
    run_script(main)
