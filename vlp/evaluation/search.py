"""Text-to-image search: the images and videos of a folder, or the images of shards, that match a text best."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlp.data.bad_samples import BadSample, BadSampleError, BadSamples
from vlp.data.image_decoding import decode_pixels
from vlp.data.shard_index import IMAGE_EXTENSIONS, expand_shards
from vlp.data.shards import iterate_samples
from vlp.data.transforms import clean_caption, evaluation_image
from vlp.data.video import is_video, load_frames
from vlp.errors import UserError
from vlp.model import Model
from vlp.model.video import FRAMES, encode_videos
from vlp.models.cpu.linear import constant_weights

RERANK = 32  # candidates
_Readable = tuple[str, str, str, Callable[[], np.ndarray]]  # name, shard, key, and a function that decodes it


@dataclass
class Hit:
    """An image or video that was found: its path or `shard#key`, the cosine, the ITM probability if re-ranked."""

    name: str
    itc: float
    itm: float | None = None


@dataclass
class _Candidate:
    """An image or video that may still be among the results.

    Attributes:
        tokens: [frames * tokens, width], kept only for re-ranking.
        frames: 1 for an image.
    """

    hit: Hit
    tokens: Tensor | None
    frames: int


@constant_weights()
def search(
    model: Model,
    images: str,
    query: str,
    top: int = 10,
    rerank: int | None = None,
    batch_size: int = 64,
    frames: int = FRAMES,
) -> list[Hit]:
    """The best images and videos for a text, best first. Memory does not grow with their number.

    Args:
        images: a folder of images and videos, searched with its subfolders, or shards.
        top: number of results.
        rerank: re-rank this many of the best by ITM logit + cosine (BLIP's rule); 0 disables. None: `RERANK`, or 0 for
            a model without ITM.
        batch_size: images or frames encoded, and images matched, at once.
        frames: of each video.

    Raises:
        UserError: there is nothing to search, or the query has no words.
    """
    if not clean_caption(query):
        raise UserError(f"The query {query!r} has no words to search for.")
    rerank = model.rerank_count(rerank, RERANK)
    best: list[_Candidate] = []  # by descending cosine; equal cosines in the order of the images
    text = model.embed_texts(query)[0]  # [embed_dim]
    for count, group in groupby(_read_images(images, model.image_size, frames), lambda one: len(one[1])):
        while batch := list(islice(group, max(1, batch_size // count))):
            tokens = encode_videos(model, torch.stack([pixels for _, pixels in batch]))
            cosines = (model.embed_tokens(tokens, count) @ text).tolist()
            best += [
                _Candidate(Hit(name, itc), one, count)
                for (name, _), itc, one in zip(batch, cosines, tokens, strict=True)
            ]
            best.sort(key=lambda candidate: -candidate.hit.itc)
            best = best[: max(top, rerank)]
            for place, candidate in enumerate(best):
                candidate.tokens = _own_copy(candidate.tokens) if place < rerank else None
    if not best:
        raise UserError(f"There is no image or video to search in {images}.")
    for count in {candidate.frames for candidate in best}:
        same = [candidate for candidate in best[:rerank] if candidate.frames == count]
        _rerank(model, query, same, max(1, batch_size // count))
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
        match = model.match_tokens(tokens, [query] * len(part), frames=part[0].frames)
        for candidate, itm in zip(part, match.itm.tolist(), strict=True):
            candidate.hit.itm = itm


def _match_score(hit: Hit) -> float:
    """ITM logit + cosine."""
    return torch.logit(torch.tensor(hit.itm), eps=1e-6).item() + hit.itc


def _read_images(images: str, size: int, frames: int) -> Iterator[tuple[str, Tensor]]:
    """Names and uint8 tensors [1, 3, size, size] of images or [frames, 3, size, size] of videos.

    Unreadable ones are skipped and named in the log.
    """
    bad = BadSamples(max_share=1.0)
    folder = Path(images).is_dir()
    for name, shard, key, read in _files(images, frames, size) if folder else _samples(images, size, bad):
        try:
            yield name, torch.as_tensor(read())
        except BadSampleError as error:
            bad.add(BadSample(shard, key, error.reason))


def _samples(shards: str, size: int, bad: BadSamples) -> Iterator[_Readable]:
    """The images of shards."""
    for sample in iterate_samples(expand_shards(shards), bad):
        yield f"{sample.shard}#{sample.key}", sample.shard, sample.key, partial(_read_image, sample.image, size)


def _files(folder: str, frames: int, size: int) -> Iterator[_Readable]:
    """The images and videos in a folder and its subfolders."""
    for path in sorted(Path(folder).rglob("*")):
        if path.is_dir():
            continue
        if path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS:
            yield str(path), "", str(path), partial(_read_image, path, size)
        elif is_video(path):
            yield str(path), "", str(path), partial(load_frames, path, frames, size)


def _read_image(source: bytes | Path, size: int) -> np.ndarray:
    """An encoded image or its file as uint8 [1, 3, size, size]; raises BadSampleError if it is unreadable."""
    try:
        data = source.read_bytes() if isinstance(source, Path) else source
    except OSError:
        raise BadSampleError("unreadable file") from None
    return evaluation_image(decode_pixels(data, shortest=size), size)[None]
