"""Language detectors on labelled sentences: accuracy, macro F1 and speed of each backend.

    python benchmarks/language.py flores.parquet [--rows 4000]

Reads a table with columns text and language (`deu_Latn`). Scores count the languages that a backend
gets right at least once (it knows them), on all sentences of these languages; one process.
"""

import argparse
import json
import time
from collections import Counter

from datagen.detectors import BACKENDS, detector
from datagen.language import detect_language
from datagen.sources.files import read_rows


def measure(backend: str, texts: list[str], languages: list[str]) -> dict[str, object]:
    """Scores of one backend; `texts[i]` is in `languages[i]`."""
    detect_language("warm up", backend)
    start = time.perf_counter()
    found = [detect_language(text, backend)[0] for text in texts]
    seconds = time.perf_counter() - start
    known = {a for a, b in zip(found, languages, strict=True) if a == b}
    rows = [(a, b) for a, b in zip(found, languages, strict=True) if b in known]
    right, named = Counter(b for a, b in rows if a == b), Counter(a for a, _ in rows)
    total = Counter(b for _, b in rows)
    f1 = [2 * right[tag] / (named[tag] + total[tag]) for tag in known]
    return {
        "detector": detector(backend).label,
        "languages_known": len(known),
        "accuracy": round(right.total() / len(rows), 4),
        "macro_f1": round(sum(f1) / len(f1), 4),
        "texts_per_s": round(len(texts) / seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", help="a file with columns text and language")
    parser.add_argument("--rows", type=int, default=4000, help="sampled evenly (4000)")
    arguments = parser.parse_args()
    table, _ = read_rows([arguments.table])
    step = max(1, table.num_rows // arguments.rows)
    texts, languages = (table[name].to_pylist()[::step] for name in ("text", "language"))
    for backend in sorted(BACKENDS):
        print(json.dumps(measure(backend, texts, languages)))


if __name__ == "__main__":
    main()
