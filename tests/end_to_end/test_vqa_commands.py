"""VQA from the command line: finetune, list answers, evaluate both ways, score the results file, answer."""

import json

from typer.testing import CliRunner

from vlp.cli.main import app
from vlp.config_reader import save_config
from vlp.demo.vqa_scenes import make_vqa_scenes


def run(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_commands(run_config, models, tmp_path):
    make_vqa_scenes(tmp_path / "vqa", 40, 32, "test")
    shards = f"{tmp_path}/vqa/*.tar"
    data = f"data.sources=[{{shards: '{shards}'}}]"
    config = run_config("run", "task=vqa", data, "steps=2")
    config.model, config.tokenizer, config.start_from = type(config.model)(), "", models[0]
    save_config(config, tmp_path / "vqa.yaml")
    run("finetune", str(tmp_path / "vqa.yaml"))
    model, listed, submission = str(tmp_path / "run" / "model"), str(tmp_path / "list.json"), str(tmp_path / "out.json")
    run("data", "answers", shards, "--out", listed)
    found = json.loads((tmp_path / "list.json").read_text())
    assert {"yes", "no"} <= set(found)
    ranked = json.loads(
        run("evaluate", "vqa", model, shards, "--answers", listed, "--submission", submission, "--json")
    )
    assert ranked["task"] == "vqa" and ranked["metrics"]["questions"] > 100
    scored = json.loads(run("evaluate", "answers", submission, shards, "--json"))
    assert scored["metrics"] == ranked["metrics"]
    made = json.loads(run("evaluate", "vqa", model, shards, "--beams", "1", "--limit", "5", "--json"))
    assert made["metrics"]["questions"] < 30
    (tmp_path / "image.png").write_bytes(next(iter_images(shards)))
    asked = ["what color is the star?", "is there a red circle?"]
    answers = json.loads(run("answer", model, str(tmp_path / "image.png"), *asked, "--answers", listed, "--json"))
    assert [one["question"] for one in answers] == asked and all(one["answer"] in found for one in answers)
    assert len(run("answer", model, str(tmp_path / "image.png"), *asked).splitlines()) == 2


def iter_images(shards: str):
    from vlp.data.shards import iterate_samples

    return (sample.image for sample in iterate_samples(shards))
