"""The kernel of nucleus sampling draws the tokens of the plain functions; without a GPU, Triton interprets it."""

import pytest
import torch

from vlp.generation.token_rules import cut_distribution, draw

pytest.importorskip("triton")
from vlp.generation import decode, nucleus_kernel
from vlp.generation.nucleus_kernel import draw_from_nucleus

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def plain(logits, temperature, top_p, uniform):
    chosen = draw(cut_distribution(logits, temperature, 0, top_p), uniform)
    return chosen, logits.log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0]


@pytest.mark.parametrize(("temperature", "top_p", "scale"), [(1.0, 0.9, 3), (0.7, 0.5, 1), (1.5, 0.99, 8), (1, 1, 1)])
def test_it_draws_what_the_plain_functions_draw(temperature, top_p, scale):
    torch.manual_seed(0)
    logits, uniform = scale * torch.randn(50, 777, device=DEVICE), torch.rand(50, device=DEVICE)
    logits[:, 5] = -torch.inf  # as a rule forbids a token
    found, expected = (function(logits, temperature, top_p, uniform) for function in (draw_from_nucleus, plain))
    same = found[0] == expected[0]  # sums that round differently may move an edge between two tokens
    assert same.float().mean() > 0.95 and len(set(found[0].tolist())) > 20
    torch.testing.assert_close(found[1][same], expected[1][same])


def test_each_row_is_drawn_with_its_own_number_where_a_step_takes_a_column_of_them():
    torch.manual_seed(0)
    logits, uniforms = 3 * torch.randn(50, 777, device=DEVICE), torch.rand(50, 19, device=DEVICE)
    for position in (0, 7):
        found = draw_from_nucleus(logits, 1.0, 0.9, uniforms[:, position])[0]
        assert (found == plain(logits, 1.0, 0.9, uniforms[:, position])[0]).float().mean() > 0.95


def test_tokens_as_likely_as_the_least_likely_one_of_the_nucleus_belong_to_it():
    logits = torch.tensor([0.4, 0.2, 0.2, 0.15, 0.05], device=DEVICE).log().expand(80, -1)
    uniform = torch.linspace(0, 1 - 2**-24, 80, device=DEVICE)
    chosen, log_probability = draw_from_nucleus(logits, 1.0, 0.5, uniform)
    counts = chosen.bincount(minlength=5).tolist()
    assert counts == pytest.approx([40, 20, 20, 0, 0], abs=2)
    torch.testing.assert_close(log_probability, logits[0, chosen])


def test_the_ends_of_the_numbers_draw_possible_tokens():
    logits = torch.tensor([-torch.inf, 0.0, 1.0, -torch.inf], device=DEVICE).repeat(2, 1)
    chosen, _ = draw_from_nucleus(logits, 1.0, 0.999, torch.tensor([0.0, 1 - 2**-24], device=DEVICE))
    assert chosen.tolist() == [1, 2]


def test_where_it_cannot_compile_the_plain_functions_draw(monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("Failed to find C compiler")

    decode.find_kernel.cache_clear()
    assert decode.find_kernel(torch.device(DEVICE)) is draw_from_nucleus
    decode.find_kernel.cache_clear()
    monkeypatch.setattr(nucleus_kernel, "draw_from_nucleus", fail)
    assert decode.find_kernel(torch.device(DEVICE)) is None and "Failed to find C compiler" in caplog.text
    decode.find_kernel.cache_clear()
