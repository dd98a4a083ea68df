"""Altered captions, hard negatives of ITM that no batch holds: a caption with another order or another word.

Every second one swaps two spans of one to four words of the caption, the others replace a word by one that stands
between the same two neighbors in another caption of the batch. Both read word starts and neighbors alone, so they work
in any language. Of many random swaps one is taken whose neighbors mostly occur in the batch's captions, because a swap
that reads badly would be recognized without the image (Hsieh et al. 2023). Among those that read well, one that moves
many words is taken: whole phrases change places, so that ITM must read who does what to whom, not which words occur.
All of it happens on the device, without waiting.

An alteration may still be true: "a red one and a blue one" with its colors swapped, or a word replaced by a synonym.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.data.tokenizer import CaptionTokenizer
from vlp.losses.matching import uniform_noise

SWAPS = 256  # random swaps of a caption, of which the best is taken
FINALISTS = 8  # the best swaps, of which the first is taken that equals no caption of the image
REPLACEMENTS = 16  # random replacements, of which the first possible one is taken
LONGEST_SPAN = 4  # words
NOTHING = 2**62  # a key that no words have


@dataclass
class Texts:
    """Padded captions and their words.

    Attributes:
        ids, mask: int64 and bool [texts, tokens]; ids end with [SEP].
        words: int64 [texts, tokens], the number of each token's word, from 1; 0 in what comes before the first word,
            and one more than the last word's number from [SEP] on.
        starts: bool [texts, tokens], whether a word begins.
        ends: int64 [texts, tokens], at the start of a word: the place behind it.
    """

    ids: Tensor
    mask: Tensor
    words: Tensor
    starts: Tensor
    ends: Tensor

    def rows(self, numbers: Tensor) -> "Texts":
        """Some of the texts, int64 [n]."""
        return Texts(*(getattr(self, name)[numbers] for name in self.__dataclass_fields__))


@dataclass
class TextBank:
    """What stands beside what in the captions of a batch.

    Attributes:
        pairs: int64, sorted: the keys of neighboring tokens.
        contexts: int64, sorted: the keys of the two tokens around each word.
        places: int64, the place of the word with each context: text x tokens of a text + place in the text.
    """

    texts: Texts
    vocabulary: int
    pairs: Tensor
    contexts: Tensor
    places: Tensor


def word_starts(tokenizer: CaptionTokenizer) -> Tensor:
    """Whether each token begins a word: bool [vocabulary]; special tokens do not."""
    vocabulary = tokenizer.tokenizer.get_vocab(with_added_tokens=True)
    marks = tuple(mark for mark in ("Ġ", "▁") if any(word.startswith(mark) for word in vocabulary))
    special = {*tokenizer.roles.values(), "[DEC]", "[ENC]"}
    starts = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.bool)
    for word, number in vocabulary.items():
        begins = word.startswith(marks) if marks else not word.startswith("##")
        starts[number] = begins and word not in special
    return starts


def read_texts(ids: Tensor, mask: Tensor, starts_word: Tensor, first: int) -> Texts:
    """The words of captions.

    Args:
        ids, mask: as in `Texts`.
        starts_word: bool [vocabulary], see `word_starts`.
        first: the first token that may change, behind the special token and the prompt.
    """
    places = torch.arange(ids.shape[1], device=ids.device)
    last = mask.sum(dim=1, keepdim=True) - 1  # the place of [SEP]
    starts = starts_word[ids] & (places >= first) & (places < last)
    words = starts.cumsum(dim=1) + (places >= last)
    borders = torch.where(starts | (places == last), places, ids.shape[1])
    following = borders.flip(1).cummin(dim=1).values.flip(1)  # the first border from each place on
    ends = torch.cat([following[:, 1:], following[:, -1:]], dim=1)
    return Texts(ids, mask, words, starts, ends)


def text_bank(texts: Texts, vocabulary: int, counted: Tensor) -> TextBank:
    """The bank of a batch of all processes.

    Args:
        counted: bool [texts], False for texts that are left out.
    """
    ids, mask = texts.ids, texts.mask & counted[:, None]
    pairs = torch.where(mask[:, 1:], ids[:, :-1] * vocabulary + ids[:, 1:], NOTHING)
    before = torch.cat([ids[:, :1], ids[:, :-1]], dim=1)
    behind = ids.gather(1, texts.ends.clamp(max=ids.shape[1] - 1))
    contexts = torch.where(texts.starts & mask, before * vocabulary + behind, NOTHING)
    contexts, places = contexts.flatten().sort(stable=True)
    return TextBank(texts, vocabulary, pairs.flatten().sort().values, contexts, places)


def alter_texts(
    bank: TextBank, rows: Tensor, numbers: Tensor, seed: int, refused: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One alteration of each of some texts of a bank; seed and number decide everything that is random.

    Those with even numbers swap, the others replace, if they can.

    Args:
        rows: int64 [n], texts of the bank.
        numbers: int64 [n], of the alterations among those of all processes.
        refused: int64 [n, texts], what no alteration may equal: texts of the bank, such as the captions of its image.

    Returns:
        ids, mask: int64 and bool [n, tokens].
        exists: bool [n], False where a text has no alteration.
    """
    noise = uniform_noise(seed, numbers, 2 * SWAPS + 2 * REPLACEMENTS)  # [n, columns]
    swap_noise = noise[:, : 2 * SWAPS].unflatten(1, (2, SWAPS))
    replace_noise = noise[:, 2 * SWAPS :].unflatten(1, (2, REPLACEMENTS))
    texts = bank.texts.rows(rows)
    others = text_keys(bank.texts.ids, bank.texts.mask)[refused]  # [n, texts]
    swapped, swapped_mask, swaps = _swap(bank, texts, swap_noise, others)
    replaced, replaced_mask, replaces = _replace(bank, texts, replace_noise, others)
    takes_swap = swaps & ((numbers % 2 == 0) | ~replaces)
    ids = torch.where(takes_swap[:, None], swapped, replaced)
    return ids, torch.where(takes_swap[:, None], swapped_mask, replaced_mask), swaps | replaces


def text_keys(ids: Tensor, mask: Tensor) -> Tensor:
    """A number for each text, [..., tokens] -> int64 [...]: equal where the texts are, elsewhere only by chance."""
    places = torch.arange(1, ids.shape[-1] + 1, device=ids.device)
    mixed = (ids + 1) * (places * 0x5851F42D4C957F2D + 0x14057B7EF767814F)  # int64 wraps around, as intended
    mixed = (mixed ^ (mixed >> 29)) * 0x2545F4914F6CDD1D
    return (mixed * mask).sum(dim=-1)


def _swap(bank: TextBank, texts: Texts, noise: Tensor, refused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each text with two of its spans swapped; noise [n, 2, swaps]; returns as `alter_texts`."""
    count = texts.starts.sum(dim=1, keepdim=True)  # [n, 1]
    one, two, chance = _digits(noise[:, 0], count, count)  # [n, swaps], as all that follows
    left, right = 1 + torch.minimum(one, two), 1 + torch.maximum(one, two)  # first words of the spans
    most = (right - left).clamp(1, LONGEST_SPAN), (count - right + 1).clamp(1, LONGEST_SPAN)  # before the other, or end
    equal, before, rest = _digits(noise[:, 1], 2, most[0])
    before, behind = 1 + before, 1 + (rest * most[1]).long()  # words of the spans
    behind = torch.where(equal.bool(), torch.minimum(before, most[1]), behind)
    borders = torch.stack([left, left + before, right, right + behind], dim=-1)  # [n, swaps, 4]
    # Of those that read equally well, one that moves many words comes first. Chance decides among equals.
    score = _unseen(bank, texts, borders) - (before + behind) / (2 * LONGEST_SPAN + 1) + chance / (2 * LONGEST_SPAN + 1)
    score, best = torch.where(left < right, score, float("inf")).topk(FINALISTS, dim=1, largest=False)
    borders = borders.gather(1, best[..., None].expand(-1, -1, 4))
    part = (texts.words[:, None, :, None] >= borders[:, :, None]).sum(dim=-1)  # [n, finalists, tokens], 0 to 4
    order = torch.where((part == 1) | (part == 3), 4 - part, part)  # the second span comes first
    places = torch.arange(order.shape[-1], device=order.device)
    sources = (order * len(places) + places).argsort(dim=-1)
    ids = texts.ids[:, None].expand(-1, FINALISTS, -1).gather(2, sources)
    mask = texts.mask[:, None].expand_as(ids)
    return _first(score.isfinite() & ~_is_refused(ids, mask, refused), ids, mask)


def _digits(noise: Tensor, first: Tensor | int, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split random numbers in [0, 1) into a digit below `first`, one below `second`, and what remains in [0, 1)."""
    digits = []
    for size in (first, second):
        digit = (noise * size).floor()
        noise = noise * size - digit
        digits.append(digit.long())
    return digits[0], digits[1], noise


def _unseen(bank: TextBank, texts: Texts, borders: Tensor) -> Tensor:
    """How many neighbors of each swap no caption has: int64 [n, swaps], 0 to 4.

    Args:
        borders: int64 [n, swaps, 4], the first word of each of two spans and the word behind it.
    """
    length = texts.ids.shape[1]
    words = torch.arange(1, length + 1, device=borders.device).expand(len(texts.words), -1).contiguous()
    starts = torch.searchsorted(texts.words, words)  # [n, words], the place of each word; words[n] never falls
    places = starts.gather(1, (borders - 1).flatten(1).clamp(max=length - 1)).view_as(borders).clamp(max=length - 1)

    def token(border: int, offset: int = 0) -> Tensor:
        return texts.ids.gather(1, (places[..., border] + offset).clamp(min=0))  # [n, swaps]

    adjacent = borders[..., 1] == borders[..., 2]
    keys = [
        token(0, -1) * bank.vocabulary + token(2),
        token(3, -1) * bank.vocabulary + torch.where(adjacent, token(0), token(1)),
        token(2, -1) * bank.vocabulary + token(0),  # what stands between the spans, and the first one
        token(1, -1) * bank.vocabulary + token(3),
    ]
    unseen = ~_contains(bank.pairs, torch.stack(keys, dim=-1))  # [n, swaps, 4]
    unseen[..., 2] &= ~adjacent
    return unseen.sum(dim=-1)


def _replace(bank: TextBank, texts: Texts, noise: Tensor, refused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each text with a word of another text in place of one of its own; noise [n, 2, tries]; as `alter_texts`."""
    length = texts.ids.shape[1]
    places = torch.arange(length, device=texts.ids.device)
    word = 1 + (noise[:, 0] * texts.starts.sum(dim=1, keepdim=True)).long()  # [n, tries]
    here = (texts.words[:, None] == word[..., None]) & texts.starts[:, None]
    start = here.long().argmax(dim=-1)  # [n, tries]
    end = texts.ends.gather(1, start).clamp(max=length - 1)
    around = texts.ids.gather(1, (start - 1).clamp(min=0)) * bank.vocabulary + texts.ids.gather(1, end)
    first = torch.searchsorted(bank.contexts, around)
    found = torch.searchsorted(bank.contexts, around, right=True) - first
    drawn = first + torch.minimum((noise[:, 1] * found).long(), (found - 1).clamp(min=0))
    place = bank.places[drawn.clamp(max=len(bank.places) - 1)]
    text, other = place // length, place % length
    size = bank.texts.ends[text, other] - other  # tokens of the other word
    more = size - (end - start)
    total = texts.mask.sum(dim=1, keepdim=True) + more
    inside = (places >= start[..., None]) & (places < (start + size)[..., None])  # [n, tries, tokens]
    own = torch.where(places < start[..., None], places, places - more[..., None]).clamp(0, length - 1)
    theirs = (other[..., None] + places - start[..., None]).clamp(0, length - 1)
    own_ids = texts.ids[:, None].expand(-1, REPLACEMENTS, -1).gather(2, own)
    ids = torch.where(inside, bank.texts.ids[text].gather(2, theirs), own_ids)
    mask = places < total[..., None]
    possible = here.any(dim=-1) & (found > 0) & (total <= length) & ~_is_refused(ids, mask, refused)
    return _first(possible, ids, mask)


def _contains(ordered: Tensor, keys: Tensor) -> Tensor:
    """Whether each key is among ordered ones, bool of the keys' shape."""
    return ordered[torch.searchsorted(ordered, keys).clamp(max=len(ordered) - 1)] == keys


def _is_refused(ids: Tensor, mask: Tensor, refused: Tensor) -> Tensor:
    """Whether candidates [n, candidates, tokens] equal one of the refused keys [n, texts]; bool [n, candidates]."""
    return (text_keys(ids, mask)[..., None] == refused[:, None]).any(dim=-1)


def _first(possible: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first possible candidate of each text: bool [n, candidates], [n, candidates, tokens]; as `alter_texts`."""
    first = possible.long().argmax(dim=1)[:, None, None].expand(-1, 1, ids.shape[-1])
    return ids.gather(1, first)[:, 0], mask.gather(1, first)[:, 0], possible.any(dim=1)
