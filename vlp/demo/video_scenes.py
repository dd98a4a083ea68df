"""Videos of moving scenes: two objects that come and go one after the other, so that no frame shows both."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from vlp.demo.scene_captions import describe
from vlp.demo.scenes import Scene, draw_scene, make_scene
from vlp.evaluation.video_retrieval import evaluate_video_retrieval
from vlp.extras import extra
from vlp.files import write_text, writing_folder
from vlp.model import Model

LIST = "captions.jsonl"  # in the folder of the videos
FRAMES, RATE = 24, 8  # of a video, and frames a second
OUTSIDE = 0.3  # of the image side, from where an object enters
REST = 0.85  # share of its time that an object is at its place
RERANK = 16  # candidates that ITM re-ranks
BIT_RATE = 2_000_000  # scenes are small and should stay clear


def make_video_scenes(folder: Path, count: int, image_size: int, seed: str) -> None:
    """Write videos NUMBER.mp4 and their captions, [{clip_name, caption}] in `captions.jsonl`.

    The first object enters, rests at its place and leaves; then the second one does. The caption names both and where
    one is relative to the other, as captions of still scenes do. The middle frame shows only one of them.
    """
    rows = []
    with writing_folder(folder) as temporary:
        for number in range(count):
            rng = random.Random(f"video {seed} {number}")
            scene = make_scene(rng)
            while scene.relation is None:
                scene = make_scene(rng)
            write_video(temporary / f"{number:05d}.mp4", list(_frames(scene, image_size, rng)), RATE)
            caption = describe(scene.objects, scene.relation, rng)
            rows.append({"clip_name": f"{number:05d}", "caption": caption})
        write_text(temporary / LIST, "".join(f"{json.dumps(row)}\n" for row in rows))


def score_videos(model: Model, folder: Path) -> dict[str, float]:
    """The metrics of `evaluate_video_retrieval` with 8 frames, `one_frame_NAME` with the middle frame alone, and gains.

    `gain_t2v_r1` is what further frames add to text-to-video R@1.
    """
    videos, middle = (
        evaluate_video_retrieval(model, str(folder / LIST), str(folder), frames, rerank=RERANK).metrics
        for frames in (8, 1)
    )
    single = {f"one_frame_{name}": middle[name] for name in ("t2v_r1", "v2t_r1", "itc_t2v_r1", "itc_v2t_r1")}
    return {**videos, **single, "gain_t2v_r1": videos["t2v_r1"] - middle["t2v_r1"]}


def write_video(path: Path, frames: list[np.ndarray], rate: int) -> None:
    """Encode frames, uint8 [height, width, 3], as an mp4 file with `rate` frames a second.

    Raises:
        UserError: `av` is not installed.
    """
    with extra("video"):
        import av
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate, options={"qmin": "1", "qmax": "3"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.bit_rate = BIT_RATE
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _frames(scene: Scene, size: int, rng: random.Random) -> Iterator[np.ndarray]:
    """The frames: one object, then the other, in random order; the first one has 35 to 65% of the time."""
    order = rng.sample((0, 1), 2)
    border = round(FRAMES * rng.uniform(0.35, 0.65))
    for which, length in zip(order, (border, FRAMES - border), strict=True):
        x, y = scene.places[which]
        start = rng.choice(((-OUTSIDE, y), (1 + OUTSIDE, y), (x, -OUTSIDE), (x, 1 + OUTSIDE)))
        for step in range(length):
            far = max(0.0, abs(2 * (step + 0.5) / length - 1) - REST) / (1 - REST)  # 1: outside, 0: at its place
            place = (x + far * (start[0] - x), y + far * (start[1] - y))
            still = replace(scene, objects=[scene.objects[which]], relation=None, places=[place])
            yield np.array(draw_scene(still, size))
