"""The rules on written rows, tried on real public pairs, where it is known what they should say.

    python benchmarks/synthesis_rules.py DATA [--cache DIR] [--output FILE.md]

DATA has `classification/sib200.parquet` (text, language `deu_Latn`) and `retrieval/squad_dev_half`
and `medquad.parquet` (query, positive). Languages: true ones that the rule rejects, and English
that it finds where another language was asked for. Near-duplicates: speed and memory with so many
texts in the pool. Round trip: true and random pairs that pass. Diversity: what public queries have.
Writes Markdown tables.
"""

import argparse
import platform
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from datagen.encode import Encoder
from datagen.packaged import default_cache, resolve_model
from datagen.synthesize.diversity import distinct, similarity
from datagen.synthesize.near import Pool
from datagen.synthesize.ranker import positive_ranks
from datagen.synthesize.written_language import other_language

CLASSES = {
    "Latn": "Latin", "Cyrl": "Cyrillic", "Arab": "Arabic", "Deva": "Devanagari",
    "Hans": "Han and kana", "Hant": "Han and kana", "Jpan": "Han and kana",
}  # fmt: skip
POOLS = (100_000, 1_000_000)
BLOCK = 4096
WORDS = 14
KS = (1, 5, 20, 100)
Row = Sequence[object]


def markdown(title: str, columns: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    yield from (f"\n## {title}\n", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns))
    yield from ("| " + " | ".join(map(str, row)) + " |" for row in rows)


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def share_of(mask: pl.Series) -> str:
    return percent(float(mask.to_numpy().mean()))


def language_rows(data: Path) -> list[Row]:
    table = pl.read_parquet(data / "classification" / "sib200.parquet")
    tag = table["language"].str.split("_").list
    other, judged = other_language(table["text"], tag.get(0), tag.get(1))
    named = tag.get(1).replace_strict(CLASSES, default="other scripts")
    frame = pl.DataFrame({"script": named, "other": other, "judged": judged})
    rows: list[Row] = [
        (f"true language, {script}", len(part), share_of(part["judged"]),
         share_of(part.filter("judged")["other"]))
        for (script,), part in sorted(frame.group_by("script"))
    ]  # fmt: skip
    english = table.filter(language="eng_Latn")["text"]
    for language, script in (("deu", "Latn"), ("swh", "Latn"), ("hin", "Deva")):
        asked = pl.Series([language]).extend_constant(language, len(english) - 1)
        scripts = pl.Series([script]).extend_constant(script, len(english) - 1)
        other, judged = other_language(english, asked, scripts)
        share = percent(other[judged].mean())
        rows.append((f"English for {language}", len(english), percent(judged.mean()), share))
    return rows


def near_rows() -> list[Row]:
    draw = np.random.default_rng(0)
    words = np.array(
        [a + b + c for a in "bcdfghjklmnprst" for b in "aeiou" for c in ("rn", "lt", "m")]
    )

    def block(count: int) -> pa.Array:
        chosen = words[draw.integers(len(words), size=(count, WORDS))]
        return pa.array([" ".join(row) for row in chosen], pa.large_string())

    pool, rows = Pool(), list[Row]()
    pool.add(block(BLOCK))  # compiles
    for size in POOLS:
        while len(pool) < size:
            pool.add(block(1 << 16))
        blocks = [block(BLOCK) for _ in range(8)]
        start = time.perf_counter()
        for texts in blocks:
            pool.add(texts)
        rate = len(blocks) * BLOCK / (time.perf_counter() - start)
        rows.append((f"{size:,}", f"{rate:,.0f}", f"{pool.nbytes / len(pool):.0f}"))
    return rows


def round_trip_rows(data: Path, encoder: Encoder, count: int) -> list[Row]:
    draw, rows = np.random.default_rng(0), list[Row]()
    for name in ("squad_dev_half", "medquad"):
        pairs = pl.read_parquet(data / "retrieval" / f"{name}.parquet").head(8 * count)
        pairs = pairs.sample(count, seed=1, shuffle=True)
        numbers: dict[str, int] = {}
        true = np.array([numbers.setdefault(text, len(numbers)) for text in pairs["positive"]])
        queries = encoder.encode(pairs["query"].to_list(), stored="float16")
        documents = encoder.encode(list(numbers), stored="float16")
        random = draw.integers(len(numbers), size=count)
        for kind, positives in (("true", true), ("random", random)):
            ranks = positive_ranks(queries, documents, positives)
            shares = [percent(float((ranks <= k).mean())) for k in KS]
            rows.append((name, kind, f"{len(numbers):,}", *shares))
    return rows


def diversity_rows(data: Path, encoder: Encoder) -> list[Row]:
    rows: list[Row] = []
    for name in ("squad_dev_half", "medquad"):
        queries = pl.read_parquet(data / "retrieval" / f"{name}.parquet")["query"]
        queries = queries.sample(1000, seed=1, shuffle=True)
        found = {
            **distinct(queries),
            **similarity(queries, lambda texts: encoder.encode(texts, stored="float32")),
            **similarity(queries, None),
        }
        rows.append((name, *(f"{value:.3f}" for value in found.values() if value is not None)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder of real public pairs")
    parser.add_argument("--cache", default=default_cache(), help="folder of unpacked models")
    parser.add_argument("--pairs", type=int, default=1000, help="of each source of the round trip")
    results = Path(__file__).parent / "results" / "synthesis_rules.md"
    parser.add_argument("--output", type=Path, default=results, help="file to write")
    given = parser.parse_args()
    encoder = Encoder(
        resolve_model("all-minilm-l6-v2", given.cache)[0], dtype="bfloat16", threads=2
    )
    lines = [
        "# Rules on written rows",
        f"\n`python benchmarks/synthesis_rules.py`, {date.today()}, {platform.machine()}, "
        f"Python {platform.python_version()}; all-MiniLM-L6-v2 as encoder.",
        *markdown(
            "Language as asked", ("texts", "number", "judged, %", "rejected of those, %"),
            language_rows(given.data),
        ),
        *markdown("Near-duplicates", ("texts in the pool", "texts/s", "bytes a text"), near_rows()),
        *markdown(
            "Round trip: pairs that pass, %",
            ("source", "pairs", "documents", *(f"k = {k}" for k in KS)),
            round_trip_rows(given.data, encoder, given.pairs),
        ),
        *markdown(
            "Diversity of public queries",
            ("source", "distinct-1", "distinct-2", "distinct-3", "self-cosine", "self-Jaccard"),
            diversity_rows(given.data, encoder),
        ),
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    given.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
