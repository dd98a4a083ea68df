"""The Dockerfile: hadolint finds nothing, and it copies only what the build context holds."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_hadolint_finds_nothing():
    if not shutil.which("hadolint"):
        pytest.skip("hadolint is not installed")
    done = subprocess.run(["hadolint", "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_it_copies_is_in_the_build_context():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()]
    assert copied and set(copied) == kept
    assert all((ROOT / name).exists() for name in copied)


def test_every_device_has_a_base_and_its_index_of_torch():
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    for device, index in (("cpu", "whl/cpu"), ("cuda", "whl/cu")):
        (base,) = [stage for stage in stages if stage.splitlines()[0].endswith(f" AS base-{device}")]
        assert f"ARG TORCH_INDEX=https://download.pytorch.org/{index}" in base
    assert stages[-1].startswith("base-${DEVICE} AS vlp\n")
    assert "\nUSER 1000\n" in stages[-1]
