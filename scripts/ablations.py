"""The paper's ablations on synthetic scenes: the list of stages, and the code that runs them.

    scripts/ablations.sh runs/ablations --seeds 0 1 2 --jobs 2
    scripts/ablations.sh runs/ablations --seeds 0 1 2 --page-only      # write the page from the existing results

Rerun an interrupted call to continue it; finished stages are kept. A file lock protects each stage while it runs, so
several calls can work on one folder.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from ablations_page import collect, write_page

from vlp.capfilt.run import score_shards
from vlp.capfilt.selection import select
from vlp.config import SamplingOverrides, TaskName
from vlp.config_model import Sharing
from vlp.demo.stages import (
    NUCLEUS,
    DemoSizes,
    capfilt_config,
    claim,
    finetune,
    finetune_config,
    make_data,
    pretrain_config,
    score_model,
    shards_of,
    train_once,
)
from vlp.demo.truth import filter_quality
from vlp.errors import UserError, WorkError
from vlp.files import locked, write_json
from vlp.report.tables import machine

PAPER_RULES = "itm >= 0.5"
BEAM = SamplingOverrides(beams=3, repetition_penalty=1.0)
FULL = DemoSizes(
    human=3000,
    web=9600,
    held_out=500,
    pretrain_steps=350,
    captioner_steps=600,
    filter_steps=330,
    warmup_steps=100,
    batch_size=64,
    filter_batch_size=128,
)
QUICK = DemoSizes(
    human=48,
    web=64,
    held_out=16,
    pretrain_steps=4,
    captioner_steps=3,
    filter_steps=3,
    warmup_steps=2,
    batch_size=16,
    filter_batch_size=16,
    image_size=32,
    width=32,
    layers=2,
)


@dataclass(frozen=True)
class Seed:
    """The folder and the sizes of one seed."""

    root: Path
    sizes: DemoSizes
    number: int

    def results(self, stage: str) -> Path:
        """The results of a stage; the file exists once the stage is done."""
        return self.root / "results" / f"{stage}.json"


@dataclass(frozen=True)
class Scenes:
    """Scenes for training (human, web) and evaluation, and a tokenizer."""

    name: str = "scenes"

    def needs(self) -> set[str]:
        """Names of the stages that must be done first."""
        return set()

    def run(self, seed: Seed) -> dict:
        """Run the stage and return its numbers."""
        make_data(seed.root, seed.sizes, seed.number)
        return {}


@dataclass(frozen=True)
class Pretraining:
    """A pretraining and its evaluation on held-out scenes; the last three fields change its number of steps."""

    name: str
    data: str = ""  # the selection to train on; "": the human and the web shards
    sharing: Sharing = "all_but_self_attention"
    start_from: str = ""  # the pretraining to continue; "": random initial weights
    as_long_as: str = ""  # repeat the web to as many texts as this selection has; same epochs, more steps
    steps_of: str = ""  # as many steps as this pretraining took
    times: int = 1  # as many times the steps

    def needs(self) -> set[str]:
        """Names of the stages that must be done first."""
        return {"scenes", self.data, self.start_from, self.as_long_as, self.steps_of} - {""}

    def run(self, seed: Seed) -> dict:
        """Run the stage and return its numbers."""
        sources = [self.data] if self.data else ["human", "web"]
        config = pretrain_config(seed.root, self.name, sources, seed.sizes, seed.number)
        config.model.text_tower.sharing = self.sharing
        config.checkpoint_every = 200
        config.steps *= self.times
        if self.steps_of:
            config.steps = json.loads(seed.results(self.steps_of).read_text())["numbers"]["steps"]
        if self.start_from:
            config.start_from = str(seed.root / self.start_from / "model")
        if self.as_long_as:
            chosen = json.loads(seed.results(self.as_long_as).read_text())["numbers"]
            texts, human = sum(chosen["kept_texts"].values()), seed.sizes.human
            config.data.sources[1].weight = texts / seed.sizes.web
            config.steps = max(1, round(config.steps * (human + texts) / (human + seed.sizes.web)))
        train_once(config)
        return {**score_model(seed.root, self.name), "steps": config.steps}


@dataclass(frozen=True)
class Finetuning:
    """A finetuning of the noisy model on the human shards."""

    name: str
    task: TaskName

    def needs(self) -> set[str]:
        """Names of the stages that must be done first."""
        return {"noisy"}

    def run(self, seed: Seed) -> dict:
        """Run the stage and return its numbers."""
        config = finetune_config(seed.root, self.name, self.task, seed.sizes, seed.number)
        config.checkpoint_every = 200
        if self.task == "pretrain":  # captioner and filter at once, for the larger number of steps
            config.steps = max(seed.sizes.captioner_steps, seed.sizes.filter_steps)
        finetune(seed.root, self.name, config)
        return {}


@dataclass(frozen=True)
class Scoring:
    """Score tables of the web shards, SHARD.NAME.parquet, with one synthetic caption per image."""

    name: str
    captioner: str
    filter: str
    decoding: SamplingOverrides

    def needs(self) -> set[str]:
        """Names of the stages that must be done first."""
        return {self.captioner, self.filter}

    def run(self, seed: Seed) -> dict:
        """Run the stage and return its numbers."""
        config = replace(
            capfilt_config(seed.root, PAPER_RULES, seed.number),
            captioner=str(seed.root / self.captioner),
            filter=str(seed.root / self.filter),
            name=self.name,
            decoding=self.decoding,
        )
        score_shards(config)
        return filter_quality(config.shards, config.rules, self.name)


@dataclass(frozen=True)
class Selection:
    """A dataset of the web texts and synthetic texts that the rules keep, and the human shards."""

    name: str
    tables: str
    rules: str

    def needs(self) -> set[str]:
        """Names of the stages that must be done first."""
        return {self.tables}

    def run(self, seed: Seed) -> dict:
        """Run the stage and return its numbers."""
        output = seed.root / "data" / self.name
        counted = output.with_name(f"{self.name}.json")
        if not (output.exists() and counted.exists()):
            tables = shards_of(seed.root, "web").replace("*.tar", f"*.{self.tables}.parquet")
            if output.exists():  # interrupted between writing the shards and their counts
                shutil.rmtree(output)
            counts = select(tables, self.rules, str(output), human=shards_of(seed.root, "human"), quiet=True)
            write_json(counted, asdict(counts))
        return json.loads(counted.read_text())


Stage = Scenes | Pretraining | Finetuning | Scoring | Selection
STAGES: tuple[Stage, ...] = (  # each runs once per seed; the first ones show whether bootstrapping gains at all
    Scenes(),
    Pretraining("noisy"),
    Finetuning("filter", "retrieval"),
    Finetuning("captioner", "captioning"),
    Scoring("nucleus", "captioner", "filter", NUCLEUS),
    Selection("texts-captioned-filtered", "nucleus", PAPER_RULES),
    Pretraining("captioned-filtered", data="texts-captioned-filtered"),
    Selection("texts-filtered", "nucleus", "web(itm >= 0.5)"),
    Pretraining("filtered", data="texts-filtered"),
    Selection("texts-captioned", "nucleus", "itm >= 0"),
    Pretraining("captioned", data="texts-captioned"),
    Pretraining("share-all", sharing="all"),
    Pretraining("share-all-but-cross-attention", sharing="all_but_cross_attention"),
    Pretraining("share-nothing", sharing="nothing"),
    Scoring("beam", "captioner", "filter", BEAM),
    Selection("texts-beam", "beam", PAPER_RULES),
    Pretraining("captioned-by-beam", data="texts-beam"),
    Finetuning("captioner-and-filter", "pretrain"),
    Scoring("shared", "captioner-and-filter", "captioner-and-filter", NUCLEUS),
    Selection("texts-shared", "shared", PAPER_RULES),
    Pretraining("captioned-filtered-by-one", data="texts-shared"),
    Pretraining("repeated", as_long_as="texts-captioned-filtered"),
    Pretraining("continued", data="texts-captioned-filtered", start_from="noisy"),
    # Experiments of ours on what the paper says of Tables 4, 12 and 13.
    Scoring("captions-of-one", "captioner-and-filter", "filter", NUCLEUS),
    Scoring("filter-of-one", "captioner", "captioner-and-filter", NUCLEUS),
    Pretraining("noisy-as-many-steps", steps_of="repeated"),
    Pretraining("captioned-filtered-twice-as-long", data="texts-captioned-filtered", times=2),
)


def work(seeds: list[Seed], quiet: bool) -> None:
    """Run all stages that are not done. Wait for stages of other processes only when nothing else can run."""
    total = len(seeds) * len(STAGES)
    while True:
        done = sum(seed.results(stage.name).exists() for seed in seeds for stage in STAGES)
        if done == total:
            return
        held = None
        for seed, stage in _ready(seeds):
            with locked(_lock(seed, stage), wait=False) as mine:
                if mine:
                    if not seed.results(stage.name).exists():
                        _run_stage(seed, stage, f"{done}/{total}", quiet)
                    held = None
                    break
                held = held or (seed, stage)
        if held:
            with locked(_lock(*held), wait=True):
                pass


def _ready(seeds: list[Seed]) -> Iterator[tuple[Seed, Stage]]:
    """The stages that are not done and can start, in order."""
    for seed in seeds:
        for stage in STAGES:
            if not seed.results(stage.name).exists() and all(seed.results(one).exists() for one in stage.needs()):
                yield seed, stage


def _lock(seed: Seed, stage: Stage) -> Path:
    return seed.root / "locks" / stage.name


def _run_stage(seed: Seed, stage: Stage, place: str, quiet: bool) -> None:
    if not quiet:
        line = f"[{place}] seed {seed.number}: {stage.name}\n"
        print(line, end="", flush=True)  # one write, because jobs share the terminal
    before = _cpu_seconds()
    with _log(seed, stage) as log, redirect_stdout(log):
        numbers = stage.run(seed)
    seed.results(stage.name).parent.mkdir(exist_ok=True)
    facts = {"stage": stage.name, "seed": seed.number, "cpu_seconds": _cpu_seconds() - before, "machine": machine()}
    write_json(seed.results(stage.name), {**facts, "numbers": numbers})


@contextmanager
def _log(seed: Seed, stage: Stage) -> Iterator[IO[str]]:
    (seed.root / "logs").mkdir(exist_ok=True)
    with open(seed.root / "logs" / f"{stage.name}.log", "a", buffering=1) as log:
        yield log


def _cpu_seconds() -> float:
    """Processor seconds of this process and of its finished loader workers."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main(arguments: list[str]) -> None:
    """Run the ablations that the command line asks for, and write the page."""
    parser = argparse.ArgumentParser("ablations.sh", description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path, help="folder for everything, such as runs/ablations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="processes, with one thread each")
    parser.add_argument("--quick", action="store_true", help="only check that everything runs")
    parser.add_argument("--page", type=Path, help="the page to write; OUTPUT/page.md by default")
    parser.add_argument("--page-only", action="store_true", help="write the page from the existing results")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # one of several jobs
    given = parser.parse_args(arguments)
    sizes = QUICK if given.quick else FULL
    if not given.page_only:
        claim(given.output, "ablations", {"sizes": asdict(sizes), "stages": [repr(stage) for stage in STAGES]})
        seeds = [Seed(given.output / f"seed-{number}", sizes, number) for number in given.seeds]
        others = [] if given.worker else _start_others(arguments, given.jobs - 1)
        work(seeds, quiet=False)
        if sum(other.wait() != 0 for other in others):
            raise WorkError("A worker failed; see its message above, and rerun the command to continue.")
    if not given.worker:
        page = given.page or given.output / "page.md"
        write_page(collect(given.output, given.seeds), page)
        print(f"Wrote {page}.")


def _start_others(arguments: list[str], count: int) -> list[subprocess.Popen]:
    command = [sys.executable, __file__, *arguments, "--worker"]
    return [subprocess.Popen(command) for _ in range(count)]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UserError, WorkError) as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
