"""Texts to word pieces, word by word: captions use few different words, and a dictionary knows those already seen."""

import re

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

PLAIN = re.compile(r"[a-z0-9,'&/?-]*")  # between spaces, what BERT's tokenizer reads without regard to its neighbors
MOST_WORDS = 100_000  # remembered; later ones are rare


class WordPieces:
    """The word pieces of texts, as `Tokenizer.encode` gives them, which takes many times as long.

    Texts with words that are not `PLAIN`, and all texts of tokenizers that are not BERT's WordPiece, are left to it.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.known: dict[str, list[int]] = {}
        self.by_word = (
            isinstance(tokenizer.model, models.WordPiece)
            and isinstance(tokenizer.normalizer, normalizers.BertNormalizer)
            and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
            and not _has_plain_special_token(tokenizer)
        )

    def of(self, text: str) -> list[int]:
        """The word pieces of a text, without special tokens around it."""
        if not self.by_word:
            return self._encode(text)
        known, found = self.known, []
        for word in text.split(" "):
            pieces = known.get(word)
            if pieces is None:
                if not PLAIN.fullmatch(word):
                    return self._encode(text)
                pieces = self._encode(word)
                if len(known) < MOST_WORDS:
                    known[word] = pieces
            found += pieces
        return found

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids


def _has_plain_special_token(tokenizer: Tokenizer) -> bool:
    """Whether plain words may hold a special token, which is one piece; those of BERT and BLIP have brackets."""
    tokens = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    normal = [tokenizer.normalizer.normalize_str(token) for token in tokens]
    return any(all(PLAIN.fullmatch(word) for word in token.split(" ")) for token in [*tokens, *normal])
