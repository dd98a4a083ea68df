"""SIGTERM and SIGINT end a run after its step with a checkpoint and one sentence, in one process and in two."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import run_code, run_vlp
from tests.training.test_resume import RANDOM, assert_same_run
from vlp.config_reader import save_config
from vlp.data.indexed_loader import IndexedLoader
from vlp.errors import WorkError
from vlp.training import stop_signals
from vlp.training.checkpoint import checkpoints
from vlp.training.loop import train
from vlp.training.record_window import RecordWindow

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def send_at_step(monkeypatch, step: int, *signals: int) -> None:
    """Send signals to this process in the middle of an optimizer step."""
    original, calls = RecordWindow.add_step, []

    def add_step(self, values):
        calls.append(1)
        if len(calls) == step:
            for one in signals:
                os.kill(os.getpid(), one)
        original(self, values)

    monkeypatch.setattr(RecordWindow, "add_step", add_step)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_run_after_its_step_and_a_resume_is_exact(run_config, monkeypatch, number):
    settings = ["data.workers=1", "log_every=4", "checkpoint_every=0", *RANDOM]
    whole, part = run_config("whole", *settings), run_config("part", *settings)
    train(whole)
    send_at_step(monkeypatch, 5, number)
    with pytest.raises(WorkError, match=r"^Stopped at step 5; rerun the command to continue .*--resume\)\.$"):
        train(part)
    assert [path.name for path in checkpoints(Path(part.output))] == ["step-00000005"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.undo()
    train(part, resume=True)
    assert_same_run(whole, part)


def test_copies_of_a_signal_are_one_request(run_config, monkeypatch):
    config = run_config("run")
    send_at_step(monkeypatch, 2, signal.SIGTERM, signal.SIGTERM, signal.SIGINT)
    with pytest.raises(WorkError, match="Stopped at step 2"):
        train(config)


def test_a_second_signal_ends_the_process_at_once():
    code = (
        "import os, signal, time\nfrom vlp.training.stop_signals import stop_on_signals\n"
        "with stop_on_signals() as stop:\n    stop.finish_step = True\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(0.4)\n    assert stop.requested\n    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\n"
    )
    assert run_code(code).returncode == -signal.SIGTERM


def test_a_signal_before_the_first_step_ends_the_run_at_once(run_config, monkeypatch):
    config = run_config("run")
    original = IndexedLoader.__init__

    def signalled(self, *arguments, **settings):
        os.kill(os.getpid(), signal.SIGTERM)
        original(self, *arguments, **settings)

    monkeypatch.setattr(IndexedLoader, "__init__", signalled)
    with pytest.raises(WorkError, match="before the first step"):
        train(config)
    monkeypatch.undo()
    assert train(config, resume=True)["step"] == 10


@pytest.mark.parametrize(
    ("settings", "sentence", "step"),
    [
        (["evaluate_every=4"], "Stopped at step 4, during validation", 4),
        ([], "Stopped during the last validation", 10),
    ],
)
def test_a_signal_during_validation_ends_it_between_batches(run_config, scenes, monkeypatch, settings, sentence, step):
    settings = [f"validation='{scenes}/00004.tar'", "checkpoint_every=0", *settings]
    whole, part = run_config("whole", *settings), run_config("part", *settings)
    expected = train(whole)

    def evaluate(model, shards, settings, rerank):
        os.kill(os.getpid(), signal.SIGTERM)
        settings.progress("encode images", 1)
        raise AssertionError("validation went on")

    monkeypatch.setattr("vlp.training.validation.evaluate_retrieval", evaluate)
    with pytest.raises(WorkError, match=sentence):
        train(part)
    assert checkpoints(Path(part.output))[-1].name == f"step-{step:08d}"
    monkeypatch.undo()
    assert train(part, resume=True)["t2i_r1"] == expected["t2i_r1"]
    assert_same_run(whole, part)


def children(parent: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def test_a_signal_to_one_of_two_processes_stops_both_and_a_resume_is_exact(run_config, tmp_path):
    settings = [*RANDOM, "data.workers=1", "steps=14", "log_every=7", "checkpoint_every=2", "accumulation=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, part = run_config("whole", *settings), run_config("part", *settings)
    save_config(part, tmp_path / "part.yaml")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, "-m", "vlp", "pretrain", str(tmp_path / "part.yaml")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **quiet) as run:
        deadline = time.monotonic() + 120
        while not checkpoints(Path(part.output)) and time.monotonic() < deadline and run.poll() is None:
            time.sleep(0.02)
        os.kill(children(run.pid)[-1], signal.SIGTERM)
        _, errors = run.communicate(timeout=120)
    assert run.returncode == 1
    assert errors.count("vlp: Stopped at step") == 1
    stopped_at = checkpoints(Path(part.output))[-1]
    assert f"vlp: {stop_sentence(stopped_at)}" in errors
    assert not (Path(part.output) / "model").exists(), "the run ended before it was stopped"
    save_config(whole, tmp_path / "whole.yaml")
    for name, *option in (("whole",), ("part", "--resume")):  # forked, which is faster
        run_vlp(tmp_path / f"{name} printed", "pretrain", tmp_path / f"{name}.yaml", *option, count=2)
    assert_same_run(whole, part)


def stop_sentence(checkpoint: Path) -> str:
    return f"Stopped at step {int(checkpoint.name.removeprefix('step-'))}; {stop_signals.CONTINUE}."


def test_a_launcher_may_send_its_copy_later(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(stop_signals.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(stop_signals.os, "kill", lambda *_: pytest.fail("the process was killed"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    stop = stop_signals.StopRequest(finish_step=True)
    stop.on_signal(signal.SIGTERM, None)
    clock[0] += 1.5
    stop.on_signal(signal.SIGTERM, None)
    assert stop.requested
