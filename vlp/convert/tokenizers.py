"""Other projects' tokenizers, with the two tokens that BLIP adds."""

from pathlib import Path

from vlp.data.tokenizer import BLIP_SPECIALS, CaptionTokenizer
from vlp.errors import UserError

ROLES = ("pad", "unk", "cls", "sep", "mask")


def read_tokenizer(folder: str | Path) -> CaptionTokenizer:
    """The tokenizer of a `transformers` folder; [DEC] and [ENC] are added at the end where it lacks them.

    Raises:
        UserError: there is none that `transformers` can read, or it lacks a token that BLIP needs.
    """
    from transformers import AutoTokenizer

    try:
        theirs = AutoTokenizer.from_pretrained(str(folder), use_fast=True, local_files_only=Path(folder).is_dir())
        inner = theirs.backend_tokenizer
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} has no tokenizer that can be read ({reason.rstrip('.')}).") from None
    roles = {role: getattr(theirs, f"{role}_token") for role in ROLES}
    missing = [role for role, token in roles.items() if token is None]
    if missing:
        raise UserError(f"The tokenizer of {folder} has no {', '.join(missing)} token, which BLIP needs.")
    inner.add_special_tokens([token for token in BLIP_SPECIALS if inner.token_to_id(token) is None])
    return CaptionTokenizer(inner, roles)


def check_vocabulary(tokenizer: CaptionTokenizer, rows: int, source: str) -> None:
    """Whether word embeddings of `rows` rows go with a tokenizer, [DEC] and [ENC] being there or still to come.

    Raises:
        UserError: they do not.
    """
    if rows not in (len(tokenizer), len(tokenizer) - len(BLIP_SPECIALS)):
        raise UserError(
            f"{source} does not fit together: the tokenizer has {len(tokenizer)} words with [DEC] and [ENC], "
            f"and there are {rows} word embeddings."
        )
