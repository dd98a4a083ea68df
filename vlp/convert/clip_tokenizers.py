"""Reading the tokenizers of open_clip's models, with the form of their texts."""

import gzip
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from vlp.data.text_form import CLEANINGS, TextForm
from vlp.data.tokenizer import CaptionTokenizer
from vlp.errors import UserError

# CLIP's byte pair encoding (Radford et al. 2021): contractions, words, single digits, and runs of other symbols.
PIECES = r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
START, END, PAD = "<start_of_text>", "<end_of_text>", "!"  # the padding is id 0
MERGES = 49_152 - 256 - 2  # that CLIP uses of the file
WORD_END = "</w>"


def read_clip_tokenizer(name: str, text: dict[str, Any], reads_padding: bool, folder: str = "") -> CaptionTokenizer:
    """The tokenizer of an open_clip model.

    Args:
        name: of the model, for errors.
        text: the section `text_cfg` of its configuration.
        reads_padding: whether its text tower attends to padding.
        folder: folder or hub name with a tokenizer of `transformers`; empty: the one that `text` names.

    Raises:
        UserError: the tokenizer is not available, or its settings are unknown.
    """
    settings = dict(text.get("tokenizer_kwargs") or {})
    source = folder or text.get("hf_tokenizer_name") or ""
    cleaning = settings.pop("clean", "whitespace" if source else "lower")
    unknown = [*settings, *(["tokenizer_mode"] if text.get("tokenizer_mode") else [])]
    if unknown or cleaning not in CLEANINGS:
        raise UserError(
            f"The tokenizer of {name} has settings that vlp does not know: {', '.join(unknown) or cleaning}."
        )
    form = TextForm(cleaning, True, text.get("context_length", 77), reads_padding)
    if not source:
        return CaptionTokenizer(clip_bpe(), {"pad": PAD, "cls": START, "sep": END}, form)
    return _from_transformers(name, source, form)


def clip_bpe() -> Tokenizer:
    """CLIP's tokenizer, from the merges that open_clip ships. Ids equal those of open_clip's SimpleTokenizer."""
    from open_clip.tokenizer import bytes_to_unicode, default_bpe

    lines = gzip.decompress(Path(default_bpe()).read_bytes()).decode("utf-8").split("\n")[1 : MERGES + 1]
    merges = [(left, right) for left, right in (line.split() for line in lines)]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + WORD_END for letter in letters), *(left + right for left, right in merges)]
    vocabulary = {word: number for number, word in enumerate([*words, START, END])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=WORD_END))
    split = pre_tokenizers.Split(Regex(f"(?i){PIECES}"), behavior="removed", invert=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([START, END])
    return tokenizer


def _from_transformers(name: str, source: str, form: TextForm) -> CaptionTokenizer:
    """A fast tokenizer of `transformers`, which puts at most one token before a text and one after it."""
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(source, use_fast=True, local_files_only=Path(source).is_dir())
        inner: Tokenizer = theirs.backend_tokenizer
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"{name} needs the tokenizer {source}, which cannot be read ({reason}); give its folder as --tokenizer."
        ) from None
    plain = inner.encode("a", add_special_tokens=False).ids
    whole = theirs("a").input_ids
    before = next((n for n in range(len(whole)) if whole[n : n + len(plain)] == plain), len(whole))
    after = len(whole) - len(plain) - before
    if before > 1 or after != 1 or theirs.pad_token is None:
        raise UserError(
            f"The tokenizer {source} does not put one token after a text and at most one before it, or cannot pad."
        )
    roles = {"pad": theirs.pad_token, "sep": inner.id_to_token(whole[-1])}
    if before:
        roles["cls"] = inner.id_to_token(whole[0])
    return CaptionTokenizer(inner, roles, replace(form, begins=bool(before)))
