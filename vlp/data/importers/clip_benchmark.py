"""CLIP_benchmark's webdatasets: zero-shot classification and retrieval."""

from collections.abc import Iterator
from pathlib import Path

from vlp.data.bad_samples import BadSample, BadSampleError
from vlp.data.class_names import (
    COUNT_FILE,
    LONGEST_NUMBER,
    NAMES_FILE,
    TEMPLATES_FILE,
    TYPE_FILE,
    check_template,
    fill_template,
    read_class,
    read_names,
)
from vlp.data.importers.tar_samples import read_tar
from vlp.data.importers.write import ImportedSample
from vlp.data.shard_index import expand_shards, index_shard
from vlp.errors import UserError
from vlp.files import read_text
from vlp.remote import is_remote

RAW_CAPTIONS = (
    "a CLIP_benchmark data set as downloaded has a text with a caption on each line; import it with "
    "`vlp data import clip-benchmark`"
)
KEPT = (NAMES_FILE, TEMPLATES_FILE, TYPE_FILE)


class ClipBenchmark:
    """An `Importer` of one split. The class of an image becomes `cls` in its JSON, the lines of a text its captions.

    Attributes:
        files: what lies beside the shards and describes the data set, by name.
    """

    def __init__(self, folder: str, split: str = "test", template: str | None = None):
        """List the shards.

        Args:
            folder: with SPLIT/nshards.txt and SPLIT/0.tar, SPLIT/1.tar, ...
            template: makes a caption from the name of a class, which replaces {c} or {} in it; None makes no captions.

        Raises:
            UserError: a file is missing, or the template has no place for the name.
        """
        if template is not None:
            check_template(template)
        self.shards = split_shards(folder, split)
        self.template = template
        self.files = {name: Path(folder, name).read_bytes() for name in KEPT if Path(folder, name).is_file()}
        self.classes = read_names(Path(folder, NAMES_FILE)) if NAMES_FILE in self.files else []
        if template is not None and not self.classes:
            raise UserError(f"{folder} has no {NAMES_FILE}, which --caption-template needs.")

    def __len__(self) -> int:
        return sum(len(index.keys) + len(index.bad) for index in (index_shard(str(one)) for one in self.shards))

    def __iter__(self) -> Iterator[ImportedSample | BadSample]:
        for shard in self.shards:
            for sample in read_tar(str(shard)):
                yield sample if isinstance(sample, BadSample) else self._label(sample, str(shard))

    def _label(self, sample: ImportedSample, shard: str) -> ImportedSample | BadSample:
        """A sample with its class and its captions; a bad one where the class is none."""
        sample.captions = [line.strip() for text in sample.captions for line in text.splitlines() if line.strip()]
        sample.captions, sample.sources = list(dict.fromkeys(sample.captions)), []
        label = sample.extra.pop("cls", None)
        if label is None:
            return sample
        try:
            number = read_class(label, len(self.classes) or None)
        except BadSampleError as error:
            return BadSample(shard, sample.key, error.reason)
        sample.info = {**sample.info, "cls": number}
        if self.classes:
            sample.info["class_name"] = self.classes[number]
        if self.template is not None:
            sample.captions.append(fill_template(self.template, self.classes[number]))
        return sample


def has_raw_captions(shard: str) -> bool:
    """Whether a shard is of a data set for retrieval as downloaded, in which a text holds several captions."""
    if is_remote(shard):
        return False
    folder = Path(shard).absolute().parent
    kinds = [place / TYPE_FILE for place in (folder, folder.parent) if (place / TYPE_FILE).is_file()]
    return (folder / COUNT_FILE).is_file() and any("retrieval" in read_text(kind) for kind in kinds)


def refuse_raw_captions(shards: str | list[str]) -> None:
    """Raise a UserError where shards are of a data set for retrieval as downloaded."""
    for shard in expand_shards(shards):
        if has_raw_captions(shard):
            raise UserError(f"{shard} cannot be used: {RAW_CAPTIONS}.")


def split_shards(folder: str, split: str) -> list[Path]:
    """The shards FOLDER/SPLIT/0.tar, FOLDER/SPLIT/1.tar, ... of a data set, as many as SPLIT/nshards.txt says.

    Raises:
        UserError: one of these files is missing, or nshards.txt holds no number.
    """
    if not Path(folder).is_dir():
        raise UserError(f"There is no folder {folder}.")
    place = Path(folder, split)
    if not (place / COUNT_FILE).is_file():
        splits = sorted(one.parent.name for one in Path(folder).glob(f"*/{COUNT_FILE}"))
        advice = f"it has {', '.join(splits)}" if splits else "check the path"
        raise UserError(f"{folder} has no {split}/{COUNT_FILE} of a CLIP_benchmark data set; {advice}.")
    count = read_text(place / COUNT_FILE).strip()
    if not count.isdecimal() or len(count) > LONGEST_NUMBER:
        raise UserError(f"{place}/{COUNT_FILE} must hold the number of shards, not {count[:20]!r}.")
    shards = [place / f"{number}.tar" for number in range(int(count))]
    for shard in shards:
        if not shard.is_file():
            raise UserError(f"There is no shard {shard}, though {COUNT_FILE} says {count}; download it.")
    return shards
