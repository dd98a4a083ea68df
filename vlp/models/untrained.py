"""Parts of a converted network that its source lacked: named in its config, and refused until a training has them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import nn

from vlp.config_model import ModelConfig
from vlp.errors import UserError
from vlp.models.finetuned import refuse_finetuned
from vlp.models.network import require_network

# The parts without which a use of the model means nothing, and the recipe that trains each.
PARTS = {
    "image_projection": "retrieval",
    "text_projection": "retrieval",
    "itm_head": "retrieval",
    "cross_attention": "captioning",
    "language_head": "captioning",
}
EMBEDDING = ("image_projection", "text_projection")
MATCHING = ("cross_attention", "itm_head")
CAPTIONING = ("cross_attention", "language_head")


def parts_of(names: Iterable[str]) -> list[str]:
    """Which of `PARTS` have a weight among names of weights."""
    used = {part for name in names for part in name.split(".")}
    return [part for part in PARTS if part in used]


def trained_config(blip: nn.Module, config: ModelConfig) -> ModelConfig:
    """The config of a network after a training: parts with a weight that is trained are no longer untrained."""
    trained = parts_of(name for name, weight in blip.named_parameters() if weight.requires_grad)
    return replace(config, untrained=[part for part in config.untrained if part not in trained])


def require_trained(config: ModelConfig, parts: Sequence[str], use: str) -> None:
    """Check that a model has the weights that a use needs.

    Args:
        parts: some of `PARTS`.
        use: what the caller asked for, such as "match images and texts".

    Raises:
        UserError: some of them are random, because the model was converted from one without them; the network has no
            such parts; or finetuning for another task left them behind.
    """
    if set(parts) - set(EMBEDDING):
        require_network(config, "blip", use)
    if "language_head" not in parts:  # which VQA's finetuning trains
        refuse_finetuned(config, use)
    missing = [part for part in parts if part in config.untrained]
    if missing:
        raise UserError(
            f"The model cannot {use}: it was converted from one without {' and '.join(missing)}, whose weights are "
            f"random; finetune it first: vlp finetune configs/{PARTS[missing[0]]}.yaml start_from=MODEL."
        )
