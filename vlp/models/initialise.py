"""The weights that a new tower starts with."""

import torch
from torch import nn

BASE_DEVIATION, BASE_WIDTH = 0.02, 768  # of BERT and ViT at base size


def initialise(tower: nn.Module, width: int) -> None:
    """Draw new weights: linear layers, embeddings and positions normal, with deviation 0.02 at width 768; biases zero.

    Positions that need no gradient are fixed and stay.

    The output of a linear layer for a normalized feature grows with the square root of the width, so the deviation
    grows as the width shrinks. With 0.02 everywhere, the attention of narrow towers would start almost uniform, and
    small models would take several times as many steps to learn to look at the image.
    """
    deviation = BASE_DEVIATION * (BASE_WIDTH / width) ** 0.5
    with torch.no_grad():
        for module in tower.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(std=deviation)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            positions = getattr(module, "pos_embed", None)
            if isinstance(positions, nn.Parameter) and positions.requires_grad:
                positions.normal_(std=deviation)
