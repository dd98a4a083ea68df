"""Files of captions in COCO's format for results, [{image_id, caption}]: write them, and score existing ones."""

import os
from collections.abc import Iterable
from typing import Any

from vlp.data.bad_samples import BadSampleError, BadSamples
from vlp.data.importers import recognise
from vlp.data.importers.annotation_rows import field, listed
from vlp.data.shards import iterate_samples
from vlp.errors import UserError
from vlp.evaluation.captioning import Captioned, scored_results
from vlp.evaluation.results import Results, dataset_name, skipped_metrics

ImageId = int | str
Known = dict[str, tuple[list[str], dict[str, Any]]]  # references and facts of each image by its id as text
COMMAND = "evaluate captions"  # for errors


def caption_file_rows(predictions: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Predictions of captioning as the servers of COCO and NoCaps take them.

    Returns:
        [{image_id, caption}]; the key of a sample stands for an `image_id` that it lacks.

    Raises:
        UserError: two images have the same id.
    """
    rows: dict[ImageId, str] = {}
    for row in predictions:
        image_id = row.get("image_id", row["key"])
        if image_id in rows:
            raise UserError(f"The image_id {image_id} occurs twice; caption each image once.")
        rows[image_id] = row["caption"]
    return [{"image_id": image_id, "caption": caption} for image_id, caption in rows.items()]


def score_caption_file(path: str, truth: str | list[str], java: bool = False) -> Results:
    """Score a file of captions against the references in shards, or in a file of COCO's or NoCaps's captions.

    As in COCO's evaluation, only images with a caption count; the others are counted as `images_without_caption`, and
    captions of unknown images as skipped.

    Raises:
        UserError: a file cannot be read or is of another kind, an image has two captions, or no image is known.
    """
    captions = read_caption_file(path)
    shown = truth if isinstance(truth, str) else " ".join(truth)
    known = _read_official(truth) if isinstance(truth, str) and truth.endswith(".json") else _read_shards(truth)
    found = [
        Captioned(str(image_id), caption, references, {"image_id": image_id, **info})
        for image_id, caption in captions.items()
        if str(image_id) in known
        for references, info in [known[str(image_id)]]
    ]
    unknown = [image_id for image_id in captions if str(image_id) not in known]
    if not found:
        raise UserError(
            f"None of the {len(captions)} image_ids of {path}, such as {next(iter(captions))}, is in {shown}; name the "
            "references of the same split."
        )
    if not any(one.references for one in found):
        raise UserError(f"{shown} has no reference captions of the images in {path}; name a file that has.")
    results = scored_results(found, dataset_name(truth), java)
    results.metrics["images_without_caption"] = len(known) - len(found)
    results.metrics |= skipped_metrics({"unknown image_id": len(unknown)} if unknown else {})
    return results


def read_caption_file(path: str) -> dict[ImageId, str]:
    """The caption of each image in a file of COCO's format for results.

    Raises:
        UserError: the file cannot be read, holds something else, or has two captions of one image.
    """
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; name the results file, [{{image_id, caption}}], and then the references.")
    _, rows = recognise.read_kinds(path, (recognise.COCO_RESULTS,), COMMAND, "results file")
    captions: dict[ImageId, str] = {}
    for row in rows:
        image_id, caption = _fields(path, row, image_id=(int, str), caption=str)
        if image_id in captions:
            raise UserError(f"{path} has two captions of the image_id {image_id}; keep one.")
        captions[image_id] = caption
    return captions


def _read_official(path: str) -> Known:
    """The images of {images: [{id}], annotations: [{image_id, caption}]}."""
    _, values = recognise.read_kinds(path, (recognise.COCO, recognise.NOCAPS), COMMAND)
    known: Known = {}
    for row in listed(path, values["images"], "images"):
        (number,) = _fields(path, row, id=(int, str))
        _add(known, path, number, [], row)
    for row in listed(path, values.get("annotations", []), "annotations"):
        number, caption = _fields(path, row, image_id=(int, str), caption=str)
        if str(number) not in known:
            raise UserError(f"{path} has a caption of the image_id {number}, which is not among its images.")
        known[str(number)][0].append(caption)
    return known


def _read_shards(shards: str | list[str]) -> Known:
    """The images of shards; the key of a sample stands for an `image_id` that it lacks."""
    known: Known = {}
    for sample in iterate_samples(shards, BadSamples(1.0)):
        _add(known, sample.shard, sample.info.get("image_id", sample.key), sample.captions, sample.info)
    return known


def _add(known: Known, path: str, image_id: Any, references: list[str], facts: dict[str, Any]) -> None:
    if str(image_id) in known:
        raise UserError(f"{path} has a second image with the image_id {image_id}; give each image once.")
    known[str(image_id)] = references, {"domain": facts["domain"]} if "domain" in facts else {}


def _fields(path: str, row: Any, **kinds: type | tuple[type, ...]) -> list[Any]:
    """The fields of a row of a file, in the order of their names and kinds; raises UserError if one is wrong."""
    try:
        return [field(row, name, kind) for name, kind in kinds.items()]
    except BadSampleError:
        raise UserError(
            f"{path} has a row without a proper {' or '.join(kinds)}: {str(row)[:100]}; correct or remove it."
        ) from None
