"""What the page shows: an index, a model, score tables and run folders, given or found in the demo's output."""

import glob
import os
from dataclasses import dataclass, field
from pathlib import Path

from vlp.errors import UserError

DEMO_FOLDERS = ("demo", "runs/demo")  # where `vlp demo` and its examples write
LOG = "log.jsonl"


@dataclass
class AppInputs:
    """What the tabs show; a tab appears when its part is not empty.

    Attributes:
        tables: score tables, as paths, URLs, globs and folders.
        labels: the folder of the labels; empty: that of the first table.
        also: other tables, by the name that rules use.
        runs: folders with a log.jsonl.
        model: a model's folder; empty: the one that made the index.
        index: a folder of `vlp index`.
        images: what to index first, into `index`, which may be a temporary folder then; empty: it is there.
    """

    tables: list[str] = field(default_factory=list)
    labels: str = ""
    also: dict[str, list[str]] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    model: str = ""
    index: str = ""
    images: str = ""


def demo_inputs(folder: str = "") -> AppInputs:
    """What a finished demo holds.

    Args:
        folder: its folder; empty: the one of `DEMO_FOLDERS` that is there.

    Raises:
        UserError: there is no demo whose web shards are scored.
    """
    folders = [folder] if folder else DEMO_FOLDERS
    found = next((one for one in folders if (Path(one) / "demo.json").is_file()), None)
    if found is None:
        raise UserError(f"There is no demo in {' or '.join(folders)}; run `vlp demo {folders[0]}` first.")
    tables = str(Path(glob.escape(found)) / "data" / "web" / "*.capfilt.parquet")
    if not glob.glob(tables):
        raise UserError(f"The demo in {found} is not finished; rerun `vlp demo {found}` to continue it.")
    inputs = AppInputs(tables=[tables], runs=find_runs([found]))
    model, scenes = Path(found) / "bootstrapped" / "model", Path(glob.escape(found)) / "data" / "held-out" / "*.tar"
    if model.is_dir() and glob.glob(str(scenes)):
        inputs.model, inputs.index, inputs.images = str(model), str(Path(found) / "index"), str(scenes)
    return inputs


def find_runs(folders: list[str]) -> list[str]:
    """Run folders: each given one with a log.jsonl, or the folders with one inside it; at most two levels down.

    Raises:
        UserError: there is none in a given folder.
    """
    runs: list[str] = []
    for folder in folders:
        levels = [Path(folder), *(Path(one) for one in sorted(glob.glob(f"{glob.escape(folder)}/*/")))]
        levels += [Path(one) for one in sorted(glob.glob(f"{glob.escape(folder)}/*/*/"))]
        found = [str(one) for one in levels if (one / LOG).is_file()]
        if not found:
            raise UserError(
                f"{folder} is no folder of runs: there is no {LOG} in it or two levels below; name the folder of a run."
            )
        runs += found
    return list(dict.fromkeys(os.path.normpath(one) for one in runs))
