"""`vlp bench train`: a pretraining step in pairs per second, compared with LAVIS.

A step is forward, backward, AdamW, momentum twin and queue.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from vlp.bench.caption import Size
from vlp.bench.peers import PeerProcess
from vlp.bench.profile import write_profile
from vlp.bench.timing import Measured, Work, compare, device
from vlp.config import ObjectiveConfig, OptimConfig, Precision, RunConfig
from vlp.data.batch import Batch
from vlp.data.examples import CaptionExamples
from vlp.data.tokenizer import BERT_SPECIALS, BLIP_SPECIALS, CaptionTokenizer
from vlp.errors import UserError
from vlp.models.blip import Blip
from vlp.models.compiled import compile_blocks
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.models.padding import skip_padding
from vlp.tasks.pretrain import PretrainTask
from vlp.tasks.task import total_loss
from vlp.training.optim import build_optimizer

QUEUE = 512
MAX_TOKENS = 30  # as in BLIP; LAVIS pads every caption to this length
DROPOUT = 0.1  # as in BLIP
# Lengths of Flickr8k's captions in tokens, with the first and last one: minimum, deciles and maximum of 64 captions.
TOKENS = (6, 9, 10, 11, 12, 13, 14, 15, 17, 19, 26)


def bench_train(
    size: Size,
    precision: Precision,
    batch: int,
    peers: bool,
    repeats: int,
    compiled: bool = False,
    profile: str = "",
) -> list[Measured]:
    """Run an optimizer step on random images and captions, under autocast in bf16.

    LAVIS is measured twice: at its best, with fused AdamW, an allocator that keeps freed memory, and autocast where
    ours uses it; and as released, with the optimizer of its runner, which uses autocast only on GPUs.

    Args:
        compiled: compile our blocks.
        profile: a file for `write_profile` of a step.

    Raises:
        UserError: the peer was requested and is not installed, or has no model of this size.
    """
    if peers and size.image:
        raise UserError("LAVIS is only measured with both towers of one size; use --size base.")
    captions = bench_captions(size.vocabulary, batch)
    step = _training_step(size, precision, captions, compiled)
    if peers:
        lines = _beside_lavis(step, size, precision, captions, repeats)
    else:
        lines = [compare("pretraining step", "pairs/s", batch, precision, step, None, repeats)]
    if profile:
        write_profile(step, profile)
    return lines


def _beside_lavis(step: Work, size: Size, precision: Precision, captions: list[str], repeats: int) -> list[Measured]:
    """The lines of a step in turns with LAVIS's, at its best and as released."""
    shared = {"width": size.width, "layers": size.layers, "heads": size.heads, "image_size": size.image_size}
    shared |= {"words": bench_words(size.vocabulary), "captions": captions, "queue": QUEUE}
    lines = []
    for name, best, peer_precision in (("at its best", True, precision), ("as released", False, "fp32")):
        settings = {**shared, "fused": best, "precision": peer_precision}
        with PeerProcess("lavis_train", settings, keep_freed_memory=best) as peer:
            what = f"pretraining step, LAVIS {name} ({peer_precision})"
            line = compare(what, "pairs/s", len(captions), precision, step, lambda peer=peer: peer, repeats)
            lines.append(replace(line, peer_peak_memory_gib=peer.peak_memory_gib))
    return lines


def bench_words(vocabulary: int) -> list[str]:
    """A vocabulary of words that no tokenizer splits, with the special tokens at BLIP's positions."""
    words = [f"w{number}" for number in range(len(BERT_SPECIALS), vocabulary - len(BLIP_SPECIALS))]
    return [*BERT_SPECIALS, *words, *BLIP_SPECIALS]


def bench_captions(vocabulary: int, batch: int) -> list[str]:
    """Captions of random words with the lengths of Flickr8k's; the same arguments give the same captions."""
    random = np.random.default_rng(0)
    places = (np.arange(batch) + 0.5) / batch
    lengths = random.permutation(np.interp(places, np.linspace(0, 1, len(TOKENS)), TOKENS).round().astype(int))
    words = bench_words(vocabulary)[len(BERT_SPECIALS) : -len(BLIP_SPECIALS)]
    return [" ".join(random.choice(words, length - 2)) for length in lengths]


def bench_tokenizer(vocabulary: int) -> CaptionTokenizer:
    """A tokenizer for `bench_words`, one token per word."""
    words = {word: number for number, word in enumerate(bench_words(vocabulary))}
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return CaptionTokenizer(tokenizer)


def optimizer_step(losses: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer, precision: Precision) -> Work:
    """One step: forward (under autocast if the precision is bf16), backward and optimizer."""

    def step() -> None:
        with torch.autocast(device().type, torch.bfloat16, enabled=precision == "bf16"):
            loss = losses()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _training_step(size: Size, precision: Precision, captions: list[str], compiled: bool = False) -> Work:
    torch.manual_seed(0)
    shape = size.config()
    blip = Blip(replace(shape, text_tower=replace(shape.text_tower, dropout=DROPOUT))).to(device())
    optimise_for_cpu(blip)
    skip_padding(blip)
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

    return optimizer_step(losses, optimizer, precision)


def bench_examples(vocabulary: int) -> CaptionExamples:
    """Captions in the words of `bench_tokenizer`."""
    return CaptionExamples(bench_tokenizer(vocabulary), MAX_TOKENS)


def _batch(size: Size, captions: list[str], tokenizer: CaptionTokenizer) -> Batch:
    batch = len(captions)
    images = torch.randint(0, 256, (batch, 3, size.image_size, size.image_size), dtype=torch.uint8)
    ids, mask = tokenizer.encode(captions, MAX_TOKENS)
    numbers = torch.arange(batch)
    lengths = mask.sum(dim=1).tolist()
    return Batch(images, captions, ids, mask, numbers, numbers, captions, lengths=lengths).to(device())
