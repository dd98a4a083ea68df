"""The tokens of pycocoevalcap's PTBTokenizer, a Java program, for tests."""

import subprocess
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import pytest

from vlp.caption_metrics.ptb_tokenizer import PUNCTUATION


def java_tokens(captions: list[str], folder: Path) -> list[str]:
    """The tokens of each caption without punctuation; skips the test where Java or the program is absent."""
    spec = find_spec("pycocoevalcap")
    if which("java") is None or spec is None or not spec.submodule_search_locations:
        pytest.skip("needs Java and pycocoevalcap")
    archive = Path(next(iter(spec.submodule_search_locations))) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    (folder / "captions.txt").write_text("\n".join(captions), "utf-8")
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(archive), "edu.stanford.nlp.process.PTBTokenizer"]
    options = ["-preserveLines", "-lowerCase", str(folder / "captions.txt")]
    done = subprocess.run([*command, *options], capture_output=True, check=True, timeout=120)
    lines = done.stdout.decode("utf-8").split("\n")[: len(captions)]
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATION) for line in lines]
