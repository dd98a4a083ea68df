"""Pairs a second of a pretraining step, beside LAVIS's: forward, backward, fused AdamW, momentum twin and queue."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from vlp.bench.caption import Size
from vlp.bench.peers import PeerProcess
from vlp.bench.timing import Measured, Work, compare, device
from vlp.config import ObjectiveConfig, OptimConfig, RunConfig
from vlp.data.loader import Batch
from vlp.data.tokenizer import BERT_SPECIALS, BLIP_SPECIALS, CaptionTokenizer
from vlp.models.blip import Blip
from vlp.models.compiled import compile_blocks
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.tasks.pretrain import PretrainTask
from vlp.tasks.task import total_loss
from vlp.training.optim import build_optimizer

QUEUE = 512
MAX_TOKENS = 30  # BLIP's; LAVIS pads every caption to them
DROPOUT = 0.1  # BLIP's
# Tokens of Flickr8k's captions, the first and the last one counted: minimum, deciles, maximum of a batch of 64.
TOKENS = (6, 9, 10, 11, 12, 13, 14, 15, 17, 19, 26)


def bench_train(
    size: Size, precision: str, batch: int, peers: bool, repeats: int, compiled: bool = False
) -> list[Measured]:
    """One optimiser step on a batch of random images and captions, under autocast in bf16.

    LAVIS is measured at its best, with fused AdamW, an allocator that keeps freed memory, and autocast where ours has
    it; and as it comes: with the optimiser of its runner, which casts on GPUs alone.

    Args:
        compiled: compile our blocks.

    Raises:
        UserError: the peer was asked for and its environment is missing.
    """
    captions = bench_captions(size.vocabulary, batch)
    step = _training_step(size, precision, captions, compiled)
    if not peers:
        return [compare("pretraining step", "pairs/s", batch, precision, step, None, repeats)]
    theirs = {"width": size.width, "layers": size.layers, "heads": size.heads, "image_size": size.image_size}
    theirs |= {"words": bench_words(size.vocabulary), "captions": captions, "queue": QUEUE}
    lines = []
    for name, best, their_precision in (("at its best", True, precision), ("as it comes", False, "fp32")):
        settings = {**theirs, "fused": best, "precision": their_precision}
        with PeerProcess("lavis_train", settings, keep_freed_memory=best) as peer:
            what = f"pretraining step, LAVIS {name} ({their_precision})"
            line = compare(what, "pairs/s", batch, precision, step, lambda peer=peer: peer, repeats)
            lines.append(replace(line, peer_peak_memory_gib=peer.peak_memory_gib))
    return lines


def bench_words(vocabulary: int) -> list[str]:
    """A vocabulary of words that no tokenizer splits, special tokens where BLIP has them."""
    words = [f"w{number}" for number in range(len(BERT_SPECIALS), vocabulary - len(BLIP_SPECIALS))]
    return [*BERT_SPECIALS, *words, *BLIP_SPECIALS]


def bench_captions(vocabulary: int, batch: int) -> list[str]:
    """Captions of random words, as long as Flickr8k's are; the same for the same arguments."""
    random = np.random.default_rng(0)
    places = (np.arange(batch) + 0.5) / batch
    lengths = random.permutation(np.interp(places, np.linspace(0, 1, len(TOKENS)), TOKENS).round().astype(int))
    words = bench_words(vocabulary)[len(BERT_SPECIALS) : -len(BLIP_SPECIALS)]
    return [" ".join(random.choice(words, length - 2)) for length in lengths]


def bench_tokenizer(vocabulary: int) -> CaptionTokenizer:
    """The tokenizer of those words."""
    words = {word: number for number, word in enumerate(bench_words(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return CaptionTokenizer(tokenizer)


def optimiser_step(losses: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer, precision: str) -> Work:
    """Forward under autocast where the precision is bf16, backward, and the optimiser."""

    def step() -> None:
        with torch.autocast(device().type, torch.bfloat16, enabled=precision == "bf16"):
            loss = losses()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _training_step(size: Size, precision: str, captions: list[str], compiled: bool = False) -> Work:
    torch.manual_seed(0)
    shape = size.config()
    blip = Blip(replace(shape, text_tower=replace(shape.text_tower, dropout=DROPOUT))).to(device())
    optimise_for_cpu(blip)
    config = RunConfig(objective=ObjectiveConfig(queue_size=QUEUE), optim=OptimConfig(learning_rate=1e-5))
    tokenizer = bench_tokenizer(size.vocabulary)
    task = PretrainTask(config, blip, tokenizer).to(device())
    if compiled:
        compile_blocks(task)
    optimizer = build_optimizer(config.optim, task)
    data = _batch(size, captions, tokenizer)
    steps = 0

    def losses() -> torch.Tensor:
        nonlocal steps
        task.start_step(steps, 0.0)
        steps += 1
        return total_loss(task(data).losses, config.objective)

    return optimiser_step(losses, optimizer, precision)


def _batch(size: Size, captions: list[str], tokenizer: CaptionTokenizer) -> Batch:
    batch = len(captions)
    images = torch.randint(0, 256, (batch, 3, size.image_size, size.image_size), dtype=torch.uint8)
    ids, mask = tokenizer.encode(captions, MAX_TOKENS)
    numbers = torch.arange(batch)
    return Batch(images, ids, mask, numbers, numbers, captions, captions).to(device())
