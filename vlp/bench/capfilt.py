"""`vlp bench capfilt`: CapFilt's scoring in images per second, compared with a loop around `transformers`."""

import math
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from vlp.bench.caption import END, LENGTH, Size
from vlp.bench.timing import Measured, Work, compare, device
from vlp.capfilt.pipeline import ScoreSettings, score_batches
from vlp.capfilt.scorers import Scorers, load_scorers
from vlp.capfilt.scoring_batches import ScoringBatch
from vlp.config import Precision, SamplingOverrides
from vlp.data.bad_samples import BadSamples
from vlp.data.shards import Sample
from vlp.data.tokenizer import BERT_SPECIALS, BLIP_SPECIALS, CaptionTokenizer
from vlp.model_folder import save_model
from vlp.models.blip import Blip
from vlp.models.constant_weights import constant_weights

WORDS = 14  # words of a web text
BATCHES = 8  # of a measurement: on a GPU, scoring starts a batch before the last one is done


def bench_capfilt(size: Size, precision: Precision, batch: int, peers: bool, compiled: bool = False) -> list[Measured]:
    """Score a batch of images in memory `BATCHES` times, each image with a web text and a new caption.

    The first peer computes only captions and ITM scores. The second one also computes ITC scores and likelihoods, like
    ours.

    Args:
        compiled: compile our models.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.manual_seed(0)
    tokenizer = _tokenizer(size.vocabulary)
    scorers = _load_scorers(size, tokenizer, precision, compiled)
    images = torch.randint(0, 256, (batch, 3, size.image_size, size.image_size), dtype=torch.uint8)
    numbers = torch.randint(END + 2, size.vocabulary - 2, (batch, WORDS)).tolist()
    texts = [" ".join(f"word{number}" for number in row) for row in numbers]
    samples = [Sample(str(row), "", b"", text, [text], {}, ["web"]) for row, text in enumerate(texts)]
    uids, sizes = [sample.key for sample in samples], [(size.image_size, size.image_size)] * batch
    scoring_batch = ScoringBatch(samples, uids, sizes, {size.image_size: images}, [], [])
    decoding = SamplingOverrides(min_length=LENGTH, max_length=LENGTH, repetition_penalty=1.0)
    settings, empty = ScoreSettings(decoding, batch_size=batch), BadSamples(math.inf)

    def ours() -> None:
        for _ in score_batches([scoring_batch] * BATCHES, scorers, settings, "bench.tar", empty):
            pass

    lines, count = [], BATCHES * batch
    for what, every in (("peer without ITC and likelihoods", False), ("peer with all columns", True)):

        def make_peer(every: bool = every) -> Work:
            return _transformers(size, images.to(device()), texts, tokenizer.tokenizer, dtype, every)

        if peers or every:
            what = f"score, 2 texts per image{', ' + what if peers else ''}"
            with constant_weights():  # as scoring the batches of a shard does
                lines.append(compare(what, "images/s", count, precision, ours, make_peer if peers else None))
    return lines


def _load_scorers(size: Size, tokenizer: CaptionTokenizer, precision: Precision, compiled: bool) -> Scorers:
    """A captioner and a filter, loaded from model folders as `vlp capfilt score` does."""
    with TemporaryDirectory() as folder:
        captioner, filter = f"{folder}/captioner", f"{folder}/filter"
        for name in (captioner, filter):
            save_model(Blip(size.config()), tokenizer, name)
        return load_scorers(captioner, filter, precision, device(), compiled)


def _tokenizer(vocabulary: int) -> CaptionTokenizer:
    """A tokenizer with one token per word, so that a caption has as many words as the captioner made tokens."""
    words = [f"word{number}" for number in range(len(BERT_SPECIALS), vocabulary - len(BLIP_SPECIALS))]
    known = {word: number for number, word in enumerate([*BERT_SPECIALS, *words, *BLIP_SPECIALS])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", END), ("[CLS]", known["[CLS]"]))  # for the peer
    tokenizer.add_special_tokens([*BERT_SPECIALS, *BLIP_SPECIALS])
    return CaptionTokenizer(tokenizer)


def _transformers(
    size: Size, images: Tensor, texts: list[str], tokenizer: Tokenizer, dtype: torch.dtype, every: bool
) -> Work:
    """The peer as its documentation shows it: each batch starts from the pixels. Weights are in the compute precision.

    Args:
        every: also compute ITC scores and likelihoods.
    """
    from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, PreTrainedTokenizerFast

    captioner: Any = BlipForConditionalGeneration(size.transformers_config())
    captioner.to(device=images.device, dtype=dtype).eval()
    matcher: Any = BlipForImageTextRetrieval(size.transformers_config())
    matcher.to(device=images.device, dtype=dtype).eval()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", sep_token="[SEP]")
    pixels = (images.float() / 127.5 - 1).to(dtype)

    def score() -> None:
        with torch.no_grad():
            ids = captioner.generate(
                pixel_values=pixels, do_sample=True, top_p=0.9, top_k=0, min_length=LENGTH, max_length=LENGTH
            )
            for captions in (texts, words.batch_decode(ids, skip_special_tokens=True)):
                inputs = words(captions, padding=True, return_token_type_ids=False, return_tensors="pt").to(
                    images.device
                )
                matcher(**inputs, pixel_values=pixels, use_itm_head=True).itm_score.softmax(dim=-1)
                if every:
                    matcher(**inputs, pixel_values=pixels, use_itm_head=False)
                    captioner(**inputs, pixel_values=pixels, labels=inputs["input_ids"])

    def work() -> None:
        for _ in range(BATCHES):
            score()

    return work
