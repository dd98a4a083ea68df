"""Hugging Face data sets in the layouts that the well-known ones have, built by `datasets` itself."""

import io
from typing import Any

import datasets
from datasets import Features, Image, List, Value
from PIL import Image as Picture

STRING, NUMBER = Value("string"), Value("int64")


def pictures(count: int) -> list[bytes]:
    """Different JPEG files of 40 x 30 pixels."""
    files = []
    for number in range(count):
        file = io.BytesIO()
        Picture.new("RGB", (40, 30), (9 * number % 256, 100, 200)).save(file, "JPEG")
        files.append(file.getvalue())
    return files


def rows_to_dataset(rows: list[dict[str, Any]], features: dict[str, Any]) -> datasets.Dataset:
    """A data set of rows, whose images are encoded files."""
    rows = [{**row, "image": {"bytes": row["image"], "path": None}} if "image" in row else row for row in rows]
    return datasets.Dataset.from_list(rows, features=Features(features))


def flickr30k(images: list[bytes]) -> datasets.Dataset:
    """One split with a column that names the true one; a list of captions."""
    rows = [
        {
            **{"image": image, "caption": [f"first {n}", f"second {n}"], "sentids": [str(2 * n), str(2 * n + 1)]},
            **{"split": "test" if n % 4 == 0 else "train", "img_id": str(n), "filename": f"{n}.jpg"},
        }
        for n, image in enumerate(images)
    ]
    texts = {"caption": List(STRING), "sentids": List(STRING)}
    names = {"split": STRING, "img_id": STRING, "filename": STRING}
    return rows_to_dataset(rows, {"image": Image(), **texts, **names})


def coco_sentences(images: list[bytes]) -> datasets.Dataset:
    """COCO, a row a sentence: two rows for each image, the second ones after all the first."""
    rows = [
        {
            **{"image": image, "filepath": "val2014", "sentids": [2 * n, 2 * n + 1], "filename": f"COCO_{n}.jpg"},
            **{"imgid": n, "split": "train", "cocoid": 1000 + n},
            "sentences": {"tokens": [word, str(n)], "raw": f"{word} {n}", "imgid": n, "sentid": 2 * n},
        }
        for word in ("first", "second")
        for n, image in enumerate(images)
    ]
    sentences = {"tokens": List(STRING), "raw": STRING, "imgid": NUMBER, "sentid": NUMBER}
    names = {"filepath": STRING, "sentids": List(NUMBER), "filename": STRING, "imgid": NUMBER, "split": STRING}
    return rows_to_dataset(rows, {"image": Image(), **names, "sentences": sentences, "cocoid": NUMBER})


def coco_caption(images: list[bytes]) -> datasets.Dataset:
    """COCO-Caption: a list of answers."""
    rows = [
        {"image": image, "question_id": f"q{n}.jpg", "answer": [f"first {n}", f"second {n}"], "id": 1000 + n}
        for n, image in enumerate(images)
    ]
    return rows_to_dataset(rows, {"image": Image(), "question_id": STRING, "answer": List(STRING), "id": NUMBER})


def nocaps(images: list[bytes]) -> datasets.Dataset:
    """NoCaps: lists in columns named annotations_..."""
    rows = [
        {
            **{"image": image, "image_coco_url": "http://a", "image_file_name": f"{n:03x}.jpg", "image_height": 30},
            **{"image_width": 40, "image_id": n, "image_open_images_id": f"{n:03x}", "annotations_ids": [2 * n, 9]},
            "annotations_captions": [f"first {n}", f"second {n}"],
        }
        for n, image in enumerate(images)
    ]
    names = {"image_coco_url": STRING, "image_file_name": STRING, "image_height": NUMBER, "image_width": NUMBER}
    names |= {"image_id": NUMBER, "image_open_images_id": STRING, "annotations_ids": List(NUMBER)}
    return rows_to_dataset(rows, {"image": Image(), **names, "annotations_captions": List(STRING)})


def vqav2(images: list[bytes]) -> datasets.Dataset:
    """VQAv2: questions, and answers as structs."""
    answer = {"answer": "yes", "answer_confidence": "maybe", "answer_id": 1}
    rows = [
        {
            **{"image": image, "image_id": n, "question": f"is it {n}?", "question_id": 10 * n, "question_type": "is"},
            **{"answer_type": "yes/no", "multiple_choice_answer": "yes", "answers": [answer]},
        }
        for n, image in enumerate(images)
    ]
    names = {"image_id": NUMBER, "question": STRING, "question_id": NUMBER, "question_type": STRING}
    names |= {"answer_type": STRING, "multiple_choice_answer": STRING}
    answers = List({"answer": STRING, "answer_confidence": STRING, "answer_id": NUMBER})
    return rows_to_dataset(rows, {"image": Image(), **names, "answers": answers})


def nlvr2(_images: list[bytes]) -> datasets.Dataset:
    """NLVR2: addresses of images instead of images."""
    rows = [{"sentence": "a", "left_url": "http://a", "right_url": "http://b", "label": "True", "identifier": "dev-0"}]
    return rows_to_dataset(rows, dict.fromkeys(rows[0], STRING))
