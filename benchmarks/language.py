"""Language detectors side by side: macro F1 on sentences and on short texts, and speed on one core.

    python benchmarks/language.py LABELLED [--short QUERIES] [--rows 8000] [--output FILE.md]

LABELLED is a table with columns text and language (`deu_Latn`), such as FLORES sentences; the short
texts of each language are the first four words of its sentences. QUERIES is any table of short
texts (`--column`), for speed only. Macro F1 is scikit-learn's, over every language of the table: a
language that a detector does not know counts 0. Every detector is asked through
`datagen.language.detect_languages`, so each has the same help of scripts. Writes a Markdown table.
"""

import os

os.environ.update(POLARS_MAX_THREADS="1", OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import argparse
import platform
import time
from datetime import date
from pathlib import Path

import polars as pl
from sklearn.metrics import f1_score

from datagen.detectors import BACKENDS, detector
from datagen.language import detect_languages
from datagen.schema import UserError
from datagen.sources.files import read_rows

SHORT_WORDS = 4
PASSES = 3  # the fastest counts


def macro_f1(languages: pl.Series, found: pl.Series) -> float:
    labels = sorted(set(languages))
    return float(
        f1_score(
            languages.to_list(), found.to_list(), labels=labels, average="macro", zero_division=0
        )
    )


def rate(texts: pl.Series, backend: str) -> float:
    """Texts/s of the fastest of some passes; each text counts once."""
    texts = texts.unique(maintain_order=True)
    seconds = []
    for _ in range(PASSES):
        start = time.perf_counter()
        detect_languages(texts, backend)
        seconds.append(time.perf_counter() - start)
        if seconds[0] > 5:
            break
    return len(texts) / min(seconds)


def measure(backend: str, labelled: pl.DataFrame, queries: pl.Series) -> dict[str, str]:
    try:
        loaded = detector(backend)
    except UserError as error:
        return {"backend": backend, "licence": error.found}
    detect_languages(queries.head(1), backend)
    texts, languages = labelled["text"], labelled["language"]
    short = texts.str.split(" ").list.head(SHORT_WORDS).list.join(" ")
    found = detect_languages(texts, backend)[0]
    return {
        "backend": loaded.label,
        "licence": loaded.licence,
        "macro F1, sentences": f"{macro_f1(languages, found):.4f}",
        f"macro F1, first {SHORT_WORDS} words": (
            f"{macro_f1(languages, detect_languages(short, backend)[0]):.4f}"
        ),
        "accuracy, sentences": f"{(found == languages).mean():.4f}",
        "sentences/s": f"{rate(texts, backend):,.0f}",
        "short texts/s": f"{rate(queries, backend):,.0f}",
    }


def markdown(rows: list[dict[str, str]]) -> str:
    columns = max((list(row) for row in rows), key=len)
    lines = [columns, ["---"] * len(columns)]
    lines += [[row.get(column, "") for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def texts_of(path: str, column: str) -> pl.DataFrame:
    table, _ = read_rows([path])
    frame = pl.DataFrame(pl.from_arrow(table)).filter(pl.col(column).is_not_null())
    return frame.with_columns(text=pl.col(column))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("labelled", help="a file with columns text and language")
    parser.add_argument(
        "--short", help="a file of short texts, for speed (the first words of them)"
    )
    parser.add_argument("--column", default="text", help="of the short texts")
    parser.add_argument("--rows", type=int, default=8000, help="sentences, sampled evenly (8000)")
    parser.add_argument("--backends", default=",".join(BACKENDS), help="names, with commas")
    parser.add_argument("--output", default=str(Path(__file__).parent / "results/language.md"))
    arguments = parser.parse_args()
    labelled = texts_of(arguments.labelled, "text")
    labelled = labelled.gather_every(max(1, len(labelled) // arguments.rows))
    short = labelled["text"].str.split(" ").list.head(SHORT_WORDS).list.join(" ")
    if arguments.short:
        short = texts_of(arguments.short, arguments.column)["text"]
    rows = [measure(backend, labelled, short) for backend in arguments.backends.split(",")]
    page = f"""# Language detection

`python benchmarks/language.py`, {date.today()}, one core of {os.cpu_count()} of
{platform.machine()}, Python {platform.python_version()}.
{len(labelled):,} sentences of {labelled["language"].n_unique()} languages, of
{labelled["text"].str.len_chars().mean():.0f} characters on average; {short.n_unique():,} short
texts for speed, of {short.str.len_chars().mean():.0f} characters.
Macro F1 as scikit-learn defines it, over all languages; a language that a detector does not know
counts 0. The default is the first.

{markdown(rows)}
"""
    Path(arguments.output).write_text(page)
    print(page)


if __name__ == "__main__":
    main()
