"""Processes that accelerate's CPU launcher leaves out; that they start is in end_to_end/test_two_processes.py."""

from types import SimpleNamespace

import pytest

from vlp.errors import UserError
from vlp.launch import STARTED, start_missing_processes


@pytest.fixture
def environment(monkeypatch):
    for name in (*STARTED, "ACCELERATE_USE_CPU", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


def test_nothing_happens_without_accelerate_or_with_one_process(environment):
    start_missing_processes(["pretrain", "c.yaml"])
    environment("ACCELERATE_USE_CPU", "True")  # without a port: one process was asked for
    start_missing_processes(["pretrain", "c.yaml"])


@pytest.mark.parametrize("name", STARTED)
def test_launchers_that_start_every_process_are_left_alone(environment, name):
    environment("ACCELERATE_USE_CPU", "True")
    environment("MASTER_PORT", "29500")
    environment(name, "2")
    start_missing_processes(["pretrain", "c.yaml"])


def test_an_unknown_number_of_processes_is_an_error_with_the_command_that_works(environment):
    environment("ACCELERATE_USE_CPU", "True")
    environment("MASTER_PORT", "29500")
    with pytest.raises(UserError, match=r"torchrun --nproc-per-node N -m vlp pretrain c\.yaml"):
        start_missing_processes(["pretrain", "c.yaml"])


@pytest.mark.parametrize(("words", "restarts"), [([], "0"), (["--max_restarts", "3"], "3")])
def test_processes_and_restarts_are_passed_on(environment, monkeypatch, words, restarts):
    environment("ACCELERATE_USE_CPU", "True")
    environment("MASTER_PORT", "29500")
    asked = ["python", "accelerate", "launch", "--cpu", "--num_processes", "4", *words, "-m", "vlp", "pretrain"]
    parent = SimpleNamespace(cmdline=lambda: asked)
    monkeypatch.setattr("psutil.Process", lambda: SimpleNamespace(parent=lambda: parent))
    started = []
    monkeypatch.setattr("os.execv", lambda program, command: started.extend(command))
    start_missing_processes(["pretrain", "c.yaml"])
    assert started[started.index("--nproc-per-node") + 1] == "4"
    assert started[started.index("--max-restarts") + 1] == restarts
    assert started[-4:] == ["-m", "vlp", "pretrain", "c.yaml"]
