"""Print the tables of docs/encoders.md: tokens, parameters and multiply-adds of the variants of image encoders.

    python scripts/encoder_tables.py

Everything is counted on the meta device, which takes seconds. The accuracies are the papers'.
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from vlp.config_model import ImageEncoderConfig
from vlp.models.image_encoders.families import FAMILIES, build_tower, resolve

# Sides of images in pixels: CIFAR's for the families made for it, those of the published weights for two large models.
SIDES = {"vit_lite": 32, "cvt_compact": 32, "cct": 32, "cct:14/7x2": 224, "hybrid:B/R50": 384, "cvt:w24": 384}
# Top-1 accuracies in percent, on ImageNet, or on CIFAR-10 after 200 epochs where images have 32 pixels. No other paper
# trained ViT on ImageNet alone as well as DeiT (Touvron et al. 2021), whose figures stand for Ti, S and B.
PAPERS: dict[str, dict[str, float]] = {
    "vit": {"Ti/16": 72.2, "S/16": 79.8, "B/16": 81.8},
    "hybrid": {"Ti/R": 71.8, "S/R26": 81.9, "B/R50": 85.0, "L/R50": 84.4},
    "vit_lite": {"7/4": 91.38},
    "cvt_compact": {"7/4": 92.43},
    "cct": {"2/3x2": 89.17, "6/3x1": 94.81, "7/3x1": 94.78, "14/7x2": 80.67},
    "t2t": {"7": 71.7, "10": 75.2, "12": 76.5, "14": 81.5, "19": 81.9, "24": 82.3}
    | {"t-14": 81.7, "t-19": 82.4, "t-24": 82.6},
    "pvt": {"tiny": 75.1, "small": 79.8, "medium": 81.2, "large": 81.7},
    "pvt_v2": {"b0": 70.5, "b1": 78.7, "b2": 82.0, "b3": 83.1, "b4": 83.6, "b5": 83.8},
    "cvt": {"13": 81.6, "21": 82.5, "w24": 87.6},
}
HEADER = [
    "| variant | image | tokens | width | parameters | multiply-adds | top-1 |",
    "| --- | --- | --- | --- | --- | --- | --- |",
]


def row(name: str) -> str:
    """The Markdown row of FAMILY:VARIANT. Parameters leave out the classifier."""
    family, _, variant = name.partition(":")
    side = SIDES.get(name, SIDES.get(family, 224))
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        tower = build_tower(resolve(ImageEncoderConfig(name, side))).eval()
        _, tokens, width = tower(torch.empty(1, 3, side, side)).shape
    parameters = sum(weight.numel() for weight in tower.parameters()) / 1e6
    flops = counter.get_total_flops() / 2e9
    accuracy = PAPERS[family].get(variant, "")
    return f"| `{name}` | {side} | {tokens} | {width} | {parameters:.2f}M | {flops:.2f}G | {accuracy} |"


def main() -> None:
    """Print all tables."""
    for family in FAMILIES:
        variants = [row(f"{family}:{variant}") for variant in FAMILIES[family].variants]
        print(f"\n### {family}\n", *HEADER, *variants, sep="\n")


if __name__ == "__main__":
    main()
