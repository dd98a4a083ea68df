"""The tables of the paper that the ablations reproduce: rows, numbers and claims."""

from dataclasses import dataclass

DROPPED = "dropped"  # the share of synthetic texts that a selection drops
INEXACT_KEPT = "synthetic_inexact_kept"  # the share of inexact synthetic texts that a filter keeps


@dataclass(frozen=True)
class Row:
    """A pretrained model. `paper` has Flickr30k zero-shot IR@1 and TR@1, COCO CIDEr and NoCaps CIDEr; () if ours."""

    title: str
    stage: str
    paper: tuple[float, ...]
    texts: str = ""  # the selection stage, in tables that give the share of dropped synthetic texts
    paper_dropped: int = 0  # percent


@dataclass(frozen=True)
class Claim:
    """A claim of the paper about two stages: the first scores higher or, without `strict`, not lower.

    `measure` is the one measure that the claim is about; "" stands for the scores of pretrained models.
    """

    text: str
    first: str
    second: str
    strict: bool = True
    measure: str = ""


@dataclass(frozen=True)
class Table:
    """One table of the paper."""

    number: int
    title: str
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    note: str = ""
    experiments: tuple[Claim, ...] = ()  # of ours, on what the paper says or why our results differ


NONE = Row("none", "noisy", (82.1, 93.9, 127.8, 102.2))
BOTH = Row("captioner and filter", "captioned-filtered", (84.9, 94.8, 129.7, 105.1))
TABLES = (
    Table(
        1,
        "captioner and filter",
        (
            NONE,
            Row("filter", "filtered", (82.8, 94.1, 128.2, 102.7)),
            Row("captioner", "captioned", (83.6, 94.4, 128.9, 103.4)),
            BOTH,
        ),
        (
            Claim("the filter gains", "filtered", "noisy"),
            Claim("the captioner gains", "captioned", "noisy"),
            Claim("both gain", "captioned-filtered", "noisy"),
            Claim("both gain more than the filter alone", "captioned-filtered", "filtered"),
            Claim("both gain more than the captioner alone", "captioned-filtered", "captioned"),
        ),
        "Each time an image is used, one of its texts is drawn. Images whose texts were all filtered out are dropped, "
        "so the other images occur more often in the same number of steps.",
    ),
    Table(
        2,
        "decoding of the captioner",
        (
            NONE,
            Row("beam", "captioned-by-beam", (83.1, 94.1, 128.9, 103.5), "texts-beam", 19),
            Row("nucleus", "captioned-filtered", (84.9, 94.8, 129.7, 105.1), "texts-captioned-filtered", 25),
        ),
        (
            Claim("beam gains over none", "captioned-by-beam", "noisy"),
            Claim("nucleus gains more than beam", "captioned-filtered", "captioned-by-beam"),
            Claim("the filter drops more of nucleus", "texts-captioned-filtered", "texts-beam", measure=DROPPED),
        ),
        "Beam search with 3 beams, nucleus sampling with p = 0.9. Both rows use the same captioner and filter.",
    ),
    Table(
        3,
        "parameters shared by text encoder and decoder, without bootstrapping",
        (
            Row("all", "share-all", (81.0, 93.1, 125.9, 100.9)),
            Row("all but cross-attention", "share-all-but-cross-attention", (81.3, 93.1, 126.1, 101.2)),
            Row("all but self-attention", "noisy", (82.1, 93.9, 127.8, 102.2)),
            Row("nothing", "share-nothing", (81.9, 93.6, 127.4, 101.8)),
        ),
        (
            Claim("all but self-attention is better than all", "noisy", "share-all"),
            Claim(
                "all but self-attention is better than all but cross-attention",
                "noisy",
                "share-all-but-cross-attention",
            ),
            Claim("all but self-attention is no worse than nothing", "noisy", "share-nothing", strict=False),
        ),
    ),
    Table(
        4,
        "one model or two as captioner and filter",
        (
            Row(
                "one, finetuned for both at once",
                "captioned-filtered-by-one",
                (83.7, 94.3, 129.0, 103.5),
                "texts-shared",
                8,
            ),
            Row("two", "captioned-filtered", (84.9, 94.8, 129.7, 105.1), "texts-captioned-filtered", 25),
        ),
        (
            Claim("two are better than one", "captioned-filtered", "captioned-filtered-by-one"),
            Claim("two drop more texts than one", "texts-captioned-filtered", "texts-shared", measure=DROPPED),
        ),
        "The single model is finetuned with ITC, ITM and LM in every step, for as many steps as the captioner. The "
        "last table of this page has the filters on the captions of their own captioner and of the other.",
        (
            Claim(
                "one model keeps more inexact captions of its own than of the two",
                "shared",
                "filter-of-one",
                measure=INEXACT_KEPT,
            ),
            Claim(
                "of its own captions, one model keeps more inexact ones than the filter of the two does",
                "shared",
                "captions-of-one",
                measure=INEXACT_KEPT,
            ),
            Claim(
                "the filter of the two keeps no more inexact captions of its own captioner than of the one model",
                "captions-of-one",
                "nucleus",
                strict=False,
                measure=INEXACT_KEPT,
            ),
        ),
    ),
    Table(
        12,
        "web texts repeated to the size of the bootstrapped dataset",
        (
            NONE,
            Row("none, web texts repeated", "repeated", (82.2, 93.7, 127.7, 102.1)),
            BOTH,
            Row("none, as many steps as repeated", "noisy-as-many-steps", ()),
        ),
        (
            Claim("repeating gains nothing", "noisy", "repeated", strict=False),
            Claim("bootstrapping gains more than repeating", "captioned-filtered", "repeated"),
        ),
        "The web texts are repeated until they are as many as in the bootstrapped dataset, and trained for as many "
        "epochs as the row none. This row therefore takes more steps than the others; the last row takes as many, "
        "without repeated texts.",
        (Claim("repeating gains nothing beyond what its steps gain", "noisy-as-many-steps", "repeated", strict=False),),
    ),
    Table(
        13,
        "a new model on the bootstrapped dataset, or the old one continued",
        (
            Row("the old model continued", "continued", (84.6, 94.5, 129.9, 104.5)),
            Row("a new model", "captioned-filtered", (84.9, 94.8, 129.7, 105.1)),
            Row("a new model, twice as many steps", "captioned-filtered-twice-as-long", ()),
        ),
        (Claim("a new model is no worse", "captioned-filtered", "continued", strict=False),),
        "The continued model was trained for twice as many steps in total; the last row takes as many.",
        (
            Claim(
                "a new model is no worse after as many steps in total",
                "captioned-filtered-twice-as-long",
                "continued",
                strict=False,
            ),
        ),
    ),
)
