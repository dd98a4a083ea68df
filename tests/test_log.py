"""Logs and progress."""

import json

from vlp.log import Progress, RunLog, read_log


def test_a_resume_removes_the_records_that_it_will_write_again(tmp_path):
    log = RunLog(tmp_path)
    for step in (1, 2, 3):
        log.write({"step": step, "itc": step / 2})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "itc"')  # killed while writing
    assert [one["step"] for one in read_log(tmp_path / "log.jsonl")] == [1, 2, 3]
    log = RunLog(tmp_path, from_step=2)
    log.write({"step": 3, "itc": 9.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "itc": 0.5}, {"step": 2, "itc": 1.0}, {"step": 3, "itc": 9.0}]


def test_progress_has_a_rate_and_an_estimate(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("vlp.log.time.monotonic", lambda: clock[0])
    with Progress("images", total=100, done=20) as progress:
        clock[0] += 11
        progress.add("score", 22)
    assert progress.rate() == 2.0
    assert capsys.readouterr().out.strip() == "score 42/100  2.0 images/s  29 s left"
    with Progress("images", quiet=True) as progress:
        clock[0] += 11
        progress.add()
        progress.say("x")
    assert capsys.readouterr().out == ""
