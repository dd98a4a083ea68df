"""Writes reviewers' labels as data for the filter: shards of right and wrong texts, and all pairs for evaluation."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from vlp.capfilt.review import Review
from vlp.data.examples_matching import WRONG_TEXTS
from vlp.data.shard_index import IMAGE_EXTENSIONS
from vlp.data.shard_writer import ShardWriter
from vlp.errors import UserError
from vlp.files import write_text, writing_folder
from vlp.log import Progress

PAIRS_FILE, IMAGES_FOLDER = "pairs.tsv", "images"


@dataclass
class ExportCounts:
    """What `export_labels` wrote. Texts on which reviewers disagree are left out, and counted as `disputed`."""

    accepted: int = 0
    rejected: int = 0
    disputed: int = 0
    images: int = 0
    skipped: dict[str, int] = field(default_factory=dict)  # images by reason


def export_labels(review: Review, output: str, quiet: bool = False) -> ExportCounts:
    """Write a new folder.

    OUTPUT/*.tar: the images with their accepted texts as captions, and their rejected ones as `wrong_texts` of the
    JSON, which `vlp finetune configs/retrieval.yaml objective.wrong_texts=4` learns to tell apart. An image all of
    whose texts were rejected has no caption.
    OUTPUT/pairs.tsv and OUTPUT/images: all labeled pairs, which `vlp evaluate matching` reads to score a filter.

    Raises:
        UserError: there are no labels for these tables, reviewers disagree on all of them, no image can be read, or the
            folder exists.
        WorkError: the folder cannot be written.
    """
    by_image: dict[int, dict[int, str]] = defaultdict(dict)
    counts = ExportCounts()
    for row, verdicts in review.verdicts().items():
        if len(set(verdicts)) > 1:
            counts.disputed += 1
            continue
        by_image[review.tables.image_of(row)][row] = verdicts[0]
    if not by_image and counts.disputed:
        raise UserError("Reviewers disagree on every labeled text; take the wrong verdicts back, then export.")
    if not by_image:
        raise UserError("No text of these tables is labeled; label some in `vlp app --tables`, then export.")
    with writing_folder(output) as folder, Progress("images", len(by_image), quiet=quiet) as progress:
        (folder / IMAGES_FOLDER).mkdir()
        lines = ["image\tcaption\tlabel"]
        with ShardWriter(folder) as writer:
            for image in sorted(by_image):
                lines += _export_image(review, image, by_image[image], writer, folder, counts)
                progress.add("export")
        if not counts.images:
            raise UserError(f"No image of the labeled texts can be read: {next(iter(counts.skipped))}")
        write_text(folder / PAIRS_FILE, "\n".join(lines) + "\n")
    return counts


def _export_image(
    review: Review, image: int, verdicts: dict[int, str], writer: ShardWriter, folder: Path, counts: ExportCounts
) -> list[str]:
    """Write one image; returns its lines of the table of pairs."""
    texts = [one for one in review.tables.texts(image) if one["id"] in verdicts]
    try:
        sample = review.images.sample(review.tables.table_of(image), texts[0]["key"])
    except UserError as error:
        reason = str(error)
        counts.skipped[reason] = counts.skipped.get(reason, 0) + 1
        return []
    extension = _extension(sample.image)
    name = f"{counts.images:06d}"  # a key of a shard never becomes a path
    (folder / IMAGES_FOLDER / f"{name}.{extension}").write_bytes(sample.image)
    listed = {
        verdict: [{"text": one["text"], "source": one["source"]} for one in texts if verdicts[one["id"]] == verdict]
        for verdict in ("accept", "reject")
    }
    counts.images += 1
    counts.accepted += len(listed["accept"])
    counts.rejected += len(listed["reject"])
    wrong = [one["text"] for one in listed["reject"]]
    info = {**sample.info, "captions": listed["accept"], WRONG_TEXTS: wrong}
    writer.write(name, sample.image, extension, listed["accept"][0]["text"] if listed["accept"] else None, info)
    labels = {"accept": "match", "reject": "no-match"}
    return [
        f"{name}.{extension}\t{' '.join(one['text'].split())}\t{labels[verdict]}"
        for verdict, given in listed.items()
        for one in given
    ]


def _extension(image: bytes) -> str:
    """The extension of an encoded image, by its first bytes."""
    starts = ((b"\x89PNG", "png"), (b"RIFF", "webp"))
    found = next((name for start, name in starts if image.startswith(start)), "jpg")
    assert found in IMAGE_EXTENSIONS
    return found
