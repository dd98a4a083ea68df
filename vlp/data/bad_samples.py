"""Bad samples: why a sample is skipped, how they are counted and named, and when there are too many."""

import logging
from collections import Counter
from dataclasses import dataclass

from vlp.errors import WorkError

BAD_REASONS = (
    "unreadable shard",
    "truncated",
    "duplicate key",
    "no image",
    "zero bytes",
    "image undecodable",
    "image too large",
    "no text",
    "empty text",
    "text not UTF-8",
    "bad json",
    "not in its score table",
    "no text chosen",
    "unreadable score table",
)
NAMED_PER_REASON = 5
SHARE_IS_JUDGED_FROM = 100  # samples; the first few may be bad by chance

log = logging.getLogger("vlp")


@dataclass(frozen=True)
class BadSample:
    """A sample that is skipped. `key` is empty where a whole shard is meant."""

    shard: str
    key: str
    reason: str


class BadSampleError(Exception):
    """Raised where a sample turns out to be bad; `sample` says which and why."""

    def __init__(self, reason: str, shard: str = "", key: str = ""):
        super().__init__(f"{shard} {key}: {reason}")
        self.reason = reason
        self.sample = BadSample(shard, key, reason)


class BadSamples:
    """Counts bad samples by reason, names the first of each in the log, and stops the work when they are too many."""

    def __init__(self, max_share: float):
        self.max_share = max_share
        self.counts: Counter[str] = Counter()
        self.total = 0  # good and bad

    def seen(self, samples: int = 1) -> None:
        """Count samples that were good.

        Raises:
            WorkError: the share of bad ones is above the limit.
        """
        self.total += samples
        if self.total >= SHARE_IS_JUDGED_FROM:
            self.finish()

    def add(self, bad: BadSample, counted: bool = False) -> None:
        """Count a bad sample, and name it unless its reason has been named often enough.

        Args:
            counted: whether it was counted as good before, when its bytes were read.

        Raises:
            WorkError: the share of bad ones is above the limit.
        """
        self.counts[bad.reason] += 1
        if self.counts[bad.reason] <= NAMED_PER_REASON:
            log.warning("skipped %s %s: %s", bad.shard, bad.key, bad.reason)
        elif self.counts[bad.reason] == NAMED_PER_REASON + 1:
            log.warning("more samples with %r: from now on they are only counted", bad.reason)
        self.seen(0 if counted else 1)

    def finish(self) -> None:
        """Judge the share whatever the number of samples; for the end of the work.

        Raises:
            WorkError: the share of bad ones is above the limit.
        """
        bad = sum(self.counts.values())
        if bad > self.max_share * self.total:
            counts = ", ".join(f"{reason}: {count}" for reason, count in self.counts.most_common())
            raise WorkError(
                f"{bad} of {self.total} samples are bad ({counts}), more than the share of {self.max_share:g} that "
                "max_bad_share allows; mend the shards or raise it."
            )
