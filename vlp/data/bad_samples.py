"""Skipped samples: bad (damaged) ones, whose share is limited, and filtered ones, which have no text to use."""

import logging
from collections import Counter
from dataclasses import dataclass

from vlp.errors import WorkError

NO_SECOND_IMAGE = "no second image"  # the reason of a pair whose second image is missing, empty or undecodable
BAD_REASONS = (
    "unreadable shard",
    "shard changed",
    "member too large",
    "truncated",
    "duplicate key",
    "no image",
    NO_SECOND_IMAGE,
    "zero bytes",
    "image undecodable",
    "image too large",
    "missing file",
    "not a file",
    "video undecodable",
    "no video",
    "text not UTF-8",
    "bad json",
    "unreadable score table",
    "name not UTF-8",
)
NO_TEXT = "no text"  # the reason of a filtered sample that has no text, or nothing but punctuation
NOT_SCORED = "not scored"  # the reason of one that has no text in its score table
NO_TEXT_CHOSEN = "no text chosen"  # the reason of one whose texts are all below a floor or of unused sources
NAMED_PER_REASON = 5
SHARE_CHECKED_FROM = 100  # samples; the first few may be bad by chance
MOST_SKIPPED = 100_000  # samples of a source that are all skipped before the run stops

log = logging.getLogger("vlp")


@dataclass(frozen=True)
class BadSample:
    """A sample that is skipped. `key` is empty where a whole shard is meant."""

    shard: str
    key: str
    reason: str


class BadSampleError(Exception):
    """Raised for a damaged sample; `sample` names it and the reason."""

    def __init__(self, reason: str, shard: str = "", key: str = ""):
        super().__init__(f"{shard} {key}: {reason}")
        self.reason = reason
        self.sample = BadSample(shard, key, reason)


class FilteredSampleError(Exception):
    """Raised for a sample that is intact but has no text to use."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class BadSamples:
    """Counts skipped samples by reason, names the first of each in the log, and stops the work at too many bad ones.

    Attributes:
        counts: bad samples by reason.
        filtered: filtered samples by reason; they never count toward the limit.
        total: all samples read, good, bad and filtered.
    """

    def __init__(self, max_share: float):
        """`max_share` is the largest allowed share of bad samples, from 0 to 1."""
        self.max_share = max_share
        self.counts: Counter[str] = Counter()
        self.filtered: Counter[str] = Counter()
        self.total = 0

    def seen(self, samples: int = 1) -> None:
        """Count good samples.

        Raises:
            WorkError: the share of bad ones is above the limit.
        """
        self.total += samples
        if self.total >= SHARE_CHECKED_FROM:
            self.finish()

    def add(self, bad: BadSample, counted: bool = False) -> None:
        """Count a bad sample, and name it unless enough samples with its reason were named.

        Args:
            counted: whether it was counted as good before, when its bytes were read.

        Raises:
            WorkError: the share of bad ones is above the limit.
        """
        self.counts[bad.reason] += 1
        _name(bad, self.counts[bad.reason], logging.WARNING)
        self.seen(0 if counted else 1)

    def add_filtered(self, sample: BadSample, counted: bool = False) -> None:
        """Count a filtered sample, and name it unless enough samples with its reason were named."""
        self.filtered[sample.reason] += 1
        _name(sample, self.filtered[sample.reason], logging.INFO)
        self.seen(0 if counted else 1)

    def finish(self) -> None:
        """Check the share whatever the number of samples; for the end of the work.

        Raises:
            WorkError: the share of bad ones is above the limit.
        """
        bad = sum(self.counts.values())
        if bad > self.max_share * self.total:
            counts = ", ".join(f"{reason}: {count}" for reason, count in self.counts.most_common())
            raise WorkError(
                f"{bad} of {self.total} samples are bad ({counts}), more than the share of {self.max_share:g} that "
                "max_bad_share allows; fix the shards or raise it."
            )


class UnusableSources:
    """Stops training at a source of which the first samples are all skipped."""

    def __init__(self, most: list[int]):
        """`most` is the number of skipped samples of each source that stops the work; at most `MOST_SKIPPED`."""
        self.most = [min(count, MOST_SKIPPED) for count in most]
        self.skipped: Counter[int] = Counter()
        self.good: set[int] = set()

    def seen(self, sources: list[int]) -> None:
        """Note the sources of good samples."""
        self.good.update(sources)

    def add(self, source: int, sample: BadSample, filtered: bool) -> None:
        """Count a skipped sample.

        Raises:
            WorkError: its source gave no good sample so far.
        """
        self.skipped[source] += 1
        if source in self.good or self.skipped[source] < self.most[source]:
            return
        advice = "" if filtered else ", or fix them"
        if sample.reason in (NO_TEXT, NOT_SCORED, NO_TEXT_CHOSEN):
            advice = ", or score them with `vlp capfilt score` and set texts"
        raise WorkError(
            f"data.sources[{source}]: none of the first {self.most[source]} samples could be used "
            f"({sample.shard} {sample.key}: {sample.reason}); name other shards{advice}."
        )


def _name(sample: BadSample, number: int, level: int) -> None:
    """Log a skipped sample, the `number`-th with its reason."""
    if number <= NAMED_PER_REASON:
        where = f"{sample.shard} {sample.key}".strip()
        where = where.encode("utf-8", "backslashreplace").decode()  # half surrogate pairs
        log.log(level, "skipped %s: %s", where, sample.reason)
    elif number == NAMED_PER_REASON + 1:
        log.log(level, "more samples with %r: they are only counted from now on", sample.reason)
