"""Predictions with the id of an earlier one: only the first counts, the others are counted as skipped and named."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

NAMED = 5  # ids that a sentence names

log = logging.getLogger("vlp")


def distinct(
    rows: Sequence[dict[str, Any]], what: str, identify: Callable[[dict[str, Any]], Any]
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The first prediction of each id, and the number of the others by reason; the log names them.

    Args:
        what: the name of the id, such as "question_id".
        identify: the id of a prediction; None where it has none, and it is kept.
    """
    kept: list[dict[str, Any]] = []
    seen: set[Any] = set()
    twice: list[Any] = []
    for row in rows:
        one = identify(row)
        if one is not None and one in seen:
            twice.append(one)
            continue
        seen.add(one)
        kept.append(row)
    if twice:
        log.warning("%s; the first of each counts", named_ids(twice, f"duplicate {what}"))
    return kept, Counter({f"duplicate {what}": len(twice)} if twice else {})


def named_ids(ids: Sequence[Any], what: str, name: str = "") -> str:
    """Ids for a sentence: how many of what there are, and the first few with the name of the id."""
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    first = ", ".join(map(str, ids[:NAMED]))
    return f"{len(ids)} {what} ({name} {first}{more})" if name else f"{len(ids)} {what} ({first}{more})"
