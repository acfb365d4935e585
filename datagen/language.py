"""Language and script of both sides of every pair, detected from the text.

The script is counted from the letters; where one language writes it almost alone, it decides. All
else goes to a detector. Detection of short strings is noisy: what a source declares stays, the
detected language fills what it leaves open, and the share of agreement is recorded for each source.
Code keeps its programming language.
"""

import functools
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datagen.codes import (
    LANGUAGE_OF_SCRIPT,
    UNKNOWN_LANGUAGE,
    UNKNOWN_SCRIPT,
    script_shares,
    standard_language,
)
from datagen.detectors import BACKENDS, DEFAULT_BACKEND, detector
from datagen.schema import PAIR, QUARANTINE, UserError, split_language
from datagen.sources import check_choice
from datagen.sources.files import read_rows
from datagen.steps import Context, LedgerRow, Step, UnitResult
from datagen.store import Folder, open_shard

MAX_CHARACTERS = 1000  # read by the detector; more changes little and costs time
CHECKED_CHARACTERS = 30  # shorter texts are not held against the language that a source declares
OWN_SCRIPT_SHARE = 0.8  # of the letters, for a script to decide the language

# Parts of a text that are of no language: addresses, tags, placeholders.
_NOT_LANGUAGE = re.compile(
    r"https?://\S+|www\.\S+|\S+@\S+|</?[A-Za-z][^<>]*>|%\(\w+\)\w|\{\{?[^{}]*\}\}?|%[sd]"
)


def detect_language(text: str, backend: str = DEFAULT_BACKEND) -> tuple[str, float]:
    """`("deu_Latn", 0.98)`; `("und_Zyyy", 0.0)` for a text without letters."""
    found = detector(backend)
    text = " ".join(_NOT_LANGUAGE.sub(" ", text[: 2 * MAX_CHARACTERS])[:MAX_CHARACTERS].split())
    shares = script_shares(text)
    if not shares:
        return f"{UNKNOWN_LANGUAGE}_{UNKNOWN_SCRIPT}", 0.0
    script, share = next(iter(shares.items()))
    if script in LANGUAGE_OF_SCRIPT and share >= OWN_SCRIPT_SHARE:
        return f"{LANGUAGE_OF_SCRIPT[script]}_{script}", round(share, 4)
    code, score = found.detect(text.lower() if text.isupper() else text)
    language = found.codes.get(code) or standard_language(code)
    return f"{language}_{script}", round(score, 4)


def tag_language(pairs: Step, *, backend: str = DEFAULT_BACKEND, name: str = "language") -> Step:
    """Fill the detected languages of both sides, and the declared ones where a source has none."""
    check_choice(backend, BACKENDS, what="language backend")
    return Step(
        name=name,
        version=1,
        config={"backend": backend, "detector": detector(backend).label},
        inputs={"pairs": pairs},
        work=_work,
        summary=f"tag language and script with {backend}",
    )


def _work(context: Context) -> None:
    folder, backend = context.inputs["pairs"].uri, context.config["backend"]
    shards = context.input_shards("pairs", "pairs")
    units = [{"folder": folder, "shard": shard, "backend": backend} for shard in shards]
    context.map_units(units, _tag_unit, schemas={"pairs": PAIR})
    context.facts["detector"] = detector(backend).label
    context.facts["agreement"] = _agreement(context.stats)


def _agreement(stats: Counter) -> dict[str, dict[str, Any]]:
    """Per source and side: texts that declare a language, those long enough to be checked, and the
    shares of these where detection agrees."""
    table: dict[str, dict[str, Any]] = {}
    for key in sorted(stats):
        source, side, what = key.rsplit("/", 2)
        if what != "declared":
            continue
        checked = stats[f"{source}/{side}/checked"]
        shares = {w: round(stats[f"{source}/{side}/{w}"] / max(checked, 1), 4) for w in _AGREES}
        table.setdefault(source, {})[side] = {
            "declared": stats[key],
            "checked": checked,
            **shares,
        }
    return table


_AGREES = ("language_agrees", "script_agrees")


def _tag_unit(unit: dict[str, Any]) -> UnitResult:
    rows = open_shard(Folder(unit["folder"]), unit["shard"]).to_pylist()
    detect = functools.cache(functools.partial(detect_language, backend=unit["backend"]))
    stats: Counter[str] = Counter()
    for row in rows:
        for side, text in (("query", row["query"]), ("document", row["text"])):
            _tag_side(row, side, text, detect, stats)
    counts = Counter(row["source"] for row in rows)
    ledger = [LedgerRow(source=s, rows_in=n, kept=n) for s, n in sorted(counts.items())]
    table = pa.Table.from_pylist(rows, schema=PAIR)
    return UnitResult(tables={"pairs": table}, ledger=ledger, stats=stats)


def _tag_side(
    row: dict[str, Any],
    side: str,
    text: str,
    detect: Callable[[str], tuple[str, float]],
    stats: Counter[str],
) -> None:
    language, script = row[f"{side}_language"], row[f"{side}_script"]
    if is_code(language, script):
        return
    tag, score = detect(text)
    row[f"{side}_detected"], row[f"{side}_detected_score"] = tag, score
    found_language, found_script = split_language(tag)
    if language is None:
        row[f"{side}_language"], row[f"{side}_script"] = found_language, found_script
        return
    if script is None:
        row[f"{side}_script"] = found_script
    key = f"{row['source']}/{side}"
    stats[f"{key}/declared"] += 1
    if len(text) < CHECKED_CHARACTERS:
        return
    stats[f"{key}/checked"] += 1
    stats[f"{key}/language_agrees"] += language == found_language
    stats[f"{key}/script_agrees"] += script in (None, found_script)


def is_code(language: str | None, script: str | None) -> bool:
    """Whether a side is declared as source code: a language that is written in no script."""
    return language is not None and script == UNKNOWN_SCRIPT and language != UNKNOWN_LANGUAGE


def tag_files(
    inputs: list[str],
    output: str,
    *,
    text_column: str = "text",
    backend: str = DEFAULT_BACKEND,
) -> dict[str, Any]:
    """Write `rows.parquet` (the input + detected_language, detected_score, detector) in `output`.

    Lines that could not be read go to `quarantine.parquet`; a null text has a null language.
    Returns the counts.
    """
    start = time.monotonic()
    label = detector(backend).label
    table, rejected = read_rows(inputs)
    texts = _texts(table, text_column, where=", ".join(inputs))
    detect = functools.cache(functools.partial(detect_language, backend=backend))
    found = [(None, None) if text is None else detect(text) for text in texts]
    columns = {
        "detected_language": pa.array([tag for tag, _ in found], pa.string()),
        "detected_score": pa.array([score for _, score in found], pa.float32()),
        "detector": pa.array([label] * len(found), pa.string()),
    }
    kept = table.drop_columns([name for name in columns if name in table.column_names])
    for name, column in columns.items():
        kept = kept.append_column(name, column)
    folder = Folder(output)
    _write_parquet(folder, "rows.parquet", kept)
    if rejected:
        _write_parquet(
            folder, "quarantine.parquet", pa.Table.from_pylist(rejected, schema=QUARANTINE)
        )
    languages = Counter(tag for tag, _ in found if tag is not None)
    return {
        "rows": kept.num_rows,
        "quarantined": len(rejected),
        "detector": label,
        "languages": dict(sorted(languages.items(), key=lambda item: (-item[1], item[0]))),
        "seconds": round(time.monotonic() - start, 1),
    }


def _texts(table: pa.Table, column: str, *, where: str) -> list[str | None]:
    if column not in table.column_names:
        raise UserError(
            found=f"{where}: columns " + (", ".join(table.column_names) or "none"),
            expected=f"a column {column!r}",
            do="name the text column with --text-column",
        )
    kind = table.column(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise UserError(
            found=f"{where}: column {column!r} is {kind}",
            expected="text",
            do="name another column with --text-column",
        )
    return table.column(column).to_pylist()


def _write_parquet(folder: Folder, name: str, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    folder.write_bytes(name, sink.getvalue())
