"""The formulas of docs/scale.md compared with real models, steps and tensors."""

from pathlib import Path

import numpy as np
import pytest
import scale
import torch
from scale_tables import BASE, LARGE, SHARINGS, tables
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vlp.bench import capfilt
from vlp.bench.caption import Size
from vlp.bench.timing import UNCOUNTED_FLOPS
from vlp.bench.train import bench_tokenizer
from vlp.config import ObjectiveConfig, RunConfig
from vlp.config_model import ImageEncoderConfig, ModelConfig, TextTowerConfig
from vlp.data.batch import Batch
from vlp.data.index_writer import write_index
from vlp.models.blip import Blip
from vlp.tasks import alignment
from vlp.tasks.pretrain import PretrainTask
from vlp.training.optim import build_optimizer

TOKENS, QUEUE, WORDS = 9, 20, 300


def make_step(sharing="all_but_self_attention", pairs=3, gpus=1, checkpointing=False) -> scale.Step:
    image = ImageEncoderConfig(image_size=64, patch_size=16, width=96, layers=3, heads=2)
    text = TextTowerConfig(WORDS, 64, 2, 2, 192, positions=40, dropout=0.0, sharing=sharing)
    return scale.Step(ModelConfig(image, text, embed_dim=32), pairs, gpus, TOKENS, TOKENS - 1, QUEUE, checkpointing)


def make_task(step: scale.Step) -> tuple[PretrainTask, Batch]:
    blip = Blip(step.model)
    if step.checkpointing:
        blip.checkpoint_activations()
    task = PretrainTask(RunConfig(objective=ObjectiveConfig(queue_size=QUEUE)), blip, bench_tokenizer(WORDS))
    images = torch.randint(0, 256, (step.pairs, 3, 64, 64), dtype=torch.uint8)
    ids, numbers = torch.randint(10, 200, (step.pairs, TOKENS)), torch.arange(step.pairs)
    mask, names = torch.ones(step.pairs, TOKENS, dtype=torch.bool), [""] * step.pairs
    return task, Batch(images, names, ids, mask, numbers, numbers, names)


def total(task: PretrainTask, batch: Batch) -> torch.Tensor:
    return sum(task(batch).losses.values())


def count_flops(step: scale.Step) -> float:
    task, batch = make_task(step)
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED_FLOPS) as counter:
        total(task, batch).backward()
    return counter.get_total_flops() / step.pairs


@pytest.fixture
def plain():
    """Use attention by matrix products, which the counter counts."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.fixture
def exchanged(monkeypatch) -> dict[str, int]:
    """Simulate two processes with equal rows in one; returns the bytes exchanged, by kind."""
    found: dict[str, int] = {"features and hashes": 0, "texts": 0, "draws": 0, "image tokens": 0}

    def gather(what: str, tensor: torch.Tensor) -> torch.Tensor:
        both = torch.cat([tensor, tensor])
        found[what] += both.nbytes
        return both

    def exchange_rows(rows: torch.Tensor, wanted: torch.Tensor, travelling: torch.dtype) -> torch.Tensor:
        gather("draws", wanted)
        drawn = rows[wanted % len(rows)].to(travelling)
        found["image tokens"] += drawn.nbytes
        return drawn.to(rows.dtype)

    monkeypatch.setattr(alignment, "world_size", lambda: 2)
    for name in ("gather", "gather_with_gradient"):
        monkeypatch.setattr(alignment, name, lambda one: gather("features and hashes", one.detach()))
    monkeypatch.setattr(alignment, "exchange_rows", exchange_rows)
    monkeypatch.setattr(alignment, "gather_texts", lambda *both: tuple(gather("texts", one) for one in both))
    return found


@pytest.mark.parametrize("sharing", SHARINGS)
def test_parameter_counts_match_the_model(sharing):
    step = make_step(sharing)
    task, _ = make_task(step)
    assert scale.parameters(step.model) == sum(one.numel() for one in task.model.parameters())
    assert scale.twin_parameters(step.model) == sum(one.numel() for one in task.alignment.twin.parameters())


@pytest.mark.parametrize("model", [BASE, LARGE], ids=["base", "large"])
def test_parameter_counts_match_models_of_the_papers_sizes(model):
    with torch.device("meta"):
        assert scale.parameters(model) == sum(one.numel() for one in Blip(model).parameters())


@pytest.mark.parametrize("sharing", ["all_but_self_attention", "nothing"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("pairs", [3, 260])  # more than a part of ITC's rows
def test_flops_match_those_that_torch_counts(plain, sharing, checkpointing, pairs):
    step = make_step(sharing, pairs, checkpointing=checkpointing)
    assert sum(scale.step_flops(step).values()) == pytest.approx(count_flops(step), rel=0.02)


def test_exchanged_bytes_and_flops_of_two_processes(plain, exchanged):
    step = make_step(gpus=2)
    with torch.autocast("cpu", torch.bfloat16):
        counted = count_flops(step)
    expected = scale.gathered_bytes(step)
    assert exchanged["features and hashes"] == expected["features"] + expected["hashes"]
    assert (exchanged["texts"], exchanged["draws"]) == (expected["texts"], expected["draws"])
    assert exchanged["image tokens"] == scale.drawn_bytes(step)
    assert sum(scale.step_flops(step).values()) == pytest.approx(counted, rel=0.02)


def test_flops_of_scoring_match_those_that_torch_counts(plain, monkeypatch):
    size = Size(width=96, layers=2, heads=2, image_size=64, vocabulary=300)
    counted = []

    def count(what, unit, images, precision, work, make_peer):
        with FlopCounterMode(display=False, custom_mapping=UNCOUNTED_FLOPS) as counter:
            work()
        counted.append(counter.get_total_flops() / images)

    monkeypatch.setattr(capfilt, "compare", count)
    capfilt.bench_capfilt(size, "fp32", 3, peers=False)
    assert sum(scale.scoring_flops(size.config()).values()) == pytest.approx(counted[0], rel=0.05)


def test_index_bytes_match_the_files(scenes, tmp_path):
    write_index(sorted(map(str, scenes.glob("*.tar"))), tmp_path / "index", workers=0)
    arrays = [np.load(path) for path in (tmp_path / "index").glob("*.npy")]
    key_bytes = len(np.load(tmp_path / "index" / "keys.npy")) // 87
    assert scale.index_bytes(87, key_bytes) == sum(one.nbytes for one in arrays)


def test_state_bytes_match_the_tensors():
    step = make_step()
    task, batch = make_task(step)
    optimizer = build_optimizer(RunConfig().optim, task)
    total(task, batch).backward()
    optimizer.step()
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert scale.state_bytes(step.model) == {
        "weights": sum(one.nbytes for one in task.model.parameters()),
        "gradients": sum(one.grad.nbytes for one in task.parameters() if one.grad is not None),
        "AdamW": sum(one.nbytes for one in moments),
        "momentum twin": sum(one.nbytes for one in task.alignment.twin.parameters()),
    }
    assert scale.queue_bytes(step) == sum(
        one.nbytes for queue in (task.alignment.image_queue, task.alignment.text_queue) for one in queue.buffers()
    )


def saved_bytes(step: scale.Step) -> int:
    """Bytes that autograd saves in a forward pass in bf16, without weights and their casts."""
    task, batch = make_task(step)
    weights = {one.data_ptr() for one in task.parameters()}
    shapes = {size for one in task.parameters() for size in (one.shape, one.shape[::-1]) if one.ndim > 1}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights and tensor.shape not in shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        total(task, batch)
    return sum(one.untyped_storage().nbytes() for one in kept.values())


def test_activation_bytes_are_close_to_what_autograd_saves():
    step = make_step(pairs=8)
    assert sum(scale.activation_bytes(step).values()) == pytest.approx(saved_bytes(step), rel=0.15)


def test_the_page_contains_the_tables():
    assert tables() in (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
