"""Files of captions in COCO's format for results, [{image_id, caption}]: write them, and score existing ones."""

from collections.abc import Iterable
from typing import Any

from vlp.data.bad_samples import BadSampleError, BadSamples
from vlp.data.importers import recognise
from vlp.data.importers.annotation_rows import field
from vlp.data.shards import iterate_samples
from vlp.errors import UserError
from vlp.evaluation.captioning import Captioned, scored_results
from vlp.evaluation.results import Results, dataset_name, skipped_metrics

ImageId = int | str
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
    _, rows = recognise.read_kinds(path, (recognise.COCO_RESULTS,), COMMAND)
    captions: dict[ImageId, str] = {}
    for row in rows:
        try:
            image_id, caption = field(row, "image_id", (int, str)), field(row, "caption", str)
        except BadSampleError as error:
            raise UserError(f"{path} has a row without an image_id or a caption ({error.reason}): {row}.") from None
        if image_id in captions:
            raise UserError(f"{path} has two captions of the image_id {image_id}; keep one.")
        captions[image_id] = caption
    return captions


def _read_official(path: str) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """References and facts of each image by its id as text, from {images: [{id}], annotations: [{image_id}]}."""
    _, values = recognise.read_kinds(path, (recognise.COCO, recognise.NOCAPS), COMMAND)
    known: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for image in values["images"]:
        facts = {"domain": image["domain"]} if "domain" in image else {}
        known[str(image["id"])] = [], facts
    for row in values.get("annotations", []):
        if str(row["image_id"]) in known:
            known[str(row["image_id"])][0].append(row["caption"])
    return known


def _read_shards(shards: str | list[str]) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """The same of shards; the key of a sample stands for an `image_id` that it lacks."""
    known: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for sample in iterate_samples(shards, BadSamples(1.0)):
        facts = {"domain": sample.info["domain"]} if "domain" in sample.info else {}
        known[str(sample.info.get("image_id", sample.key))] = sample.captions, facts
    return known
