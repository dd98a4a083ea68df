"""Visual Genome: region descriptions as captions of their image, and BLIP's vg_caption.json."""

from typing import Any

from vlp.data.importers import recognise
from vlp.data.importers.annotated_images import AnnotatedImages
from vlp.data.importers.annotation_rows import add_blip, each_row, field

KINDS = (recognise.VG_REGIONS, recognise.BLIP_CAPTIONS)
SUBFOLDERS = ("VG_100K", "VG_100K_2")


def visual_genome(files: list[str], images: str) -> AnnotatedImages:
    """The images of Visual Genome; the JSON of a sample keeps the `regions` with their boxes in pixels.

    Args:
        files: region_descriptions.json, or BLIP's vg_caption.json, which has no boxes.
        images: the folder of the images, or the one above VG_100K and VG_100K_2.

    Raises:
        UserError: a file or folder is missing, unreadable or of another kind.
    """
    found = AnnotatedImages(images, SUBFOLDERS)
    for path in files:
        kind, values = recognise.read_annotations(path, KINDS, "vg")
        if kind is recognise.VG_REGIONS:
            _add_regions(found, path, values)
        else:
            add_blip(found, path, values)
    return found


def _add_regions(images: AnnotatedImages, path: str, rows: list) -> None:
    """Add rows {id, regions: [{phrase, x, y, width, height, region_id}]}."""

    def add(row: Any) -> None:
        number, regions = field(row, "id", int), field(row, "regions", list)
        phrases = [(field(region, "phrase", str), None) for region in regions]
        images.add(path, (f"{number}.jpg",), phrases, {"image_id": number, "regions": regions})

    each_row(images, path, rows, "image", add)
