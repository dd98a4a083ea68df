"""Texts to ids: load a tokenizer, or train BERT's WordPiece with BLIP's [DEC] and [ENC] on captions."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor

from vlp.data.text_form import CLEANINGS, TextForm
from vlp.data.transforms import clean_caption, prompted_caption
from vlp.data.word_pieces import WordPieces
from vlp.errors import UserError
from vlp.files import read_json, writing_folder

FirstToken = Literal["[CLS]", "[ENC]", "[DEC]"]
BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BERT_ROLES = dict(zip(("pad", "unk", "cls", "sep", "mask"), BERT_SPECIALS, strict=True))
BLIP_SPECIALS = ["[DEC]", "[ENC]"]  # last in the vocabulary, in this order
MOST_CAPTIONS = 1_000_000
LONG_WORD = re.compile(r"\w{101,}")  # longer than `max_input_chars_per_word` of WordPiece
SMALLEST = 16  # words, special tokens included


class CaptionTokenizer:
    """Texts to ids and back. A sequence is the first token, the words, and [SEP].

    Attributes:
        form: how texts are cleaned and padded. Only BLIP's form has [DEC] and [ENC].
        pad_id, cls_id, sep_id, enc_id, dec_id: ids of the special tokens; -1 for those that the form does not have.
    """

    def __init__(self, tokenizer: Tokenizer, roles: dict[str, str] | None = None, form: TextForm | None = None):
        """Wrap a tokenizer.

        Args:
            roles: the tokens for pad, unk, cls, sep and mask; None means BERT's.
            form: None means BLIP's.

        Raises:
            UserError: a special token is missing.
        """
        self.roles, self.form = roles or BERT_ROLES, form or TextForm()
        specials = BLIP_SPECIALS if self.form.cleaning == "caption" else []
        found = {token: tokenizer.token_to_id(token) for token in [*self.roles.values(), *specials]}
        ids = {token: number for token, number in found.items() if number is not None}
        missing = [token for token in found if token not in ids]
        if missing:
            raise UserError(f"The tokenizer lacks the special tokens {', '.join(missing)}.")
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self.pieces = WordPieces(tokenizer)
        self.pad_id, self.cls_id, self.sep_id = (
            ids.get(self.roles.get(role, ""), -1) for role in ("pad", "cls", "sep")
        )
        self.dec_id, self.enc_id = (ids.get(token, -1) for token in BLIP_SPECIALS)

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    @cached_property
    def identity(self) -> str:
        """Equal for tokenizers that make the same ids of every text."""
        return f"{self.form} {self.roles} {self.tokenizer.to_str()}"

    def longest(self, positions: int) -> int:
        """The most tokens of a text that a tower with `positions` reads."""
        return self.form.longest or positions // 8 * 8

    def encode(
        self, texts: list[str], max_tokens: int, first: FirstToken = "[CLS]", multiple: int = 8
    ) -> tuple[Tensor, Tensor]:
        """Texts as padded ids.

        Args:
            max_tokens: longer texts are cut; [SEP] stays. A form that reads padding ignores it.
            first: [CLS] for text features, [ENC] for matching, [DEC] for decoding.
            multiple: the length is that of the longest text, rounded up to a multiple of this, which keeps the number
                of different shapes small.

        Returns:
            ids int64 and mask bool (True: a token that the text tower reads), both [texts, tokens].
        """
        return self.pad(self.word_ids(texts), max_tokens, first, multiple)

    def word_ids(self, texts: list[str]) -> list[list[int]]:
        """The word pieces of each text, without special tokens."""
        # One by one: `encode_batch` starts threads, which the forked workers of a loader do not survive.
        return [self.pieces.of(text) for text in texts]

    def words(self, text: str) -> list[tuple[str, list[int]]]:
        """The words of a text, separated by spaces, each with the positions of its pieces in `word_ids`."""
        spans = self.tokenizer.encode(text, add_special_tokens=False).offsets
        found: list[tuple[str, list[int]]] = []
        for word in re.finditer(r"\S+", text):
            pieces = [number for number, (start, _) in enumerate(spans) if word.start() <= start < word.end()]
            found.append((word[0], pieces))
        return found

    def pad(
        self, words: list[list[int]], max_tokens: int, first: FirstToken = "[CLS]", multiple: int = 8
    ) -> tuple[Tensor, Tensor]:
        """`encode` for texts whose words are ids already."""
        first_id = {"[CLS]": self.cls_id, "[ENC]": self.enc_id, "[DEC]": self.dec_id}[first]
        begin = [first_id] if self.form.begins else []
        longest, reads_padding = self.form.longest, self.form.reads_padding
        most = longest if reads_padding else min(max_tokens, longest or max_tokens)
        rows = [[*begin, *ids[: most - len(begin) - 1], self.sep_id] for ids in words]
        length = -(-max(map(len, rows), default=1) // multiple) * multiple
        if longest:
            length = longest if reads_padding else min(length, longest)
        padded = [row + [self.pad_id] * (length - len(row)) for row in rows]
        ids = torch.tensor(padded, dtype=torch.int64).reshape(-1, length)
        lengths = torch.tensor([length if reads_padding else len(row) for row in rows], dtype=torch.int64)
        return ids, torch.arange(length) < lengths[:, None]

    def prompt_ids(self, prompt: str) -> list[int]:
        """The tokens that a caption begins with: [DEC] and the words of the prompt, cleaned as captions are."""
        return [self.dec_id, *self.word_ids([clean_caption(prompt)])[0]]

    def word_ids_after(self, prompt: str, captions: list[str]) -> list[list[int]]:
        """The words of captions as they follow a prompt: what training on `prompted_caption` predicts."""
        start = len(self.prompt_ids(prompt)) - 1  # without [DEC]
        return [ids[start:] for ids in self.word_ids([prompted_caption(prompt, caption) for caption in captions])]

    def decode(self, ids: list[int]) -> str:
        """Ids to text, without special tokens and with word pieces joined."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def save(self, folder: str | Path) -> None:
        """Write a tokenizer folder, whole or not at all. `transformers.AutoTokenizer` reads it too.

        Raises:
            UserError: the folder exists and is not empty.
            WorkError: it cannot be written.
        """
        with writing_folder(folder) as temporary:
            self.write_files(temporary)

    def write_files(self, folder: Path) -> None:
        """Write the tokenizer's files into an existing folder, such as that of a model."""
        self.tokenizer.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{f"{role}_token": token for role, token in self.roles.items()},
            "clean_up_tokenization_spaces": False,
        }
        if self.form.cleaning == "caption":
            words = sorted(self.tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
            (folder / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in words), "utf-8")
            config |= {"bos_token": "[DEC]", "extra_special_tokens": ["[ENC]"]}
        else:
            config["text_form"] = asdict(self.form)
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def load_tokenizer(folder: str) -> CaptionTokenizer:
    """Read a tokenizer folder.

    Raises:
        UserError: the folder has no tokenizer.json, or one that cannot be read or lacks the special tokens.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a tokenizer folder: it has no tokenizer.json; `vlp tokenizer` makes one.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises this class itself
        raise UserError(
            f"{path} is damaged ({error}); make it again with `vlp tokenizer`, or copy or convert its model again."
        ) from None
    return CaptionTokenizer(tokenizer, *_read_config(path.with_name("tokenizer_config.json")))


def _read_config(path: Path) -> tuple[dict[str, str], TextForm]:
    """The token of each role and the form of texts; BERT's and BLIP's if the file names none."""
    try:
        config = read_json(path)
    except UserError:
        config = {}
    tokens = {role: config.get(f"{role}_token") for role in BERT_ROLES}
    roles = {role: token for role, token in tokens.items() if isinstance(token, str)}
    if "text_form" not in config:
        return {**BERT_ROLES, **roles}, TextForm()
    try:
        form = TextForm(**config["text_form"])
    except TypeError:
        form = None
    if form is None or form.cleaning not in CLEANINGS or not {"pad", "sep"} <= roles.keys():
        raise UserError(f"{path} has a text_form that this version of vlp does not know.")
    return roles, form


def train_tokenizer(captions: Iterable[str], size: int, min_frequency: int = 2) -> CaptionTokenizer:
    """Train a lower-casing WordPiece tokenizer; equal captions give an equal vocabulary.

    Args:
        captions: at most a million are read.
        size: largest number of words, special tokens included.
        min_frequency: how often a pair of pieces must occur to be merged.

    Raises:
        UserError: there are no captions, or `size` is too small.
    """
    if size < SMALLEST:
        raise UserError(f"A tokenizer needs a size of at least {SMALLEST} words, not {size}.")
    learner = _word_piece({"[UNK]": 0})
    normalize = learner.normalizer.normalize_str
    # A word that long is [UNK] to WordPiece, and takes the trainer time that grows with the square of its length.
    texts = [LONG_WORD.sub(" ", normalize(text)) for text in islice(captions, MOST_CAPTIONS)]
    if not any(map(str.strip, texts)):
        raise UserError("There are no captions to learn a tokenizer from; name shards whose samples have texts.")
    # The trainer numbers the pieces inside words by a random hash; listing them as special tokens fixes the numbers.
    # Letters take at most half of the vocabulary (each has two pieces); rarer ones become [UNK].
    counts = Counter(letter for text in texts for letter in text if letter != " ")
    letters = sorted(sorted(counts, key=lambda letter: (-counts[letter], letter))[: max(size // 4, 1)])
    trainer = trainers.WordPieceTrainer(
        vocab_size=size - len(BLIP_SPECIALS),
        min_frequency=min_frequency,
        special_tokens=BERT_SPECIALS + [f"##{letter}" for letter in letters],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    words = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    tokenizer = _word_piece(dict(words))  # where the pieces are not special tokens
    tokenizer.add_special_tokens(BERT_SPECIALS + BLIP_SPECIALS)
    ours = CaptionTokenizer(tokenizer)
    ends = ("[SEP]", ours.sep_id), ("[CLS]", ours.cls_id)
    tokenizer.post_processor = processors.BertProcessing(*ends)  # for other readers of tokenizer.json
    return ours


def _word_piece(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer
