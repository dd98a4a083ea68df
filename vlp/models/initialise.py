"""The weights that a tower starts from."""

import torch
from torch import nn

DEVIATION, ITS_WIDTH = 0.02, 768  # of BERT and ViT, chosen at base size


def initialise(tower: nn.Module, width: int) -> None:
    """Draw a tower's matrices anew: normal, of deviation 0.02 at width 768, and biases zero.

    What a matrix makes of a unit-norm feature grows with the square root of its width. In a narrower tower the
    deviation grows by as much as the root shrinks; at 0.02 its attention would start all but uniform, and small
    models would take several times as many steps to learn to look at the image.
    """
    deviation = DEVIATION * (ITS_WIDTH / width) ** 0.5
    with torch.no_grad():
        for module in tower.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(std=deviation)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            positions = getattr(module, "pos_embed", None)
            if isinstance(positions, nn.Parameter):
                positions.normal_(std=deviation)
