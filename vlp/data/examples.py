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
    """

    images: int

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
    """A caption for each image: the examples of pretraining, captioning and retrieval."""

    images = 1
    label = None

    def __init__(self, tokenizer: CaptionTokenizer, max_tokens: int = 30, prompt: str = ""):
        """`prompt` is put before every caption; longer captions are cut at `max_tokens`."""
        self.tokenizer, self.max_tokens, self.prompt = tokenizer, max_tokens, prompt

    def draw(self, sample: Sample, rng: random.Random) -> str:
        """One of the sample's own captions.

        Raises:
            FilteredSampleError: it has none.
        """
        usable = [caption for caption in sample.captions if clean_caption(caption)]
        if not usable:
            raise FilteredSampleError(NO_TEXT)
        return rng.choice(usable)

    def batch(self, chunk: Chunk) -> Batch:
        """Images with a tokenized caption each; see `Batch`."""
        texts = [prompted_caption(self.prompt, caption) for caption in chunk.drawn]
        ids, mask = self.tokenizer.encode(texts, self.max_tokens)
        text_hashes = torch.tensor([stable_hash(text) for text in texts])
        return Batch(chunk.images, chunk.keys, ids, mask, text_hashes, torch.tensor(chunk.image_hashes), texts)
