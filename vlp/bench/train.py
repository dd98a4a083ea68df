"""Pairs a second of a whole pretraining step: forward, backward, fused AdamW, momentum twin and queue."""

from types import SimpleNamespace

import torch

from vlp.allocator import keep_freed_memory
from vlp.bench.caption import Size
from vlp.bench.timing import Measured, compare, device
from vlp.config import ObjectiveConfig, OptimConfig, RunConfig
from vlp.data.loader import Batch
from vlp.errors import UserError
from vlp.models.blip import Blip
from vlp.optim import build_optimizer
from vlp.tasks.pretrain import PretrainTask

TOKENS = 16  # the batch's longest caption, rounded up: Flickr8k's captions have 14 tokens in the mean
QUEUE = 512


def bench_train(size: Size, precision: str, batch: int, peers: bool) -> list[Measured]:
    """One optimiser step on a batch of random images and captions, under autocast in bf16.

    Raises:
        UserError: a peer was asked for; none is measured here.
    """
    if peers:
        raise UserError("vlp bench train has no peer yet; leave --peers out.")
    if device().type == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    blip = Blip(size.config()).to(device())
    config = RunConfig(objective=ObjectiveConfig(queue_size=QUEUE), optim=OptimConfig(learning_rate=1e-5))
    tokenizer = SimpleNamespace(dec_id=size.vocabulary - 2, enc_id=size.vocabulary - 1)
    task = PretrainTask(config, blip, tokenizer).to(device())
    optimizer = build_optimizer(config.optim, task)
    data = _batch(size, batch)
    steps = 0

    def step() -> None:
        nonlocal steps
        task.start_step(steps, 0.0)
        with torch.autocast(device().type, torch.bfloat16, enabled=precision == "bf16"):
            named = task(data)
        sum(value for name, value in named.items() if not name.startswith("_")).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1

    return [compare("pretraining step", "pairs/s", batch, precision, step, None)]


def _batch(size: Size, batch: int) -> Batch:
    images = torch.randint(0, 256, (batch, 3, size.image_size, size.image_size), dtype=torch.uint8)
    ids = torch.randint(5, size.vocabulary - 2, (batch, TOKENS))
    mask = torch.arange(TOKENS) < torch.randint(10, TOKENS + 1, (batch, 1))
    numbers = torch.arange(batch)
    names = [str(number) for number in range(batch)]
    return Batch(images, ids, mask, numbers, numbers, names, names).to(device())
