"""Videos beside images: search, captions, embeddings and matches against a plain computation."""

import pytest
import torch
from PIL import Image
from tiny_model import SIZE, make_images, make_model
from videos import write_video

from vlp.errors import UserError
from vlp.index.search import search
from vlp.model.video import encode_videos, load_videos

QUERY = "a red circle above a square"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five images and four videos, in the order of their names, and a damaged video."""
    path = tmp_path_factory.mktemp("mixed")
    for number, image in enumerate(make_images(5)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path / f"{number}.png")
    noise = torch.randint(0, 256, (4, 6, 4, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    for number, video in enumerate(noise):
        large = video.repeat_interleave(8, 1).repeat_interleave(8, 2)
        write_video(path / f"{number}v.mp4", list(large.numpy()))
    (path / "3x.mp4").write_bytes(b"no video")
    return path


def plain_tokens(model, path, frames):
    """The tokens [1, frames * tokens, width] of a video, frame by frame."""
    loaded = load_videos(model, [path], frames)[0]
    return torch.cat([model.encode_images(frame[None])[0] for frame in loaded])[None]


def test_the_tokens_of_frames_follow_each_other(folder):
    model = make_model()
    videos = sorted(folder.glob("?v.mp4"))
    tokens = encode_videos(model, load_videos(model, videos, 3))
    assert tokens.shape == (4, 3 * (SIZE // 16) ** 2 + 3, 32)
    for row, path in enumerate(videos):
        assert torch.allclose(tokens[row], plain_tokens(model, path, 3)[0], atol=1e-5)


def test_the_vector_of_a_video_is_the_normalized_mean_of_its_frames_projections(folder):
    model = make_model()
    path = folder / "1v.mp4"
    with model.inference():
        classes = model.encode_images(load_videos(model, [path], 4)[0])[:, 0]
        mean = model.blip.image_projection(classes).mean(dim=0)
    assert torch.allclose(model.embed_images(path, frames=4)[0], mean / mean.norm(), atol=1e-6)


def test_images_and_videos_in_one_call_equal_calls_of_their_own(folder):
    model = make_model()
    mixed = [folder / name for name in ("0v.mp4", "0.png", "1v.mp4", "1.png", "2v.mp4")]
    texts = ["a red circle", "a blue square", "a green star", "a shape", "the large circle"]
    settings = {"frames": 3, "batch_size": 4}
    vectors, match = model.embed_images(mixed, **settings), model.match(mixed, texts, **settings)
    captions = model.caption_texts(mixed, **settings)
    for row, (path, text) in enumerate(zip(mixed, texts, strict=True)):
        assert torch.allclose(vectors[row], model.embed_images(path, frames=3)[0], atol=1e-5)
        one = model.match(path, text, frames=3)
        assert torch.allclose(match.itc[row], one.itc[0], atol=1e-5)
        assert torch.allclose(match.itm[row], one.itm[0], atol=1e-5)
        assert captions[row] == model.caption_texts(path, frames=3)[0]
    video = model.match(mixed[0], texts, frames=3)
    plain = model.match_tokens(plain_tokens(model, mixed[0], 3), texts, frames=3)
    assert torch.allclose(video.itc, plain.itc, atol=1e-5) and torch.allclose(video.itm, plain.itm, atol=1e-5)


@pytest.mark.parametrize("rerank", [0, 3, 20])
def test_search_in_a_folder_of_images_and_videos(folder, rerank, caplog):
    model = make_model()
    paths = sorted(folder.glob("?.png")) + sorted(folder.glob("?v.mp4"))
    paths.sort()
    cosines = (model.embed_images(paths, frames=4) @ model.embed_texts(QUERY)[0]).tolist()
    itm = model.match(paths, QUERY, frames=4).itm
    order = sorted(range(9), key=lambda row: -cosines[row])
    scores = (torch.logit(itm, eps=1e-6) + torch.tensor(cosines)).tolist()
    order = sorted(order[:rerank], key=lambda row: -scores[row]) + order[rerank:]
    hits = search(model, str(folder), QUERY, top=9, rerank=rerank, batch_size=8, frames=4)
    assert [hit.name for hit in hits] == [str(paths[row]) for row in order]
    for place, (hit, row) in enumerate(zip(hits, order, strict=True)):
        assert hit.itc == pytest.approx(cosines[row], abs=1e-5)
        assert (hit.itm is None) == (place >= rerank)
        assert hit.itm is None or hit.itm == pytest.approx(itm[row].item(), abs=1e-4)
    assert "3x.mp4: video undecodable" in caplog.text


def test_a_damaged_video_is_one_sentence(folder):
    with pytest.raises(UserError, match=r"3x\.mp4 cannot be used as a video: video undecodable\.$"):
        make_model().caption(folder / "3x.mp4")
