"""How texts become sequences of tokens: their cleaning, the special tokens around them, and their padding."""

import html
import string
from dataclasses import dataclass
from typing import Literal

from vlp.data.transforms import clean_caption

Cleaning = Literal["caption", "lower", "canonicalize", "whitespace"]
CLEANINGS: tuple[Cleaning, ...] = ("caption", "lower", "canonicalize", "whitespace")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class TextForm:
    """The texts that a text tower reads; the defaults are BLIP's.

    Attributes:
        cleaning: "caption" is `clean_caption`; the others are open_clip's and apply to its models.
        begins: whether a sequence begins with a special token.
        longest: the most tokens of a sequence, which the positions of the text tower allow; 0: the caller's limit.
        reads_padding: whether the tower reads padding, too (SigLIP), so that every text is padded to `longest`.
    """

    cleaning: Cleaning = "caption"
    begins: bool = True
    longest: int = 0
    reads_padding: bool = False

    def clean(self, text: str) -> str:
        """A text as the tokenizer takes it."""
        if self.cleaning == "caption":
            return clean_caption(text)
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
        if self.cleaning == "canonicalize":
            return " ".join(text.replace("_", " ").translate(WITHOUT_PUNCTUATION).lower().split())
        text = " ".join(text.split())
        return text.lower() if self.cleaning == "lower" else text
