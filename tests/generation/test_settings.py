"""Decoding settings: overrides change single fields of a model's own settings, and bad values are refused by name."""

from dataclasses import fields

import pytest

from vlp.config import CapFiltConfig, DecodingConfig, DecodingOverrides, SamplingOverrides
from vlp.config_reader import from_dict
from vlp.errors import UserError
from vlp.generation.settings import named_overrides, resolve_decoding


def test_overrides_have_the_fields_of_the_settings():
    assert [one.name for one in fields(DecodingOverrides)] == [one.name for one in fields(DecodingConfig)]
    assert resolve_decoding(DecodingConfig(), DecodingOverrides()) == DecodingConfig()


def test_the_defaults_are_those_of_blip():
    defaults = DecodingConfig()
    assert (defaults.beams, defaults.min_length, defaults.max_length) == (3, 5, 20)
    assert (defaults.repetition_penalty, defaults.top_p, defaults.prompt) == (1.0, 0.9, "")


def test_an_override_changes_one_field():
    own = DecodingConfig(prompt="a picture of", beams=5, banned_words=["red"])
    resolved = resolve_decoding(own, DecodingOverrides(max_length=9, beams=0))
    assert resolved == DecodingConfig(prompt="a picture of", beams=0, max_length=9, banned_words=["red"])
    assert resolve_decoding(own, DecodingOverrides(prompt="", banned_words=[])).banned_words == []
    assert own.beams == 5  # the model's settings stay as they are


def test_capfilt_samples_unless_told_otherwise():
    for values in ({}, {"decoding": {"max_length": 10}}):  # a section with one key keeps the other defaults
        decoding = from_dict(CapFiltConfig, values).decoding
        assert (decoding.beams, decoding.top_p, decoding.repetition_penalty) == (0, 0.9, 1.1)
        resolved = resolve_decoding(DecodingConfig(prompt="a picture of", min_length=7), decoding)
        assert (resolved.prompt, resolved.min_length, resolved.beams) == ("a picture of", 7, 0)
    own = from_dict(CapFiltConfig, {"decoding": {"beams": None}}).decoding
    assert resolve_decoding(DecodingConfig(beams=4), own).beams == 4
    assert SamplingOverrides().prompt is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"beem": 3}, "did you mean beams"),
        ({"beams": -1}, "beams must be at least 0"),
        ({"beams": "three"}, "beams must be a whole number"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1"),
        ({"prompt": 3}, "prompt must be text"),
    ],
)
def test_bad_overrides_are_refused_by_name(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        named_overrides(settings)
