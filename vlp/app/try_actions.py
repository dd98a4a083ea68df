"""What the tab Try does, from plain values to HTML; every error is a sentence in its place."""

import shlex
from collections.abc import Callable, Sequence
from typing import Any

from vlp.app.model_thread import ModelThread
from vlp.app.pieces import command_html, note, quoted
from vlp.app.try_view import table_html
from vlp.app.uploads import Upload
from vlp.data.transforms import clean_caption
from vlp.errors import UserError, WorkError

LONGEST = 2000  # characters of texts, questions and labels
MOST = 50  # texts, questions or labels
NOTHING = note("Upload a picture or a video first.")


class TryActions:
    """The actions of all sessions on one model."""

    def __init__(self, model: ModelThread):
        """Nothing is done yet."""
        self.model, self.can = model, model.can

    def captions(self, upload: Upload | None, beams: float, samples: float, seed: float) -> tuple[str, str]:
        """HTML of the captions of beam search and of samples, with their log-probabilities, and of the commands."""
        if upload is None:
            return NOTHING, ""
        beams, samples, seed = int(beams), int(samples), int(seed)

        def work(model: Any) -> list[tuple[Any, ...]]:
            image, rows = upload.image(), []
            for what, width, count in (("beam", beams, beams), ("sample", 0, samples)):
                if count:
                    (made,) = model.caption(image, keys=[upload.name], seed=seed, num_captions=count, beams=width)
                    rows += [(f"{what} {place}", one.text, one.log_probability) for place, one in enumerate(made, 1)]
            return rows

        ending = f" --num-captions {beams} --out captions.csv"
        commands = (
            self._command("caption", upload, f"--beams {beams}{ending}", "Caption by beam search") if beams else ""
        )
        if samples:
            given = f"--beams 0 --num-captions {samples} --seed {seed} --out samples.csv"
            commands += self._command("caption", upload, given, "Sample captions")
        return self._table("Captions", ["kind", "caption", "log-probability"], lambda: self.model.call(work), commands)

    def match(self, upload: Upload | None, texts: str | None) -> tuple[str, str]:
        """HTML of how well each line matches, and of the command."""

        def match(model: Any, image: Any, lines: list[str]) -> list[tuple[Any, ...]]:
            found = model.match(image, lines)
            return list(zip(lines, found.itc.tolist(), found.itm.tolist(), strict=True))

        columns = ["text", "cosine (ITC)", "match (ITM)", ""]
        return self._lines(("match", "Matches"), upload, texts, columns, match, bars=True)

    def answer(self, upload: Upload | None, questions: str | None) -> tuple[str, str]:
        """HTML of the answer to each line, and of the command."""

        def answer(model: Any, image: Any, lines: list[str]) -> list[tuple[Any, ...]]:
            return list(zip(lines, model.answer(image, lines), strict=True))

        return self._lines(("answer", "Answers"), upload, questions, ["question", "answer"], answer)

    def classify(self, upload: Upload | None, labels: str | None, rerank: float) -> tuple[str, str]:
        """HTML of the probabilities of labels, the best first, and of the command."""
        if upload is None:
            return NOTHING, ""
        labels, rerank = (labels or "")[:LONGEST], int(rerank) if self.can.match else 0

        def work() -> list[tuple[Any, ...]]:
            if upload.is_video and not upload.frame:
                raise UserError("Labels are chosen for one frame; choose a frame of the video.")
            names = [] if self.can.classes else _items(labels.split(","), "label")
            found = self.model.call(lambda model: model.classify(upload.image(), names, rerank=rerank))
            names = names or self.model.model.config.classes
            ranked = found.ranking[0][:MOST].tolist()
            return [(names[one], found.probabilities[0, one].item()) for one in ranked]

        given = "" if self.can.classes else f"--labels {shlex.quote(labels)} "
        given += f"--rerank {rerank} " if rerank else ""
        command = self._command("classify", upload, f"{given}--top {MOST}", "Choose among the labels")
        return self._table("Labels", ["label", "probability", ""], work, command, bars=True)

    def _lines(
        self,
        name: tuple[str, str],
        upload: Upload | None,
        given: str | None,
        columns: list[str],
        work: Callable[[Any, Any, list[str]], list[tuple[Any, ...]]],
        bars: bool = False,
    ) -> tuple[str, str]:
        """A table with a row for each given line, from model, image and lines; `name` is of command and table."""
        if upload is None:
            return NOTHING, ""
        command, label = name
        given = (given or "")[:LONGEST]

        def rows() -> list[tuple[Any, ...]]:
            lines = _items(given.splitlines(), columns[0])
            return self.model.call(lambda model: work(model, upload.image(), lines))

        texts = quoted(one.strip() for one in given.splitlines() if one.strip())
        return self._table(label, columns, rows, self._command(command, upload, texts, command.capitalize()), bars)

    def _table(
        self,
        label: str,
        columns: list[str],
        rows: Callable[[], list[tuple[Any, ...]]],
        command: str,
        bars: bool = False,
    ) -> tuple[str, str]:
        try:
            return table_html(label, columns, rows(), bars), command
        except (UserError, WorkError) as error:
            return note(str(error), "error"), ""

    def _command(self, name: str, upload: Upload, given: str, label: str) -> str:
        line = f"vlp {name} {shlex.quote(self.model.name)} {shlex.quote(upload.name)} {given}"
        return command_html(upload.command(line), label)


def _items(given: Sequence[str], what: str) -> list[str]:
    """The items that have words.

    Raises:
        UserError: there is none, or there are too many.
    """
    found = [one.strip() for one in given if one.strip()]
    if not found:
        raise UserError(f"Type at least one {what}.")
    if len(found) > MOST:
        raise UserError(f"Type at most {MOST} {what}s, not {len(found)}.")
    wordless = next((one for one in found if not clean_caption(one)), None)
    if wordless is not None:
        raise UserError(f"The {what} {wordless!r} has no words.")
    return found
