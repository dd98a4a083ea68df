"""The folder of an index: `index.json`, which lists its parts in order, and the files that it refers to.

    index.json          format, model, parts, rows that were left out, neighbors
    parts/*.arrow       images with vectors and thumbnails, see `vlp/index/parts.py`
    left-out-*.npy      int64: the numbers of images that have disappeared or changed
    neighbors/*.faiss   what makes search fast, see `vlp/index/neighbors.py`

`index.json` is replaced at the end of a run, so that readers see the index before or after it. Image number n is row n
of all parts, one after the other; numbers never change.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vlp.config_reader import from_dict, to_dict
from vlp.errors import UserError, WorkError
from vlp.files import locked, read_json, remove, write_errors, write_json, writing
from vlp.index.parts import ENDING, Part

FORMAT = "vlp-index-1"
NAME = "index.json"


@dataclass
class IndexModel:
    """The model of an index: its fingerprint, the name under which it was loaded, and the length of its vectors."""

    fingerprint: str = ""
    name: str = ""
    width: int = 0


@dataclass
class Manifest:
    """What `index.json` says.

    Attributes:
        generation: how many runs have completed.
        parts, rows: the names of the parts in order, and their numbers of images.
        left_out: the file with the numbers of images that are left out; "" for none.
        neighbors: the files of `neighbors/`, in order.
        clusters: the file in `neighbors/` that holds the clusters of a large index; "" for an exact search.
        trained: the number of images when the clusters were trained.
        embeddings: the folder of clip-retrieval whose files take the place of parts; "" for an index with parts.
    """

    format: str = FORMAT
    model: IndexModel = field(default_factory=IndexModel)
    frames: int = 8
    generation: int = 0
    parts: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    left_out: str = ""
    neighbors: list[str] = field(default_factory=list)
    clusters: str = ""
    trained: int = 0
    embeddings: str = ""

    @property
    def starts(self) -> np.ndarray:
        """int64 [parts + 1]: the number of each part's first image, and of all images."""
        return np.concatenate([[0], np.cumsum(self.rows, dtype=np.int64)]).astype(np.int64)


def is_index(folder: str | Path) -> bool:
    """Whether a folder holds an index."""
    return (Path(folder) / NAME).is_file()


def read_manifest(folder: str | Path) -> Manifest:
    """The `index.json` of an index.

    Raises:
        UserError: there is none, it is damaged or of another format.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        if unlisted_parts(Path(folder), Manifest()):
            raise UserError(f"The index {folder} is not finished; rerun the `vlp index` that wrote it to continue it.")
        raise UserError(f"{folder} is no index of images; write one with `vlp index IMAGES {folder} --model MODEL`.")
    values = read_json(path)
    if values.get("format") != FORMAT:
        raise UserError(f"{path} has the format {values.get('format')}, not {FORMAT}; index into another folder.")
    try:
        return from_dict(Manifest, values)
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace `index.json`, and remove files that it no longer refers to."""
    write_json(folder / NAME, to_dict(manifest))
    kept = {manifest.left_out, manifest.clusters, *manifest.neighbors}
    for old in [*folder.glob("left-out-*.npy"), *(folder / "neighbors").glob("*.faiss")]:
        if old.name not in kept:
            old.unlink(missing_ok=True)


def part_path(folder: Path, name: str) -> Path:
    """The file of a part."""
    return folder / "parts" / f"{name}{ENDING}"


def unlisted_parts(folder: Path, manifest: Manifest) -> list[str]:
    """The parts that an interrupted run finished, in order."""
    listed = set(manifest.parts)
    return sorted(one.stem for one in (folder / "parts").glob(f"[!.]*{ENDING}") if one.stem not in listed)


def open_part(folder: Path, name: str) -> Part:
    """A part by its name; raises UserError if it is damaged."""
    return Part(part_path(folder, name))


def read_left_out(folder: Path, manifest: Manifest) -> np.ndarray:
    """The numbers of images that are left out, int64, sorted."""
    if not manifest.left_out:
        return np.empty(0, np.int64)
    try:
        return np.load(folder / manifest.left_out, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise UserError(f"{folder / manifest.left_out} cannot be read; index again.") from None


def write_left_out(folder: Path, manifest: Manifest, numbers: np.ndarray) -> None:
    """Write the numbers of images that are left out, int64, sorted, and name the file in the manifest."""
    manifest.left_out = f"left-out-{manifest.generation}.npy" if len(numbers) else ""
    if manifest.left_out:
        with writing(folder / manifest.left_out) as temporary, open(temporary, "wb") as file:
            np.save(file, numbers)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other runs from writing the folder, which is created where it is missing; a killed run does not block it.

    Raises:
        WorkError: another run writes it now, or it cannot be written.
    """
    with write_errors(folder):
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        (folder / "neighbors").mkdir(exist_ok=True)
    with locked(folder / ".lock", wait=False) as alone:
        if not alone:
            raise WorkError(f"Another run writes the index {folder} now; wait for it.")
        for left in [*(folder / "parts").glob(".*.tmp-*"), *(folder / "neighbors").glob(".*.tmp-*")]:
            remove(left)
        try:
            yield
        finally:
            if not is_index(folder) and not unlisted_parts(folder, Manifest()):
                remove(folder)  # nothing was indexed
