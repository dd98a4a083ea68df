"""Video retrieval, zero-shot: recall and ranks, text to video and video to text, by a model trained on images."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlp.data.bad_samples import BadSample, BadSamples
from vlp.data.cache import file_stamp, identity
from vlp.data.video_batch import VideoBatch, VideoDecoder
from vlp.data.video_lists import ListedVideo, read_video_captions
from vlp.errors import UserError
from vlp.evaluation.gallery import EncodedBatch, Row
from vlp.evaluation.predict import Predictions, predict_items
from vlp.evaluation.results import Results, skipped_metrics
from vlp.evaluation.retrieval import score_retrieval
from vlp.evaluation.settings import DEFAULT_SETTINGS, EvaluationSettings
from vlp.model import Model
from vlp.model.video import FRAMES, encode_videos
from vlp.models.constant_weights import constant_weights

RERANK = 128  # BLIP's k for the 1,000 pairs of MSRVTT
WAYS = (("i2t", "v2t"), ("t2i", "t2v"), ("images", "videos"))  # names of image retrieval, and those of videos


@constant_weights()
def evaluate_video_retrieval(
    model: Model,
    listed: str,
    folder: str,
    frames: int = FRAMES,
    rerank: int | None = None,
    settings: EvaluationSettings = DEFAULT_SETTINGS,
) -> Results:
    """Retrieval as `evaluate_retrieval` scores it, of videos whose frames are one memory (paper, section 5.6).

    Args:
        listed: the list of videos with captions, and
        folder: the folder of the files; see `read_video_captions`.
        frames: of each video.
        rerank: as in `evaluate_retrieval`; None: `RERANK`, or 0 for a model without ITM.
        settings: `batch_size` counts videos.

    Returns:
        `t2v_r1` ... `v2t_median_rank`, the same by ITC alone as `itc_...`; `videos`, `texts`, `captions`, and
        `skipped`, the rows of the list and the videos that could not be used.

    Raises:
        UserError: the list or the folder cannot be used, or no video can be read.
    """
    rerank = model.rerank_count(rerank, RERANK)
    videos, skipped_rows = read_video_captions(listed, folder)
    name = naming(listed)

    def source(make: Callable[[EncodedBatch], list[Row]], stage: str) -> Predictions:
        def encode(batch: VideoBatch) -> list[Row]:
            name(batch)
            skipped = [{"skipped": reason} for _, reason in batch.skipped]
            if not batch.videos:
                return skipped
            tokens = encode_videos(model, batch.frames)
            ids, keys = [video.path for video in batch.videos], [video.name for video in batch.videos]
            captions = [video.captions for video in batch.videos]
            return make(EncodedBatch(ids, keys, captions, tokens, model.embed_tokens(tokens, frames))) + skipped

        return predict_videos(videos, listed, frames, model.image_size, settings, encode, stage)

    metrics, predictions = score_retrieval(model, source, rerank, settings)
    skipped = Counter(
        {one.removeprefix("skipped: "): value for one, value in metrics.items() if one.startswith("skipped: ")}
    )
    numbers = {_video_name(one): value for one, value in metrics.items() if not one.startswith("skipped")}
    for row in predictions:
        row["query"] = row["query"].replace("image", "video")
    counts = skipped_metrics(skipped + skipped_rows)
    return Results("video_retrieval", Path(listed).stem, {**numbers, **counts}, predictions)


def naming(listed: str) -> Callable[[VideoBatch], None]:
    """A function that names the skipped videos of batches in the log, each once, though re-ranking decodes it again.

    Args:
        listed: the list of the videos, for the log.
    """
    bad, named = BadSamples(max_share=1.0), set()

    def name(batch: VideoBatch) -> None:
        for video, reason in batch.skipped:
            if video.path not in named:
                named.add(video.path)
                bad.add(BadSample(listed, video.name, reason))

    return name


def predict_videos(
    videos: list[ListedVideo],
    listed: str,
    frames: int,
    image_size: int,
    settings: EvaluationSettings,
    make: Callable[[VideoBatch], list[Row]],
    stage: str,
) -> Predictions:
    """`predict_items` over the videos of a list, which `settings.workers` processes decode.

    Raises:
        UserError: there is no row, because no video can be read.
    """
    names = [[video.path, file_stamp(video.path)] for video in videos]
    facts: dict[str, Any] = {"list": [identity(listed), file_stamp(listed)], "videos": names, "frames": frames}
    found = predict_items(videos, settings, make, stage, facts, VideoDecoder(frames, image_size))
    if not found.rows:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(found.skipped.items()))
        raise UserError(f"No video that {listed} names can be read ({reasons}); repair the videos or the list.")
    return found


def _video_name(metric: str) -> str:
    """The name of a metric of image retrieval for videos."""
    for image, video in WAYS:
        metric = metric.replace(image, video)
    return metric
