"""`vlp bench rerank`: ITM of texts and encoded images in pairs per second, compared with BLIP in `transformers`."""

from typing import Any

import torch

from vlp.bench.caption import Size
from vlp.bench.timing import Measured, Work, compare, device
from vlp.config import Precision
from vlp.models.blip import Blip
from vlp.models.constant_weights import constant_weights
from vlp.models.cpu.optimise import optimise_for_cpu

TEXTS, TOKENS = 64, 16  # texts per image, tokens per text


def bench_rerank(size: Size, precision: Precision, images: int, peers: bool) -> list[Measured]:
    """Match `images` encoded images with 64 texts each."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.manual_seed(0)
    blip = Blip(size.config()).to(device=device(), dtype=dtype).eval()
    optimise_for_cpu(blip)
    patches = (size.image_size // 16) ** 2 + 1
    tokens = torch.randn(images, patches, size.width, device=device(), dtype=dtype)
    ids = torch.randint(5, size.vocabulary, (TEXTS, TOKENS), device=device())
    mask = torch.ones_like(ids, dtype=torch.bool)

    def ours() -> None:
        with torch.no_grad():
            for one in range(images):
                memory = blip.text_tower.project_image(tokens[one : one + 1])
                blip.match_logits(ids, mask, memory)

    def make_peer() -> Work:
        return _transformers(size, tokens, ids)

    peer = make_peer if peers else None
    with constant_weights():  # as an evaluation that re-ranks many images does
        return [compare("ITM, 64 texts per image", "pairs/s", images * TEXTS, precision, ours, peer)]


def _transformers(size: Size, tokens: torch.Tensor, ids: torch.Tensor) -> Work:
    from transformers import BlipForImageTextRetrieval

    theirs: Any = BlipForImageTextRetrieval(size.transformers_config())
    theirs.to(device=tokens.device, dtype=tokens.dtype).eval()
    mask = torch.ones_like(ids)

    def work() -> None:
        with torch.no_grad():
            for one in range(len(tokens)):
                states = theirs.text_encoder(
                    input_ids=ids, attention_mask=mask, encoder_hidden_states=tokens[one].expand(len(ids), -1, -1)
                ).last_hidden_state
                theirs.itm_head(states[:, 0])

    return work
