"""Decoding options of the commands that caption images; an option that is not given keeps the model's own setting."""

from dataclasses import fields
from typing import Annotated, Any

import typer

from vlp.config import DecodingOverrides

Prompt = Annotated[str | None, typer.Option(help="Words that every caption begins with; not part of the output.")]
Beams = Annotated[int | None, typer.Option(help="Beam search with this many beams; 1 is greedy, 0 samples.")]
MinLength = Annotated[int | None, typer.Option(help="Fewest tokens, including the prompt.")]
MaxLength = Annotated[int | None, typer.Option(help="Most tokens, including the prompt.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1 makes tokens that were used less likely.")]
LengthPenalty = Annotated[float | None, typer.Option(help="Beam search: larger values favor longer captions.")]
TopP = Annotated[
    float | None, typer.Option(help="Sampling: draw from the likeliest tokens with this total probability.")
]
TopK = Annotated[int | None, typer.Option(help="Sampling: draw from this many of the likeliest tokens; 0 disables.")]
Temperature = Annotated[float | None, typer.Option(help="Sampling: below 1 favors likely tokens.")]
NoRepeatNgram = Annotated[int | None, typer.Option(help="Forbid repeated n-grams of this size; 0 disables.")]
BannedWords = Annotated[list[str] | None, typer.Option("--ban", help="A word that must not occur; repeatable.")]


def decoding_settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """The decoding options among a command's arguments, by the names of `DecodingOverrides`; None where not given."""
    settings = {one.name: arguments[one.name] for one in fields(DecodingOverrides)}
    return settings | {"banned_words": settings["banned_words"] or None}
