"""Decoding settings of BLIP captioners, from and to the names of `transformers`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from vlp.config import DecodingConfig, DecodingOverrides
from vlp.config_reader import from_dict, to_dict
from vlp.convert.files import read_json
from vlp.errors import UserError

PUBLISHED = DecodingConfig(prompt="a picture of")  # BLIP's captioning; the other defaults are BLIP's, too
OURS = "vlp_decoding"  # key of config.json in folders that we write: all of our settings, which theirs do not cover
# Our names -> names of `transformers`, and the default that older versions write into config.json unasked.
NAMES: dict[str, tuple[str, float]] = {
    "beams": ("num_beams", 1),
    "min_length": ("min_length", 0),
    "max_length": ("max_length", 20),
    "repetition_penalty": ("repetition_penalty", 1.0),
    "length_penalty": ("length_penalty", 1.0),
    "top_p": ("top_p", 1.0),
    "top_k": ("top_k", 50),
    "temperature": ("temperature", 1.0),
    "no_repeat_ngram": ("no_repeat_ngram_size", 0),
}


def captioner_decoding(folder: Path) -> DecodingConfig:
    """The decoding settings of a `transformers` captioner: BLIP's published ones, unless its folder sets others.

    Raises:
        UserError: a setting has the wrong type or is out of range.
    """
    facts = read_json(folder / "config.json")
    try:
        if OURS in facts:
            return from_dict(DecodingConfig, facts[OURS])
        text = facts.get("text_config") or {}
        given = {ours: text[name] for ours, (name, default) in NAMES.items() if text.get(name, default) != default}
        sampling = bool(text.get("do_sample"))
        if (folder / "generation_config.json").is_file():
            generation = read_json(folder / "generation_config.json")
            given |= {ours: generation[name] for ours, (name, _) in NAMES.items() if generation.get(name) is not None}
            sampling = bool(generation.get("do_sample", sampling))
        if sampling:
            given["beams"] = 0
        changes = from_dict(DecodingOverrides, given)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    return replace(PUBLISHED, **{name: value for name, value in to_dict(changes).items() if value is not None})


def generation_settings(decoding: DecodingConfig) -> dict[str, Any]:
    """The settings that `GenerationConfig` of `transformers` has, too, by its names."""
    values = to_dict(decoding)
    settings = {name: values[ours] for ours, (name, _) in NAMES.items()}
    settings |= {"num_beams": max(decoding.beams, 1), "do_sample": decoding.beams == 0}
    if decoding.beams != 0:  # transformers warns of sampling settings without sampling
        settings = {name: value for name, value in settings.items() if name not in ("top_p", "top_k", "temperature")}
    if decoding.beams <= 1:
        del settings["length_penalty"]
    return settings
