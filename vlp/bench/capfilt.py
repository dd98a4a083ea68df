"""Images a second of CapFilt's scoring: a web text and a new caption an image, beside a loop of `transformers`."""

import math
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from vlp.bench.caption import END, LENGTH, Size
from vlp.bench.timing import Measured, Work, compare, device
from vlp.capfilt.score import ScoreSettings, score_batch
from vlp.capfilt.scorers import Scorers, load_scorers
from vlp.capfilt.scoring_batches import ScoringBatch
from vlp.config import SamplingOverrides
from vlp.data.bad_samples import BadSamples
from vlp.data.shards import Sample
from vlp.data.tokenizer import BERT_SPECIALS, BLIP_SPECIALS, CaptionTokenizer
from vlp.model_folder import save_model
from vlp.models.blip import Blip
from vlp.models.cpu.linear import constant_weights

WORDS = 14  # of a web text


def bench_capfilt(size: Size, precision: str, batch: int, peers: bool) -> list[Measured]:
    """One batch of pictures in memory: captions by one model, ITM, ITC and likelihoods of all texts by it and another.

    Of the peers one makes the captions and the ITM of all texts alone, the other fills the same columns as ours.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.manual_seed(0)
    tokenizer = _tokenizer(size.vocabulary)
    scorers = _judges(size, tokenizer, precision)
    images = torch.randint(0, 256, (batch, 3, size.image_size, size.image_size), dtype=torch.uint8)
    numbers = torch.randint(END + 2, size.vocabulary - 2, (batch, WORDS)).tolist()
    texts = [" ".join(f"word{number}" for number in row) for row in numbers]
    samples = [Sample(str(row), "", b"", text, [text], {}, ["web"]) for row, text in enumerate(texts)]
    pictures = ScoringBatch(samples, [(size.image_size, size.image_size)] * batch, {size.image_size: images}, [], [])
    decoding = SamplingOverrides(min_length=LENGTH, max_length=LENGTH, repetition_penalty=1.0)
    settings, empty = ScoreSettings(decoding, batch_size=batch), BadSamples(math.inf)

    def ours() -> None:
        score_batch(pictures, scorers, settings, "bench.tar", empty)

    lines = []
    for what, every in (("peer without ITC, likelihoods", False), ("peer with every column", True)):

        def make_peer(every: bool = every) -> Work:
            return _transformers(size, images.to(device()), texts, tokenizer.tokenizer, dtype, every)

        if peers or every:
            what = f"score, 2 texts an image{', ' + what if peers else ''}"
            with constant_weights():  # as for the batches of a shard
                lines.append(compare(what, "images/s", batch, precision, ours, make_peer if peers else None))
    return lines


def _judges(size: Size, tokenizer: CaptionTokenizer, precision: str) -> Scorers:
    """A captioner and a filter, loaded as those of a run are."""
    with TemporaryDirectory() as folder:
        captioner, filter = f"{folder}/captioner", f"{folder}/filter"
        for name in (captioner, filter):
            save_model(Blip(size.config()), tokenizer, name)
        return load_scorers(captioner, filter, precision, device())


def _tokenizer(vocabulary: int) -> CaptionTokenizer:
    """One of words that are nothing but numbers, so that every caption is as many words as it was tokens."""
    words = [f"word{number}" for number in range(len(BERT_SPECIALS), vocabulary - len(BLIP_SPECIALS))]
    known = {word: number for number, word in enumerate([*BERT_SPECIALS, *words, *BLIP_SPECIALS])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", END), ("[CLS]", known["[CLS]"]))  # the peer's
    tokenizer.add_special_tokens([*BERT_SPECIALS, *BLIP_SPECIALS])
    return CaptionTokenizer(tokenizer)


def _transformers(
    size: Size, images: Tensor, texts: list[str], tokenizer: Tokenizer, dtype: torch.dtype, every: bool
) -> Work:
    """As their documentation has it, each call from the pixels; weights in the precision of the computation.

    Args:
        every: also ITC and likelihoods.
    """
    from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, PreTrainedTokenizerFast

    captioner: Any = BlipForConditionalGeneration(size.theirs())
    captioner.to(device=images.device, dtype=dtype).eval()
    judge: Any = BlipForImageTextRetrieval(size.theirs())
    judge.to(device=images.device, dtype=dtype).eval()
    words = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", sep_token="[SEP]")
    pixels = (images.float() / 127.5 - 1).to(dtype)

    def work() -> None:
        with torch.no_grad():
            ids = captioner.generate(
                pixel_values=pixels, do_sample=True, top_p=0.9, top_k=0, min_length=LENGTH, max_length=LENGTH
            )
            for some in (texts, words.batch_decode(ids, skip_special_tokens=True)):
                inputs = words(some, padding=True, return_token_type_ids=False, return_tensors="pt").to(images.device)
                judge(**inputs, pixel_values=pixels, use_itm_head=True).itm_score.softmax(dim=-1)
                if every:
                    judge(**inputs, pixel_values=pixels, use_itm_head=False)
                    captioner(**inputs, pixel_values=pixels, labels=inputs["input_ids"])

    return work
