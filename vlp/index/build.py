"""`vlp index`: embeds the images of folders and shards, and adds them to an index."""

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from vlp.data.bad_samples import BadSamples
from vlp.distributed import failing_together, gather_objects, is_main, run_on_main
from vlp.errors import UserError
from vlp.index.clip_retrieval import EmbeddingFiles, is_clip_retrieval
from vlp.index.fingerprint import check_model, fingerprint
from vlp.index.manifest import (
    IndexModel,
    Manifest,
    is_index,
    only_writer,
    part_path,
    read_manifest,
    unlisted_parts,
    write_left_out,
    write_manifest,
)
from vlp.index.neighbors import update_neighbors
from vlp.index.opened import Rows, open_files
from vlp.index.parts import BadImage, IndexedImage, write_part
from vlp.index.pixels import read_batches
from vlp.index.places import PASSING, KeptBad, Unit, no_images, read_unit, stored_stamp
from vlp.index.plan import Known, Plan, make_plan, read_known
from vlp.index.units import Report, share_units
from vlp.log import Progress
from vlp.model import Model
from vlp.model.video import FRAMES, encode_videos
from vlp.models.constant_weights import constant_weights

OWN = ("parts", "neighbors")  # what an interrupted first run leaves, besides hidden files
NAMED = 5  # changed and disappeared images that are named in the log

log = logging.getLogger("vlp")


@dataclass
class IndexCounts:
    """What is in an index, and what a run changed.

    Attributes:
        images: that can be found.
        embedded: by this run, changed ones included.
        changed, disappeared: files and shards.
        bad: images without a row, by reason.
    """

    images: int = 0
    embedded: int = 0
    changed: int = 0
    disappeared: int = 0
    bad: dict[str, int] = field(default_factory=dict)


def build_index(
    model: Model | None,
    images: str | Sequence[str],
    output: str,
    name: str = "",
    batch_size: int = 64,
    frames: int = FRAMES,
    quiet: bool = False,
) -> IndexCounts:
    """Write an index of images, or add to one; all processes of a launcher share the work.

    Images that the index has are not embedded again, nor are those that an interrupted run has embedded. Images that
    have disappeared from the folders and shards are left out of all results, and changed ones are embedded anew.

    Args:
        model: a BLIP or CLIP model; None for a folder of clip-retrieval, whose vectors are used where they are.
        images: folders of images and videos with their subfolders, files, shards, or one folder of clip-retrieval.
        output: the folder of the index.
        name: of the model, for people and for searches without a model.
        batch_size: images or frames encoded at once.
        frames: of each video; an index that exists keeps its number.
        quiet: print no progress.

    Raises:
        UserError: there are no images, the index was made with another model, or there is no model.
        WorkError: another run writes the index, or it cannot be written.
    """
    sources = [images] if isinstance(images, str) else list(images)
    folder = Path(output)
    if folder.exists() and not is_index(folder) and any(not _is_own(one.name) for one in folder.iterdir()):
        raise UserError(f"{output} exists already and is no index; choose another name or remove it.")
    if any(is_clip_retrieval(source) for source in sources):
        return _refer_to(sources, folder, model, name, quiet)
    if model is None:
        raise UserError("Indexing images needs a model; give its folder with --model.")
    with ExitStack() as stack:
        run_on_main(lambda: stack.enter_context(only_writer(folder)))
        with failing_together():
            manifest, known, plan, bad = _prepare(model, sources, folder, name, frames)
        attempt = 1 + max((int(one.split("-")[1]) for one in known.parts[len(manifest.parts) :]), default=0)
        names = f"{manifest.generation:06d}-{attempt:06d}"  # sorts after the parts of interrupted runs
        embed = partial(_embed_unit, model, manifest, folder, batch_size, names)
        passing = Counter[str]()
        share_units(plan.units, lambda *given: passing.update(embed(*given)), "embed", quiet)
        passing = sum(gather_objects(passing), Counter[str]()) + bad.counts
        counts = run_on_main(lambda: asdict(_finish(folder, manifest, known, plan, passing, quiet)))
    if not counts["images"] and not counts["disappeared"]:
        raise no_images(sources, "index", counts["bad"])
    return IndexCounts(**counts)


def _is_own(name: str) -> bool:
    return name in OWN or name.startswith(".")


def _prepare(
    model: Model, sources: list[str], folder: Path, name: str, frames: int
) -> tuple[Manifest, Known, Plan, BadSamples]:
    """The same in every process, before one of them writes."""
    manifest = read_manifest(folder) if is_index(folder) else Manifest(frames=frames)
    if manifest.embeddings:
        raise UserError(f"{folder} is an index of {manifest.embeddings}; index other images into another folder.")
    if manifest.generation:
        check_model(manifest.model, model, str(folder))
    else:
        manifest.model = IndexModel(fingerprint(model), name, model.config.embed_dim)
        run_on_main(lambda: _check_interrupted(folder, manifest))
    bad = BadSamples(max_share=1.0)
    known = read_known(folder, manifest)
    plan = make_plan(sources, known, bad if is_main() else BadSamples(max_share=1.0))
    if is_main():
        _name("changed", plan.changed)
        _name("disappeared", plan.disappeared)
        done = sum(known.rows) - sum(manifest.rows)
        if done:
            log.info("an interrupted run had embedded %d images, which are kept", done)
    return manifest, known, plan, bad


def _check_interrupted(folder: Path, manifest: Manifest) -> None:
    """In the first process: keep the parts of an interrupted first run apart from those of another model."""
    path = folder / "parts" / ".model"
    if unlisted_parts(folder, manifest) and path.exists() and path.read_text() != manifest.model.fingerprint:
        raise UserError(
            f"{folder} holds an interrupted index of another model; remove it or index into another folder."
        )
    path.write_text(manifest.model.fingerprint)


def _name(what: str, names: list[str]) -> None:
    for one in names[:NAMED]:
        log.warning("%s: %s", what, one)
    if len(names) > NAMED:
        log.warning("%s: %d more", what, len(names) - NAMED)


@constant_weights()
def _embed_unit(
    model: Model,
    manifest: Manifest,
    folder: Path,
    batch_size: int,
    names: str,
    number: int,
    unit: Unit,
    report: Report,
) -> Counter[str]:
    """Write the part of a unit; returns by reason the images that a later run tries again."""
    bad = KeptBad()
    images: list[IndexedImage] = []
    vectors = [np.empty((0, model.config.embed_dim), np.float32)]
    items = read_unit(unit, bad)
    for batch in read_batches(items, model.image_size, manifest.frames, batch_size, bad, thumbnails=True):
        embedded = model.embed_tokens(encode_videos(model, batch.pixels), batch.frames)
        vectors.append(embedded.float().numpy())
        for one in batch.decoded:
            caption = one.item.captions[0] if one.item.captions else None
            place, small = one.item.place, one.thumbnail
            images.append(IndexedImage(place, caption, one.width, one.height, batch.frames, small))
        report(len(batch.decoded))
    listed = [BadImage(*stored_stamp(unit, one), one.reason) for one in bad.lasting()]
    path = part_path(folder, f"{names}-{number:08d}")
    write_part(path, images, np.concatenate(vectors), listed)
    return Counter(one.reason for one in bad.samples if one.reason in PASSING)


def _finish(
    folder: Path, manifest: Manifest, known: Known, plan: Plan, passing: Counter[str], quiet: bool
) -> IndexCounts:
    """In the first process: list all parts, and make them searchable."""
    after = read_known(folder, manifest)
    bad = dict(Counter(one.reason for one in after.bad - known.bad | plan.bad) + passing)
    if not sum(after.rows):
        return IndexCounts(bad=bad)
    left_out = sorted(plan.left_out | known.left_out | after.left_out)
    made = IndexCounts(
        images=sum(after.rows) - len(left_out),
        embedded=sum(after.rows) - sum(known.rows),
        changed=len(plan.changed),
        disappeared=len(plan.disappeared),
        bad=bad,
    )
    manifest.parts, manifest.rows, manifest.generation = after.parts, after.rows, manifest.generation + 1
    write_left_out(folder, manifest, np.array(left_out, np.int64))
    _write(folder, manifest, quiet)
    return made


def _write(folder: Path, manifest: Manifest, quiet: bool) -> None:
    """Make all images of the manifest searchable, and replace `index.json`."""
    rows = Rows(open_files(folder, manifest), manifest.starts)
    with Progress("images", int(manifest.starts[-1]), quiet=quiet) as bar:
        update_neighbors(folder, manifest, rows.read, manifest.model.width, bar.add)
    write_manifest(folder, manifest)


def _refer_to(sources: list[str], folder: Path, model: Model | None, name: str, quiet: bool) -> IndexCounts:
    """An index of a folder of clip-retrieval, whose vectors stay where they are."""
    if len(sources) > 1:
        raise UserError(f"{sources[0]} is a folder of clip-retrieval; index each one into a folder of its own.")
    with only_writer(folder):
        files = EmbeddingFiles(Path(sources[0]).resolve())
        known = read_manifest(folder) if is_index(folder) else Manifest(embeddings=str(files.folder))
        if known.embeddings != str(files.folder):
            raise UserError(f"{folder} is an index of other images; index {sources[0]} into another folder.")
        if (files.names[: len(known.parts)], files.rows[: len(known.rows)]) != (known.parts, known.rows):
            known.neighbors, known.clusters, known.trained = [], "", 0
        known.parts, known.rows, known.generation = files.names, files.rows, known.generation + 1
        known.model = IndexModel(fingerprint(model) if model else "", name, files.width)
        if model:
            check_model(known.model, model, str(folder))
        _write(folder, known, quiet)
    return IndexCounts(images=sum(files.rows))
