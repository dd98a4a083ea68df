"""The classifier that a run trains, and the encoder of a classifier as the start of a model with texts."""

import logging
from dataclasses import replace

from vlp.config import RunConfig
from vlp.data.labelled_images import open_labelled, use_classes
from vlp.data.training_classes import find_classes
from vlp.distributed import run_on_main, world_size
from vlp.errors import UserError
from vlp.model import load_model
from vlp.models.classifier import Classifier, classifier_from
from vlp.models.finetuned import check_network
from vlp.models.image_encoders.families import resolve
from vlp.models.network import Network
from vlp.training.settings import contradictions

log = logging.getLogger("vlp")


def check_classification(config: RunConfig) -> None:
    """Check the settings of a run of task classification.

    Raises:
        UserError: one of them is wrong.
    """
    if config.tokenizer:
        raise UserError("tokenizer is set, but a classifier has no text tower; leave it out.")
    settings = config.classification
    each = config.batch_size // config.accumulation // world_size()
    if (settings.mixup or settings.cutmix) and each % 2:
        raise UserError(
            f"mixup and cutmix mix images in pairs, but each process has batches of {each}; make "
            "batch_size / accumulation an even multiple of the number of processes."
        )


def build_classifier(config: RunConfig) -> Classifier:
    """The classifier of a run: new, or with the image encoder of `start_from`, and its head if the classes are equal.

    All processes call it.

    Raises:
        UserError: a setting is wrong or contradicts the model of `start_from`, or the classes of the data are unusable.
    """
    classes = run_on_main(lambda: _find_classes(config))
    if not config.start_from:
        check_network(config.model, config.task)
        return Classifier(replace(config.model, classes=classes))
    network = load_model(config.start_from, device="cpu").network
    if config.image_size:
        network.resize_images(config.image_size)
    _refuse_other_encoder(config, network)
    if isinstance(network, Classifier) and network.config.classes == classes:
        return network.train()
    log.info("the image encoder is that of %s; new: the head for %d classes", config.start_from, len(classes))
    return classifier_from(network.image_encoder, classes).train()


def _find_classes(config: RunConfig) -> list[str]:
    """The classes of the training data, of which the validation data must have some."""
    classes = find_classes(config.data, config.classification)
    if config.validation:
        try:
            use_classes(open_labelled(config.validation, label=config.data.label), classes)
        except UserError as error:
            raise UserError(f"validation: {error}") from None
    return classes


def with_encoder_of(config: RunConfig, classifier: Classifier) -> RunConfig:
    """The config of a new model with texts whose image encoder is that of a classifier.

    Raises:
        UserError: the config names no tokenizer, or another image encoder.
    """
    if not config.tokenizer:
        raise UserError(
            f"{config.start_from} is a classifier and has no tokenizer; set tokenizer to a tokenizer folder "
            "(`vlp tokenizer` makes one)."
        )
    _refuse_other_encoder(config, classifier)
    return replace(config, model=replace(config.model, image_encoder=classifier.config.image_encoder))


def take_encoder(network: Network, classifier: Classifier, source: str) -> None:
    """Copy the image encoder of a classifier into a new network; the log lists the parts that stay new."""
    network.image_encoder.load_state_dict(classifier.image_encoder.state_dict())
    new = [name for name, _ in network.named_children() if name != "image_encoder"]
    log.info("the image encoder is that of the classifier %s; new: %s", source, ", ".join(new))


def _refuse_other_encoder(config: RunConfig, network: Network) -> None:
    stated, actual = resolve(config.model.image_encoder), network.config.image_encoder
    if wrong := contradictions(stated, actual, "model.image_encoder"):
        raise UserError(
            f"The config contradicts the model of start_from, {config.start_from}: {', '.join(wrong)}; "
            "leave these keys out."
        )
