"""The tables of docs/scale.md, by `python scripts/bench/scale_tables.py`: `scale.py` applied to two models."""

import math
from dataclasses import replace

from scale import (
    Step,
    activation_bytes,
    communication_bytes,
    gpu_hours,
    index_bytes,
    memory_bytes,
    parameters,
    scoring_flops,
    state_bytes,
    step_flops,
    step_seconds,
    twin_parameters,
)

from vlp.config_model import ImageEncoderConfig, ModelConfig, TextTowerConfig

VOCABULARY = 30_524
RATE = 790e12  # FLOP/s that bf16 products alone are assumed to reach on a GPU
SHARES = (0.3, 0.4, 0.5)  # of that rate, for a whole step
BANDWIDTHS = {
    "450 GB/s": 450e9,
    "50 GB/s": 50e9,
    "12.5 GB/s": 12.5e9,
}  # such as NVLink, and networks with 400 and 100 Gb/s
GB = 1e9
SHARINGS = ("all", "all_but_cross_attention", "all_but_self_attention", "nothing")

BASE = ModelConfig(text_tower=TextTowerConfig(vocabulary=VOCABULARY))
LARGE = ModelConfig(ImageEncoderConfig(width=1024, layers=24, heads=16, drop_path=0.1), BASE.text_tower)
STEPS = {"ViT-B/16": Step(BASE, 360, 8), "ViT-L/16": Step(LARGE, 300, 8, checkpointing=True)}  # as in configs/

SIZES = {"1 million": 10**6, "100 million": 10**8, "5 billion": 5 * 10**9}
PER_SHARD = 10_000  # images
REQUESTS = 4  # for a shard of any size, read in sequence
WEEK = 7 * 24  # hours
# Measured, see docs/benchmarks.md: images per second of scoring with one caption on two cores in bf16, and of reading
# 640 x 480 JPEG for training on one core.
SCORED_ON_TWO_CORES, READ_ON_ONE_CORE = 3.44, 726

Rows = list[tuple[str, ...]]


def tables() -> str:
    """All tables as Markdown."""
    parts = {
        "Parameters, millions": _parameters(),
        "GFLOP per pair, on several GPUs": _flops(),
        "GB per GPU, with 8 GPUs and the paper's batch": _memory(),
        "GB of activations per GPU": _activations(),
        "MB that each of 8 GPUs sends per step, and the time that this and the products take": _communication(),
        "MB that each GPU sends per step: hard negative images with their gradients, and everything": _drawn(),
        f"Expected pairs per second, by the share of {RATE / 1e12:.0f} TFLOP/s that a step reaches": _throughput(),
        f"Estimated GPU hours, by the share of {RATE / 1e12:.0f} TFLOP/s that a GPU reaches": _gpu_hours(),
        "Core hours, by rates that were measured on two cores": _core_hours(),
        "What reading takes": _reading(),
    }
    return "\n\n".join(f"{title}:\n\n{_table(rows)}" for title, rows in parts.items())


def _parameters() -> Rows:
    rows: Rows = [("shared by encoder and decoder", *STEPS)]
    for sharing in SHARINGS:
        text = replace(BASE.text_tower, sharing=sharing)
        rows.append(
            (sharing, *(f"{parameters(replace(step.model, text_tower=text)) / 1e6:.1f}" for step in STEPS.values()))
        )
    rows.append(("the momentum twin", *(f"{twin_parameters(step.model) / 1e6:.1f}" for step in STEPS.values())))
    return rows


def _sum(columns: list[dict[str, float]], unit: float, digits: int) -> Rows:
    """One row per name, then the sums."""
    rows: Rows = [(name, *(f"{column.get(name, 0) / unit:.{digits}f}" for column in columns)) for name in columns[-1]]
    return [*rows, ("**sum**", *(f"**{sum(column.values()) / unit:.{digits}f}**" for column in columns))]


def _checkpointed() -> list[tuple[str, Step]]:
    """Each step with and without activation checkpointing."""
    return [
        (name + suffix, replace(step, checkpointing=again))
        for name, step in STEPS.items()
        for suffix, again in (("", False), (", checkpointing", True))
    ]


def _flops() -> Rows:
    steps = _checkpointed()
    return [("", *(name for name, _ in steps)), *_sum([step_flops(step) for _, step in steps], 1e9, 1)]


def _memory() -> Rows:
    steps = _checkpointed()
    rows = _sum([memory_bytes(step) for _, step in steps], GB, 1)
    states = [state_bytes(step.model) for _, step in steps]
    kinds: Rows = [(f"- {kind}", *(f"{one[kind] / GB:.1f}" for one in states)) for kind in states[0]]
    sharded = [sum(memory_bytes(step, sharded=True).values()) / GB for _, step in steps]
    return [
        ("", *(name for name, _ in steps)),
        rows[0],
        *kinds,
        *rows[1:],
        ("sum under FSDP", *(f"{value:.1f}" for value in sharded)),
    ]


def _activations() -> Rows:
    steps = _checkpointed()
    return [("", *(name for name, _ in steps)), *_sum([activation_bytes(step) for _, step in steps], GB, 1)]


def _communication() -> Rows:
    sent = [communication_bytes(step) for step in STEPS.values()]
    rows = [("", *STEPS), *_sum(sent, 1e6, 0)]
    for name, bandwidth in BANDWIDTHS.items():
        seconds = (step_seconds(step, RATE, bandwidth)[1] for step in STEPS.values())
        rows.append((f"ms at {name}", *(f"{1e3 * value:.0f}" for value in seconds)))
    compute = (step_seconds(step, RATE / 2, 1.0)[0] for step in STEPS.values())
    return [*rows, ("ms of products at half the rate", *(f"{1e3 * value:.0f}" for value in compute))]


def _drawn() -> Rows:
    rows: Rows = [("pairs per GPU, GPUs", *STEPS, *(f"{name}, all" for name in STEPS))]
    for pairs, gpus in ((300, 8), (360, 8), (45, 64), (360, 64)):
        sent = [communication_bytes(replace(step, pairs=pairs, gpus=gpus)) for step in STEPS.values()]
        drawn = [sum(size for name, size in one.items() if name.startswith("drawn")) for one in sent]
        sizes = drawn + [sum(one.values()) for one in sent]
        rows.append((f"{pairs}, {gpus}", *(f"{size / 1e6:.0f}" for size in sizes)))
    return rows


def _throughput() -> Rows:
    """Each cell is a range: communication never overlaps with computation, or always does."""
    rows: Rows = [("model, GPUs, pairs per GPU, bandwidth", *(f"{share:.0%}" for share in SHARES))]
    for name, step in STEPS.items():
        places = ((8, step.pairs, "450 GB/s"), (64, step.pairs * 8 // 64, "50 GB/s"), (64, step.pairs, "50 GB/s"))
        for gpus, pairs, speed in places:
            spread = replace(step, gpus=gpus, pairs=pairs)
            cells = []
            for share in SHARES:
                products, sending = step_seconds(spread, share * RATE, BANDWIDTHS[speed])
                hidden = pairs * gpus / max(products, sending)
                cells.append(f"{pairs * gpus / (products + sending):,.0f} to {hidden:,.0f}")
            rows.append((f"{name}, {gpus}, {pairs}, {speed}", *cells))
    return rows


def _gpu_hours() -> Rows:
    """Scoring with ViT-B/16, and one pass of pretraining."""
    rows: Rows = [("images", "per second and GPU", *SIZES, "GPUs for 5 billion in a week")]
    work = {
        f"scoring, {captions} new {'caption' if captions == 1 else 'captions'}": sum(
            scoring_flops(BASE, captions=captions).values()
        )
        for captions in (1, 4)
    }
    work |= {f"pretraining {name}, one pass": sum(step_flops(step).values()) for name, step in STEPS.items()}
    for name, flops in work.items():
        for share in (0.2, 0.4):
            hours = [gpu_hours(images, flops, share * RATE) for images in SIZES.values()]
            speed = f"{share * RATE / flops:,.0f}"
            rows.append((f"{name}, {share:.0%}", speed, *map(_hours, hours), f"{math.ceil(hours[-1] / WEEK)}"))
    return rows


def _core_hours() -> Rows:
    """Rates times numbers of images; nobody ran these sizes."""
    rates = {"scoring, 1 new caption": SCORED_ON_TWO_CORES / 2, "reading for one pass of training": READ_ON_ONE_CORE}
    return [
        ("images", "images per second and core, measured", *SIZES),
        *(
            (name, f"{rate:,.4g}", *(_hours(images / rate / 3600) for images in SIZES.values()))
            for name, rate in rates.items()
        ),
    ]


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours < 10 else f"{hours:,.0f}"


def _reading() -> Rows:
    rows: Rows = [("images", *SIZES)]
    shards = [images // PER_SHARD for images in SIZES.values()]
    rows.append((f"shards of {PER_SHARD:,}", *(f"{count:,}" for count in shards)))
    rows.append(("requests of one streamed pass, at most", *(f"{REQUESTS * count:,}" for count in shards)))
    sizes = (index_bytes(images) / GB for images in SIZES.values())
    return [*rows, ("GB of the index, on disk", *(f"{size:.3g}" for size in sizes))]


def _table(rows: Rows) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, tuple("---" for _ in head), *body])


if __name__ == "__main__":
    print(tables())
