"""Score shards: caption every image, and ask the filter about its web texts and the new caption."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice

import torch
from torch import Tensor

from vlp.config import DecodingConfig, Precision
from vlp.data.score_tables import Scored, folder_hash, is_finished, read_table, shard_stamp, write_table
from vlp.data.shards import BadSample, BadSampleError, BadSamples, Sample, decode_image, expand_shards, iterate_samples
from vlp.data.transforms import evaluation_image
from vlp.model import Model, load_model

Progress = Callable[[str, int], None]  # (what is being done, how many images were just finished)


@dataclass
class ScoreCounts:
    """What was scored: by a call of `score_shards` in its process, or by all processes together."""

    shards: int = 0
    skipped_shards: int = 0  # finished before
    images: int = 0
    texts: int = 0
    bad: dict[str, int] = field(default_factory=dict)  # by reason


@dataclass
class Judges:
    """The models of a run; both may be one and the same object, whose image tokens then serve twice."""

    captioner: Model | None
    filter: Model


def score_shards(
    shards: str | list[str],
    captioner: str,
    filter: str,
    decoding: DecodingConfig,
    batch_size: int = 64,
    seed: int = 0,
    precision: Precision = "auto",
    max_bad_share: float = 0.1,
    part: tuple[int, int] = (0, 1),
    device: torch.device | None = None,
    progress: Progress | None = None,
) -> ScoreCounts:
    """Write the score table of every shard that has none made with these settings.

    A table does not depend on which process makes it: batches stay within a shard, and a sampled caption depends on
    the seed, the shard's file name and the sample's key.

    Args:
        captioner: a model folder, or "" to score the web texts alone.
        filter: a model folder; may be the captioner's.
        part: (i, n): this process takes every n-th shard, from the i-th on.

    Raises:
        UserError: no shard matches, or a folder is not a model.
        WorkError: more samples than `max_bad_share` were bad.
    """
    paths = expand_shards(shards)
    judges = _load_judges(captioner, filter, precision, device)
    settings = {
        "captioner": folder_hash(captioner) if captioner else "",
        "filter": folder_hash(filter),
        "decoding": json.dumps(asdict(decoding), sort_keys=True),
        "seed": str(seed),
        "precision": str(judges.filter.compute_dtype),
        "batch_size": str(batch_size),
    }
    bad = BadSamples(max_bad_share)
    counts = ScoreCounts()
    for shard in paths[part[0] :: part[1]]:
        if is_finished(shard, settings):
            counts.skipped_shards += 1
            if progress:
                progress("score", len(set(read_table(shard)["key"].to_pylist())))
            continue
        rows: list[Scored] = []
        stamp = shard_stamp(shard)
        for images, scored in _score_shard(shard, judges, decoding, batch_size, seed, bad):
            rows += scored
            counts.images += images
            if progress:
                progress("score", images)
        write_table(shard, rows, settings, stamp)
        counts.shards += 1
        counts.texts += len(rows)
    bad.finish()
    counts.bad = dict(bad.counts)
    return counts


def _load_judges(captioner: str, filter: str, precision: Precision, device: torch.device | None) -> Judges:
    judge = load_model(filter, device, precision)
    if not captioner:
        return Judges(None, judge)
    same = os.path.realpath(captioner) == os.path.realpath(filter)
    return Judges(judge if same else load_model(captioner, device, precision), judge)


def _score_shard(
    shard: str, judges: Judges, decoding: DecodingConfig, batch_size: int, seed: int, bad: BadSamples
) -> Iterator[tuple[int, list[Scored]]]:
    """The rows of a shard, batch by batch, with the number of images in each."""
    samples = iterate_samples([shard], bad)
    while batch := list(islice(samples, batch_size)):
        sizes = sorted({model.image_size for model in (judges.captioner, judges.filter) if model is not None})
        kept, pictures = _decode(batch, sizes, bad)
        if kept:
            yield len(kept), _score_batch(kept, dict(zip(sizes, pictures, strict=True)), judges, decoding, seed, shard)


def _decode(batch: list[Sample], sizes: list[int], bad: BadSamples) -> tuple[list[Sample], list[Tensor]]:
    """The samples whose image is readable, and uint8 [samples, 3, size, size] for each size."""
    kept, pictures = [], []
    for sample in batch:
        try:
            image = decode_image(sample.image, shortest=max(sizes))
        except BadSampleError as error:
            bad.add(BadSample(sample.shard, sample.key, error.reason), counted=True)
            continue
        kept.append(sample)
        pictures.append([torch.as_tensor(evaluation_image(image, size)) for size in sizes])
    return kept, [torch.stack(column) for column in zip(*pictures, strict=True)]


def _score_batch(
    samples: list[Sample], pictures: dict[int, Tensor], judges: Judges, decoding: DecodingConfig, seed: int, shard: str
) -> list[Scored]:
    """Caption a batch and score all its texts; each model encodes an image once."""
    judge, captioner = judges.filter, judges.captioner
    tokens = judge.encode_images(pictures[judge.image_size])  # [images, tokens, width]
    texts = [[(text, "web") for text in sample.captions] for sample in samples]
    if captioner is not None:
        seen = tokens if captioner is judge else captioner.encode_images(pictures[captioner.image_size])
        keys = [f"{os.path.basename(shard)}/{sample.key}" for sample in samples]
        for own, captions in zip(texts, captioner.caption_tokens(seen, decoding, keys, seed), strict=True):
            own += [(caption.text, "synthetic") for caption in captions]
    flat = [(row, text, source) for row, own in enumerate(texts) for text, source in own]
    even = len({len(own) for own in texts}) == 1
    index = None if even else torch.tensor([row for row, _, _ in flat])
    match = judge.match_tokens(tokens, [text for _, text, _ in flat], index, batch_size=len(flat))
    return [
        Scored(samples[row].key, source, text, itm, itc)
        for (row, text, source), itm, itc in zip(flat, match.itm.tolist(), match.itc.tolist(), strict=True)
    ]
