"""Decoded samples on their way from the loader's workers to batches, and what the workers skipped."""

import hashlib
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from vlp.data.bad_samples import BadSample


@dataclass(frozen=True)
class Skipped:
    """A sample that was passed over: where it was in the process's stream, its source, and why it was skipped."""

    place: int
    source: int
    sample: BadSample
    filtered: bool  # else it is bad


@dataclass
class Chunk:
    """Decoded samples.

    Attributes:
        images: uint8 [samples, 3, size, size], or [samples, 2, 3, size, size] where samples are pairs.
        captions: of each sample; in evaluation.
        drawn: what the task drew from each sample, see `Examples`; in training.
        sources: the number of each sample's source.
        places: of each sample in the process's stream.
        skipped: the samples that were passed over.
    """

    images: Tensor = field(default_factory=lambda: torch.empty(0))
    captions: list[list[str]] = field(default_factory=list)
    drawn: list[Any] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    image_hashes: list[int] = field(default_factory=list)
    infos: list[dict] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def pin_memory(self) -> "Chunk":
        """The chunk with its images in page-locked memory."""
        return replace(self, images=self.images.pin_memory()) if self.keys else self


def join_chunks(chunks: list[Chunk]) -> Chunk:
    """Chunks with samples as one; page-locked images stay page-locked."""
    if len(chunks) == 1:
        return chunks[0]
    names = [one.name for one in fields(Chunk) if one.name != "images"]
    lists = {name: [item for chunk in chunks for item in getattr(chunk, name)] for name in names}
    images = [chunk.images for chunk in chunks]
    shape = (sum(map(len, images)), *images[0].shape[1:])
    joined = torch.empty(shape, dtype=images[0].dtype, pin_memory=images[0].is_pinned())
    return Chunk(images=torch.cat(images, out=joined), **lists)


def split_chunk(chunk: Chunk, count: int) -> tuple[Chunk, Chunk]:
    """The first `count` samples, and the rest."""
    names = [one.name for one in fields(Chunk) if one.name != "skipped"]
    first = {name: getattr(chunk, name)[:count] for name in names}
    rest = {name: getattr(chunk, name)[count:] for name in names}
    return replace(chunk, **first), replace(chunk, **rest)


def stable_hash(text: str) -> int:
    """A 63-bit hash that is the same in every process and run."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
