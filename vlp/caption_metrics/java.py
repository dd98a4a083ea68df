"""METEOR and SPICE by the Java programs of `pycocoevalcap`, where Java and their files are there."""

import importlib.util
import logging
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from vlp.errors import WorkError
from vlp.extras import extra

log = logging.getLogger("vlp")

SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def absent_metrics() -> dict[str, str]:
    """The metrics of METEOR and SPICE that cannot be computed here, each with what it lacks."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        return dict.fromkeys(("METEOR", "SPICE"), "pip install 'vlp[metrics]'")
    if shutil.which("java") is None:
        return dict.fromkeys(("METEOR", "SPICE"), "a Java runtime")
    folder = Path(next(iter(spec.submodule_search_locations))) / "spice" / "lib"
    # pycocoevalcap downloads these files when they are missing; this package never does.
    missing = [name for name in SPICE_MODELS if not (folder / name).exists()]
    return {"SPICE": f"{' and '.join(missing)} in {folder}"} if missing else {}


def java_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """METEOR (Denkowski and Lavie 2014) and SPICE (Anderson et al. 2016), each 0 to 1, those that are not absent.

    Args:
        captions: tokenized, one for each image.
        references: tokenized, of each image.

    Raises:
        WorkError: a program failed.
    """
    absent, scores = absent_metrics(), {}
    ours = {str(number): [text] for number, text in enumerate(captions)}
    truths = {str(number): list(texts) for number, texts in enumerate(references)}
    for name, compute in {"METEOR": _meteor, "SPICE": _spice}.items():
        if name in absent:
            _name_absent(name, absent[name])
            continue
        try:
            scores[name] = compute(truths, ours)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise WorkError(
                f"The Java program of {name} failed ({error}); check that `java -version` works."
            ) from error
    return scores


@cache
def _name_absent(name: str, needs: str) -> None:
    """Warn once in a process; NoCaps is scored once for each domain."""
    log.warning("%s is left out; it needs %s", name, needs)


def _meteor(references: dict[str, list[str]], captions: dict[str, list[str]]) -> float:
    with extra("metrics"):
        from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    try:
        return float(meteor.compute_score(references, captions)[0])
    finally:
        meteor.meteor_p.kill()
        meteor.meteor_p.communicate()  # closes the pipes


def _spice(references: dict[str, list[str]], captions: dict[str, list[str]]) -> float:
    with extra("metrics"):
        from pycocoevalcap.spice.spice import Spice

    return float(Spice().compute_score(references, captions)[0])
