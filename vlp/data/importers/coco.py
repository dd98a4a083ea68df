"""COCO captions: the official JSON, Karpathy's and BLIP's."""

from vlp.data.importers import recognise
from vlp.data.importers.annotated_images import AnnotatedImages
from vlp.data.importers.annotation_rows import add_blip, add_karpathy, add_official, coco_image_id, refuse_splits

KINDS = (recognise.COCO, recognise.KARPATHY_COCO, recognise.BLIP_CAPTIONS)
SUBFOLDERS = ("train2014", "val2014", "train2017", "val2017", "test2014", "test2015", "test2017")


def coco(files: list[str], images: str, splits: list[str] | None = None) -> AnnotatedImages:
    """The images of COCO's caption files; the JSON of a sample has `image_id` as the official files have it.

    Args:
        files: captions_*.json, dataset_coco.json, or coco_karpathy_*.json.
        images: the folder of the images, or the one above train2014 and val2014.
        splits: the splits of Karpathy's file to take; None takes all.

    Raises:
        UserError: a file or folder is missing, unreadable or of another kind, or has no such split.
    """
    found = AnnotatedImages(images, SUBFOLDERS)
    for path in files:
        kind, values = recognise.read_annotations(path, KINDS, "coco")
        if kind is recognise.KARPATHY_COCO:
            add_karpathy(found, path, values, splits)
            continue
        refuse_splits(path, splits)
        if kind is recognise.COCO:
            add_official(found, path, values)
        else:
            add_blip(found, path, values, coco_image_id)
    return found
