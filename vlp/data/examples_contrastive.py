"""What CLIP learns from: images with one or several captions each."""

import random
from dataclasses import dataclass

from torch import Tensor

from vlp.data.bad_samples import NO_TEXT, FilteredSampleError
from vlp.data.batch import DeviceBatch
from vlp.data.chunk import Chunk
from vlp.data.shards import Sample
from vlp.data.tokenizer import CaptionTokenizer
from vlp.data.transforms import clean_caption


@dataclass
class ContrastiveBatch(DeviceBatch):
    """Images with equally many captions each.

    Attributes:
        text_ids, text_mask: int64 and bool [images * captions, tokens]; ids begin with [CLS], and the captions of an
            image are adjacent.
    """

    text_ids: Tensor
    text_mask: Tensor


class ContrastiveExamples:
    """Captions of each image, whose encoding they share."""

    images = 1
    label = None

    def __init__(self, tokenizer: CaptionTokenizer, max_tokens: int, texts: int = 1):
        """Nothing is read yet.

        Args:
            max_tokens: longer captions are cut.
            texts: captions that are drawn for an image in a visit. Where it has fewer, some are repeated, so that all
                processes have as many texts.
        """
        self.tokenizer, self.max_tokens, self.texts = tokenizer, max_tokens, texts

    def draw(self, sample: Sample, rng: random.Random) -> list[str]:
        """Some of the sample's own captions.

        Raises:
            FilteredSampleError: it has none.
        """
        usable = list(dict.fromkeys(caption for caption in sample.captions if clean_caption(caption)))
        if not usable:
            raise FilteredSampleError(NO_TEXT)
        return rng.sample(usable, min(len(usable), self.texts))

    def batch(self, chunk: Chunk) -> ContrastiveBatch:
        """The batch of a chunk; see `ContrastiveBatch`."""
        texts = []
        for drawn in chunk.drawn:
            texts += [drawn[number % len(drawn)] for number in range(self.texts)]
        ids, mask = self.tokenizer.encode(list(map(self.tokenizer.form.clean, texts)), self.max_tokens)
        return ContrastiveBatch(chunk.images, chunk.keys, ids, mask)
