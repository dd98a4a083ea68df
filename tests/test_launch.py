"""Processes that accelerate's CPU launcher leaves out; that they start is in end_to_end/test_two_processes.py."""

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
