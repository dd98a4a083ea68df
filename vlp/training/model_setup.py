"""The model that a run trains: a new one, or the one it starts from; and the config that describes it truly."""

import dataclasses
import math

import torch

from vlp.config import DecodingConfig, RunConfig
from vlp.data.loader import is_streamed
from vlp.data.streamed_loader import stream_count
from vlp.data.tokenizer import CaptionTokenizer, load_tokenizer
from vlp.errors import UserError
from vlp.losses.sigmoid import START_BIAS, START_TEMPERATURE
from vlp.model import load_model
from vlp.models.classifier import Classifier
from vlp.models.clip import Clip
from vlp.models.finetuned import check_network, network_for
from vlp.models.image_encoders.families import resolve
from vlp.models.network import Network, as_two_towers, build_network
from vlp.training.classifier_setup import build_classifier, take_encoder, with_encoder_of
from vlp.training.decoding import trained_decoding
from vlp.training.settings import contradictions


def build_model(config: RunConfig) -> tuple[Network, CaptionTokenizer | None, DecodingConfig]:
    """The network, its tokenizer and decoding settings: those of `start_from`, or new ones. `config` is not changed.

    A run that starts from a classifier takes its image encoder alone. A classifier has no tokenizer. All processes
    call it.

    Raises:
        UserError: a setting is missing or out of range, or contradicts the model of `start_from`.
    """
    if config.task == "classification":
        return build_classifier(config), None, DecodingConfig()
    if config.start_from:
        started = load_model(config.start_from, device="cpu")
        if config.image_size:
            started.network.resize_images(config.image_size)
        if isinstance(started.network, Classifier):
            if config.objective.locked == "text":
                raise UserError(
                    "objective.locked: text would keep the text tower at random weights, because start_from is a "
                    "classifier; start from a model with a text tower."
                )
            made = _new_model(with_encoder_of(config, started.network))
            take_encoder(made[0], started.network, config.start_from)
            return made
        network = network_for(started.network, config.task)
        _start_sigmoid(config, network)
        _check_text_length(config, started.tokenizer, network.config.text_tower.positions)
        _refuse_contradictions(config, network, started.tokenizer)
        decoding = trained_decoding(config, started.decoding, started.tokenizer, network.config)
        return network.train(), started.tokenizer, decoding
    return _new_model(config)


def _new_model(config: RunConfig) -> tuple[Network, CaptionTokenizer, DecodingConfig]:
    """A network with new weights, its tokenizer and decoding settings; raises UserError as `build_model` does."""
    check_network(config.model, config.task)
    if not config.tokenizer:
        raise UserError("Set tokenizer to a tokenizer folder (`vlp tokenizer` makes one), or start_from to a model.")
    tokenizer = load_tokenizer(config.tokenizer)
    text = config.model.text_tower
    if text.vocabulary not in (0, len(tokenizer)):
        raise UserError(
            f"model.text_tower.vocabulary is {text.vocabulary}, but the tokenizer has {len(tokenizer)} words; set 0."
        )
    _check_text_length(config, tokenizer, text.positions)
    model = dataclasses.replace(config.model, text_tower=dataclasses.replace(text, vocabulary=len(tokenizer)))
    decoding = trained_decoding(config, DecodingConfig(), tokenizer, model)
    network = network_for(build_network(model, config.objective.temperature), config.task)
    _start_sigmoid(config, network)
    return network, tokenizer, decoding


def _check_text_length(config: RunConfig, tokenizer: CaptionTokenizer, positions: int) -> None:
    """Check that the longest text of a batch, which is padded to a multiple of 8, has a position for each token.

    Raises:
        UserError: it has not.
    """
    if config.data.max_tokens > tokenizer.longest(positions):
        raise UserError(
            f"data.max_tokens ({config.data.max_tokens}) must not exceed model.text_tower.positions ({positions}) "
            "rounded down to a multiple of 8."
        )


def _start_sigmoid(config: RunConfig, network: Network) -> None:
    """Give a network that the sigmoid loss has not trained yet the temperature and bias that SigLIP starts with."""
    if isinstance(network, Clip) and config.objective.contrastive == "sigmoid" and network.logit_bias == 0:
        with torch.no_grad():
            network.log_temperature.fill_(math.log(START_TEMPERATURE))
            network.logit_bias.fill_(START_BIAS)


def resolved_config(config: RunConfig, network: Network) -> RunConfig:
    """A copy of `config` with the settings that hold in truth: the model's shape and temperature, the streams."""
    temperature = config.objective.temperature
    if config.start_from and not isinstance(network, Classifier):
        temperature = round(network.temperature.item(), 6)
    objective = dataclasses.replace(config.objective, temperature=temperature)
    data = config.data
    if is_streamed(data):
        data = dataclasses.replace(data, streams=stream_count(data, config.batch_size // config.accumulation))
    return dataclasses.replace(config, model=network.config, objective=objective, data=data)


def _refuse_contradictions(config: RunConfig, network: Network, tokenizer: CaptionTokenizer) -> None:
    """Compare what the config gives with the model it starts from; a value equal to its default counts as not given.

    Raises:
        UserError: they contradict each other.
    """
    stated = dataclasses.replace(config.model, image_encoder=resolve(config.model.image_encoder))
    wrong = contradictions(stated, network.config, "model")
    given, held = config.objective.temperature, as_two_towers(network).temperature.item()
    if given != RunConfig().objective.temperature and not math.isclose(given, held, rel_tol=1e-3):
        wrong.append(f"objective.temperature is {given:g} (the model has {held:.4g})")
    if config.tokenizer and _vocabulary(load_tokenizer(config.tokenizer)) != _vocabulary(tokenizer):
        wrong.append(f"tokenizer is {config.tokenizer} (the model has another one; `tokenizer=` takes it)")
    if wrong:
        raise UserError(
            f"The config contradicts the model of start_from, {config.start_from}: {', '.join(wrong)}; "
            "leave these keys out."
        )


def _vocabulary(tokenizer: CaptionTokenizer) -> dict[str, int]:
    return tokenizer.tokenizer.get_vocab(with_added_tokens=True)
