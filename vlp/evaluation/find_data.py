"""What can be evaluated on the data in a folder: shards and lists of videos, recognised by their content."""

import json
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from vlp.data.class_names import COUNT_FILE, NAMES_FILE
from vlp.data.shards import iterate_samples
from vlp.data.transforms import clean_caption
from vlp.data.video import is_video
from vlp.errors import UserError
from vlp.evaluation.results import dataset_name

FIRST_SAMPLES = 8  # that are read to recognise shards
LONGEST_LINE = 2**20  # bytes of a list of videos that are read to recognise it
MOST_NAMES = 1000  # files of a folder among which a video is looked for


@dataclass(frozen=True)
class FoundData:
    """Data for one evaluation.

    Attributes:
        task: the name of the evaluation; "" where nothing can be evaluated, for the `reason`.
        dataset: the name of the data set.
        shards: of the test.
        train: shards of the training set, for a linear probe.
        annotations, videos: a list of videos and the folder of its files.
    """

    task: str
    dataset: str
    shards: list[str] = field(default_factory=list)
    train: list[str] = field(default_factory=list)
    annotations: str = ""
    videos: str = ""
    reason: str = ""


def find_data(folder: str) -> list[FoundData]:
    """All data below a folder, in the order of their paths. Folders named `train` serve linear probes only.

    Raises:
        UserError: the folder does not exist, or holds neither shards nor lists of videos.
    """
    if not Path(folder).is_dir():
        raise UserError(f"There is no folder {folder}; name the one that holds the data sets.")
    found: list[FoundData] = []
    for place in sorted({path.parent for path in Path(folder).rglob("*.tar") if not _is_hidden(path, folder)}):
        found += _shards(place)
    for path in sorted(one for one in Path(folder).rglob("*.json*") if one.suffix in (".json", ".jsonl")):
        found += [] if _is_hidden(path, folder) else _videos(path)
    if not found:
        raise UserError(f"{folder} holds no shards (*.tar) and no list of videos beside a folder of videos.")
    return found


def _is_hidden(path: Path, folder: str) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _shards(place: Path) -> list[FoundData]:
    """What the first samples of a folder of shards are made for."""
    if place.name == "train":
        return []
    shards = [str(place / "*.tar")]
    dataset = dataset_name(shards)
    if (place / NAMES_FILE).exists() or ((place / COUNT_FILE).exists() and (place.parent / NAMES_FILE).exists()):
        train = place.parent / "train"
        found = [FoundData("classification", dataset, shards)]
        if place.name in ("val", "test") and any(train.glob("*.tar")):
            found.append(FoundData("linear_probe", dataset, shards, [str(train / "*.tar")]))
        return found
    samples = list(islice(iterate_samples(sorted(map(str, place.glob("*.tar")))), FIRST_SAMPLES))
    infos = [sample.info for sample in samples]
    if any(isinstance(info.get("questions"), list) for info in infos):
        tasks = ["vqa"]
    elif any(isinstance(info.get("dialog"), list) for info in infos):
        tasks = ["visdial"]
    elif any(info.get("images") == 2 and "sentence" in info for info in infos):
        tasks = ["nlvr2"]
    elif any(map(clean_caption, (text for sample in samples for text in sample.captions))):
        tasks = ["captioning"] if any("domain" in info for info in infos) else ["retrieval", "captioning"]
    else:
        return [FoundData("", dataset, shards, reason="its first samples have no captions, questions or classes")]
    return [FoundData(task, dataset, shards) for task in tasks]


def _videos(path: Path) -> list[FoundData]:
    """What a list of videos, beside them or beside their folder, is made for; nothing for any other JSON file."""
    row = _first_row(path)
    if not any(name in row for name in ("clip_name", "video", "video_id")):
        return []
    task = "video_qa" if "question" in row else "video_retrieval" if "caption" in row else ""
    for folder in [path.parent, *sorted(one for one in path.parent.iterdir() if one.is_dir())]:
        if task and any(map(is_video, islice(folder.iterdir(), MOST_NAMES))):
            return [FoundData(task, path.stem, annotations=str(path), videos=str(folder))]
    return []


def _first_row(path: Path) -> dict[str, Any]:
    """The first object of a JSON list or of JSON lines; {} where there is none."""
    try:
        with path.open("rb") as file:
            start = file.read(LONGEST_LINE).decode("utf-8", "ignore").lstrip("\ufeff [\n\r\t")
        row = json.JSONDecoder().raw_decode(start)[0]
    except (ValueError, OSError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}
