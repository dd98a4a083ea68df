"""What can be evaluated on the data in a folder: shards, image folders and lists of videos, by their content."""

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from vlp.data.class_names import COUNT_FILE, NAMES_FILE
from vlp.data.importers.clip_benchmark import RAW_CAPTIONS, has_raw_captions
from vlp.data.shard_index import IMAGE_EXTENSIONS
from vlp.data.shards import iterate_samples
from vlp.data.transforms import clean_caption
from vlp.data.video import is_video
from vlp.data.video_lists import NAMES, file_names
from vlp.errors import UserError
from vlp.evaluation.results import dataset_name
from vlp.files import files_below

FIRST_SAMPLES = 8  # that are read to recognise shards
LONGEST_LINE = 2**20  # bytes of a list of videos that are read to recognise it


@dataclass(frozen=True)
class FoundData:
    """Data for one evaluation.

    Attributes:
        task: the name of the evaluation; "" where nothing can be evaluated, for the `reason`.
        dataset: the name of the data set; its path below the folder where several would have the same name.
        shards: of the test, or the image folder.
        train: the same of the training set, for a linear probe.
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
        UserError: the folder does not exist, or holds no data.
    """
    if not Path(folder).is_dir():
        raise UserError(f"There is no folder {folder}; name the one that holds the data sets.")
    places = files_below(folder)
    found: list[FoundData] = []
    for place in sorted(place for place, files in places.items() if any(name.endswith(".tar") for name in files)):
        found += _shards(place)
    found += _image_folders(places)
    for place, files in sorted(places.items()):
        for name in files:
            found += _videos(place / name, places) if name.endswith((".json", ".jsonl")) else []
    if not found:
        raise UserError(
            f"{folder} holds no shards (*.tar), no image folder and no list of videos beside a folder of videos."
        )
    return _named_apart(found, folder)


def _named_apart(found: list[FoundData], folder: str) -> list[FoundData]:
    """The same data with a path for a name where several data sets of a task have the same name."""
    counts = Counter((one.task, one.dataset) for one in found)

    def path(one: FoundData) -> str:
        source = Path(one.annotations or one.shards[0])
        return (source.parent if source.name == "*.tar" else source).relative_to(folder).as_posix()

    return [replace(one, dataset=path(one)) if counts[one.task, one.dataset] > 1 else one for one in found]


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
    if has_raw_captions(str(place / "0.tar")):
        return [FoundData("", dataset, shards, reason=RAW_CAPTIONS)]
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


def _image_folders(places: dict[Path, list[str]]) -> list[FoundData]:
    """Folders with several subfolders of images, which are classes where the folder names them in classnames.txt."""
    holding = [place for place, files in places.items() if any(_is_image(name) for name in files)]
    counts = Counter(place.parent for place in holding)
    several = {place for place, count in counts.items() if count > 1 and place in places}
    found: list[FoundData] = []
    for place in sorted(several):
        dataset, shown = dataset_name(f"{place}/*"), [str(place)]
        if place.name == "train":
            continue
        if NAMES_FILE not in places[place]:
            reason = f"its subfolders of images are classes only where {NAMES_FILE} names them"
            found.append(FoundData("", dataset, shown, reason=reason))
            continue
        found.append(FoundData("classification", dataset, shown))
        if place.name in ("val", "test") and place.parent / "train" in several:
            found.append(FoundData("linear_probe", dataset, shown, [str(place.parent / "train")]))
    return found


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def _videos(path: Path, places: dict[Path, list[str]]) -> list[FoundData]:
    """What a list of videos, beside them or above their folder, is made for; nothing for any other JSON file.

    Where several folders have videos, those of the list are in the one with the video of its first row.
    """
    row = _first_row(path)
    task = "video_qa" if "question" in row else "video_retrieval" if "caption" in row else ""
    if not task or not any(name in row for name in NAMES):
        return []
    wanted = {Path(name).name for name in file_names(row)}
    videos = {
        place: {name for file in files if is_video(file) for name in (file, Path(file).stem)}
        for place, files in places.items()
        if place.is_relative_to(path.parent)
    }
    holding = sorted((not names & wanted, place) for place, names in videos.items() if names)
    if not holding:
        return [FoundData("", path.stem, annotations=str(path), reason="no folder beside this list has videos")]
    inside = holding[0][1].relative_to(path.parent).parts[:1]
    return [FoundData(task, path.stem, annotations=str(path), videos=str(path.parent.joinpath(*inside)))]


def _first_row(path: Path) -> dict[str, Any]:
    """The first object of a JSON list or of JSON lines; {} where there is none."""
    try:
        with path.open("rb") as file:
            start = file.read(LONGEST_LINE).decode("utf-8", "ignore").lstrip("\ufeff [\n\r\t")
        row = json.JSONDecoder().raw_decode(start)[0]
    except (ValueError, OSError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}
