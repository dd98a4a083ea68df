"""Predictions for images with a class, from an image folder or from shards."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlp.data.bad_samples import BadSample, BadSampleError, BadSamples
from vlp.data.batch import EvaluationBatch
from vlp.data.cache import file_stamp, identity
from vlp.data.image_decoding import decode_pixels
from vlp.data.importers.folder import LoosePictures
from vlp.data.labelled_images import LabelledImages
from vlp.data.transforms import evaluation_image
from vlp.evaluation.predict import Predictions, predict, predict_items, predict_rows
from vlp.evaluation.settings import EvaluationSettings

# Images uint8 [images, 3, size, size], the keys of their samples and their classes, to one row an image.
MakeRows = Callable[[Tensor, list[str], list[int]], list[dict[str, Any]]]


def predict_labelled(
    data: LabelledImages, image_size: int, settings: EvaluationSettings, make: MakeRows, stage: str
) -> Predictions:
    """Run `make` over every good image that has a class. Other images are skipped, counted, and named in the log.

    Args:
        make: returns a row for each image, in order.
        stage: see `predict`.

    Raises:
        UserError: the data set is multi-label, or what `predict` raises.
    """
    bad = BadSamples(max_share=1.0)
    settings = replace(settings, about={**settings.about, "classes": data.names})

    def skip(key: str, reason: str) -> dict[str, Any]:
        bad.add(BadSample(data.source[0], key, reason))
        return {"key": key, "skipped": reason}

    def label(images: Tensor, keys: list[str], infos: list[dict]) -> list[dict[str, Any]]:
        kept, classes, skipped = [], [], []
        for row, (key, info) in enumerate(zip(keys, infos, strict=True)):
            try:
                classes.append(data.class_of(key, info))
                kept.append(row)
            except BadSampleError as error:
                skipped.append(skip(key, error.reason))
        return (make(images[kept], [keys[row] for row in kept], classes) if kept else []) + skipped

    def label_batch(batch: EvaluationBatch) -> list[dict[str, Any]]:
        return label(batch.images, batch.keys, batch.infos)

    def label_files(names: Sequence[str]) -> list[dict[str, Any]]:
        found = _decode_files(Path(data.source[0]), names, image_size, settings.workers)
        keys = [name for name, image in zip(names, found, strict=True) if not isinstance(image, str)]
        skipped = [skip(name, reason) for name, reason in zip(names, found, strict=True) if isinstance(reason, str)]
        images = [image for image in found if not isinstance(image, str)]
        return (label(torch.from_numpy(np.stack(images)), keys, [{}] * len(keys)) if images else []) + skipped

    if data.rows:
        return predict_rows(data.rows, image_size, settings, label_batch, stage)
    if data.folders is None:
        return predict(data.source, image_size, settings, label_batch, stage)
    names = LoosePictures(data.source[0]).names
    facts = {"folder": identity(data.source[0]), "files": _stamp_files(Path(data.source[0]), names)}
    return predict_items(names, settings, label_files, stage, facts | {"image size": image_size})


def _decode_files(folder: Path, names: Sequence[str], size: int, threads: int) -> list[np.ndarray | str]:
    """Each image as uint8 [3, size, size], or the reason why it cannot be used; decoded by at least one thread."""

    def decode(name: str) -> np.ndarray | str:
        try:
            return evaluation_image(decode_pixels((folder / name).read_bytes(), shortest=size), size)
        except OSError:
            return "unreadable file"
        except BadSampleError as error:
            return error.reason

    if threads < 2:
        return [decode(name) for name in names]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(decode, names))


def _stamp_files(folder: Path, names: list[str]) -> str:
    """A digest of names, sizes and times of files."""
    stamps = "\n".join(f"{name} {file_stamp(str(folder / name))}" for name in names)
    return hashlib.sha256(stamps.encode("utf-8", "backslashreplace")).hexdigest()[:16]
