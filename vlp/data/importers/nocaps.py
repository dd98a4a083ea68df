"""NoCaps: the official JSON with captions and domains, and BLIP's list of images."""

from vlp.data.importers import recognise
from vlp.data.importers.annotated_images import AnnotatedImages
from vlp.data.importers.annotation_rows import add_blip, add_official

KINDS = (recognise.NOCAPS, recognise.BLIP_NOCAPS)
SUBFOLDERS = ("val", "test")


def nocaps(files: list[str], images: str) -> AnnotatedImages:
    """The images of NoCaps; the JSON of a sample has `image_id`, and `domain` where the file has it.

    Args:
        files: nocaps_val_4500_captions.json, or BLIP's nocaps_val.json, which has no captions.
        images: the folder of the images, or the one above val and test.

    Raises:
        UserError: a file or folder is missing, unreadable or of another kind.
    """
    found = AnnotatedImages(images, SUBFOLDERS)
    for path in files:
        kind, values = recognise.read_annotations(path, KINDS, "nocaps")
        if kind is recognise.NOCAPS:
            add_official(found, path, values)
        else:
            add_blip(found, path, values, lambda row: row.get("img_id"))
    return found
