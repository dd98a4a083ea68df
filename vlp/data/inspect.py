"""What shards contain: counts, bad samples, caption lengths, image sizes, frequent words."""

import random
from collections import Counter
from statistics import median

from PIL import Image

from vlp.data.bad_samples import BadSample, BadSampleError, BadSamples
from vlp.data.image_decoding import decode_image
from vlp.data.shard_index import expand_shards
from vlp.data.shards import iterate_samples
from vlp.data.transforms import clean_caption
from vlp.errors import UserError
from vlp.log import ReportProgress, no_progress

# Words that say nothing about a data set.
STOP_WORDS = frozenset(["a", "an", "the", "of", "in", "on", "at", "to", "is", "are", "and", "with", "by", "for", "its"])
PICTURES = 40  # on the contact sheet


def inspect_shards(shards: str | list[str], progress: ReportProgress = no_progress) -> dict:
    """Read and decode every sample.

    Returns:
        `shards`, `samples`, `without_text` (samples that have no caption), `captions`, `bad` (by reason),
        `caption_words` (least, median, most), `image_sizes` (the ten most frequent "WIDTHxHEIGHT" and their counts),
        `frequent_words` (twenty), and `pictures`: (PIL image, caption) of samples drawn at random, for a contact sheet.

    Raises:
        UserError: no shard matches, or none has a readable sample.
    """
    bad = BadSamples(max_share=1.0)
    paths = expand_shards(shards)
    sizes: Counter[str] = Counter()
    words: Counter[str] = Counter()
    lengths: list[int] = []
    pictures: list[tuple[Image.Image, str]] = []
    rng, samples, without_text = random.Random(0), 0, 0
    for sample in iterate_samples(paths, bad):
        progress("inspect", 1)
        try:
            picture = decode_image(sample.image)
        except BadSampleError as error:
            bad.add(BadSample(sample.shard, sample.key, error.reason), counted=True)
            continue
        samples += 1
        without_text += not sample.captions
        sizes[f"{picture.width}x{picture.height}"] += 1
        for caption in sample.captions:
            split = clean_caption(caption).split()
            lengths.append(len(split))
            words.update(word for word in split if word not in STOP_WORDS and any(map(str.isalnum, word)))
        place = len(pictures) if len(pictures) < PICTURES else rng.randrange(samples)  # reservoir sampling
        if place < PICTURES:
            picture.thumbnail((256, 256))
            pictures[place : place + 1] = [(picture, sample.captions[0] if sample.captions else "")]
    if not samples:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in bad.counts.most_common()) or "they are empty"
        more = f" and {len(paths) - 1} more shards" if len(paths) > 1 else ""
        raise UserError(f"No sample can be read from {paths[0]}{more} ({reasons}).")
    return {
        "shards": len(paths),
        "samples": samples,
        "without_text": without_text,
        "captions": len(lengths),
        "bad": dict(bad.counts),
        "caption_words": {"least": min(lengths), "median": median(lengths), "most": max(lengths)} if lengths else {},
        "image_sizes": dict(sizes.most_common(10)),
        "frequent_words": dict(words.most_common(20)),
        "pictures": pictures,
    }
