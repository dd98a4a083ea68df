"""A folder with small data for every evaluation, and images with wrong texts."""

import json
from pathlib import Path

from videos import gray_frames, write_video

from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import iterate_samples
from vlp.demo.scenes import make_sample


def write_task_data(folder: Path, scenes: Path) -> None:
    """Write six samples a task, and lists of videos."""
    options = ["red", "a blue square", "yes", "no"]
    infos = {
        "scenes/test": {},
        "scenes/train": {},
        "nocaps/val": {"domain": "near-domain"},
        "vqa/val": {"questions": [{"question": "what color is it", "question_id": 1, "answers": ["red"] * 10}]},
        "dialogs/val": {
            "caption": "a shape",
            "dialog": [{"question": "is it red", "answer": "yes", "options": options, "gt_index": 2}] * 2,
        },
        "pairs/dev": {"images": 2, "sentence": "both are red", "label": True},
        "shapes/test": {"cls": 0},
        "shapes/train": {"cls": 0},
        "plain": {},
    }
    samples = list(iterate_samples(f"{scenes}/00000.tar"))[:6]
    for name, info in infos.items():
        with ShardWriter(str(folder / name), 4) as writer:
            for number, sample in enumerate(samples):
                text = sample.text if name.startswith(("scenes", "nocaps")) else None
                extra = {"right.png": samples[number - 1].image} if "images" in info else {}
                writer.write(sample.key, sample.image, "png", text, _numbered(info, number), extra)
    for name in ("test", "train"):
        (folder / "shapes" / name / "classnames.txt").write_text("circle\nsquare\n")
        (folder / "shapes" / name / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    (folder / "videos" / "clips").mkdir(parents=True)
    captions, questions = [], []
    for number in range(5):
        name = f"video{number}"
        write_video(folder / "videos" / "clips" / f"{name}.mp4", gray_frames(4 + 2 * number))
        captions.append({"clip_name": name, "caption": samples[number].text})
        questions.append({"video": name, "question": "what color is it", "answer": "red"})
    (folder / "videos" / "msrvtt_test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in captions))
    (folder / "videos" / "msvd_qa.json").write_text(json.dumps(questions))
    (folder / "videos" / "other.json").write_text('{"video": 3}')


def _numbered(info: dict, number: int) -> dict:
    """The JSON of a sample of its own: ids, classes and labels differ."""
    info = json.loads(json.dumps(info))
    for question in info.get("questions", ()):
        question["question_id"] = number
    if "cls" in info:
        info["cls"] = number % 2
    if "label" in info:
        info["label"] = number % 2 == 0
    return info | {"image_id": number}


def write_judged(folder) -> str:
    """Shards of 16 images: with captions and wrong texts, with captions alone, and with wrong texts alone."""
    with ShardWriter(folder) as writer:
        for number in range(16):
            wrong = [f"a wrong text {number} {one}" for one in range(3)] if number % 3 else []
            info = {"captions": [] if number % 3 == 2 else [f"a true text {number}"], "wrong_texts": wrong}
            writer.write(f"{number:03d}", make_sample(number, "human", 0.0, 32, 7)[0], "png", None, info)
    return f"{folder}/*.tar"
