"""The networks that `ModelConfig.network` names, and sentences for those that cannot do what is asked."""

from vlp.config_model import ModelConfig, TextTowerConfig
from vlp.errors import UserError
from vlp.models.blip import Blip
from vlp.models.classifier import Classifier
from vlp.models.clip import Clip

Network = Blip | Clip | Classifier
KINDS = {"blip": "a BLIP model", "clip": "a CLIP model", "classifier": "a classifier"}


def build_network(config: ModelConfig, temperature: float = 0.07) -> Network:
    """The network of a config, with new weights.

    Args:
        temperature: that divides the cosines.

    Raises:
        UserError: the config is wrong.
    """
    if config.network == "classifier":
        return Classifier(config)
    return Clip(config, temperature) if config.network == "clip" else Blip(config, temperature)


def require_network(config: ModelConfig, network: str, use: str) -> None:
    """Check that a model has a network that a use needs.

    Args:
        network: a name of `KINDS`.
        use: what the caller asked for, such as "caption images".

    Raises:
        UserError: it has another one.
    """
    if config.network != network:
        raise UserError(f"The model is {KINDS[config.network]}, which cannot {use}; use {KINDS[network]}.")


def as_blip(network: Network, use: str = "match images and texts, generate captions or answer questions") -> Blip:
    """The network, if it is a BLIP.

    Raises:
        UserError: it is another one, which cannot do what `use` says.
    """
    require_network(network.config, "blip", use)
    assert isinstance(network, Blip)
    return network


def as_two_towers(network: Network, use: str = "embed images and texts") -> Blip | Clip:
    """The network, if it is a BLIP or a CLIP.

    Raises:
        UserError: it is a classifier, which cannot do what `use` says.
    """
    if isinstance(network, Classifier):
        raise UserError(
            f"The model is a classifier, which has no text tower and cannot {use}; use a BLIP or CLIP model."
        )
    return network


def as_clip(network: Network) -> Clip:
    """A CLIP with the two towers, the projections and the temperature of a network; a CLIP is returned itself.

    BLIP's projections lose their biases, because CLIP's have none.

    Raises:
        UserError: the network was finetuned for a task, which may have left its embeddings untrained.
    """
    if isinstance(network, Clip):
        return network
    network = as_blip(network, "become a CLIP model")
    config = network.config
    if config.finetuned_for:
        raise UserError(
            f"The model was finetuned for {config.finetuned_for} and cannot become a CLIP model; "
            "start from a pretrained model."
        )
    text = TextTowerConfig(**{**vars(config.text_tower), "sharing": TextTowerConfig().sharing})
    untrained = [part for part in config.untrained if part.endswith("_projection")]
    clip = Clip(ModelConfig(config.image_encoder, text, config.embed_dim, untrained, network="clip"))
    pretrained = network.state_dict()
    for name, weight in clip.state_dict().items():
        source = name if name in pretrained else name.replace(".shared.", ".encoder.")
        if source in pretrained:
            weight.copy_(pretrained[source])
    return clip.to(network.log_temperature.device).train(network.training)
