"""All scores of captions against references, as COCO's evaluation reports them."""

from collections.abc import Sequence
from typing import NamedTuple

from vlp.caption_metrics.bleu import bleu
from vlp.caption_metrics.cider import CiderD, count_documents
from vlp.caption_metrics.java import java_scores
from vlp.caption_metrics.ngrams import count_ngrams
from vlp.caption_metrics.ptb_tokenizer import tokenize_captions
from vlp.caption_metrics.rouge import rouge_l
from vlp.errors import UserError


class CaptionScores(NamedTuple):
    """The scores of a set of captions by their names, and the CIDEr-D (0 to 10) of each caption."""

    metrics: dict[str, float]
    cider: list[float]


def caption_scores(captions: Sequence[str], references: Sequence[Sequence[str]], java: bool = False) -> CaptionScores:
    """BLEU-1 to BLEU-4, ROUGE-L and CIDEr-D of one caption for each image; equal to those of `pycocoevalcap`.

    Args:
        references: the human captions of each image, at least one.
        java: also METEOR and SPICE, where `pycocoevalcap` and Java can compute them; see `absent_metrics`.

    Returns:
        BLEU and ROUGE-L from 0 to 1, CIDEr from 0 to 10 (papers multiply both by 100). CIDEr takes document
        frequencies from the references.

    Raises:
        UserError: there is nothing to score, or an image has no reference.
    """
    if not captions or len(captions) != len(references) or not all(references):
        raise UserError("Caption scores need captions, one for each image, and references for every image.")
    tokens = tokenize_captions(captions)
    flat = iter(tokenize_captions([text for texts in references for text in texts]))
    truths = [[next(flat) for _ in texts] for texts in references]
    counts = [count_ngrams(one) for one in tokens]
    truth_counts = [[count_ngrams(one) for one in texts] for texts in truths]
    scorer = CiderD(count_documents(truth_counts))
    cider = [scorer.score(caption, texts) for caption, texts in zip(counts, truth_counts, strict=True)]
    images = len(tokens)
    scores = {f"BLEU-{order}": value for order, value in enumerate(bleu(counts, truth_counts), start=1)}
    scores["ROUGE-L"] = sum(map(rouge_l, tokens, truths)) / images
    scores["CIDEr"] = sum(cider) / images
    return CaptionScores(scores | (java_scores(tokens, truths) if java else {}), cider)
