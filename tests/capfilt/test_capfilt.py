"""`vlp capfilt score` and `run`: tables that do not depend on processes, and shards with the selected texts."""

import math
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.processes import run_vlp, start_vlp
from tests.scoring import score_shards
from vlp.capfilt import score as scoring
from vlp.capfilt.duplicates import find_duplicates
from vlp.capfilt.run import run_capfilt
from vlp.capfilt.selection import select
from vlp.cli.main import app
from vlp.config import CapFiltConfig, SamplingOverrides
from vlp.config_reader import save_config
from vlp.data.bad_samples import BadSamples
from vlp.data.image_decoding import decode_image
from vlp.data.score_tables import Scored, folder_hash, table_path, write_table
from vlp.data.shard_index import expand_shards
from vlp.data.shard_writer import ShardWriter
from vlp.data.shards import iterate_samples, read_members
from vlp.demo.truth import filter_quality
from vlp.errors import UserError, WorkError
from vlp.model import load_model
from vlp.report.capfilt_page import write_capfilt_report

DECODING = SamplingOverrides(max_length=10, min_length=3)


@pytest.fixture
def web(web_scenes, tmp_path):
    """A copy of the web shards, for tables of its own."""
    shutil.copytree(web_scenes, tmp_path / "web")
    return str(tmp_path / "web" / "*.tar")


def tables_of(pattern):
    return [table_path(shard) for shard in expand_shards(pattern)]


def rows_of(pattern):
    return [row for shard in expand_shards(pattern) for row in pq.read_table(table_path(shard)).to_pylist()]


def rewrite(shard):
    """Make it another file that holds the same samples."""
    with open(shard, "ab") as file:
        file.write(bytes(512))


def test_rows_equal_a_plain_loop(web, models):
    counts = score_shards(web, *models, DECODING, batch_size=7, seed=3, precision="fp32")
    assert (counts.shards, counts.images, counts.texts) == (3, 60, 120)
    captioner, filter_model = (load_model(folder, precision="fp32") for folder in models)
    expected = []
    for sample in iterate_samples(web):
        picture = decode_image(sample.image)
        keys = [f"{os.path.basename(sample.shard)}/{sample.key}"]
        (made,) = captioner.caption_texts([picture], keys=keys, seed=3, **asdict(DECODING))
        expected += [(sample.key, "web", sample.captions[0], picture), (sample.key, "synthetic", made, picture)]
    differing = 0
    for row, (key, source, text, picture) in zip(rows_of(web), expected, strict=True):
        assert (row["key"], row["source"]) == (key, source)
        differing += row["text"] != text
        match = filter_model.match([picture], [row["text"]])
        assert row["itm"] == pytest.approx(match.itm.item(), abs=1e-5)
        assert row["itc"] == pytest.approx(match.itc.item(), abs=1e-5)
    assert differing <= 2, "another batch rounds otherwise, which may move one token in thousands over an edge"


def test_finished_shards_are_skipped_and_rescored_with_other_settings(web, models):
    score_shards(web, *models, DECODING, seed=3)
    first = rows_of(web)
    again = score_shards(web, *models, DECODING, seed=3)
    assert (again.shards, again.skipped_shards) == (0, 3)
    other = score_shards(web, *models, DECODING, seed=4)
    assert other.shards == 3
    assert [row["text"] for row in rows_of(web)] != [row["text"] for row in first]
    rewrite(expand_shards(web)[0])
    with pytest.raises(UserError, match="changed after it was scored"):
        select(tables_of(web), output="out")
    assert score_shards(web, *models, DECODING, seed=4).shards == 1


def test_without_a_captioner_only_web_texts_are_scored(web, models):
    score_shards(web, "", models[1], DECODING)
    assert {row["source"] for row in rows_of(web)} == {"web"}


def test_bad_images_are_skipped_and_counted(web, models, tmp_path, caplog):
    with ShardWriter(str(tmp_path / "bad")) as writer:
        for number, sample in enumerate(iterate_samples(web)):
            image = sample.image[:50] if number == 3 else sample.image
            writer.write(f"{number}", image, "png", sample.text, sample.info)
    counts = score_shards(str(tmp_path / "bad/*.tar"), *models, DECODING)
    assert (counts.images, counts.bad) == (59, {"image undecodable": 1})
    assert " 3: image undecodable" in caplog.text


def test_an_undecodable_image_counts_once(web, models, tmp_path):
    with ShardWriter(str(tmp_path / "bad")) as writer:
        for number, sample in enumerate(iterate_samples(web)):
            image = sample.image[:50] if number < 36 else sample.image
            writer.write(f"{number}", image, "png", sample.text, sample.info)
    with pytest.raises(WorkError, match="36 of 60 samples are bad"):
        score_shards(str(tmp_path / "bad/*.tar"), *models, DECODING, max_bad_share=0.5)


def test_a_shard_rewritten_during_scoring_is_scored_again(web, models, monkeypatch):
    shard, real = expand_shards(web)[0], scoring.score_batches

    def rewrite_meanwhile(*arguments):
        rewrite(shard)
        return real(*arguments)

    monkeypatch.setattr(scoring, "score_batches", rewrite_meanwhile)
    score_shards(shard, *models, DECODING)
    assert score_shards(shard, *models, DECODING).shards == 1


def test_uneven_numbers_of_texts_and_one_model_for_both_roles(web, models, tmp_path):
    with ShardWriter(str(tmp_path / "many")) as writer:
        for number, sample in enumerate(iterate_samples(web)):
            captions = [f"the red star {i}" for i in range(1 + number % 3)]
            writer.write(f"{number}", sample.image, "png", sample.text, {"captions": captions})
    shards = str(tmp_path / "many/*.tar")
    score_shards(shards, models[1], models[1], DECODING, batch_size=7, precision="fp32")
    filter_model = load_model(models[1], precision="fp32")
    pictures = {sample.key: decode_image(sample.image) for sample in iterate_samples(shards)}
    rows = rows_of(shards)
    assert len(rows) == 60 + 120
    for row in rows[::5]:
        match = filter_model.match([pictures[row["key"]]], [row["text"]])
        assert row["itm"] == pytest.approx(match.itm.item(), abs=1e-5)
        assert row["itc"] == pytest.approx(match.itc.item(), abs=1e-5)


def test_the_hash_of_a_model_includes_its_tokenizer(models, tmp_path):
    folder = shutil.copytree(models[0], tmp_path / "model")
    assert folder_hash(str(folder)) == folder_hash(models[0])
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"red"', '"dre"'))
    assert folder_hash(str(folder)) != folder_hash(models[0])


def test_two_processes_of_a_launcher_change_no_row(web, models, tmp_path):
    config = CapFiltConfig(
        shards=web,
        captioner=models[0],
        filter=models[1],
        output=str(tmp_path / "two"),
        decoding=DECODING,
        rules="itm >= 0",
        precision="fp32",
        batch_size=4,
    )
    score_shards(web, *models, DECODING, batch_size=4, precision="fp32")
    expected = rows_of(web)
    for shard in expand_shards(web):
        Path(table_path(shard)).unlink()
    save_config(config, tmp_path / "capfilt.yaml")
    errors = run_vlp(tmp_path / "printed", "capfilt", "run", tmp_path / "capfilt.yaml", count=2).err
    assert "Warning" not in errors, errors[-3000:]
    assert rows_of(web) == expected
    assert len(list(iterate_samples(str(tmp_path / "two/*.tar")))) == 60
    assert "capfilt" in (tmp_path / "two" / "report.html").read_text()


def test_selected_shards_have_all_members_and_the_selected_texts(tmp_path, web, scenes):
    expected = {}
    for shard in expand_shards(web):
        rows = []
        for number, sample in enumerate(iterate_samples([shard])):
            scores = [(0.9, 0.2), (0.2, 0.7), (0.1, 0.2), (0.6, 0.6)][number % 4]
            texts = [(sample.captions[0], "web", scores[0]), ("a made one", "synthetic", scores[1])]
            rows += [Scored(sample.key, source, text, itm, 0.0) for text, source, itm in texts]
            expected[(shard, sample.key)] = [{"text": t, "source": s} for t, s, itm in texts if itm >= 0.5]
        write_table(shard, rows, {})
    counts = select(tables_of(web), "itm >= 0.5", str(tmp_path / "out"), human=f"{scenes}/*.tar")
    assert (counts.images, counts.human_images) == (45, 87)
    assert counts.dropped_images == {"no text satisfies the rules": 15}
    assert counts.texts == {"web": 60, "synthetic": 60}
    assert counts.kept_texts == {"web": 30, "synthetic": 30}
    shards = expand_shards(str(tmp_path / "out/*.tar"))
    assert len(shards) == 3 + 5
    for old, new in zip(expand_shards(web), shards[:3], strict=True):
        before = dict(read_members(old))
        kept = list(iterate_samples([new]))
        assert [one.key for one in kept] == [key for (shard, key), texts in expected.items() if shard == old and texts]
        for sample in kept:
            assert sample.info["captions"] == expected[(old, sample.key)]
            assert sample.text == sample.info["captions"][0]["text"]
            assert sample.image == before[sample.key]["png"]
            assert sample.info["truth"]["objects"]
    assert not BadSamples(0).counts
    for old, new in zip(expand_shards(f"{scenes}/*.tar"), shards[3:], strict=True):
        assert Path(old).read_bytes() == Path(new).read_bytes()
    with pytest.raises(UserError, match="exists already"):
        select(tables_of(web), output=str(tmp_path / "out"))


def test_empty_texts_are_never_selected(web, tmp_path):
    shard = expand_shards(web)[0]
    key = next(iterate_samples([shard])).key
    rows = [Scored(key, "web", "wrong", 0.1, 0.0), Scored(key, "synthetic", " ", 0.9, 0.0)]
    write_table(shard, [*rows, Scored("other", "web", "\u00a0", 0.9, 0.0)], {})
    counts = select(tables_of(shard), output=str(tmp_path / "out"))
    assert (counts.images, counts.kept_texts) == (0, {})
    assert counts.dropped_images == {"no text satisfies the rules": 1, "all texts are empty": 1, "not scored": 19}
    assert counts.texts == {"web": 2, "synthetic": 1}


def test_the_truth_of_scenes_measures_the_filter(web):
    for shard in expand_shards(web):
        rows = []
        for sample in iterate_samples([shard]):
            right = sample.info["truth"]["text_right"]
            rows.append(Scored(sample.key, "web", sample.text, 0.9 if right else 0.1, 0.0))
            rows.append(Scored(sample.key, "synthetic", sample.text, 0.9 if right else 0.1, 0.0))
        write_table(shard, rows, {})
    quality = filter_quality(web)
    assert quality["filter_auc"] == quality["web_texts_kept_right"] == quality["synthetic_kept_exact"] == 1.0
    assert quality["web_texts_kept_wrong"] == 0.0
    assert quality["synthetic_kept"] == quality["synthetic_exact"]


def test_the_filter_is_measured_without_synthetic_texts(web):
    for shard in expand_shards(web):
        samples = iterate_samples([shard])
        write_table(
            shard, [Scored(s.key, "web", s.text, float(s.info["truth"]["text_right"]), 0.0) for s in samples], {}
        )
    quality = filter_quality(web)
    assert quality["filter_auc"] == 1.0
    assert math.isnan(quality["synthetic_kept"])


def test_wrong_selection_settings_are_refused_before_scoring(web, models, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    config = CapFiltConfig(shards=web, captioner=models[0], filter=models[1], output=str(tmp_path / "full"))
    with pytest.raises(UserError, match="exists already"):
        run_capfilt(config)
    config.output, config.rules = str(tmp_path / "out"), "itn >= 0.5"
    with pytest.raises(UserError, match="did you mean itm"):
        run_capfilt(config)
    config.rules, config.human = "itm >= 0.5", str(tmp_path / "none*.tar")
    with pytest.raises(UserError, match="No shard matches"):
        run_capfilt(config)
    assert not any(Path(table_path(shard)).exists() for shard in expand_shards(web))


def test_wrong_calls(web, models, tmp_path):
    with pytest.raises(UserError, match="not a model folder"):
        score_shards(web, str(tmp_path), models[1], DECODING)
    with pytest.raises(UserError, match="No shard matches"):
        score_shards(str(tmp_path / "none*.tar"), *models, DECODING)
    with pytest.raises(UserError, match="has no name for its score table"):
        table_path("pipe:cat 0.tar")


def test_images_without_a_text_are_captioned_selected_and_reported(models, web, tmp_path):
    """Also by `duplicates`; with a filter only, such images have no rows."""
    folder = tmp_path / "textless"
    with ShardWriter(str(folder)) as writer:
        for number, sample in enumerate(iterate_samples(web)):
            writer.write(f"{number}", sample.image, "png", sample.text if number % 3 else None, {})
    shards = f"{folder}/*.tar"
    counts = score_shards(shards, *models, DECODING, num_captions=2)
    assert (counts.images, counts.texts, counts.bad) == (60, 60 * 2 + 40, {})
    assert [row["source"] for row in rows_of(shards)][:5] == ["synthetic"] * 2 + ["web"] + ["synthetic"] * 2
    selected = select(tables_of(shards), "itm >= 0", str(tmp_path / "new"))
    assert (selected.images, selected.dropped_images) == (60, {})
    assert [len(one.captions) for one in iterate_samples(f"{tmp_path}/new/*.tar")][:4] == [2, 3, 3, 2]
    write_capfilt_report(tables_of(shards), str(tmp_path / "page.html"), str(tmp_path / "new"))
    assert "60 of 60" in (tmp_path / "page.html").read_text()
    assert find_duplicates(shards, models[1], quiet=True).images == 60
    score_shards(shards, "", models[1], DECODING)
    assert len(rows_of(shards)) == 40
    selected = select(tables_of(shards), "itm >= 0", str(tmp_path / "filtered"))
    assert (selected.images, selected.dropped_images) == (40, {"not scored": 20})


def test_a_second_run_says_that_its_output_exists(web, models, tmp_path):
    config = CapFiltConfig(
        shards=web,
        captioner=models[0],
        filter=models[1],
        output=str(tmp_path / "new"),
        decoding=DECODING,
        rules="itm >= 0",
    )
    run_capfilt(config)
    shutil.rmtree(config.output)
    assert run_capfilt(config)["scored"]["skipped_shards"] == 3, "the tables are kept"
    with pytest.raises(UserError, match="new exists already; choose another name or remove it"):
        run_capfilt(config)


def test_two_runs_over_the_same_shards_at_the_same_time(web, models, tmp_path):
    """They write the same tables; only one of them can write the output."""
    save_config(
        CapFiltConfig(
            shards=web,
            captioner=models[0],
            filter=models[1],
            output=str(tmp_path / "new"),
            decoding=DECODING,
            rules="itm >= 0",
        ),
        tmp_path / "capfilt.yaml",
    )
    printed = tmp_path / "printed"
    printed.mkdir()
    runs = [start_vlp(printed / name, "capfilt", "run", tmp_path / "capfilt.yaml") for name in "ab"]
    results = [(run.err, code) for run in runs for code in run.finish()]
    assert 0 in [code for _, code in results], results
    for error, code in results:
        assert code == 0 or (error.count("\n") == 1 and str(tmp_path / "new") in error), error
    assert len(list(iterate_samples(f"{tmp_path}/new/*.tar"))) == 60
    both = rows_of(web)
    for shard in expand_shards(web):
        Path(table_path(shard)).unlink()
    score_shards(web, *models, DECODING)
    assert rows_of(web) == both
    assert {path.name for path in tmp_path.iterdir()} == {"web", "new", "capfilt.yaml", "printed"}
    assert not list((tmp_path / "web").glob(".*"))


def test_paths_may_have_any_character(web, models, tmp_path):
    """Also those beyond 16 bits, such as emoji."""
    folder = shutil.move(tmp_path / "web", tmp_path / "🙂")
    result = CliRunner().invoke(app, ["capfilt", "score", "--shards", f"{folder}/*.tar", "--filter", models[1]])
    assert result.exit_code == 0, (result.output, result.exception)
    assert len(rows_of(f"{folder}/*.tar")) == 60


def test_an_unknown_precision_is_a_wrong_call_of_every_command():
    for command in (["score", "--filter", "F"], ["duplicates", "--model", "M"]):
        result = CliRunner().invoke(app, ["capfilt", *command, "--shards", "web.tar", "--precision", "fp8"])
        assert result.exit_code == 2 and "'fp8' is not one of 'auto', 'bf16', 'fp16', 'fp32'" in " ".join(
            result.output.replace("│", "").split()
        )
