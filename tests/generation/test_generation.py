"""Generation against `transformers` and exhaustive search; sampled texts depend only on seed, key and number."""

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from vlp.config import DecodingConfig
from vlp.errors import UserError
from vlp.generation.decode import start_generating
from vlp.generation.token_rules import TokenRules, cut_distribution, draw, uniform_numbers

VOCABULARY, END = 23, 2
PROMPT = [5, 7]


@pytest.fixture(scope="module")
def language_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=5, eos_token_id=END
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # larger weights, so that texts differ and end at different lengths
            parameter.mul_(6.0) if parameter.ndim == 2 else None
    return model


class Replay:
    """A stepper that recomputes every row from all of its tokens: no cache that could hide a wrong reordering."""

    def __init__(self, logits):
        self.logits = logits
        self.tokens = None
        self.groups = None

    def step(self, new):
        self.tokens = new if self.tokens is None else torch.cat([self.tokens, new], dim=1)
        return self.logits(self.tokens)

    def select(self, rows, groups):
        self.tokens = self.tokens[rows]
        self.groups = groups


def run(logits, config: DecodingConfig, keys=("a",), prompt=PROMPT, **kwargs):
    return start_generating(Replay(logits), prompt, TokenRules(config, END), list(keys), **kwargs)()


def plain(beams=0, **changes) -> DecodingConfig:
    values = {"repetition_penalty": 1.0, "min_length": 0, "max_length": 12, **changes}
    return DecodingConfig(beams=beams, **values)


def table_model(seed=0, scale=2.0):
    """A language model whose prediction depends only on the last token."""
    table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * scale
    return lambda tokens: table[tokens[:, -1]]


@pytest.mark.parametrize("beams", [1, 2, 3, 5])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("limits", [(0, 12), (6, 9)])
@pytest.mark.parametrize("length_penalty", [1.0, 0.3])
def test_equals_transformers(language_model, beams, penalty, limits, length_penalty):
    config = plain(
        beams, repetition_penalty=penalty, min_length=limits[0], max_length=limits[1], length_penalty=length_penalty
    )
    for prompt in ([5], [5, 7], [5, 11, 3]):
        ours = run(lambda t: language_model(t).logits[:, -1], config, prompt=prompt, num_captions=1)[0][0]
        theirs = language_model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            num_beams=beams,
            repetition_penalty=penalty,
            min_length=limits[0],
            max_length=limits[1],
            length_penalty=length_penalty if beams > 1 else None,
            early_stopping=False,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        assert ours.ids == theirs


def test_all_beams_and_their_scores_equal_transformers(language_model):
    config = plain(4)
    ours = run(lambda t: language_model(t).logits[:, -1], config, num_captions=4)[0]
    theirs = language_model.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, 2, dtype=torch.int64),
        num_beams=4,
        num_return_sequences=4,
        max_length=12,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
    )
    for text, ids, score in zip(ours, theirs.sequences.tolist(), theirs.sequences_scores.tolist(), strict=True):
        assert text.ids == ids[2 : 2 + len(text.ids)]
        assert text.log_probability / len(text.ids) == pytest.approx(score, abs=1e-5)


def test_many_groups_equal_one_by_one():
    """Groups finish at different steps and leave the batch; the others must not be affected."""
    tables = torch.randn(7, VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 2

    class PerGroup(Replay):
        def __init__(self, numbers):
            super().__init__(None)
            self.numbers = numbers

        def step(self, new):
            self.tokens = new if self.tokens is None else torch.cat([self.tokens, new], dim=1)
            table = tables[self.numbers.repeat_interleave(len(new) // len(self.numbers))]
            return table[torch.arange(len(new)), self.tokens[:, -1]]

        def select(self, rows, groups):
            self.tokens = self.tokens[rows]
            if groups is not None:
                self.numbers = self.numbers[groups]

    keys = [f"k{i}" for i in range(7)]
    for config, captions in [(plain(3), 2), (plain(1), 1), (plain(0), 3), (plain(0), 1)]:
        rules = TokenRules(config, END)
        together = start_generating(PerGroup(torch.arange(7)), PROMPT, rules, keys, num_captions=captions)()
        for i in range(7):
            alone = start_generating(PerGroup(torch.tensor([i])), PROMPT, rules, [keys[i]], num_captions=captions)()
            assert [t.ids for t in together[i]] == [t.ids for t in alone[0]]
            assert [t.log_probability for t in together[i]] == pytest.approx([t.log_probability for t in alone[0]])


def test_a_wide_beam_finds_the_most_likely_text():
    """With as many beams as there are texts, beam search is exhaustive: the most likely text of three tokens wins."""
    vocabulary = 5
    table = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(3))
    log = table.log_softmax(-1)
    config = plain(40, max_length=4, length_penalty=0.0)
    found = start_generating(Replay(lambda t: table[t[:, -1]]), [1], TokenRules(config, END), ["a"])()[0][0]
    best = -math.inf
    for a in range(vocabulary):
        for b in range(vocabulary):
            for c in range(vocabulary):
                ids = [a] if a == END else [a, b] if b == END else [a, b, c]
                total = sum(log[x, y].item() for x, y in zip([1, *ids], ids, strict=False))
                best = max(best, total)
    assert found.log_probability == pytest.approx(best, abs=1e-5)


def test_sampling_depends_only_on_seed_and_key():
    model = table_model()
    keys = [f"key{i}" for i in range(12)]
    whole = run(model, plain(), keys, seed=4)
    for size in (1, 5):
        parts = [text for i in range(0, 12, size) for text in run(model, plain(), keys[i : i + size], seed=4)]
        assert parts == whole
    assert run(model, plain(), keys[::-1], seed=4)[::-1] == whole
    two = run(model, plain(), keys, seed=4, num_captions=2)
    assert [group[0] for group in two] == [group[0] for group in whole]
    assert run(model, plain(), keys, seed=5) != whole


def test_sampled_log_probability():
    table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2
    log = table.log_softmax(-1)
    for group in run(table_model(), plain(top_p=0.8), [f"k{i}" for i in range(6)]):
        ids = group[0].ids
        total = sum(log[x, y].item() for x, y in zip([PROMPT[-1], *ids], ids, strict=False))
        assert group[0].log_probability == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("beams", [0, 1, 3])
def test_length_limits_count_the_prompt(beams):
    always_end = lambda t: torch.nn.functional.one_hot(torch.full((len(t),), END), VOCABULARY) * 30.0  # noqa: E731
    ids = run(always_end, plain(beams, min_length=6))[0][0].ids
    # Four more words make six tokens with the prompt; only then may the text end.
    assert len(ids) == 5 and ids[-1] == END and END not in ids[:-1]
    never_end = lambda t: -always_end(t)  # noqa: E731
    assert len(run(never_end, plain(beams, max_length=9))[0][0].ids) == 7


def test_the_repetition_penalty_discourages_used_tokens():
    flat = lambda t: torch.full((len(t), VOCABULARY), 3.0)  # noqa: E731
    ids = run(flat, plain(1, repetition_penalty=2.0, max_length=10, min_length=10))[0][0].ids
    assert len(set(ids + PROMPT)) == len(ids) + len(PROMPT)


@pytest.mark.parametrize(("top_k", "top_p", "temperature"), [(0, 0.9, 1.0), (4, 1.0, 1.0), (6, 0.7, 1.5)])
def test_cut_equals_transformers(top_k, top_p, temperature):
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(9, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    expected = TopKLogitsWarper(top_k)(None, expected) if top_k else expected
    expected = TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
    cut = cut_distribution(logits, temperature, top_k, top_p)
    torch.testing.assert_close(cut / cut.sum(-1, keepdim=True), expected.softmax(-1))


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    uniform = (torch.arange(1000) + 0.5) / 1000
    drawn = draw(probabilities.expand(1000, -1), uniform)
    assert torch.bincount(drawn, minlength=6).tolist() == [0, 500, 0, 300, 200, 0]
    edges = draw(probabilities.expand(2, -1), torch.tensor([0.0, 1 - 2**-24]))
    assert edges.tolist() == [1, 4]


def test_uniform_numbers_are_stable():
    assert uniform_numbers(0, "a", 0, 5).tolist() == uniform_numbers(0, "a", 0, 9)[:5].tolist()
    assert uniform_numbers(0, "a", 0, 2).tolist() != uniform_numbers(0, "a", 1, 2).tolist()
    assert uniform_numbers(3, "000000017", 0, 1)[0] == 0.5376934330007084  # other machines must draw the same


@pytest.mark.parametrize(
    ("changes", "captions"),
    [
        ({"top_p": 0.0}, 1),
        ({"temperature": 0.0}, 1),
        ({"max_length": 2}, 1),
        ({"min_length": 13}, 1),
        ({"beams": -1}, 1),
        ({"beams": 2}, 3),
        ({"repetition_penalty": 0.0}, 1),
        ({"banned_words": ["red", " "]}, 1),
        ({"beams": "3"}, 1),
    ],
)
def test_invalid_settings_are_refused(changes, captions):
    with pytest.raises(UserError, match="decoding"):
        run(table_model(), plain(**changes), num_captions=captions)


def test_no_keys_give_no_texts():
    assert run(table_model(), plain(), keys=()) == []
