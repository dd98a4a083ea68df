"""Search by a text or an image: over the images and videos of a folder, the images of shards, or an index."""

import logging
import os
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from vlp.data.bad_samples import BadSamples
from vlp.data.transforms import clean_caption
from vlp.errors import UserError
from vlp.index.fingerprint import check_model
from vlp.index.opened import ImageIndex
from vlp.index.pixels import read_batches
from vlp.index.places import Item, Place, no_images, read_in_sequence
from vlp.model import Model
from vlp.model.video import FRAMES, encode_videos
from vlp.models.constant_weights import constant_weights
from vlp.remote import is_remote

RERANK = 32  # candidates
SPARE = 16  # candidates that take the place of images that have disappeared

log = logging.getLogger("vlp")


@dataclass
class Query:
    """What to look for: a text, or an image (the path of one, or a PIL image)."""

    text: str = ""
    image: str | Image.Image = ""

    def embed(self, model: Model, frames: int = FRAMES) -> Tensor:
        """The unit vector of the query, float32 [embed_dim].

        Raises:
            UserError: neither or both are given, the text has no words, or the image is unreadable.
        """
        if bool(self.image) == bool(self.text):
            raise UserError("Give either a text (--query) or an image (--image) to search for.")
        if self.image:
            return model.embed_images(self.image, frames=frames)[0]
        if not clean_caption(self.text):
            raise UserError(f"The query {self.text!r} has no words to search for.")
        return model.embed_texts(self.text)[0]

    def rerank_count(self, model: Model, asked: int | None) -> int:
        """How many candidates to re-rank by ITM; None asked: `RERANK`, or 0 for an image or a model without ITM.

        Raises:
            UserError: the caller asked for re-ranking, and it is not possible.
        """
        if asked and self.image:
            raise UserError("Re-ranking by ITM needs a text; leave out --rerank with an image.")
        return 0 if self.image else model.rerank_count(asked, RERANK)


@dataclass
class Hit:
    """An image or video that was found.

    Attributes:
        name: its path or `shard#key`.
        itc: the cosine of its vector and the query's.
        itm: the ITM probability if re-ranked.
        number, caption: in an index: its number, and its caption if it has one.
    """

    name: str
    itc: float
    itm: float | None = None
    number: int | None = None
    caption: str | None = None


@dataclass
class _Candidate:
    """An image or video that may still be among the results.

    Attributes:
        tokens: [frames * tokens, width], kept only for re-ranking.
        frames: 1 for an image.
    """

    hit: Hit
    tokens: Tensor | None
    frames: int


@constant_weights()
def search(
    model: Model,
    images: str,
    query: str | Query,
    top: int = 10,
    rerank: int | None = None,
    batch_size: int = 64,
    frames: int = FRAMES,
) -> list[Hit]:
    """The best images and videos for a text or an image, best first. Memory does not grow with their number.

    Args:
        images: a folder of images and videos, searched with its subfolders, or shards.
        query: a text, or a `Query`.
        top: number of results.
        rerank: re-rank this many of the best by ITM's log-odds of a match + cosine; 0 disables. None: `RERANK`, or 0
            for an image or a model without ITM.
        batch_size: images or frames encoded, and images matched, at once.
        frames: of each video.

    Raises:
        UserError: there is nothing to search, or the query has no words.
    """
    query = Query(query) if isinstance(query, str) else query
    vector = query.embed(model, frames)
    rerank = query.rerank_count(model, rerank)
    best: list[_Candidate] = []  # by descending cosine; equal cosines in the order of the images
    bad = BadSamples(max_share=1.0)
    for batch in read_batches(read_in_sequence(images, bad), model.image_size, frames, batch_size, bad):
        tokens = encode_videos(model, batch.pixels)
        cosines = (model.embed_tokens(tokens, batch.frames) @ vector).tolist()
        best += [
            _Candidate(Hit(decoded.item.place.name, itc), one, batch.frames)
            for decoded, itc, one in zip(batch.decoded, cosines, tokens, strict=True)
        ]
        best.sort(key=lambda candidate: -candidate.hit.itc)
        best = best[: max(top, rerank)]
        for place, candidate in enumerate(best):
            candidate.tokens = _own_copy(candidate.tokens) if place < rerank else None
    if not best:
        raise no_images([images], "search", bad.counts)
    return _ranked(model, query, best, top, rerank, batch_size)


@constant_weights()
def search_index(
    model: Model,
    index: ImageIndex,
    query: str | Query,
    top: int = 10,
    rerank: int | None = None,
    batch_size: int = 64,
    missing: BadSamples | None = None,
) -> list[Hit]:
    """The best images of an index for a text or an image; arguments and order as in `search`.

    The images to re-rank are read from where they are. Those that have disappeared are named in the log and left out.
    By default, images of clip-retrieval's metadata of shards are not re-ranked, because it has only their keys.

    Args:
        missing: gets the images that are left out.

    Raises:
        UserError: the index was made with another model, or the query has no words.
    """
    check_model(index.model, model, index.folder)
    query = Query(query) if isinstance(query, str) else query
    vector = query.embed(model, index.frames)
    asked, rerank = rerank, query.rerank_count(model, rerank)
    best: list[_Candidate] = []
    places: list[Place] = []
    missing = BadSamples(max_share=1.0) if missing is None else missing
    for number, itc in index.search(vector, max(top, rerank) + SPARE):
        row = index.row(number)
        if _has_disappeared(row.place):
            missing.add(row.place.bad("missing file"))
        elif len(best) < max(top, rerank):
            best.append(_Candidate(Hit(row.place.name, itc, None, number, row.caption), None, row.frames))
            places.append(row.place)
    if not best:
        raise UserError(f"None of the images that the index {index.folder} finds exists; run `vlp index` again.")
    if asked is None and any(map(_is_unknown, places)):
        rerank = 0
    unread = _encode(model, best[:rerank], places[:rerank], index.frames, batch_size, missing)
    best = [one for one in best if one.hit.number not in unread]
    return _ranked(model, query, best, top, rerank - len(unread) if rerank else 0, batch_size)


def _has_disappeared(place: Place) -> bool:
    """Whether a local file or shard is not there any more."""
    return not is_remote(place.path) and not _is_unknown(place) and not os.path.exists(place.path)


def _is_unknown(place: Place) -> bool:
    """Whether only the key of an image is known, as from clip-retrieval's metadata of shards."""
    return not (place.in_shard or is_remote(place.path) or os.path.isabs(place.path) or os.path.exists(place.path))


def _encode(
    model: Model, candidates: list[_Candidate], places: list[Place], frames: int, batch_size: int, bad: BadSamples
) -> set[int | None]:
    """Read and encode the candidates; returns the numbers of those that cannot be read."""
    waiting = {id(place): one for place, one in zip(places, candidates, strict=True)}
    for batch in read_batches(map(Item, places), model.image_size, frames, batch_size, bad):
        for decoded, tokens in zip(batch.decoded, encode_videos(model, batch.pixels), strict=True):
            candidate = waiting.pop(id(decoded.item.place))
            candidate.tokens, candidate.frames = tokens, batch.frames
    return {one.hit.number for one in waiting.values()}


def _ranked(model: Model, query: Query, best: list[_Candidate], top: int, rerank: int, batch_size: int) -> list[Hit]:
    """The hits of candidates, of which the first `rerank` are ordered anew."""
    for count in {candidate.frames for candidate in best[:rerank]}:
        same = [candidate for candidate in best[:rerank] if candidate.frames == count]
        _rerank(model, query.text, same, max(1, batch_size // count))
    hits = [candidate.hit for candidate in best]
    hits[:rerank] = sorted(hits[:rerank], key=_match_score, reverse=True)
    return hits[:top]


def _own_copy(tokens: Tensor | None) -> Tensor | None:
    """The tokens in memory of their own: a row of a batch would keep the whole batch in memory."""
    shares_memory = tokens is not None and tokens.untyped_storage().nbytes() > tokens.nbytes
    return tokens.clone() if tokens is not None and shares_memory else tokens


def _rerank(model: Model, query: str, candidates: list[_Candidate], batch_size: int) -> None:
    """Set the ITM probability of every candidate's hit."""
    for start in range(0, len(candidates), batch_size):
        part = candidates[start : start + batch_size]
        tokens = torch.stack([candidate.tokens for candidate in part if candidate.tokens is not None])
        match = model.match_tokens(tokens, [query] * len(part), frames=part[0].frames)
        for candidate, itm in zip(part, match.itm.tolist(), strict=True):
            candidate.hit.itm = itm


def _match_score(hit: Hit) -> float:
    """ITM's log-odds of a match + cosine; a float32 probability tells no odds beyond a million apart."""
    return torch.logit(torch.tensor(hit.itm), eps=1e-6).item() + hit.itc
