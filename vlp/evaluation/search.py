"""Zero-shot retrieval: the images of a folder or of shards that fit a text best."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from vlp.data.bad_samples import BadSampleError, BadSamples
from vlp.data.image_decoding import decode_pixels
from vlp.data.shard_index import IMAGE_EXTENSIONS, expand_shards
from vlp.data.shards import iterate_samples
from vlp.data.transforms import evaluation_image
from vlp.errors import UserError
from vlp.model import Model
from vlp.models.cpu.linear import constant_weights


@dataclass
class Hit:
    """An image that was found: its path or `shard#key`, the cosine, and ITM's probability where it was re-ranked."""

    name: str
    itc: float
    itm: float | None = None


@constant_weights()
def search(model: Model, images: str, query: str, top: int = 10, rerank: int = 0, batch_size: int = 64) -> list[Hit]:
    """The best images for a text, best first.

    Args:
        images: a folder of pictures (searched with its sub-folders), or shards.
        top: how many.
        rerank: how many of the best by cosine are put in order by ITM logit + cosine (BLIP's rule); 0: none.

    Raises:
        UserError: there is no image to search.
    """
    names: list[str] = []
    vectors: list[Tensor] = []
    best_tokens: dict[int, Tensor] = {}
    text = model.embed_texts(query)[0]  # [embed_dim]
    pictures = _pictures(images, model.image_size)
    while batch := list(islice(pictures, batch_size)):
        tokens = model.encode_images(torch.stack([picture for _, picture in batch]))
        best_tokens.update({len(names) + row: tokens[row] for row in range(len(batch))} if rerank else {})
        names += [name for name, _ in batch]
        vectors.append(model.embed_tokens(tokens))
        if rerank:  # only what may still be re-ranked stays in memory
            best = (torch.cat(vectors) @ text).topk(min(rerank, len(names))).indices.tolist()
            best_tokens = {row: best_tokens[row] for row in best}
    if not names:
        raise UserError(f"There is no image to search in {images}.")
    cosines = torch.cat(vectors) @ text  # [images]
    hits = [Hit(names[row], cosines[row].item()) for row in cosines.argsort(descending=True).tolist()]
    if rerank:
        first = list(best_tokens)
        match = model.match_tokens(torch.stack([best_tokens[row] for row in first]), [query] * len(first))
        scored = [Hit(names[row], cosines[row].item(), itm) for row, itm in zip(first, match.itm.tolist(), strict=True)]
        scored.sort(key=lambda hit: torch.logit(torch.tensor(hit.itm), eps=1e-6).item() + hit.itc, reverse=True)
        hits = scored + [hit for hit in hits if hit.name not in {one.name for one in scored}]
    return hits[:top]


def _pictures(images: str, size: int) -> Iterator[tuple[str, Tensor]]:
    """Names and uint8 [3, size, size] tensors; what is unreadable is skipped and named in the log."""
    bad = BadSamples(max_share=1.0)
    if Path(images).is_dir():
        files = sorted(path for path in Path(images).rglob("*") if path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS)
        sources = ((str(path), "", str(path), path.read_bytes()) for path in files)
    else:
        samples = iterate_samples(expand_shards(images), bad)
        sources = ((f"{one.shard}#{one.key}", one.shard, one.key, one.image) for one in samples)
    for name, shard, key, data in sources:
        try:
            yield name, torch.as_tensor(evaluation_image(decode_pixels(data, shortest=size), size))
        except BadSampleError as error:
            bad.add(BadSampleError(error.reason, shard, key).sample)
