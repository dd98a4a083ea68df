"""What a pretraining learns in a minute: a recipe and its variants over seeds, scored while they train.

    OMP_NUM_THREADS=1 python scripts/learning/recipes.py configs/learning/scenes.yaml runs/recipes-scenes --seeds 0 1 2
    python scripts/learning/recipes.py configs/learning/scenes.yaml runs/recipes-scenes --seeds 0 1 2 --page-only

OUTPUT/page.md has the tables, OUTPUT/curves.svg the curves. Rerun an interrupted call to continue it; finished runs are
kept. Several calls may work in one folder at the same time; each run is locked while it trains.
"""

import argparse
from pathlib import Path

import torch
from experiment import Experiment, finished_runs, pair_scorers, read_experiment, run_variant
from recipes_page import curves, render
from shared import run_script

from vlp.errors import UserError
from vlp.files import write_text


def work(experiment: Experiment, output: Path, seeds: list[int], only: list[str], pairs: str, images: str) -> None:
    """Run the variants that are not finished. Runs of other processes are left to them."""
    scorers = pair_scorers(pairs, images)
    for seed in seeds:
        for variant in experiment.variants:
            if variant.name in only and not run_variant(experiment, variant, output, seed, scorers):
                print(f"seed {seed}: {variant.name} is being trained by another process.")


def main(arguments: list[str]) -> None:
    """Run what the command line asks for, and write the page and the curves."""
    parser = argparse.ArgumentParser("recipes.py", description=__doc__.split("\n")[0])
    parser.add_argument("experiment", help="YAML file with the variants, such as configs/learning/scenes.yaml")
    parser.add_argument("output", type=Path, help="folder for everything, such as runs/recipes-scenes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="train these variants alone")
    parser.add_argument("--threads", type=int, default=0, help="of each run; 0: as torch chooses")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of all variants")
    parser.add_argument(
        "--pairs", default="", help="labeled pairs that every run is scored on, as vlp evaluate matching"
    )
    parser.add_argument("--images", default="", help="folder of the images of --pairs")
    parser.add_argument(
        "--peer",
        default="",
        metavar="NAME=RATE",
        help="a peer's pairs per second, as vlp bench train --peers prints it",
    )
    parser.add_argument("--page-only", action="store_true", help="write the page from the existing results")
    given = parser.parse_args(arguments)
    experiment = read_experiment(given.experiment, given.set)
    names = [variant.name for variant in experiment.variants]
    if unknown := sorted(set(given.only or []) - set(names)):
        raise UserError(f"{given.experiment} has no variant {', '.join(unknown)}; it has {', '.join(names)}.")
    peer = _peer(given.peer)
    if given.threads:
        torch.set_num_threads(given.threads)
    if not given.page_only:
        work(experiment, given.output, given.seeds, given.only or names, given.pairs, given.images)
    runs = finished_runs(experiment, given.output, given.seeds)
    if not any(runs.values()):
        raise UserError(f"{given.output} holds no finished run of {given.experiment}.")
    write_text(given.output / "curves.svg", curves(experiment, runs) + "\n")
    command = f"python scripts/learning/recipes.py {given.experiment} {given.output} --seeds "
    write_text(
        given.output / "page.md", render(experiment, runs, command + " ".join(map(str, given.seeds)), peer) + "\n"
    )
    print(f"Wrote {given.output / 'page.md'} and curves.svg.")


def _peer(text: str) -> tuple[str, float] | None:
    """A peer's name and its pairs per second."""
    name, _, rate = text.partition("=")
    try:
        return (name, float(rate)) if text else None
    except ValueError:
        raise UserError(f"--peer must be NAME=RATE, such as LAVIS=21.5, not {text!r}.") from None


if __name__ == "__main__":
    run_script(main)
