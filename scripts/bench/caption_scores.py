"""Seconds to score captions by vlp, and by pycocoevalcap with Java: BLEU, ROUGE-L and CIDEr-D of the same captions.

python scripts/bench/caption_scores.py FLICKR8K/captions.txt --images 5000

Each image's first caption is scored against its first five, so that both do the work of 5,000 x 5 references.
"""

import argparse
import csv
import json
import time
from collections.abc import Callable

from vlp.caption_metrics.scores import caption_scores


def read_captions(path: str, images: int) -> dict[str, list[str]]:
    """The captions of the first images of a file with the columns image and caption; of each image at least one."""
    captions: dict[str, list[str]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            captions.setdefault(row["image"], []).append(row["caption"])
    return dict(list(captions.items())[:images])


def by_pycocoevalcap(captions: dict[str, list[str]]) -> dict[str, float]:
    """The scores by pycocoevalcap, its Java tokenizer included."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    truths = tokenizer.tokenize({key: [{"caption": text} for text in texts[:5]] for key, texts in captions.items()})
    ours = tokenizer.tokenize({key: [{"caption": texts[0]}] for key, texts in captions.items()})
    bleu, _ = Bleu(4).compute_score(truths, ours, verbose=0)
    scores = {f"BLEU-{order}": value for order, value in enumerate(bleu, start=1)}
    return scores | {
        "ROUGE-L": float(Rouge().compute_score(truths, ours)[0]),
        "CIDEr": float(Cider().compute_score(truths, ours)[0]),
    }


def by_vlp(captions: dict[str, list[str]]) -> dict[str, float]:
    """The scores by vlp."""
    texts = list(captions.values())
    return caption_scores([one[0] for one in texts], [one[:5] for one in texts]).metrics


def measure(score: Callable[[dict[str, list[str]]], dict[str, float]], captions: dict[str, list[str]]) -> dict:
    """Seconds and scores of one call."""
    started = time.monotonic()
    scores = score(captions)
    return {"seconds": time.monotonic() - started, **scores}


def main() -> None:
    """Print both measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", help="Flickr8k's captions.txt")
    parser.add_argument("--images", type=int, default=5000)
    arguments = parser.parse_args()
    captions = read_captions(arguments.captions, arguments.images)
    print(json.dumps({"images": len(captions), "captions": sum(min(5, len(one)) for one in captions.values())}))
    print(json.dumps({"vlp": measure(by_vlp, captions)}))
    print(json.dumps({"pycocoevalcap": measure(by_pycocoevalcap, captions)}))


if __name__ == "__main__":
    main()
