"""An experiment of recipes.py: its YAML file, its data, and its runs, each scored several times while it trains."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from vlp.config import RunConfig
from vlp.config_ranges import FileNamePart, Natural, Positive
from vlp.config_reader import load_config, to_dict
from vlp.demo.matching_scores import flipped_relation_auc, web_text_scores
from vlp.demo.scenes import write_scenes
from vlp.demo.stages import FULL, WRONG, make_data, shards_of
from vlp.demo.truth import exact_caption_share
from vlp.errors import UserError
from vlp.evaluation.captioning import evaluate_captioning
from vlp.evaluation.matching import evaluate_matching
from vlp.files import locked, write_json
from vlp.log import read_log
from vlp.model import Model
from vlp.report.tables import machine
from vlp.training.loop import train
from vlp.training.settings import leaves
from vlp.training.validation import ModelScorer

HELD_OUT_WEB = "held-out-web"  # folder of scenes with web texts, for the scores of a filter
FIRST_SEED = 1_000_000  # of these scenes; far from the seeds of the other scenes


@dataclass
class Variant:
    """A recipe: what it changes in the base config, as key=value, after the settings of the variant `like`.

    `{root}` in a value is the folder of the seed, whose `runs` holds the other variants: a finetuning starts from
    `{root}/runs/VARIANT/model` of a variant above it.
    """

    name: FileNamePart = "variant"
    settings: list[str] = field(default_factory=list)
    like: str = ""  # a variant above it; "": none


@dataclass
class ScenesConfig:
    """The numbers of scenes that the experiment generates for each seed, instead of reading the base config's shards.

    `human` and `web` scenes are trained on, unless `web` is 0; `held_out` scenes, and as many web texts, validate.
    """

    human: Positive = 5000
    web: Natural = 16_000
    held_out: Positive = 300


@dataclass
class Reach:
    """Qualities, as shares from 0 to 1, and the measure that is to reach them."""

    measure: str = ""
    levels: list[float] = field(default_factory=list)


@dataclass
class Experiment:
    """Variants of one training, and how they are compared."""

    base: str = ""  # config file of the training
    settings: list[str] = field(default_factory=list)  # key=value, for all variants
    scenes: ScenesConfig | None = None
    points: Positive = 8  # validations of a run, the last one at its end
    measures: list[str] = field(default_factory=list)  # columns of the table, and panels of the curves
    reach: list[Reach] = field(default_factory=list)
    reference: str = ""  # variant whose final qualities the others are to reach, too
    published: str = ""  # variant whose samples are also told as seconds of a peer's step
    variants: list[Variant] = field(default_factory=list)


@dataclass(frozen=True)
class Point:
    """A validation of a run."""

    step: int
    samples: int
    seconds: float  # of training, without validation
    scores: dict[str, float]


@dataclass(frozen=True)
class Finished:
    """A finished run."""

    variant: str
    seed: int
    points: list[Point]
    machine: str


def read_experiment(path: str, extra: Sequence[str] = ()) -> Experiment:
    """Read and check an experiment; `extra` are further settings of all variants.

    Raises:
        UserError: a key or a value is wrong.
    """
    read = load_config(Experiment, path)
    names = [variant.name for variant in read.variants]
    if len(set(names)) < len(names) or not names:
        raise UserError(f"{path}: variants need a name each, and different ones.")
    for key in ("reference", "published"):
        if getattr(read, key) not in ("", *names):
            raise UserError(f"{path}: {key} names no variant; the variants are {', '.join(names)}.")
    if not read.base:
        raise UserError(f"{path}: base is empty; name the config file of the training.")
    for one in read.reach:
        if one.measure not in read.measures:
            raise UserError(f"{path}: reach names {one.measure!r}, which is not in measures.")
    return replace(read, settings=[*read.settings, *extra], variants=_with_settings_of_others(read.variants, path))


def _with_settings_of_others(variants: list[Variant], path: str) -> list[Variant]:
    """The variants, each with all of its settings."""
    whole: dict[str, Variant] = {}
    for one in variants:
        if one.like and one.like not in whole:
            raise UserError(f"{path}: {one.name} is like {one.like}, which is not a variant above it.")
        before = whole[one.like].settings if one.like else []
        whole[one.name] = replace(one, settings=[*before, *one.settings])
    return list(whole.values())


def prepare(experiment: Experiment, root: Path, seed: int) -> list[str]:
    """Generate the scenes of a seed in ROOT, where the experiment uses any; returns the settings that name them."""
    if experiment.scenes is None:
        return []
    counts = experiment.scenes
    sizes = replace(FULL, human=counts.human, web=max(counts.web, 1), held_out=counts.held_out)
    with locked(root / "locks" / "data", wait=True):
        make_data(root, sizes, seed)
        if not (root / "data" / HELD_OUT_WEB).exists():
            held_out = str(root / "data" / HELD_OUT_WEB)
            write_scenes(held_out, counts.held_out, "web", WRONG, sizes.image_size, seed=FIRST_SEED + seed)
    names = ["human", *(["web"] if counts.web else [])]
    return [
        f"tokenizer={root / 'tokenizer'}",
        f"data.sources={json.dumps([{'shards': shards_of(root, name)} for name in names])}",
        f"validation={shards_of(root, 'held-out')}",
        "decoding={beams: 1, min_length: 4, max_length: 24}",
    ]


def scene_scorers(root: Path) -> list[ModelScorer]:
    """What is known of scenes alone: exact captions, AUC on flipped relations, and wrong web texts dropped by ITM."""
    shards = shards_of(root, "held-out")

    def captions(model: Model) -> dict[str, float]:
        metrics = evaluate_captioning(model, shards, scorers=[exact_caption_share]).metrics
        return {name: metrics[name] for name in ("caption_exact", "CIDEr")}

    web = shards_of(root, HELD_OUT_WEB)
    return [captions, partial(flipped_relation_auc, shards=shards), partial(web_text_scores, shards=web)]


def pair_scorers(pairs: str, images: str) -> list[ModelScorer]:
    """AUC of ITM and ITC on labeled pairs; nothing without a file of pairs."""

    def matching(model: Model) -> dict[str, float]:
        metrics = evaluate_matching(model, images, pairs).metrics
        return {name: metrics[name] for name in ("itm_auc", "itc_auc")}

    return [matching] if pairs else []


def results_path(output: Path, variant: str, seed: int) -> Path:
    """The results of a run; the file exists once the run is finished."""
    return output / f"seed-{seed}" / "results" / f"{variant}.json"


def run_variant(
    experiment: Experiment, variant: Variant, output: Path, seed: int, scorers: Sequence[ModelScorer] = ()
) -> bool:
    """Train and score one variant, or continue it, unless it is finished.

    Returns:
        False if another process works on it.

    Raises:
        UserError: a setting is wrong, or the finished run had other settings.
    """
    root, path = output / f"seed-{seed}", results_path(output, variant.name, seed)
    with locked(root / "locks" / variant.name, wait=False) as mine:
        if not mine:
            return False
        own = [*experiment.settings, *prepare(experiment, root, seed), *variant.settings]
        own = [one.replace("{root}", str(root)) for one in own]
        config = load_config(RunConfig, experiment.base, own)
        config = replace(config, output=str(root / "runs" / variant.name), seed=seed)
        if not config.steps or not config.validation:
            raise UserError(f"{variant.name}: an experiment needs steps and validation in its config.")
        config = replace(config, evaluate_every=max(1, config.steps // experiment.points))
        settings = {key: value for key, value in leaves(to_dict(config)).items() if key != "output"}
        if path.exists():
            _check_settings(path, settings)
            return True
        print(f"seed {seed}: {variant.name}", flush=True)
        if experiment.scenes:
            scorers = [*scorers, *scene_scorers(root)]
        results = train(config, resume=Path(config.output).exists(), scorers=scorers)
        points = [
            Point(one["step"], one["step"] * config.batch_size, one["training_seconds"], _scores(one))
            for one in [*_validations(Path(config.output)), results]
        ]
        write_json(path, {"settings": settings, **to_dict(Finished(variant.name, seed, points, machine()))})
    return True


def _validations(run: Path) -> list[dict]:
    """The log's records of validation, which do not include that of the last step."""
    return [record for record in read_log(run / "log.jsonl") if "learning_rate" not in record]


def _scores(record: dict) -> dict[str, float]:
    return {name: value for name, value in record.items() if name not in ("step", "training_seconds")}


def _check_settings(path: Path, settings: dict) -> None:
    before = json.loads(path.read_text())["settings"]
    changed = sorted(key for key in before.keys() | settings.keys() if before.get(key) != settings.get(key))
    if changed:
        raise UserError(
            f"{path} holds a run with other settings ({', '.join(changed)}); give the variant another name, or choose "
            "another folder."
        )


def finished_runs(experiment: Experiment, output: Path, seeds: Sequence[int]) -> dict[str, list[Finished]]:
    """The finished runs of each variant, by its name."""
    found = {}
    for variant in experiment.variants:
        paths = [results_path(output, variant.name, seed) for seed in seeds]
        read = [json.loads(path.read_text()) for path in paths if path.exists()]
        found[variant.name] = [
            Finished(one["variant"], one["seed"], [Point(**point) for point in one["points"]], one["machine"])
            for one in read
        ]
    return found
