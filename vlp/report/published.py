"""BLIP's published figures, for tables of results."""

from dataclasses import dataclass
from typing import Any

SOURCE = "Li et al., BLIP, 2022 (arXiv:2201.12086)"
MODELS = ("14M", "129M", "CapFilt-L", "ViT-L")  # images of the pretraining; CapFilt by a large model; the large model


@dataclass(frozen=True)
class Published:
    """Figures of one table of the paper.

    Attributes:
        task: the name of the evaluation.
        dataset: part of the data set's name.
        other: part of the names of other sets of as many items; COCO's validation has 5,000 images as its test has.
        items: the metric that counts what is evaluated, and its value for the whole test set.
        how: how the model was made for the task.
        figures: by our name of the metric, in the paper's units: for each of `MODELS`, or one of the model that the
            paper's table reports.
    """

    task: str
    dataset: str
    items: tuple[str, int]
    how: str
    figures: dict[str, tuple[float, ...]]
    other: str = ""


# VQA's published figures are those of the test server, which no local evaluation can compute.
PUBLISHED = (
    Published(
        "retrieval",
        "coco",
        ("images", 5000),
        "finetuned",
        {"i2t_r1": (80.6, 81.9, 81.2, 82.4), "t2i_r1": (63.1, 64.3, 64.1, 65.1)},
        "val",
    ),
    Published(
        "retrieval",
        "flickr30k",
        ("images", 1000),
        "finetuned on COCO",
        {"i2t_r1": (94.8, 96.0, 96.0, 96.7), "t2i_r1": (84.9, 85.0, 85.5, 86.7)},
    ),
    Published(
        "captioning",
        "coco",
        ("images", 5000),
        "finetuned",
        {"BLEU-4": (38.6, 39.4, 39.7, 40.4), "CIDEr": (129.7, 131.4, 133.3, 136.7)},
        "val",
    ),
    Published(
        "captioning",
        "nocaps",
        ("images", 4500),
        "finetuned on COCO",
        {"CIDEr": (105.1, 106.3, 109.6, 113.2), "SPICE": (14.4, 14.3, 14.7, 14.8)},
    ),
    Published("nlvr2", "dev", ("pairs", 6982), "finetuned", {"accuracy": (82.67, 82.48, 82.15)}),
    Published(
        "visdial",
        "visdial",
        ("images", 2064),
        "finetuned",
        {"mrr": (69.41,), "r1": (56.44,), "r5": (85.90,), "r10": (93.30,), "mean_rank": (3.20,)},
    ),
    Published(
        "video_retrieval",
        "msrvtt",
        ("videos", 1000),
        "zero-shot",
        {"t2v_r1": (43.3,), "t2v_r5": (65.6,), "t2v_r10": (74.7,), "t2v_median_rank": (2.0,)},
    ),
    Published("video_qa", "msrvtt", ("questions", 72821), "zero-shot", {"accuracy": (19.2,)}),
    Published("video_qa", "msvd", ("questions", 13157), "zero-shot", {"accuracy": (35.2,)}),
)


def published_figures(result: dict[str, Any], metric: str) -> str:
    """BLIP's figures of a metric of a result, such as `14M 80.6, 129M 81.9`; "" where none is for the same test set.

    Args:
        result: as CLIP_benchmark writes it.
    """
    for one in PUBLISHED:
        items, count = one.items
        name = result["dataset"].lower()
        same = one.task == result["task"] and one.dataset in name and not (one.other and one.other in name)
        if same and result["metrics"].get(items) == count and metric in one.figures:
            values = one.figures[metric]
            names = MODELS if len(values) > 1 else ("BLIP",)
            return ", ".join(f"{name} {value:g}" for name, value in zip(names, values, strict=False)) + f" ({one.how})"
    return ""
