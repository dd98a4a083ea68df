"""A training step asks the device for no number: on a GPU the host would wait for it until all work before is done."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vlp.data.loader import training_loader
from vlp.demo.vqa_scenes import make_vqa_scenes
from vlp.tasks import alignment, build_examples, build_task
from vlp.tasks.task import total_loss
from vlp.training.model_setup import build_model


class Waits(TorchDispatchMode):
    """Collects the operators that read a number from the device, or write one of the host's there."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "unique", "bincount")

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        name = function.name()
        by_mask = name.startswith(("aten::index.", "aten::index_put")) and any(
            one is not None and one.dtype == torch.bool for one in arguments[1]
        )
        if by_mask or any(one in name for one in self.NAMES):
            self.found.append(name)
        return function(*arguments, **(named or {}))


@pytest.fixture
def step(run_config, monkeypatch, tmp_path):
    """What makes the waits of a step of a task with settings."""
    # What a GPU does; on a CPU the number is at hand, and fewer rows are computed.
    monkeypatch.setattr(alignment, "token_count", lambda mask, lengths: lambda: mask.numel())

    def make(*settings: str) -> list[str]:
        config = run_config("run", *settings)
        model, tokenizer, _ = build_model(config)
        task = build_task(config, model, tokenizer).train()
        size = model.image_encoder.image_size
        loader = training_loader(config.data, size, build_examples(config, tokenizer), config.batch_size, seed=1)
        (batch,) = itertools.islice(loader, 1)
        task.start_step(0, 0.5, 0.5)
        with Waits() as waits:
            total_loss(task(batch).losses, config.objective).backward()
        return waits.found

    return make


@pytest.mark.parametrize(
    "settings",
    [
        ["objective.altered_texts=2"],
        ["objective.queue_size=0", "objective.alpha=0", "objective.hardness_ramp=1"],
        ["task=retrieval"],
        ["task=captioning"],
    ],
    ids=" ".join,
)
def test_a_step_does_not_wait(step, settings):
    assert step(*settings) == []


def test_a_step_of_vqa_does_not_wait(step, tmp_path):
    make_vqa_scenes(tmp_path / "vqa", 20, 32, "test")
    assert step("task=vqa", f"data.sources=[{{shards: '{tmp_path}/vqa/*.tar'}}]", "data.texts_per_image=2") == []


def test_waits_are_seen():
    numbers = torch.arange(4)
    with Waits() as waits:
        numbers[numbers > 1].sum().item()
        numbers.new_tensor([1, 2])
    assert len(waits.found) == 3
