"""What the tab Search does, from plain values to HTML; every error is a sentence in its place."""

import shlex
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from vlp.app.model_thread import ModelThread
from vlp.app.pieces import command_html, note, quoted
from vlp.app.search_view import details_html, hits_html
from vlp.app.uploads import Upload, picture_html
from vlp.data.bad_samples import BadSampleError
from vlp.data.shard_index import index_shard
from vlp.data.shards import ShardReader
from vlp.data.transforms import clean_caption, seen_part
from vlp.errors import UserError, WorkError
from vlp.index import ImageIndex
from vlp.index.fingerprint import check_model
from vlp.index.places import KeptBad, Place
from vlp.index.search import Query, search_index
from vlp.model.attention import similarity_maps, word_maps
from vlp.report.overlays import fit, overlay

WHOLE = "whole text"
LONGEST = 500  # characters of a query
DRAWN = 384  # pixels of the longer side of an attention picture
MAPS = 256  # of pairs of image and text that are kept, some kilobytes each


class TextMaps(NamedTuple):
    """Where a text looks on an image: names and maps, float32 [rows, columns], and a line about the text."""

    maps: list[tuple[str, Any]]
    about: str


class SearchActions:
    """The actions of all sessions on one index."""

    def __init__(self, index: ImageIndex, model: ModelThread, named: str = ""):
        """Check that the two belong together.

        Args:
            named: the model as commands name it, where the index does not tell it.

        Raises:
            UserError: the index was made with another model.
        """
        model.call(lambda loaded: check_model(index.model, loaded, index.folder))
        self.index, self.model, self.named = index, model, "" if index.model.name else named
        self._found = lru_cache(64)(self._search)
        self._maps = lru_cache(MAPS)(self._make_maps)

    def search(self, text: str | None, upload: Upload | None, top: float, rerank: float) -> tuple[str, str]:
        """HTML of the images that a text or an upload finds, and of the command."""
        text = _line(text)
        if not text and upload is None:
            return note("Type a text, or upload a picture, to search for."), ""
        rerank = int(rerank) if self.model.can.match and not upload else 0
        try:
            return self._found(text, upload, int(top), rerank), self._command(text, upload, int(top), rerank)
        except (UserError, WorkError) as error:
            return note(str(error), "error"), ""

    def similar(self, number: Any, top: float) -> tuple[str, str]:
        """As `search`, for the images similar to one of the index."""
        try:
            number = self._number(number)
            image = self.index.image(number)
            hits = self._hits(Query(image=image), int(top), 0)
            command = f"{self._show(number)} --out picture.png && {self._vlp()} --image picture.png --top {int(top)}"
            about = note(f"Images similar to {self.index.key(number)}")
            return about + hits, command_html(command, "Find similar images")
        except (UserError, WorkError) as error:
            return note(str(error), "error"), ""

    def details(self, number: Any) -> str:
        """HTML of an image of the index: the picture, its key, path and captions, and the command."""
        try:
            number = self._number(number)
            row = self.index.row(number)
        except UserError as error:
            return note(str(error), "error")
        place, problem = row.place, ""
        try:
            picture = picture_html(self.index.image(number), place.key, row.caption or place.key)
        except (UserError, WorkError) as error:
            picture, problem = "", note(str(error), "error")
        captions = _captions(place) or ([row.caption] if row.caption else [])
        rows = [("key", place.key), ("shard" if place.in_shard else "path", place.path)]
        rows += [("size", f"{row.width} x {row.height} pixels")] if row.width else []
        rows += [("caption", one) for one in captions]
        command = command_html(self._show(number), "Show this image")
        return details_html(picture, rows, [problem, command])

    def words(self, text: str | None) -> list[tuple[str, str]]:
        """The words of a text to choose from, as names and values; the whole text is -1."""
        text = clean_caption(_line(text))
        found = [word for word, _ in self.model.model.tokenizer.words(text)] if text and self.model.can.match else []
        return [(WHOLE, "-1"), *((word, str(place)) for place, word in enumerate(found))] if text else []

    def attention(self, number: Any, text: str | None, word: str | None) -> tuple[str, str]:
        """HTML of where a word of a text looks on an image of the index, and of the command."""
        text = _line(text)
        try:
            number = self._number(number)
            if not clean_caption(text):
                raise UserError("Type a text to show where its words look.")
            found = self._maps(number, text)
            place = int(word or -1) + 1
            name, values = found.maps[place if place < len(found.maps) else 0]
            picture = seen_part(self.index.image(number), self.model.model.config.image_encoder.resize)
        except (UserError, WorkError) as error:
            return note(str(error), "error"), ""
        low = 0.0 if self.model.can.match else float(values.min())
        drawn = overlay(fit(picture, DRAWN), values, low, float(values.max()))
        save = f"{self._show(number)} --out picture.png"
        command = f"{save} && vlp attention {shlex.quote(self.model.name)} picture.png --out words.png {quoted([text])}"
        shown = picture_html(drawn, f"{name}: {found.about}", f"Attention of: {name}")
        return shown, command_html(command, "Draw the attention of all words")

    def _search(self, text: str, upload: Upload | None, top: int, rerank: int) -> str:
        image = upload.image() if upload else ""
        query = Query(image=image) if upload else Query(text=text)
        return self._hits(query, top, rerank)

    def _hits(self, query: Query, top: int, rerank: int) -> str:
        """HTML of what a query finds, after a sentence on images that cannot be read any more."""
        missing = KeptBad()
        hits = self._with(lambda model: search_index(model, self.index, query, top, rerank, missing=missing))
        found = hits_html(self.index, hits)
        if not missing.samples:
            return found
        one = missing.samples[0]
        named = f"{one.shard}#{one.key} ({one.reason})" if one.shard else f"{one.key} ({one.reason})"
        many = f"{len(missing.samples):,} image{'s' if len(missing.samples) > 1 else ''}"
        said = f"Left out: {many} that cannot be read, such as {named}; run `vlp index` again."
        return note(said, "error") + found

    def _make_maps(self, number: int, text: str) -> TextMaps:
        picture = self.index.image(number)
        if self.model.can.match:
            (one,) = self._with(lambda model: word_maps(model, picture, text))
            maps = [(WHOLE, one.sentence.numpy()), *zip(one.words, (row.numpy() for row in one.maps), strict=True)]
            return TextMaps(maps, f"Grad-CAM; the text matches with {one.itm:.3g}")
        (same,) = self._with(lambda model: similarity_maps(model, picture, text))
        return TextMaps([(WHOLE, same.map.numpy())], f"cosine of patches and text; of the image {same.itc:.3f}")

    def _with(self, work: Callable[[Any], Any]) -> Any:
        return self.model.call(work)

    def _number(self, given: Any) -> int:
        if not isinstance(given, (int, float)) or given != given or given < 0:
            raise UserError("Choose an image first.")
        return int(given)

    def _vlp(self) -> str:
        model = f" {shlex.quote(self.named)}" if self.named else ""
        return f"vlp search{model} --index {shlex.quote(self.index.folder)}"

    def _show(self, number: int) -> str:
        return f"vlp search --index {shlex.quote(self.index.folder)} --show {number}"

    def _command(self, text: str, upload: Upload | None, top: int, rerank: int) -> str:
        query = f"--image {shlex.quote(upload.name)}" if upload else f"--query {shlex.quote(text)}"
        given = f" --rerank {rerank}" if self.model.can.match and not upload else ""
        line = f"{self._vlp()} {query} --top {top}{given}"
        return command_html(upload.command(line) if upload else line, "Search")


def _line(text: str | None) -> str:
    return " ".join((text or "").split())[:LONGEST]


def _captions(place: Place) -> list[str]:
    """All captions of a sample; empty for files, and where the shard cannot be read."""
    if not place.in_shard:
        return []
    reader = ShardReader(most_open=1)
    try:
        index = index_shard(place.path)
        return reader.read(index, list(index.keys).index(place.key)).captions
    except (UserError, WorkError, BadSampleError, ValueError):
        return []
    finally:
        reader.close()
