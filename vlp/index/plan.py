"""What `vlp index` has to do: compares the images that there are with those that the index has."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from tarfile import BLOCKSIZE

import numpy as np

from vlp.data.bad_samples import BadSamples
from vlp.data.shard_index import index_shard
from vlp.errors import UserError
from vlp.index.manifest import Manifest, open_part, read_left_out, unlisted_parts
from vlp.index.parts import BadImage
from vlp.index.places import FILE, Place, Unit, list_images
from vlp.index.units import split_units
from vlp.remote import is_remote

Rows = dict[str, tuple[str, int]]  # of files: path -> stamp and number
Unreadable = dict[tuple[str, str], dict[str, BadImage]]  # bad images: path and stamp -> key -> image


@dataclass
class Known:
    """The images of the parts, of which those of an interrupted run come last.

    Attributes:
        parts, rows: names of all parts, and their numbers of images.
        files: by path, the stamp and the number of each image that is a file.
        shards: by path, for each part the stamp (of its rows), the numbers and the offsets of the images.
        bad: images that could not be decoded.
        left_out: numbers of images that are never found.
    """

    parts: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    files: Rows = field(default_factory=dict)
    shards: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = field(default_factory=dict)
    bad: set[BadImage] = field(default_factory=set)
    left_out: set[int] = field(default_factory=set)


@dataclass
class Plan:
    """What to do: units with the images to embed, names of changed and disappeared images, numbers to leave out."""

    units: list[Unit] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    disappeared: list[str] = field(default_factory=list)
    left_out: set[int] = field(default_factory=set)
    bad: set[BadImage] = field(default_factory=set)  # of the images that there are


def read_known(folder: Path, manifest: Manifest) -> Known:
    """The images of the parts that the manifest lists, and of those that an interrupted run finished.

    Raises:
        UserError: a part is damaged.
    """
    known = Known(left_out=set(read_left_out(folder, manifest).tolist()))
    start = 0
    for name in [*manifest.parts, *unlisted_parts(folder, manifest)]:
        part = open_part(folder, name)
        known.parts.append(name)
        known.rows.append(len(part))
        known.bad.update(part.bad())
        paths, stamps = part.columns["path"].to_pylist(), part.columns["stamp"].to_pylist()
        offsets = part.columns["offset"].to_numpy()
        numbers = np.arange(start, start + len(part))
        kept = np.array([number not in known.left_out for number in numbers.tolist()], bool)
        for row in np.flatnonzero(kept & (offsets == FILE)).tolist():
            _, before = known.files.get(paths[row], ("", -1))
            if before >= 0:  # a run was interrupted after it had embedded a changed image
                known.left_out.add(before)
            known.files[paths[row]] = stamps[row], start + row
        in_shards = kept & (offsets != FILE)
        for path, stamp in dict.fromkeys((paths[row], stamps[row]) for row in np.flatnonzero(in_shards).tolist()):
            rows = np.array([pair == (path, stamp) for pair in zip(paths, stamps, strict=True)]) & in_shards
            known.shards.setdefault(path, []).append((stamp, numbers[rows], offsets[rows]))
        start += len(part)
    return known


def make_plan(images: list[str], known: Known, bad: BadSamples) -> Plan:
    """Compare folders and shards with what an index has.

    An image has disappeared if it was in one of the folders, or in a local shard beside the named ones, and is not
    there any more. Other folders and shards keep their images.

    Args:
        images: folders, files and shards; patterns are expanded.
        bad: gets the samples that the scan of a shard finds unusable.

    Raises:
        UserError: there is no such folder or shard, or a folder has lost all its images, as without its mount.
    """
    plan = Plan(left_out=set(known.left_out))
    images = [os.path.abspath(one) if os.path.exists(one) else one for one in images]
    files, shards = list_images(images, bad)
    folders = [one for one in images if os.path.isdir(one)]
    unreadable: Unreadable = {}
    for one in known.bad:
        unreadable.setdefault((one.path, one.stamp), {})[one.key] = one
    new_files = _compare_files(files, folders, known, unreadable, plan)
    compared = (_compare_shard(path, stamp, known, unreadable, plan, bad) for path, stamp in shards.items())
    new_rows = [one for one in compared if len(one[2])]
    beside = {os.path.dirname(path) for path in shards}
    for path in [path for path in known.shards if path not in shards and not is_remote(path)]:
        if os.path.dirname(path) in beside and not os.path.exists(path):
            plan.disappeared.append(path)
            _leave_out(known.shards[path], plan)
    plan.units = split_units(new_files, new_rows)
    return plan


def _compare_files(
    files: dict[str, Place], folders: list[str], known: Known, unreadable: Unreadable, plan: Plan
) -> list[Place]:
    """The new and changed files."""
    new = []
    for path, place in files.items():
        stamp, number = known.files.get(path, ("", -1))
        if number >= 0 and stamp != place.stamp:
            plan.changed.append(path)
            plan.left_out.add(number)
        if before := unreadable.get((path, place.stamp)):
            plan.bad.add(next(iter(before.values())))
        elif number < 0 or stamp != place.stamp:
            new.append(place)
    roots = tuple(os.path.join(folder, "") for folder in folders)
    for root in roots:
        count = sum(path.startswith(root) for path in known.files)
        if count and not any(path.startswith(root) for path in files):
            raise UserError(f"{root} has no image any more, and the index has {count}; check that it is mounted.")
    for path, (_, number) in known.files.items():
        if path not in files and path.startswith(roots):
            plan.disappeared.append(path)
            plan.left_out.add(number)
    return new


def _compare_shard(
    path: str, stamp: str, known: Known, unreadable: Unreadable, plan: Plan, bad: BadSamples
) -> tuple[str, str, np.ndarray]:
    """Path and stamp of a shard, and the rows of its new samples; all samples of a shard that has changed are new."""
    stored = known.shards.get(path, [])
    outdated = [one for one in stored if one[0] != stamp]
    if outdated:
        plan.changed.append(path)
        _leave_out(outdated, plan)
    index = index_shard(path)
    for one in index.bad:
        bad.add(one)
    new = np.ones(len(index.keys), bool)
    done = [offsets for made_with, _, offsets in stored if made_with == stamp]
    if done:
        new &= ~np.isin(index.members[:, 0].astype(np.int64) * BLOCKSIZE, np.concatenate(done))
    if before := unreadable.get((path, stamp)):
        for row in range(len(index.keys)):
            if (one := before.get(index.keys[row])) is not None:
                plan.bad.add(one)
                new[row] = False
    return path, stamp, np.flatnonzero(new)


def _leave_out(stored: list[tuple[str, np.ndarray, np.ndarray]], plan: Plan) -> None:
    for _, numbers, _ in stored:
        plan.left_out.update(numbers.tolist())
