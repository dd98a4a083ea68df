"""The reward of self-critical training: CIDEr-D with document frequencies of the training references."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from vlp.caption_metrics.cider import CiderD, DocumentFrequencies, count_documents
from vlp.caption_metrics.ngrams import NgramCounts, count_ngrams
from vlp.caption_metrics.ptb_tokenizer import tokenize_captions
from vlp.config import DataConfig
from vlp.data.bad_samples import BadSamples
from vlp.data.examples_references import usable_references
from vlp.data.shard_index import expand_shards
from vlp.data.shards import count_samples, iterate_samples
from vlp.distributed import is_main, run_on_main
from vlp.errors import UserError
from vlp.files import read_json, write_json
from vlp.log import Progress

END = "</s>"  # a word of its own, which rewards captions that end where references do


class CaptionReward:
    """CIDEr-D of sampled captions against the references of their images."""

    def __init__(self, frequencies: DocumentFrequencies):
        self.cider = CiderD(frequencies)

    def rewards(
        self, captions: Sequence[Sequence[str]], ended: Sequence[Sequence[bool]], references: Sequence[Sequence[str]]
    ) -> list[list[float]]:
        """The reward (0 to 10) of each caption of each image.

        Args:
            captions: of each image.
            ended: whether each caption was ended by the model, not cut at its longest length.
            references: of each image, at least one.
        """
        tokens = iter(tokenize_captions([caption for group in captions for caption in group]))
        rewards = []
        for ends, texts in zip(ended, references, strict=True):
            ours = [count_ngrams(f"{next(tokens)} {END}" if one else next(tokens)) for one in ends]
            rewards.append(self.cider.scores(ours, count_references(texts)))
        return rewards


def count_references(references: Sequence[str]) -> list[NgramCounts]:
    """The n-grams of an image's references with their ends."""
    return [count_ngrams(f"{tokens} {END}") for tokens in tokenize_captions(references)]


def training_frequencies(data: DataConfig, output: Path) -> DocumentFrequencies:
    """The document frequencies of all references of the training shards; each image is one document.

    The first process reads the texts of all shards once and keeps the result in OUTPUT/references.json, where the
    others and a resumed run find it. All processes call it.

    Raises:
        UserError: a source is no set of shards, or no sample has a caption.
    """
    path = output / "references.json"

    def count() -> None:
        if not path.exists():
            counted = _count_shards(data)
            frequencies = [[" ".join(ngram), number] for ngram, number in counted.frequencies.items()]
            write_json(path, {"images": counted.images, "frequencies": frequencies})

    run_on_main(count)
    saved = read_json(path)
    ngrams = {tuple(ngram.split(" ")): number for ngram, number in saved["frequencies"]}
    return DocumentFrequencies(saved["images"], Counter(ngrams))


def _count_shards(data: DataConfig) -> DocumentFrequencies:
    for source in data.sources:
        if source.dataset:
            raise UserError(
                f"Self-critical training counts the words of all references in shards; {source.dataset} is a data set: "
                "write shards from it with `vlp data import hf`."
            )
    shards = [path for source in data.sources if source.weight for path in expand_shards(source.shards)]
    with Progress("images", count_samples(shards), quiet=not is_main()) as progress:

        def references() -> Iterator[list[NgramCounts]]:
            for sample in iterate_samples(shards, BadSamples(data.max_bad_share)):
                progress.add("read references")
                if texts := usable_references(sample):
                    yield count_references(texts)

        counted = count_documents(references())
    if not counted.images:
        raise UserError("Self-critical training needs reference captions; no sample of data.sources has one.")
    return counted
