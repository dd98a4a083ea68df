"""What a task learns from a visit of a sample: what it draws from the sample, and the batch it makes of that."""

import random
from typing import Any, Protocol

import torch

from vlp.data.bad_samples import NO_TEXT, FilteredSampleError
from vlp.data.batch import Batch
from vlp.data.chunk import Chunk, stable_hash
from vlp.data.shards import Sample
from vlp.data.tokenizer import CaptionTokenizer
from vlp.data.transforms import clean_caption, prompted_caption


class Examples(Protocol):
    """The training examples of a task.

    Attributes:
        images: how many images of a sample are decoded: 1, or 2 where samples are pairs.
        texts: how many texts of a sample are drawn at most, where score tables give them.
    """

    images: int
    texts: int

    @property
    def label(self) -> str | None:
        """None where samples have texts; where they have a class, its column in a data set, or "" for a guess."""
        ...

    def draw(self, sample: Sample, rng: random.Random) -> Any:
        """What this visit of a sample teaches; called in a worker. All that is random comes from `rng`.

        Raises:
            FilteredSampleError: the sample has nothing to learn from.
            BadSampleError: it is broken.
        """
        ...

    def batch(self, chunk: Chunk) -> Any:
        """The batch of a chunk, made of its images and of what was drawn; called in the main process."""
        ...


class CaptionExamples:
    """Captions of each image: the examples of pretraining, captioning and retrieval."""

    images = 1
    label = None

    def __init__(self, tokenizer: CaptionTokenizer, max_tokens: int = 30, prompt: str = "", texts: int = 1):
        """Nothing is read yet.

        Args:
            max_tokens: longer captions are cut.
            prompt: is put before every caption.
            texts: distinct captions that are drawn for an image in a visit. Where it has fewer, all of them are drawn:
                a repeated caption would cost its time and teach little.
        """
        self.tokenizer, self.max_tokens, self.prompt, self.texts = tokenizer, max_tokens, prompt, texts

    def draw(self, sample: Sample, rng: random.Random) -> list[str]:
        """Some of the sample's own captions.

        Raises:
            FilteredSampleError: it has none.
        """
        usable = [caption for caption in sample.captions if clean_caption(caption)]
        if not usable:
            raise FilteredSampleError(NO_TEXT)
        if self.texts == 1:
            return [rng.choice(usable)]
        distinct = list(dict.fromkeys(usable))
        return rng.sample(distinct, min(len(distinct), self.texts))

    def batch(self, chunk: Chunk) -> Batch:
        """Images with their tokenized captions; see `Batch`."""
        # Captions of an image may become equal when they are cleaned.
        cleaned = [[prompted_caption(self.prompt, caption) for caption in drawn] for drawn in chunk.drawn]
        by_image = [list(dict.fromkeys(texts)) for texts in cleaned]
        texts = [text for of_image in by_image for text in of_image]
        ids, mask = self.tokenizer.encode(texts, self.max_tokens)
        text_hashes = torch.tensor([stable_hash(text) for text in texts])
        counts = torch.tensor([len(of_image) for of_image in by_image])
        index = None if bool((counts == counts[0]).all()) else torch.arange(len(counts)).repeat_interleave(counts)
        hashes = torch.tensor(chunk.image_hashes)
        lengths = mask.sum(dim=1).tolist()
        return Batch(chunk.images, chunk.keys, ids, mask, text_hashes, hashes, texts, index, lengths=lengths)
