"""CLIP_benchmark's webdatasets: zero-shot classification and retrieval."""

from collections.abc import Iterator
from pathlib import Path

from vlp.data.bad_samples import BadSample
from vlp.data.importers.tar_samples import read_tar
from vlp.data.importers.write import ImportedSample
from vlp.data.shard_index import index_shard
from vlp.errors import UserError
from vlp.files import read_text

KEPT = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt")
LONGEST_NUMBER = 9  # digits of a number of shards or of a class


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
        if template is not None and "{c}" not in template and "{}" not in template:
            raise UserError(f"The template {template!r} has no {{}} for the name of the class.")
        if not Path(folder).is_dir():
            raise UserError(f"There is no folder {folder}.")
        place = Path(folder, split)
        if not (place / "nshards.txt").is_file():
            splits = sorted(one.parent.name for one in Path(folder).glob("*/nshards.txt"))
            advice = f"it has {', '.join(splits)}" if splits else "check the path"
            raise UserError(f"{folder} has no {split}/nshards.txt of a CLIP_benchmark data set; {advice}.")
        count = read_text(place / "nshards.txt").strip()
        if not count.isdecimal() or len(count) > LONGEST_NUMBER:
            raise UserError(f"{place}/nshards.txt must hold the number of shards, not {count[:20]!r}.")
        self.shards: list[Path] = []
        for number in range(int(count)):
            self.shards.append(place / f"{number}.tar")
            if not self.shards[-1].is_file():
                raise UserError(f"There is no shard {self.shards[-1]}, though nshards.txt says {count}; download it.")
        self.template = template
        self.files = {name: Path(folder, name).read_bytes() for name in KEPT if Path(folder, name).is_file()}
        self.classes = _read_lines(folder, "classnames.txt")
        if template is not None and not self.classes:
            raise UserError(f"{folder} has no classnames.txt, which --caption-template needs.")

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
        number = label.decode("ascii", "replace").strip()
        if (
            not number.isdecimal()
            or len(number) > LONGEST_NUMBER
            or (self.classes and int(number) >= len(self.classes))
        ):
            return BadSample(shard, sample.key, "bad class")
        sample.info = {**sample.info, "cls": int(number)}
        if self.classes:
            sample.info["class_name"] = self.classes[int(number)]
        if self.template is not None:
            name = self.classes[int(number)]
            sample.captions.append(self.template.replace("{c}", name).replace("{}", name))
        return sample


def _read_lines(folder: str, name: str) -> list[str]:
    """The lines of a file beside the shards; none where it is missing."""
    path = Path(folder, name)
    return [line.strip() for line in read_text(path).splitlines()] if path.is_file() else []
