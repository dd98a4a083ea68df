"""Annotation files are recognized by their keys; the wrong kind is refused by name."""

import json

import pytest

from tests.data.importers.layouts import OFFICIAL, blip_test, blip_train, karpathy, write_json
from vlp.data.importers import recognise
from vlp.data.importers.coco import coco
from vlp.data.importers.conceptual import conceptual
from vlp.data.importers.flickr import flickr
from vlp.data.importers.nocaps import nocaps
from vlp.data.importers.visual_genome import visual_genome
from vlp.errors import UserError

FILES = {
    "captions_val2014.json": (OFFICIAL, "COCO"),
    "image_info_test2014.json": ({"images": OFFICIAL["images"], "licenses": []}, "COCO"),
    "instances_val2014.json": (
        {**OFFICIAL, "annotations": [{"bbox": [], "category_id": 1, "image_id": 1}]},
        "COCO_BOXES",
    ),
    "captions_results.json": ([{"image_id": 1, "caption": "a dog"}], "COCO_RESULTS"),
    "dataset_coco.json": (karpathy("coco"), "KARPATHY_COCO"),
    "dataset_coco without a name": ({"images": karpathy("coco")["images"]}, "KARPATHY_COCO"),
    "dataset_flickr8k.json": (karpathy("flickr8k"), "KARPATHY_FLICKR8K"),
    "dataset_flickr30k.json": (karpathy("flickr30k"), "KARPATHY_FLICKR30K"),
    "coco_karpathy_train.json": (blip_train(), "BLIP_CAPTIONS"),
    "coco_karpathy_test.json": (blip_test(), "BLIP_CAPTIONS"),
    "nocaps_val_4500_captions.json": (
        {"images": [{"id": 1, "file_name": "1.jpg", "domain": "in-domain", "open_images_id": "1"}], "annotations": []},
        "NOCAPS",
    ),
    "nocaps_val.json": ([{"image": "val/1.jpg", "img_id": 1}], "BLIP_NOCAPS"),
    "region_descriptions.json": ([{"id": 1, "regions": []}], "VG_REGIONS"),
    "objects.json": ([{"image_id": 1, "objects": []}], "VG_OTHER"),
    "question_answers.json": ([{"id": 1, "qas": []}], "VG_QUESTIONS"),
    "vg_qa.json": ([{"image": "1.jpg", "question": "?", "answer": "x", "question_id": 1, "dataset": "vg"}], "BLIP_VQA"),
    "vqa_test.json": ([{"image": "1.jpg", "question": "?", "question_id": 1, "dataset": "vqa"}], "BLIP_VQA"),
    "answer_list.json": (["yes", "no"], "ANSWER_LIST"),
    "questions.json": ({"questions": [{"image_id": 1, "question": "?", "question_id": 1}]}, "VQA_QUESTIONS"),
    "annotations.json": (
        {"annotations": [{"question_id": 1, "image_id": 1, "multiple_choice_answer": "x", "answers": []}]},
        "VQA_ANSWERS",
    ),
    "nlvr_dev.json": ([{"images": ["a.png", "b.png"], "sentence": "x", "label": "True"}], "NLVR2"),
    "dev.json": ([{"sentence": "x", "identifier": "dev-1", "label": "True", "left_url": "a"}], "NLVR2"),
    "visdial_1.0_val.json": ({"data": {"questions": [], "answers": [], "dialogs": []}}, "VISDIAL"),
    "visdial_1.0_val_dense_annotations.json": ([{"image_id": 1, "round_id": 1, "gt_relevance": []}], "VISDIAL_DENSE"),
    "msrvtt_test.jsonl": ([{"clip_name": "v", "caption": "x"}], "VIDEO_CAPTIONS"),
    "msrvtt_qa_test.json": ([{"video": "v", "question": "?", "answer": "x"}], "VIDEO_QUESTIONS"),
    "ccs_filtered.json": ([{"url": "http://x", "caption": "x"}], "WEB_ROWS"),
    "sbu-captions-all.json": ({"image_urls": ["http://x"], "captions": ["x"], "user_ids": ["x"]}, "SBU"),
    "metadata.jsonl": ([{"file_name": "1.jpg", "text": "x"}], "METADATA"),
}
IMPORTERS = {
    "coco": lambda path, images: coco([path], images),
    "flickr8k": lambda path, images: flickr("flickr8k", [path], images),
    "flickr30k": lambda path, images: flickr("flickr30k", [path], images),
    "vg": lambda path, images: visual_genome([path], images),
    "nocaps": lambda path, images: nocaps([path], images),
    "conceptual": lambda path, images: conceptual([path], images),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_is_recognized_and_refused_by_the_other_importers(name, tmp_path):
    values, kind = FILES[name]
    expected = getattr(recognise, kind)
    assert recognise.recognise(values) is expected
    path = tmp_path / name.replace(" ", "_")
    path = path if path.suffix in (".json", ".jsonl") else path.with_suffix(".json")
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, values)) if lines else json.dumps(values))
    for command, importer in IMPORTERS.items():
        if command in expected.commands:
            importer(str(path), str(tmp_path))
            continue
        with pytest.raises(UserError) as error:
            importer(str(path), str(tmp_path))
        assert f"{path} holds {expected.what}, and `vlp data import {command}` takes " in str(error.value)
        for other in expected.commands:
            assert f"`vlp data import {other}`" in str(error.value)
        assert bool(expected.commands) != ("no import command takes it" in str(error.value))


@pytest.mark.parametrize("values", [{}, [], 3, None, "x", [1], [[]], [{}], {"images": 3}, {"images": [1]}, {"data": 1}])
def test_unknown_values_are_refused(values, tmp_path):
    assert recognise.recognise(values) is None
    with pytest.raises(UserError, match=r"x.json is of an unknown kind; `vlp data import coco` takes COCO's captions"):
        coco([write_json(tmp_path / "x.json", values)], str(tmp_path))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b'{"images": [', "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON .too many nested brackets"),
        (b'{"images": 1}}', "not readable as JSON"),
        (b"\xff\xfe", "not a UTF-8 text file"),
        (b"1" * 5000, "not readable as JSON"),
    ],
)
@pytest.mark.parametrize("command", IMPORTERS)
def test_damaged_files_are_refused(command, content, says, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=says):
        IMPORTERS[command](str(tmp_path / "x.json"), str(tmp_path))
    with pytest.raises(UserError, match=r"There is no annotation file .*none\.json"):
        IMPORTERS[command](str(tmp_path / "none.json"), str(tmp_path))
