"""The towers: the paper's parameter counts, the image memory, the cache, causality and gradients."""

from dataclasses import replace

import pytest
import torch

from tests.tiny_model import attend, make_images, make_model
from vlp.config_model import ImageEncoderConfig, ModelConfig, TextTowerConfig
from vlp.models.blip import Blip
from vlp.models.image_encoders.vit import PatchEmbedding
from vlp.models.image_memory import SelfAttentionCache, TakeImages, image_taker
from vlp.models.text_tower import TextTower

SHARINGS = ("all", "all_but_cross_attention", "all_but_self_attention", "nothing")


def small_tower(sharing="all_but_self_attention", dropout=0.1) -> TextTower:
    torch.manual_seed(0)
    config = TextTowerConfig(50, width=24, layers=3, heads=3, feed_forward=48, positions=32, dropout=dropout)
    config = replace(config, sharing=sharing)
    tower = TextTower(config, image_width=20).eval()
    with torch.no_grad():
        for parameter in tower.parameters():  # larger than at the start, so that every part matters
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return tower


def texts(count=6, length=7):
    torch.manual_seed(1)
    ids = torch.randint(1, 50, (count, length))
    lengths = torch.randint(3, length + 1, (count,))
    return ids, torch.arange(length) < lengths[:, None]


@pytest.mark.parametrize(
    ("sharing", "millions"),
    [("all", 224), ("all_but_cross_attention", 252), ("all_but_self_attention", 252), ("nothing", 361)],
)
def test_parameter_counts_are_those_of_table_3(sharing, millions):
    with torch.device("meta"):
        model = Blip(ModelConfig(ImageEncoderConfig(), TextTowerConfig(vocabulary=30_524, sharing=sharing)))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.7)


def plain_cross_attention(module, x, image_tokens):
    """The formula of cross-attention for one text and its image, head by head."""
    width, heads = x.shape[-1], module.heads
    query = module.query(x)
    key, value = module.key_value(image_tokens).chunk(2, dim=-1)
    outputs = []
    for head in torch.arange(width).chunk(heads):
        scores = query[:, head] @ key[:, head].T / len(head) ** 0.5
        outputs.append(scores.softmax(-1) @ value[:, head])
    return module.norm(x + module.out(torch.cat(outputs, dim=-1)))


def test_cross_attention_equals_the_formula():
    tower = small_tower()
    module = tower.layers[0].cross_attention.side("encoder")
    x, image = torch.randn(4, 5, 24), torch.randn(2, 9, 20)
    expected = torch.stack([plain_cross_attention(module, x[i], image[i // 2]) for i in range(4)])
    torch.testing.assert_close(attend(module, x, image), expected)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_one_projection_serves_all_texts_values_and_gradients(sharing):
    tower = small_tower(sharing)
    ids, mask = texts(6)
    index = torch.tensor([0, 0, 1, 1, 2, 2])

    def grouped(image):
        return tower.match(ids, mask, tower.project_image(image))

    def indexed(image):
        return tower.match(ids, mask, tower.project_image(image), index)

    def projected_for_every_text(image):
        return tower.match(ids, mask, tower.project_image(image[index]))

    results = []
    for match in (grouped, indexed, projected_for_every_text):
        torch.manual_seed(2)
        image = torch.randn(3, 9, 20, requires_grad=True)
        tower.zero_grad()
        out = match(image)
        out.square().sum().backward()
        weight = tower.layers[1].cross_attention.side("encoder").key_value.weight
        results.append((out.detach(), image.grad, weight.grad.clone()))
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_cached_decoding_equals_uncached():
    tower = small_tower()
    ids, _ = texts(4, 9)
    memory = tower.project_image(torch.randn(2, 5, 20), "decoder")
    whole = tower.decode(ids, None, memory)
    cache = SelfAttentionCache(len(tower.layers), 9)
    parts = [tower.decode(ids[:, a:b], None, memory, cache=cache) for a, b in ((0, 4), (4, 5), (5, 8), (8, 9))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_cache_rows_can_be_reordered():
    tower = small_tower()
    ids, _ = texts(4, 6)
    rows = torch.tensor([2, 2, 0])
    image = torch.randn(4, 5, 20)
    cache = SelfAttentionCache(len(tower.layers), 6)
    tower.decode(ids[:, :5], None, tower.project_image(image, "decoder"), cache=cache)
    cache.select(rows)
    last = tower.decode(ids[rows, 5:], None, tower.project_image(image[rows], "decoder"), cache=cache)
    whole = tower.decode(ids[rows], None, tower.project_image(image[rows], "decoder"))
    torch.testing.assert_close(last[:, 0], whole[:, 5], rtol=1e-4, atol=1e-5)


def test_a_later_token_changes_nothing_before_it():
    tower = small_tower()
    ids, _ = texts(3, 8)
    memory = tower.project_image(torch.randn(3, 5, 20), "decoder")
    before = tower.decode(ids, None, memory)
    changed = ids.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 50
    after = tower.decode(changed, None, memory)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert (before[:, 5:] - after[:, 5:]).abs().amax(dim=(0, 2)).min() > 1e-4  # it and all tokens after it
    both_ways = tower.match(changed, torch.ones_like(ids, dtype=torch.bool), memory)
    assert (both_ways - tower.match(ids, torch.ones_like(ids, dtype=torch.bool), memory))[:, 0].abs().max() > 1e-4


def test_padding_changes_nothing():
    tower = small_tower()
    ids, mask = texts(4, 7)
    memory = tower.project_image(torch.randn(4, 5, 20))
    for run in (tower.encode, lambda i, m: tower.match(i, m, memory), lambda i, m: tower.decode(i, m, memory)):
        longer = torch.nn.functional.pad(ids, (0, 5), value=9)
        padded = run(longer, torch.nn.functional.pad(mask, (0, 5)))
        torch.testing.assert_close(padded[:, :7][mask], run(ids, mask)[mask], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", ["match", "decode"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("index", [None, [0, 0, 1, 1, 2, 2], [2, 1, 0, 0, 1, 2]])
def test_padding_of_a_memory_changes_nothing(side, checkpointing, index):
    """Each text gets what it gets from its own image's tokens alone, and so do the gradients."""
    tower = small_tower(dropout=0.0).train()
    tower.checkpointing = checkpointing
    ids, mask = texts(6)
    rows = torch.tensor([0, 0, 1, 1, 2, 2] if index is None else index)
    lengths = [4, 9, 6]
    image = torch.randn(3, 9, 20, requires_grad=True)
    use = "encoder" if side == "match" else "decoder"
    padded = tower.project_image(image, use, torch.arange(9) < torch.tensor(lengths)[:, None])
    out = getattr(tower, side)(ids, mask, padded, None if index is None else rows)
    alone = []
    for text, row in enumerate(rows.tolist()):
        memory = tower.project_image(image[row : row + 1, : lengths[row]], use)
        alone.append(getattr(tower, side)(ids[text : text + 1], mask[text : text + 1], memory))
    torch.testing.assert_close(out, torch.cat(alone), rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(out)
    gradients = [torch.autograd.grad((one * weights).sum(), image)[0] for one in (out, torch.cat(alone))]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    assert gradients[0][0, 4:].abs().max() == 0


def test_a_padded_memory_keeps_its_mask_when_rows_are_selected():
    tower = small_tower()
    mask = torch.arange(9) < torch.tensor([4, 9, 6])[:, None]
    selected = tower.project_image(torch.randn(3, 9, 20), mask=mask).select(torch.tensor([2, 0, 2]))
    assert selected.mask is not None and selected.mask.sum(dim=1).tolist() == [6, 4, 6]


def test_activation_checkpointing_changes_no_gradient():
    grads = []
    for checkpointing in (False, True):
        tower = small_tower(dropout=0.0).train()
        tower.checkpointing = checkpointing
        ids, mask = texts(2)
        torch.manual_seed(3)
        memory = tower.project_image(torch.randn(2, 5, 20))
        tower.match(ids, mask, memory).square().sum().backward()
        grads.append([p.grad for p in tower.parameters() if p.grad is not None])
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)


def test_uint8_images_are_normalized_on_the_device():
    torch.manual_seed(0)
    model = Blip(
        ModelConfig(
            ImageEncoderConfig(image_size=16, patch_size=8, width=24, layers=1, heads=2),
            TextTowerConfig(vocabulary=30, width=24, layers=1, heads=2, feed_forward=32),
        )
    ).eval()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    torch.testing.assert_close(
        model.encode_images(images), model.encode_images((images.float() / 255 - mean) / deviation)
    )


@pytest.mark.parametrize("width", [64, 256, 768])
def test_towers_of_any_width_start_with_the_same_scale(width):
    """The output of a linear layer for a normalized feature is as large as in BERT and ViT at width 768."""
    image = ImageEncoderConfig(image_size=32, width=width, layers=1, heads=2)
    text = TextTowerConfig(vocabulary=50, width=width, layers=1, heads=2, feed_forward=4 * width)
    model = Blip(ModelConfig(image, text))
    expected = 0.02 * (768 / width) ** 0.5
    for matrix in (
        model.text_tower.layers[0].self_attention.side("decoder").qkv.weight,
        model.text_tower.layers[0].cross_attention.side("decoder").key_value.weight,
        model.text_tower.embeddings.side("encoder").words.weight,
        model.image_encoder.tower.blocks[0].attn.qkv.weight,
    ):
        assert matrix.std().item() == pytest.approx(expected, rel=0.05)


def test_the_gradient_of_taken_images_is_that_of_index_select():
    rows = torch.tensor([2, 0, 2, 4])
    images = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    chosen = torch.nn.functional.one_hot(rows, 5).double()
    taken, expected = TakeImages.apply(images, rows, chosen), images.index_select(0, rows)
    assert torch.equal(taken, expected)
    weights = torch.randn(4, 2, 3, dtype=torch.float64)
    found, right = (torch.autograd.grad((one * weights).sum(), images)[0] for one in (taken, expected))
    torch.testing.assert_close(found, right)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_are_taken_alike_on_a_gpu():
    rows = torch.tensor([2, 0, 2, 4], device="cuda")
    images = torch.randn(5, 2, 3, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    taken, weights = image_taker(rows, images)(images), torch.randn(4, 2, 3, device="cuda")
    assert "TakeImages" in type(taken.grad_fn).__name__ and torch.equal(taken, images.index_select(0, rows))
    (found,) = torch.autograd.grad((taken * weights).sum(), images)
    right = torch.zeros(5, 2, 3, device="cuda").index_add(0, rows, weights.bfloat16().float())
    torch.testing.assert_close(found.float(), right, rtol=0.01, atol=0.01)


def gradients_of_matching(device: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """ITM logits of own and of taken images, and gradients of all parameters, of a tiny model on a device."""
    model = make_model(dropout=0.0)
    blip = model.network.to(device)
    ids, mask = (one.to(device) for one in model.tokenizer.encode(["a red circle", "a star near a square"], 8))
    memory = blip.text_tower.project_image(blip.encode_images(make_images(2).to(device)))
    other = memory.select(torch.tensor([1, 1], device=device))
    logits = torch.cat([blip.match_logits(ids, mask, one) for one in (memory, other)])
    logits[:, 1].sum().backward()
    return logits.cpu(), [weight.grad.cpu() for weight in blip.parameters() if weight.grad is not None]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_logits_and_gradients_of_a_cpu():
    (logits, gradients), (right, expected) = gradients_of_matching("cuda"), gradients_of_matching("cpu")
    torch.testing.assert_close(logits, right, rtol=1e-3, atol=1e-3)
    for one, other in zip(gradients, expected, strict=True):
        assert (one - other).norm() <= 1e-3 * other.norm() + 1e-3


def test_patches_become_tokens_by_the_convolution_of_their_weights():
    embedding = PatchEmbedding(4, 8)
    images = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(embedding(images), embedding.proj(images).flatten(2).transpose(1, 2))
