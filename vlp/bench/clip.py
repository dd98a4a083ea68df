"""`vlp bench clip`: a CLIP training step in pairs per second, compared with open_clip."""

import sys
from contextlib import nullcontext
from dataclasses import replace

import torch

from vlp.bench.caption import Size
from vlp.bench.peers import PeerProcess
from vlp.bench.timing import Measured, Work, compare, device
from vlp.bench.train import MAX_TOKENS, bench_captions, bench_tokenizer, optimizer_step
from vlp.config import OptimConfig, Precision, RunConfig
from vlp.config_model import ModelConfig
from vlp.data.examples_contrastive import ContrastiveBatch
from vlp.models.clip import Clip
from vlp.models.cpu.optimise import optimise_for_cpu
from vlp.tasks.contrastive import ContrastiveTask
from vlp.tasks.task import total_loss
from vlp.training.optim import build_optimizer

EMBED_DIM = 512
CONTEXTS = (77, 32)  # tokens to which open_clip pads every text: its default, and a --force-context-length


def bench_clip(size: Size, precision: Precision, batch: int, peers: bool, repeats: int) -> list[Measured]:
    """Run an optimizer step of an image and a text tower with the contrastive loss, on random images and captions.

    The peer is measured at two text lengths.

    Raises:
        UserError: the peer was requested and is not installed.
    """
    # The text tower of CLIP ViT-B/16 has two thirds of the image tower's width and heads of the same size.
    vocabulary, heads = (49_408 if size.vocabulary > 30_000 else size.vocabulary), max(1, size.heads * 2 // 3)
    text_width = heads * (size.width // size.heads)
    ids, mask = bench_tokenizer(vocabulary).encode(bench_captions(vocabulary, batch), MAX_TOKENS)
    shape = size.config()
    text = replace(shape.text_tower, vocabulary=vocabulary, width=text_width, heads=heads, feed_forward=4 * text_width)
    step = _training_step(ModelConfig(shape.image_encoder, text, EMBED_DIM, network="clip"), ids, mask, precision)
    shared = {"width": size.width, "layers": size.layers, "heads": size.heads, "image_size": size.image_size}
    shared |= {"text_width": text_width, "text_heads": heads, "vocabulary": vocabulary, "embed_dim": EMBED_DIM}
    shared |= {"precision": precision}
    shared |= {"captions": [row[real].tolist() for row, real in zip(ids, mask, strict=True)]}
    lines = []
    for context in CONTEXTS if peers else CONTEXTS[:1]:
        settings = {**shared, "context": context}
        with PeerProcess("open_clip_train", settings, sys.executable) if peers else nullcontext() as peer:
            what = f"CLIP step, peer with {context} tokens" if peers else "CLIP step"
            make_peer = (lambda peer=peer: peer) if peer else None
            line = compare(what, "pairs/s", batch, precision, step, make_peer, repeats)
            lines.append(replace(line, peer_peak_memory_gib=peer.peak_memory_gib if peer else None))
    return lines


def _training_step(config: ModelConfig, ids: torch.Tensor, mask: torch.Tensor, precision: Precision) -> Work:
    torch.manual_seed(0)
    clip = Clip(config).to(device())
    optimise_for_cpu(clip)
    run = RunConfig(task="contrastive", model=config, optim=OptimConfig(learning_rate=1e-5))
    task = ContrastiveTask(run, clip)
    optimizer = build_optimizer(run.optim, task)
    size = config.image_encoder.image_size
    images = torch.randint(0, 256, (len(ids), 3, size, size), dtype=torch.uint8)
    batch = ContrastiveBatch(images, [], ids, mask).to(device())

    def losses() -> torch.Tensor:
        task.start_step(0, 0.0)
        return total_loss(task(batch).losses, run.objective)

    return optimizer_step(losses, optimizer, precision)
