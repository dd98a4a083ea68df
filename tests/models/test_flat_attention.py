"""Attention without padding equals plain attention; without a GPU, Triton interprets the kernels."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from tests.tiny_model import make_images, make_model
from vlp.config import ObjectiveConfig, RunConfig
from vlp.data.batch import Batch
from vlp.models import flat_attention, padding
from vlp.models.compiled import compile_blocks
from vlp.models.flat_attention import flat_cross_attention, flat_self_attention, place_memory, place_texts
from vlp.models.image_memory import ImageMemory
from vlp.tasks import alignment
from vlp.tasks.pretrain import PretrainTask

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HEADS, DEPTH = 2, 16
LENGTHS = [[3, 40, 1], [5, 9]]  # of the texts of two uses; the second is causal
ROWS = [48, 16]  # more than the texts have
CAPTIONS = ["a red circle", "a small blue square left of the large green star", "white shape", "a star"]


def placed(layers=1):
    masks = [torch.arange(max(some)) < torch.tensor(some)[:, None] for some in LENGTHS]
    seeds = torch.arange(layers) + 7
    return place_texts([mask.to(DEVICE) for mask in masks], ROWS, [False, True], seeds.to(DEVICE))


def spans():
    """The rows of each text, and whether it is causal."""
    found, first = [], 0
    for some, rows, causal in zip(LENGTHS, ROWS, (False, True), strict=True):
        for length, end in zip(some, torch.tensor(some).cumsum(0).tolist(), strict=True):
            found.append((slice(first + end - length, first + end), causal))
        first += rows
    return found


def random(*shape):
    return torch.randn(*shape, device=DEVICE, requires_grad=True)


def plain_self(qkv):
    result = torch.zeros(len(qkv), HEADS * DEPTH, device=DEVICE)
    for rows, causal in spans():
        query, key, value = qkv[rows].unflatten(1, (3, HEADS, DEPTH)).permute(1, 2, 0, 3)
        result[rows] = F.scaled_dot_product_attention(query, key, value, is_causal=causal).transpose(0, 1).flatten(1)
    return result


def plain_cross(query, both, images):
    result = torch.zeros_like(query)
    for (rows, _), image in zip(spans(), images, strict=True):
        asked = query[rows].unflatten(1, (HEADS, DEPTH)).transpose(0, 1)
        result[rows] = F.scaled_dot_product_attention(asked, both[0, image], both[1, image]).transpose(0, 1).flatten(1)
    return result


def check(found, expected, inputs):
    """Values and gradients, with those that reach rows of no text."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((one * weights).sum(), inputs) for one in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_texts_attend_to_themselves():
    torch.manual_seed(0)
    qkv = random(sum(ROWS), 3 * HEADS * DEPTH)
    check(flat_self_attention(qkv, placed().at_layer(0), HEADS, 0.0), plain_self(qkv), [qkv])


def test_half_precision_rounds_and_nothing_else():
    """float16, because Triton's interpreter does not multiply bfloat16."""
    torch.manual_seed(0)
    qkv, half = random(sum(ROWS), 3 * HEADS * DEPTH), torch.float16
    found = flat_self_attention(qkv.to(half), placed().at_layer(0), HEADS, 0.0)
    expected = plain_self(qkv.to(half).float())
    assert found.dtype == half
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=3e-3)
    gradients = [torch.autograd.grad(one.float().square().sum(), qkv)[0] for one in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=3e-2)


@pytest.mark.parametrize("contiguous", [True, False])
def test_texts_attend_to_images(contiguous):
    """Some images have several texts, one has none; their tokens are more than a kernel takes at once."""
    torch.manual_seed(0)
    query, images = random(sum(ROWS), HEADS * DEPTH), [3, 0, 0, 3, 1]
    tokens = random(4, 150, 2 * HEADS * DEPTH)
    both = tokens.unflatten(2, (2, HEADS, DEPTH)).permute(2, 0, 3, 1, 4)  # [2, images, heads, tokens, head_dim]
    both = both.contiguous() if contiguous else both
    memory = place_memory(placed(), ImageMemory([both]), torch.tensor(images, device=DEVICE))
    found = flat_cross_attention(query, [memory.at_layer(0)], 0.0)
    check(found, plain_cross(query, both, images), [query, tokens])


def test_two_memories_take_their_texts_in_turn():
    torch.manual_seed(0)
    query, first, second = random(96, HEADS * DEPTH), *(random(2, 2, HEADS, 9, DEPTH) for _ in range(2))
    mask, seeds = torch.ones(4, 12, dtype=torch.bool, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    texts = place_texts([mask], [48], [False], seeds)
    images = torch.tensor([0, 0, 1, 1], device=DEVICE)
    memories = [place_memory(texts, ImageMemory([one]), images).at_layer(0) for one in (first, second)]
    found = flat_cross_attention(query, memories, 0.0)
    alone = [flat_cross_attention(query[48 * i :][:48], [memories[i]], 0.0) for i in range(2)]
    torch.testing.assert_close(found, torch.cat(alone))


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_gradients_are_those_of_the_weights_that_dropout_kept(share):
    """With the identity as values, what is gathered are the weights themselves."""
    torch.manual_seed(0)
    texts, tokens = 30, 12
    query, key = random(texts * tokens, HEADS * DEPTH), random(texts, HEADS, DEPTH, DEPTH)
    value = torch.eye(DEPTH, device=DEVICE).expand(texts, HEADS, -1, -1)
    mask = torch.ones(texts, tokens, dtype=torch.bool, device=DEVICE)
    places = place_texts([mask], [texts * tokens], [False], torch.tensor([5, 6], device=DEVICE))
    memory = place_memory(places, ImageMemory([torch.stack([key, value])] * 2), torch.arange(texts, device=DEVICE))
    gathered = flat_cross_attention(query, [memory.at_layer(0)], share)
    found = gathered.view(texts, tokens, HEADS, DEPTH).transpose(1, 2)
    kept = (found > 0).detach()
    assert kept.float().mean().item() == pytest.approx(1 - share, abs=0.02)
    asked = query.view(texts, tokens, HEADS, DEPTH).transpose(1, 2)
    weights = (asked @ key.transpose(2, 3) / DEPTH**0.5).softmax(dim=-1) * kept / (1 - share)
    check(found, weights, [query, key])
    other = flat_cross_attention(query, [memory.at_layer(1)], share).view_as(found.transpose(1, 2)).transpose(1, 2)
    assert torch.equal(other > 0, kept) == (share == 0)  # each layer has a seed of its own


def test_dropout_of_texts_that_attend_to_themselves_is_the_same_in_the_gradient():
    """The output is linear in the values, so its gradient gives the output back."""
    torch.manual_seed(0)
    qkv = random(sum(ROWS), 3 * HEADS * DEPTH)
    texts, width = placed().at_layer(0), HEADS * DEPTH
    found = flat_self_attention(qkv, texts, HEADS, 0.4)
    weights = torch.randn_like(found)
    (gradient,) = torch.autograd.grad((found * weights).sum(), qkv)
    expected = (found * weights).sum()
    torch.testing.assert_close((gradient[:, 2 * width :] * qkv[:, 2 * width :]).sum(), expected, rtol=1e-3, atol=1e-3)
    assert (found - flat_self_attention(qkv, texts, HEADS, 0.0)).abs().max() > 0.1


def loss_and_gradients(model):
    task, batch = pretraining(model)
    losses, _ = task(batch)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    return {"loss": total.detach()} | {name: one.grad for name, one in task.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("how", ["plain", "checkpointing", "compiled", "spare rows"])
@pytest.mark.parametrize("sharing", ["all", "all_but_self_attention", "nothing"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # read by torch.compile
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in PyTorch itself, before 2.12
def test_a_training_step_is_the_plain_one(sharing, how, monkeypatch):
    taken, calls = [], []
    for flat in (False, True):
        model = make_model(dropout=0.0, sharing=sharing)
        padding.skip_padding(model.network)
        model.network.to(DEVICE)
        if flat:
            use_kernels(monkeypatch, calls)
            if how == "checkpointing":
                model.blip.checkpoint_activations()
            if how == "spare rows":
                monkeypatch.setattr(alignment, "token_count", lambda mask, lengths: mask.numel)
            if how == "compiled":
                torch._dynamo.reset()
                torch._dynamo.utils.counters.clear()
                compile_blocks(model.blip, backend="aot_eager")
        taken.append(loss_and_gradients(model))
    assert len(calls) > 6
    if how == "compiled":
        assert torch._dynamo.utils.counters["frames"]["ok"] and not torch._dynamo.utils.counters["graph_break"]
    expected, found = taken
    assert found.keys() == expected.keys() and len(found) > 50
    for name, one in found.items():
        torch.testing.assert_close(one, expected[name], rtol=1e-4, atol=1e-3 * expected[name].abs().max().item())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in PyTorch itself, before 2.12
def test_numbers_of_rows_that_are_equal_by_chance_cost_no_second_compilation(monkeypatch):
    """In the first step all captions have the same length, so all uses have equally many rows, as many as keys."""
    model = make_model(dropout=0.0, sharing="all_but_self_attention")
    padding.skip_padding(model.network)
    use_kernels(monkeypatch, [])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_blocks(model.blip, backend="eager")
    programs = []
    for captions in (["a red circle"] * 3 + ["a blue star"], CAPTIONS):
        task, batch = pretraining(model, captions)
        task(batch)
        programs.append(torch._dynamo.utils.counters["frames"]["ok"])
    assert programs[0] == programs[1] > 2


def use_kernels(monkeypatch, calls):
    """Let text towers use the kernels in float32, interpreted if there is no GPU; note their calls."""
    monkeypatch.setattr(padding, "has_kernels", lambda device: calls.append(device) or True)
    monkeypatch.setattr(padding, "HALF", (torch.float32,))


def pretraining(model, captions=CAPTIONS):
    config = RunConfig(objective=ObjectiveConfig(queue_size=8, altered_texts=1))
    task = PretrainTask(config, model.blip, model.tokenizer).to(DEVICE)
    ids, mask = model.tokenizer.encode(captions, 24)
    numbers = torch.arange(len(captions))
    lengths = mask.sum(dim=1).tolist()
    batch = Batch(make_images(len(captions)), captions, ids, mask, numbers, numbers, captions, lengths=lengths)
    return task, batch.to(DEVICE)


def test_where_triton_cannot_compile_attention_sees_padded_texts(monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("Failed to find C compiler")

    flat_attention.has_kernels.cache_clear()
    assert not flat_attention.has_kernels(torch.device("cpu"))
    monkeypatch.setattr(flat_attention, "flat_self_attention", fail)
    if torch.cuda.is_available():
        assert not flat_attention.has_kernels(DEVICE) and "Failed to find C compiler" in caplog.text
    flat_attention.has_kernels.cache_clear()


def test_gpus_whose_programs_share_too_little_memory_have_no_kernels(monkeypatch, caplog):
    flat_attention.has_kernels.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not flat_attention.has_kernels(torch.device("cuda")) and not caplog.text  # nothing was tried
    flat_attention.has_kernels.cache_clear()


def test_the_kernels_compile_for_a_gpu():
    """An interpreter accepts more than a compiler."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.models.compile_kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "compiled\n", done.stderr[-2000:]
