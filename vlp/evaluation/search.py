"""Text-to-image search: the images of a folder or of shards that match a text best, without training for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from vlp.data.bad_samples import BadSample, BadSampleError, BadSamples
from vlp.data.image_decoding import decode_pixels
from vlp.data.shard_index import IMAGE_EXTENSIONS, expand_shards
from vlp.data.shards import iterate_samples
from vlp.data.transforms import clean_caption, evaluation_image
from vlp.errors import UserError
from vlp.model import Model
from vlp.models.cpu.linear import constant_weights


@dataclass
class Hit:
    """An image that was found: its path or `shard#key`, the cosine, and the ITM probability if it was re-ranked."""

    name: str
    itc: float
    itm: float | None = None


@dataclass
class _Candidate:
    """An image that may still be among the results. `tokens` [tokens, width] is kept only for re-ranking."""

    hit: Hit
    tokens: Tensor | None


@constant_weights()
def search(model: Model, images: str, query: str, top: int = 10, rerank: int = 32, batch_size: int = 64) -> list[Hit]:
    """The best images for a text, best first. Memory does not grow with the number of images.

    Args:
        images: a folder of images, searched with its subfolders, or shards.
        top: number of results.
        rerank: re-rank this many of the best images by ITM logit + cosine (BLIP's rule); 0 disables.
        batch_size: images encoded, and matched, at once.

    Raises:
        UserError: there is no image to search, or the query has no words.
    """
    if not clean_caption(query):
        raise UserError(f"The query {query!r} has no words to search for.")
    best: list[_Candidate] = []  # by descending cosine; equal cosines in the order of the images
    text = model.embed_texts(query)[0]  # [embed_dim]
    named_images = _read_images(images, model.image_size)
    while batch := list(islice(named_images, batch_size)):
        tokens = model.encode_images(torch.stack([image for _, image in batch]))
        cosines = (model.embed_tokens(tokens) @ text).tolist()
        best += [_Candidate(Hit(name, itc), one) for (name, _), itc, one in zip(batch, cosines, tokens, strict=True)]
        best.sort(key=lambda candidate: -candidate.hit.itc)
        best = best[: max(top, rerank)]
        for place, candidate in enumerate(best):
            candidate.tokens = _own_copy(candidate.tokens) if place < rerank else None
    if not best:
        raise UserError(f"There is no image to search in {images}.")
    _rerank(model, query, best[:rerank], batch_size)
    hits = [candidate.hit for candidate in best]
    hits[:rerank] = sorted(hits[:rerank], key=_match_score, reverse=True)
    return hits[:top]


def _own_copy(tokens: Tensor | None) -> Tensor | None:
    """The tokens in memory of their own: a row of a batch would keep the whole batch in memory."""
    shares_memory = tokens is not None and tokens.untyped_storage().nbytes() > tokens.nbytes
    return tokens.clone() if tokens is not None and shares_memory else tokens


def _rerank(model: Model, query: str, candidates: list[_Candidate], batch_size: int) -> None:
    """Set the ITM probability of every candidate's hit."""
    for start in range(0, len(candidates), batch_size):
        part = candidates[start : start + batch_size]
        tokens = torch.stack([candidate.tokens for candidate in part if candidate.tokens is not None])
        match = model.match_tokens(tokens, [query] * len(part))
        for candidate, itm in zip(part, match.itm.tolist(), strict=True):
            candidate.hit.itm = itm


def _match_score(hit: Hit) -> float:
    """ITM logit + cosine."""
    return torch.logit(torch.tensor(hit.itm), eps=1e-6).item() + hit.itc


def _read_images(images: str, size: int) -> Iterator[tuple[str, Tensor]]:
    """Names and uint8 tensors [3, size, size]; unreadable images are skipped and named in the log."""
    bad = BadSamples(max_share=1.0)
    for name, shard, key, data in _image_files(images, bad):
        try:
            yield name, torch.as_tensor(evaluation_image(decode_pixels(data, shortest=size), size))
        except BadSampleError as error:
            bad.add(BadSample(shard, key, error.reason))


def _image_files(images: str, bad: BadSamples) -> Iterator[tuple[str, str, str, bytes]]:
    """Name, shard, key and encoded image of every image in a folder or in shards."""
    if not Path(images).is_dir():
        for sample in iterate_samples(expand_shards(images), bad):
            yield f"{sample.shard}#{sample.key}", sample.shard, sample.key, sample.image
        return
    for path in sorted(Path(images).rglob("*")):
        if path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS and not path.is_dir():
            try:
                yield str(path), "", str(path), path.read_bytes()
            except OSError:
                bad.add(BadSample("", str(path), "unreadable file"))
