"""The whole loop on synthetic scenes: pretrain, finetune, CapFilt, pretrain anew, and a report of what it gained."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from vlp.capfilt.run import run_capfilt
from vlp.config import (
    AugmentConfig,
    CapFiltConfig,
    DataConfig,
    DecodingConfig,
    ImageEncoderConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    RunConfig,
    SourceConfig,
    TaskName,
    TextTowerConfig,
)
from vlp.data.shard_index import expand_shards
from vlp.data.shards import iterate_samples
from vlp.data.tokenizer import train_tokenizer
from vlp.data.transforms import clean_caption
from vlp.demo.page import write_demo_page
from vlp.demo.scenes import write_scenes
from vlp.demo.truth import exact_caption_share, filter_quality
from vlp.errors import UserError
from vlp.evaluation.captioning import evaluate_captioning
from vlp.evaluation.retrieval import evaluate_retrieval
from vlp.files import write_json, writing_folder
from vlp.model import load_model
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.training.loop import train

WRONG = 0.4  # share of wrong web texts
# Which texts stay. On seeds 1 and 2 it drops one point more of the wrong web texts and keeps one more of the right ones
# than the paper's `itm >= 0.5`; it was chosen on seed 0 (docs/capfilt.md).
RULES = "itm >= 0.25 and nll <= 1.2"
QUICK_RULES = "top(itm, 0.3)"  # after a few steps every nll is above 1.2
# Cropping and flipping would make captions of places untrue, colour changes those of colours.
PLAIN = AugmentConfig(crop_min=1.0, crop_max=1.0, flip=False, operations=0)
GREEDY = DecodingConfig(beams=1, repetition_penalty=1.0, min_length=4, max_length=24)
NUCLEUS = DecodingConfig(top_p=0.9, repetition_penalty=1.0, min_length=4, max_length=24)


@dataclass(frozen=True)
class DemoSizes:
    """How much of everything a demo takes."""

    human: int  # clean samples
    web: int  # samples of which 40% have a wrong text
    held_out: int  # clean samples for the scores
    pretrain_steps: int
    captioner_steps: int
    filter_steps: int
    warmup_steps: int
    batch_size: int
    image_size: int = 64
    patch_size: int = 16
    width: int = 128
    layers: int = 4
    heads: int = 2


FULL = DemoSizes(
    human=5000,
    web=16000,
    held_out=500,
    pretrain_steps=1400,
    captioner_steps=1200,
    filter_steps=600,
    warmup_steps=100,
    batch_size=64,
)
QUICK = DemoSizes(
    human=800,
    web=1600,
    held_out=100,
    pretrain_steps=40,
    captioner_steps=20,
    filter_steps=20,
    warmup_steps=10,
    batch_size=64,
)


def run_demo(output: str, quick: bool = False, seed: int = 0) -> dict:
    """Run the demo, or go on with one that was stopped, and write OUTPUT/report.html and OUTPUT/report.json.

    Args:
        output: folder for everything; stages that it holds already are not made again.
        quick: a smoke test that checks the way, not the quality.
        seed: of the scenes, the weights and everything drawn.

    Returns:
        What report.json holds.
    """
    root, sizes, rules = Path(output), QUICK if quick else FULL, QUICK_RULES if quick else RULES
    claim(root, "demo", {"sizes": asdict(sizes), "seed": seed})
    with _stage(root, "scenes and tokenizer"):
        make_data(root, sizes, seed)
    with _stage(root, "pretraining on the noisy web and the clean human shards"):
        train_once(pretrain_config(root, "noisy", ["human", "web"], sizes, seed))
    with _stage(root, "finetuning the captioner"):
        finetune(root, "captioner", finetune_config(root, "captioner", "captioning", sizes, seed))
    with _stage(root, "finetuning the filter"):
        finetune(root, "filter", finetune_config(root, "filter", "retrieval", sizes, seed))
    with _stage(root, "CapFilt: captioning and filtering the web shards"):
        _capfilt(root, capfilt_config(root, rules, seed))
    with _stage(root, "pretraining anew on the cleaned shards"):
        train_once(pretrain_config(root, "bootstrapped", ["cleaned"], sizes, seed))
    with _stage(root, "scores on held-out scenes"):
        scores = {
            **{name: score_model(root, name) for name in ("noisy", "bootstrapped")},
            **filter_quality(shards_of(root, "web"), rules),
        }
    results = {**scores, "seed": seed, "quick": quick, "seconds": sum(_seconds(root).values())}
    write_json(root / "report.json", results)
    write_demo_page(root)
    print(f"Done in {results['seconds'] / 60:.1f} minutes: {root / 'report.html'}")
    return results


def claim(root: Path, what: str, settings: dict) -> None:
    """Mark a folder as that of `what` with these settings, by ROOT/WHAT.json; refuse one that holds anything else."""
    mark = root / f"{what}.json"
    if mark.exists():
        if json.loads(mark.read_text()) != settings:
            raise UserError(f"{root} holds {what} with other settings; choose another folder or remove it.")
        return
    if root.exists() and any(root.iterdir()):
        raise UserError(f"{root} exists and is not of {what}; choose another folder.")
    root.mkdir(parents=True, exist_ok=True)
    write_json(mark, settings)


@contextmanager
def _stage(root: Path, name: str) -> Iterator[None]:
    """Say what begins, and add what it took to ROOT/seconds.json, also when it is stopped before its end."""
    before = _seconds(root)
    minutes, seconds = divmod(int(sum(before.values())), 60)
    print(f"[{minutes:02d}:{seconds:02d}] {name}", flush=True)
    started = time.monotonic()
    try:
        yield
    finally:
        write_json(root / "seconds.json", {**before, name: before.get(name, 0.0) + time.monotonic() - started})


def _seconds(root: Path) -> dict[str, float]:
    """What each stage took so far, over all calls."""
    path = root / "seconds.json"
    return json.loads(path.read_text()) if path.exists() else {}


def shards_of(root: Path, name: str) -> str:
    """The shards of ROOT/data/NAME, as a pattern."""
    return str(root / "data" / name / "*.tar")


def make_data(root: Path, sizes: DemoSizes, seed: int) -> None:
    """Make the scenes (human, web, held-out) and the tokenizer, where they are not there yet."""
    splits = {
        "human": (sizes.human, "human", 0.0, 3 * seed),
        "web": (sizes.web, "web", WRONG, 3 * seed + 1),
        "held-out": (sizes.held_out, "human", 0.0, 3 * seed + 2),
    }
    for name, (count, split, wrong, scene_seed) in splits.items():
        folder = root / "data" / name
        if not folder.exists():
            write_scenes(str(folder), count, split, wrong, sizes.image_size, 1000, scene_seed)
    if not (root / "tokenizer").exists():
        shards = expand_shards([shards_of(root, "human"), shards_of(root, "web")])
        texts = (clean_caption(text) for sample in iterate_samples(shards, None) for text in sample.captions)
        train_tokenizer(texts, 1000).save(root / "tokenizer")


def _model(sizes: DemoSizes) -> ModelConfig:
    return ModelConfig(
        ImageEncoderConfig(
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            width=sizes.width,
            layers=sizes.layers,
            heads=sizes.heads,
        ),
        TextTowerConfig(
            width=sizes.width,
            layers=sizes.layers,
            heads=sizes.heads,
            feed_forward=4 * sizes.width,
            positions=64,
            dropout=0.0,
        ),
        embed_dim=128,
    )


def _data(root: Path, names: list[str]) -> DataConfig:
    sources = [SourceConfig(shards_of(root, name)) for name in names]
    return DataConfig(sources, workers=1, shuffle_buffer=20_000, max_tokens=24, augment=PLAIN)


def pretrain_config(root: Path, name: str, sources: list[str], sizes: DemoSizes, seed: int) -> RunConfig:
    """A pretraining in ROOT/NAME, on folders of ROOT/data."""
    return RunConfig(
        task="pretrain",
        output=str(root / name),
        tokenizer=str(root / "tokenizer"),
        seed=seed,
        model=_model(sizes),
        data=_data(root, sources),
        objective=ObjectiveConfig(queue_size=2048),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=sizes.warmup_steps, decay="cosine", clip_norm=1.0),
        batch_size=sizes.batch_size,
        steps=sizes.pretrain_steps,
        checkpoint_every=500,
        keep_checkpoints=1,
    )


def finetune_config(root: Path, name: str, task: TaskName, sizes: DemoSizes, seed: int) -> RunConfig:
    """Finetuning the noisy model on the clean human shards."""
    return RunConfig(
        task=task,
        output=str(root / f"{name}-run"),
        start_from=str(root / "noisy" / "model"),
        seed=seed,
        data=_data(root, ["human"]),
        objective=ObjectiveConfig(queue_size=2048, alpha_ramp_epochs=1.0),
        optim=OptimConfig(learning_rate=5e-4, warmup_steps=20, decay="cosine", floor=0.0, clip_norm=1.0),
        batch_size=sizes.batch_size,
        steps=sizes.captioner_steps if task == "captioning" else sizes.filter_steps,
        checkpoint_every=500,
        keep_checkpoints=1,
    )


def finetune(root: Path, name: str, config: RunConfig) -> None:
    """Run a finetuning, where it is not done yet; the model ends in ROOT/NAME."""
    if (root / name).exists():
        return
    train_once(config)
    with writing_folder(root / name) as temporary:
        shutil.copytree(Path(config.output) / "model", temporary, dirs_exist_ok=True)


def train_once(config: RunConfig) -> None:
    """Run a training, or go on with it; one that left its model is not run again."""
    if not (Path(config.output) / "model").exists():
        train(config, resume=Path(config.output).exists())


def capfilt_config(root: Path, rules: str, seed: int) -> CapFiltConfig:
    """CapFilt of the web shards by nucleus sampling; the texts that satisfy the rules stay."""
    return CapFiltConfig(
        shards=shards_of(root, "web"),
        human=shards_of(root, "human"),
        captioner=str(root / "captioner"),
        filter=str(root / "filter"),
        output=str(root / "data" / "cleaned"),
        decoding=NUCLEUS,
        rules=rules,
        batch_size=128,
        seed=seed,
    )


def _capfilt(root: Path, config: CapFiltConfig) -> None:
    if not Path(config.output).exists():
        write_json(root / "capfilt.json", run_capfilt(config))


def score_model(root: Path, name: str) -> dict[str, float]:
    """Retrieval and captions of a pretrained model on the held-out scenes; kept in ROOT/NAME/scores.json."""
    path = root / name / "scores.json"
    if path.exists():
        return json.loads(path.read_text())
    model, held_out = optimise_for_cpu(load_model(root / name / "model")), shards_of(root, "held-out")
    scores = {
        **evaluate_retrieval(model, held_out, rerank=16),
        **evaluate_captioning(model, held_out, GREEDY, scorers=[exact_caption_share]),
    }
    write_json(path, scores)
    return scores
