"""Search against a plain loop, and in bounded memory."""

import gc

import pytest
import torch
from PIL import Image
from tiny_model import make_images, make_model

from vlp.data.shard_writer import ShardWriter
from vlp.errors import UserError
from vlp.index.search import search

QUERY = "a red circle above a square"


@pytest.fixture
def photos(tmp_path):
    """A folder with 40 images, one of them in a subfolder, and files that are not images."""
    (tmp_path / "more").mkdir()
    for number, image in enumerate(make_images(40)):
        path = tmp_path / ("more" if number == 7 else "") / f"{number:02d}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "notes.txt").write_text("text")
    return tmp_path


@pytest.mark.parametrize("rerank", [0, 5, 100])
def test_search_equals_a_plain_loop(photos, rerank):
    model = make_model()
    paths = sorted(photos.rglob("[0-9]*.png"))
    cosines = (model.embed_images(paths) @ model.embed_texts(QUERY)[0]).tolist()
    probabilities = [model.match(path, QUERY).itm.item() for path in paths]
    order = sorted(range(40), key=lambda row: -cosines[row])
    score = {row: torch.logit(torch.tensor(probabilities[row]), eps=1e-6).item() + cosines[row] for row in order}
    order = sorted(order[:rerank], key=lambda row: -score[row]) + order[rerank:]
    hits = search(model, str(photos), QUERY, top=12, rerank=rerank, batch_size=6)
    assert [hit.name for hit in hits] == [str(paths[row]) for row in order[:12]]
    for place, (hit, row) in enumerate(zip(hits, order, strict=False)):
        assert hit.itc == pytest.approx(cosines[row], abs=1e-5)
        assert (hit.itm is None) == (place >= rerank)
        assert hit.itm is None or hit.itm == pytest.approx(probabilities[row], abs=1e-4)


def test_search_keeps_no_more_images_than_it_may_rerank(photos, monkeypatch):
    model = make_model()
    image_tokens = model.encode_images(make_images(1))[0]
    kept, real = [], model.encode_images

    def encode_images(images):
        tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor and one.shape == image_tokens.shape]
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
        kept.append(sum(storages.values()))
        return real(images)

    before = encode_images(make_images(1)) is not None and kept.pop()
    monkeypatch.setattr(model, "encode_images", encode_images)
    search(model, str(photos), QUERY, top=3, rerank=4, batch_size=8)
    assert len(kept) == 5
    assert max(kept) - before <= 4 * image_tokens.nbytes


def test_search_in_shards(tmp_path):
    with ShardWriter(str(tmp_path / "shards")) as writer:
        for number, image in enumerate(make_images(4)):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "one.png")
            writer.write(f"k{number}", (tmp_path / "one.png").read_bytes(), "png", "a text", {})
    hits = search(make_model(), str(tmp_path / "shards/*.tar"), QUERY, rerank=2)
    assert {hit.name.rpartition("#")[2] for hit in hits} == {"k0", "k1", "k2", "k3"}


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="no image or video to search"):
        search(make_model(), str(tmp_path), QUERY)
