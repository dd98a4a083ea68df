"""Penn Treebank tokens of captions as COCO's evaluation defines them, without Java.

COCO scores the lower-case tokens of Stanford's PTBTokenizer (CoreNLP 3.4.1) without punctuation. This file reproduces
them: at each position the rule with the longest match makes the next token. The rules were written for the outputs of
that program; tests/caption_metrics/test_ptb_tokenizer.py compares the two.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])  # not scored

# Brackets are scored: COCO means to remove them, but compares their lower-case tokens with upper-case names.
_REWRITTEN = {
    **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
    **{"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
    **{"£": "#", "€": "$", "¢": "cents"},
    **{"&amp;": "&", "&lt;": "<", "&gt;": ">", "&nbsp;": ""},
    **dict.fromkeys(["&quot;", '"', "''", "``", "“", "”", "«", "»"], "''"),
    **dict.fromkeys(["`", "‘", "’", "‛", "‹", "›"], "'"),
}
_SPLIT_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3}  # letters of the first token


def _words(text: str) -> list[str]:
    return text.split()


# Words that keep their period.
_ABBREVIATIONS = _words(
    """
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bhd bldg blvd brig bros calif capt cf cie cmdr
    co col colo conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov govs hon
    inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme mo mon
    mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc ppte ppty pres prof profs pte ptes pty ptys pvt
    rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn thu thurs tue tues univ va vs vt
    wed wis wisc wm wyo
    """
)
_BEFORE_NUMBERS = ["art", "ca", "fig", "figs", "no", "nos", "op", "pp", "prop"]  # these keep it before a number
# After a single letter with a period, these words begin a sentence, and the letter loses its period.
_SENTENCE_STARTS = _words(
    """
    A About According After An As At But Earlier He Her Here However If In It Last Many More Now Once One Other Our She
    Since So Some Such That The Their Then There These They This We What When While Yet You
    """
)

# Characters that are tokens by themselves. Others, such as emoji, are deleted.
_SYMBOLS = (
    "!-~\xa1-\u02ff\u0387\u0589\u2013-\u2023\u2026\u2030-\u203b\u203e-\u2042\u2044\u2070-\u20a0\u20a4\u20ac"
    "\u2100-\u214f\u2153-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uffe1\uffe5\uffe6"
)
# Where Python's letters differ: characters that do not form words, and vowel signs and accents that do.
_NO_LETTERS = "²³¹¼½¾⁰-₟⅐-↏\U00010000-\U0010ffff"
_MARKS = "\xad\u02c2-\u036f\u0483-\u0487\u0591-\u05bd\u0615-\u061a\u064b-\u0670\u0900-\u0dff\u0e31-\u0e4e"

_A = "['’]"  # apostrophes
_L = rf"(?:[^\W\d_{_NO_LETTERS}]|[{_MARKS}])"  # a letter
_LD = rf"(?:[^\W_{_NO_LETTERS}]|[{_MARKS}])"  # a letter or a digit
_PART = rf"(?:[dDoOlL]{_A}{_L})?{_LD}+"  # d'Artagnan, o'clock
_HYPHENATED = rf"{_PART}(?:[-_\u2010\u2011]{_PART})*"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])*\.?"
_CLITIC = rf"{_A}(?i:[msd]|re|ve|ll)"
_NEGATION = rf"(?i:n){_A}(?i:t)"
_FRACTION = r"(?:\d{1,4}[- \xa0])?\d{1,4}(?:\\?/|⁄)\d{1,4}"
_URL = r"""[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},-]"""


def _one_of(words: Sequence[str]) -> str:
    return "(?:" + "|".join(words) + ")"


# The pattern with the longest match wins, the first one of equally long ones. Group 1 is the token; what a pattern
# matches after it is context, which the next tokens read again.
_PATTERNS = [
    *(rf"((?i:{word[:cut]}))(?i:{word[cut:]})(?!{_L})" for word, cut in _SPLIT_WORDS.items()),
    rf"((?i:more)){_A}(?i:n)(?!{_L})",
    rf"({_A}(?i:t))(?i:is|was)(?!{_L})",  # 'tis
    rf"({_L}+?){_NEGATION}",
    rf"({_NEGATION})(?![A-Za-z])",
    rf"({_HYPHENATED}){_CLITIC}(?![A-Za-z])",
    rf"({_CLITIC})(?![A-Za-z])",
    rf"({_A}n{_A}|{_A}n(?![A-Za-z])|{_A}em|{_A}till?|{_A}cause|{_A}[2-9]0s|{_A}\d\d(?=\s|$))",  # rock 'n' roll
    rf"([lLdDjJyY]{_A}|[Dd]unkin{_A}|somethin{_A}|ol{_A}|[Cc]{_A}mon|[CcNn]{_A}est|[Qq]u{_A}ils?)",
    rf"({_L}+[aeiouyAEIOUY]{_A}[aeiouA-Z]{_L}*)",  # Xi'an
    rf"([A-Za-z])\.\s+{_one_of(_SENTENCE_STARTS)}(?![A-Za-z])",
    rf"((?:[A-Za-z]\.)+|{_LD}+-(?:[A-Za-z]\.){{2,}})",  # u.s., non-U.S.
    rf"({_INITIALS}(?:-(?:(?:[A-Za-z]\.){{2,}}|{_LD}+))*)",  # U.S.-based
    r"([Pp]h\.?[Dd]\.?)",
    rf"((?i:{_one_of(_ABBREVIATIONS)})\.)",
    rf"((?i:{_one_of(_BEFORE_NUMBERS)})\.)\s?\d",
    rf"({_HYPHENATED})",
    rf"({_L}{_LD}*(?:[.?!]{_L}+)+(?:-{_LD}+)*)",  # words joined without a space: end.Then
    r"([-+]?(?:\d+(?:[.,:]\d+)*|(?:[.,:]\d+)+))",
    rf"(\d+(?:[.,]\d+)+(?:-{_LD}+)+)",  # 1.5-inch
    r"(\(\d{2,3}\)[ \xa0]?\d{3}[- \xa0]?\d{3,4})",  # telephone numbers
    rf"({_FRACTION})",
    r"([A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2})",  # and/or
    r"([A-Z]+(?:[&+][A-Z]+)+)",  # AT&T
    r"([A-Za-z0-9]+(?:\.[A-Za-z0-9]+)*\.(?i:bmp|gif|gz|html?|jpe?g|mov|mp3|pdf|png|ppt|txt|wav|xml|zip))",
    rf"((?i:https?)://{_URL})",
    rf"""((?i:www)\.(?:[^ \t\n\f\r"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}(?:/{_URL})?)""",
    rf"""((?:[^ \t\n\f\r"`'<>|.!?(){{}},-_$]+\.)+(?:com|net|org|edu)(?:/{_URL})?)""",
    r"""([a-zA-Z0-9][^ \t\n\f\r"<>|()\xa0{}]*@(?:[^ \t\n\f\r"<>|(){}.\xa0]+\.)*[^ \t\n\f\r"<>|(){}\[\].,;:\xa0]+)""",
    r"(@[A-Za-z_]+|#[A-Za-z]+)",
    r"([A-Z]*\$)",  # US$
    r"(</?[A-Za-z!?][^<>\n]*>)",
    r"(&(?:amp|lt|gt|quot|nbsp|#\d+|[A-Za-z](?:acute|grave|uml|circ|tilde|cedil|ring));)",
    r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])(?![A-Za-z])",  # smileys
    r"([-^x=~<>']_[-^x=~<>'])",
    r"(\.{3,}|--+|[!?]+|\*+|_+|@@+|##+|\\[*/]|<<|>>|''|``|[cC](?:\+\+|#))",
    rf"([{_SYMBOLS}])",
]
_COMPILED = [re.compile(one) for one in _PATTERNS]
_CURLY_CLITIC = re.compile(rf"{_NEGATION}|{_CLITIC}")
# Chunks between white space whose tokens do not depend on what follows; nearly all of a caption's.
_INDEPENDENT = re.compile(r"[A-Za-z]{2,}\.|[A-Za-z][A-Za-z'-]*,?|[.,!?]")
_CHUNK = re.compile(r"\S+")


def tokenize_captions(captions: Sequence[str]) -> list[str]:
    """The scored tokens of each caption, in lower case, without punctuation, separated by single spaces.

    As in COCO's evaluation, the first word of the next caption can decide whether a letter at the end of a caption
    keeps its period.
    """
    following = [*(caption.split(maxsplit=1)[0] if caption.strip() else "" for caption in captions[1:]), ""]
    return [
        " ".join(token for token in ptb_tokens(caption, after) if token not in PUNCTUATION)
        for caption, after in zip(captions, following, strict=bool(captions))
    ]


def ptb_tokens(caption: str, following: str = "") -> list[str]:
    """All tokens of a caption, in lower case; every quotation mark is ' or ''.

    Args:
        following: the first word of the text that follows.
    """
    caption = caption.replace("\n", " ")
    text = f"{caption}\n{following}"
    tokens: list[str] = []
    place = 0
    while (chunk := _CHUNK.search(text, place)) and chunk.start() < len(caption):
        if _INDEPENDENT.fullmatch(chunk[0]) and chunk[0][:-1].lower() not in _BEFORE_NUMBERS:
            tokens += _chunk_tokens(chunk[0])
            place = chunk.end()
        else:
            place = _read_token(text, chunk.start(), tokens)
            while place < min(chunk.end(), len(caption)):
                place = _read_token(text, place, tokens)
    return tokens


@lru_cache(maxsize=2**16)
def _chunk_tokens(chunk: str) -> list[str]:
    tokens: list[str] = []
    place = 0
    while place < len(chunk):
        place = _read_token(chunk, place, tokens)
    return tokens


def _read_token(text: str, start: int, tokens: list[str]) -> int:
    """Append the token that begins at `start`, if there is one; returns where the next one may begin."""
    best = None
    for pattern in _COMPILED:
        match = pattern.match(text, start)
        if match and (best is None or match.end() > best.end()):
            best = match
    if best is None:
        return start + 1
    written = _written(best[1])
    if written:
        tokens.append(written)
    return best.end(1)


def _written(token: str) -> str:
    """How the tokenizer writes a token."""
    if token in _REWRITTEN:
        return _REWRITTEN[token]
    if token == "…" or (len(token) > 2 and not token.strip(".")):
        return "..."
    if token in "–—―" or (len(token) > 1 and not token.strip("-")):
        return "--"
    if _CURLY_CLITIC.fullmatch(token):
        token = token.replace("’", "'")
    # Spaces within telephone numbers and fractions become no-break spaces.
    return token.replace(" ", "\xa0").replace("(", "-lrb-").replace(")", "-rrb-").replace("\xad", "").lower()
