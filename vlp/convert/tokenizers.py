"""Reading other projects' tokenizers and adding BLIP's two tokens."""

from pathlib import Path

from vlp.data.tokenizer import BLIP_SPECIALS, CaptionTokenizer
from vlp.errors import UserError

ROLES = ("pad", "unk", "cls", "sep", "mask")


def read_tokenizer(folder: str | Path) -> CaptionTokenizer:
    """Read the tokenizer of a `transformers` folder or hub name; [DEC] and [ENC] are appended if it lacks them.

    Raises:
        UserError: `transformers` cannot read it, or it lacks a special token that BLIP needs.
    """
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(str(folder), use_fast=True, local_files_only=Path(folder).is_dir())
        inner = theirs.backend_tokenizer
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} has no readable tokenizer ({reason.rstrip('.')}).") from None
    roles = {role: getattr(theirs, f"{role}_token") for role in ROLES}
    missing = [role for role, token in roles.items() if token is None]
    if missing:
        raise UserError(f"The tokenizer of {folder} has no {', '.join(missing)} token, which BLIP needs.")
    inner.add_special_tokens([token for token in BLIP_SPECIALS if inner.token_to_id(token) is None])
    return CaptionTokenizer(inner, roles)


def check_vocabulary(tokenizer: CaptionTokenizer, rows: int, source: str) -> None:
    """Check that a source has a word embedding for every token; [DEC] and [ENC] may still be missing.

    Args:
        rows: the number of the source's word embeddings.

    Raises:
        UserError: the numbers differ.
    """
    if rows not in (len(tokenizer), len(tokenizer) - len(BLIP_SPECIALS)):
        raise UserError(
            f"{source} does not fit together: its tokenizer has {len(tokenizer)} tokens, including [DEC] and [ENC], "
            f"and there are {rows} word embeddings."
        )
