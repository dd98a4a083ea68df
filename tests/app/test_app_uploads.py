"""Uploads are limited, what visitors send is checked, and a model shows only what it can do."""

import base64
import io
from contextlib import ExitStack
from dataclasses import replace

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.tiny_model import make_clip, make_model
from tests.videos import gray_frames, write_video
from vlp.app import uploads
from vlp.app.inputs import AppInputs
from vlp.app.model_thread import Abilities, ModelThread
from vlp.app.models import open_models
from vlp.app.search_actions import SearchActions
from vlp.app.try_actions import TryActions
from vlp.app.uploads import Upload, check_upload
from vlp.cli.main import app
from vlp.data.images import video_frame
from vlp.errors import UserError
from vlp.index import open_index
from vlp.index.build import build_index


@pytest.fixture
def thread():
    started = ModelThread(make_model(), "MODEL")
    yield started
    started.close()


def test_a_large_upload_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "wide.png"
    Image.new("1", (7000, 6000)).save(path)
    with pytest.raises(UserError, match=r"^wide\.png has 7000 x 6000 pixels, and 40 million are allowed; make it sm"):
        check_upload(str(path))
    monkeypatch.setattr(uploads, "LARGEST", 10)
    with pytest.raises(UserError, match=r"^wide\.png has more than 0 MB; choose a smaller file\.$"):
        check_upload(str(path))


def test_an_upload_that_is_gone_or_no_video_is_a_sentence(tmp_path, thread):
    gone = Upload(str(tmp_path / "gone.png"))
    shown, command = TryActions(thread).captions(gone, 1, 0, 0)
    assert "The uploaded file is not kept any more; upload it again." in shown and not command
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"^a\.mp4 cannot be used as a video: video undecodable\.$"):
        check_upload(str(tmp_path / "a.mp4"))
    write_video(tmp_path / "b.mp4", gray_frames(16))
    upload = check_upload(str(tmp_path / "b.mp4"))
    assert upload.frame == 8 and upload.image().size == (64, 48)
    shown, _ = TryActions(thread).classify(Upload(upload.path), "a red circle", 0)
    assert "choose a frame of the video" in shown
    with pytest.raises(UserError, match=r"^The number of a frame is from 1 to 16, not 17\.$"):
        video_frame(tmp_path / "b.mp4", 17, 16)
    dashed = Upload(str(tmp_path / "-v.mp4"))
    assert dashed.name == "./-v.mp4"  # no option of a command
    assert Upload(dashed.path, 8).command("").startswith("vlp data frame ./-v.mp4 --number 8")
    shown, _ = TryActions(thread).match(upload, "a red circle\n" * 60)
    assert "Type at most 50 texts, not 60." in shown


def test_a_model_can_do_what_its_training_left_it():
    blip, clip = make_model().config, make_clip().config
    can = Abilities(blip)
    assert can.embed and can.match and can.caption and not can.answer and not can.classes
    can = Abilities(clip)
    assert can.embed and not can.match and not can.caption
    can = Abilities(replace(make_model(sharing="nothing").config, finetuned_for="vqa"))
    assert can.answer and not can.embed and not can.caption and can.any()
    assert not Abilities(replace(blip, finetuned_for="nlvr2")).any()
    assert not Abilities(replace(blip, untrained=["language_head"])).caption


def test_an_index_of_another_model_and_forged_numbers_are_sentences(tmp_path, scenes, models):
    with ExitStack() as stack:
        given = AppInputs(model=models[1], index=str(tmp_path / "index"), images=f"{scenes}/00000.tar")
        index, model = open_models(given, stack)
        assert len(index) == 20 and index.folder == given.index
        actions = SearchActions(index, model, models[1])
        assert f"vlp search --index {given.index} --query" in actions.search("a circle", None, 3, 2)[1]
        assert "Type a text, or upload a picture" in actions.search("  ", None, 3, 0)[0]
        assert "has no words to search for" in actions.search("...", None, 3, 0)[0]
        for forged in (-1, None, "3", float("nan")):
            assert "Choose an image first." in actions.details(forged)
        assert "has images 0 to 19, not 20." in actions.details(20)
        assert "Type a text to show where its words look." in actions.attention(0, None, "1")[0]
        parts = [(one, one.stat().st_mtime_ns) for one in sorted((tmp_path / "index" / "parts").iterdir())]
        open_models(given, stack)  # the next start finds it
        assert [(one, one.stat().st_mtime_ns) for one in sorted((tmp_path / "index" / "parts").iterdir())] == parts
        other = AppInputs(model=str(tmp_path / "rebuilt"), index=given.index, images=given.images)
        make_model(seed=9).save(other.model)
        assert open_models(other, stack)[0].model.name == other.model  # the page's own index is made anew
        with pytest.raises(UserError, match="was made with another model"):
            SearchActions(index, open_models(AppInputs(model=models[0]), stack)[1])
    done = CliRunner().invoke(app, ["search", "--index", given.index, "--show", "3", "--out", f"{tmp_path}/a.png"])
    assert done.exit_code == 0 and "00000.tar" in done.stdout
    with Image.open(tmp_path / "a.png") as written:
        assert written.size == open_index(given.index).image(3).size
    done = CliRunner().invoke(app, ["search", "--show", "3"])
    assert str(done.exception) == "--show takes the number of an image and needs --index; --out needs --show."


def test_attention_lies_over_the_part_of_an_image_that_the_model_sees(tmp_path, thread, monkeypatch):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (96, 48)).save(tmp_path / "photos" / "wide.png")
    build_index(thread.model, str(tmp_path / "photos"), str(tmp_path / "index"), "MODEL", quiet=True)
    encoder = replace(thread.model.config.image_encoder, resize="shortest")  # as open_clip's models
    monkeypatch.setattr(thread.model, "config", replace(thread.model.config, image_encoder=encoder))
    shown, _ = SearchActions(open_index(tmp_path / "index"), thread).attention(0, "a red circle", "1")
    with Image.open(io.BytesIO(base64.b64decode(shown.split("base64,")[1].split('"')[0]))) as drawn:
        assert drawn.width == drawn.height


def test_the_page_names_an_image_that_disappeared(tmp_path, thread):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (48, 48), (80 * number, 9, 99)).save(tmp_path / "photos" / f"{number}.png")
    build_index(thread.model, str(tmp_path / "photos"), str(tmp_path / "index"), "MODEL", quiet=True)
    actions = SearchActions(open_index(tmp_path / "index"), thread)
    gone = tmp_path / "photos" / "1.png"
    gone.unlink()
    said = f"Left out: 1 image that cannot be read, such as {gone} (missing file); run `vlp index` again."
    for shown, _ in (actions.search("a circle", None, 3, 0), actions.similar(0, 3)):
        assert said in shown and shown.count('class="vlp-hit"') == 2


def test_a_demo_that_cannot_be_written_is_indexed_in_a_temporary_folder(tmp_path, scenes, models, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with ExitStack() as stack:
        given = AppInputs(model=models[1], index=str(tmp_path / "index"), images=f"{scenes}/00000.tar")
        index, _ = open_models(given, stack)
        assert len(index) == 20 and index.folder != given.index
    assert not (tmp_path / "index").exists()
