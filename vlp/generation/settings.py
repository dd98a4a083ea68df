"""Decoding settings: apply overrides to a model's own settings, and check that they make sense."""

from dataclasses import replace
from typing import Any

from vlp.config import DecodingConfig, DecodingOverrides
from vlp.config_reader import from_dict, to_dict
from vlp.errors import UserError


def resolve_decoding(decoding: DecodingConfig, overrides: DecodingOverrides) -> DecodingConfig:
    """A model's decoding settings with every override that is not None applied."""
    return replace(decoding, **{name: value for name, value in to_dict(overrides).items() if value is not None})


def named_overrides(settings: dict[str, Any]) -> DecodingOverrides:
    """Overrides from keyword arguments.

    Raises:
        UserError: a name is not a decoding setting, or its value has the wrong type or is out of range.
    """
    try:
        return from_dict(DecodingOverrides, settings)
    except UserError as error:
        raise UserError(f"decoding: {error}") from None


def check_decoding(decoding: DecodingConfig, prompt_tokens: int = 1, num_captions: int = 1) -> None:
    """Check that settings are in range and fit together.

    Args:
        prompt_tokens: length of the prompt in tokens, including [DEC].
        num_captions: captions requested for each image.

    Raises:
        UserError: a setting is out of range or contradicts another one.
    """
    try:
        from_dict(DecodingConfig, to_dict(decoding))
    except UserError as error:
        raise UserError(f"decoding: {error}") from None
    beams = decoding.beams
    checks = [
        (decoding.min_length <= decoding.max_length, "min_length must not exceed max_length"),
        (decoding.max_length > prompt_tokens, f"max_length must exceed the {prompt_tokens} tokens of the prompt"),
        (all(word.strip() for word in decoding.banned_words), "banned_words must not contain an empty string"),
        (num_captions >= 1, "the number of captions must be at least 1"),
        (beams == 0 or num_captions <= beams, f"{beams} beams give at most {beams} captions; raise beams, or sample"),
    ]
    for holds, problem in checks:
        if not holds:
            raise UserError(f"decoding: {problem}.")
