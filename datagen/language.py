"""Language and script of both sides of every pair, detected from the text.

The script is counted from the letters; where one language writes it almost alone, it decides. All
else goes to a detector. Detection of short strings is noisy: what a source declares stays, the
detected language fills what it leaves open, and the share of agreement and what was taken for what
are recorded for each source. Code keeps its programming language. Everything works on columns.
"""

from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from datagen.codes import (
    LANGUAGE_OF_SCRIPT,
    UNKNOWN_LANGUAGE,
    UNKNOWN_SCRIPT,
    standard_language,
)
from datagen.detectors import DEFAULT_BACKEND, Detector, Question, detector
from datagen.language_features import Letters, clean, read_letters
from datagen.schema import PAIR
from datagen.steps import Context, LedgerRow, Step, UnitResult
from datagen.store import Folder, open_shard

CHECKED_CHARACTERS = 30  # shorter texts are not held against the language that a source declares
OWN_SCRIPT_SHARE = 0.8  # of the letters, for a script to decide the language
CONFUSIONS = 10  # of a source, that are listed
_TEXTS_AT_ONCE = 8192
_AGREES = ("language_agrees", "script_agrees")
_NO_LANGUAGE = (UNKNOWN_LANGUAGE, "zxx")


def detect_language(text: str, backend: str = DEFAULT_BACKEND) -> tuple[str, float]:
    """`("deu_Latn", 0.98)`; `("und_Zyyy", 0.0)` for a text without letters."""
    tags, scores = detect_languages(pl.Series([text]), backend)
    return tags[0], scores[0]


def detect_languages(
    texts: pl.Series, backend: str = DEFAULT_BACKEND
) -> tuple[pl.Series, pl.Series]:
    """Tags (`deu_Latn`) and scores in 0..1 of a column of texts; null for a null text."""
    loaded = detector(backend)
    frame = pl.DataFrame({"text": texts.cast(pl.String)})
    distinct = frame["text"].drop_nulls().unique(maintain_order=True)
    parts = [
        _detect_part(distinct.slice(start, _TEXTS_AT_ONCE), loaded)
        for start in range(0, len(distinct), _TEXTS_AT_ONCE)
    ]
    schema = {"tag": pl.String, "score": pl.Float32}
    found = pl.concat([pl.DataFrame(schema=schema), *parts]).with_columns(text=distinct)
    joined = frame.join(found, on="text", how="left", maintain_order="left")
    return joined["tag"], joined["score"]


def _detect_part(texts: pl.Series, loaded: Detector) -> pl.DataFrame:
    cleaned = clean(texts)
    letters = read_letters(cleaned)
    owned = np.array([LANGUAGE_OF_SCRIPT.get(script, "") for script in letters.scripts])
    decided = (owned != "") & (letters.shares >= OWN_SCRIPT_SHARE)
    languages = np.where(decided, owned, UNKNOWN_LANGUAGE).astype("<U8")
    scores = np.where(decided, letters.shares, 0.0)
    rows = np.flatnonzero(~decided & (letters.scripts != UNKNOWN_SCRIPT))
    if len(rows):
        languages[rows], scores[rows] = _ask(loaded, Question(cleaned, letters, rows))
    unknown = (languages == UNKNOWN_LANGUAGE) & (owned != "")
    languages[unknown], scores[unknown] = owned[unknown], letters.shares[unknown]
    return _frame(languages, scores, letters)


def _ask(loaded: Detector, asked: Question) -> tuple[list[str], list[float]]:
    found, scores = loaded.detect(asked)
    standard = {code: loaded.codes.get(code) or standard_language(code) for code in set(found)}
    return [standard[code] for code in found], scores


def _frame(languages: np.ndarray, scores: np.ndarray, letters: Letters) -> pl.DataFrame:
    frame = pl.DataFrame({"language": languages, "script": letters.scripts, "score": scores})
    tag = pl.format("{}_{}", "language", "script")
    return frame.select(tag=tag, score=pl.col("score").round(4).cast(pl.Float32))


def tag_language(pairs: Step, *, backend: str = DEFAULT_BACKEND, name: str = "language") -> Step:
    """Fill the detected languages of both sides, and the declared ones where a source has none."""
    return Step(
        name=name,
        version=2,
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
    context.facts["confusions"] = _confusions(context.stats)
    context.facts["cross_lingual"] = {
        key.rpartition("/")[0]: count
        for key, count in sorted(context.stats.items())
        if key.endswith("/cross_lingual")
    }


def _agreement(stats: Counter) -> dict[str, dict[str, Any]]:
    """Per source and side: texts that declare a language, those long enough to be checked, and the
    shares of these where detection agrees."""
    table: dict[str, dict[str, Any]] = {}
    for key in sorted(stats):
        if not key.endswith("/declared"):
            continue
        source, side, _ = key.rsplit("/", 2)
        checked = stats[f"{source}/{side}/checked"]
        shares = {w: round(stats[f"{source}/{side}/{w}"] / max(checked, 1), 4) for w in _AGREES}
        table.setdefault(source, {})[side] = {
            "declared": stats[key],
            "checked": checked,
            **shares,
        }
    return table


def _confusions(stats: Counter) -> dict[str, list[dict[str, Any]]]:
    """Per source the most frequent pairs of declared and detected language that differ."""
    table: dict[str, list[dict[str, Any]]] = {}
    for key, count in sorted(stats.items(), key=lambda item: (-item[1], item[0])):
        if ">" not in key.rpartition("/")[2]:
            continue
        source, side, what = key.rsplit("/", 2)
        declared, _, detected = what.partition(">")
        if len(table.setdefault(source, [])) < CONFUSIONS:
            entry = {"side": side, "declared": declared, "detected": detected, "texts": count}
            table[source].append(entry)
    return dict(sorted(table.items()))


def _tag_unit(unit: dict[str, Any]) -> UnitResult:
    table = open_shard(Folder(unit["folder"]), unit["shard"])
    sources = pl.Series("source", table.column("source"), dtype=pl.String)
    stats: Counter[str] = Counter()
    sides = []
    for side, text in (("query", "query"), ("document", "text")):
        frame = _tag_side(table, side, text, backend=unit["backend"])
        stats.update(_compare(frame, side))
        sides.append(frame)
        for name in ("language", "script", "detected", "detected_score"):
            place = PAIR.get_field_index(f"{side}_{name}")
            column = frame[name].to_arrow().cast(PAIR.field(place).type)
            table = table.set_column(place, PAIR.field(place), column)
    stats.update(_cross_lingual(sources, *sides))
    counts = sources.value_counts().sort("source").rows()
    ledger = [LedgerRow(source=source, rows_in=n, kept=n) for source, n in counts]
    return UnitResult(tables={"pairs": table}, ledger=ledger, stats=stats)


def _tag_side(table: pa.Table, side: str, text: str, *, backend: str) -> pl.DataFrame:
    """One side as it becomes: what is declared stays, what is open is filled, code is untouched."""
    columns = {
        "source": table.column("source"),
        "text": table.column(text),
        "declared_language": table.column(f"{side}_language"),
        "declared_script": table.column(f"{side}_script"),
    }
    frame = pl.DataFrame({name: pl.Series(name, c, dtype=pl.String) for name, c in columns.items()})
    tag = pl.concat_str("declared_language", "declared_script", separator="_")
    declared = frame.select("declared_language", "declared_script").unique().rows()
    code = [f"{language}_{script}" for language, script in declared if is_code(language, script)]
    frame = frame.with_columns(code=tag.is_in(code).fill_null(False))
    asked = frame.select(pl.when(~pl.col("code")).then("text"))["text"]
    tags, scores = detect_languages(asked, backend)
    found = pl.col("detected").str.split("_").list
    frame = frame.with_columns(detected=tags, detected_score=scores)
    frame = frame.with_columns(found_language=found.get(0), found_script=found.get(1))
    script = pl.when(pl.col("declared_language").is_not_null()).then("declared_script")
    return frame.with_columns(
        language=pl.coalesce("declared_language", "found_language"),
        script=pl.coalesce(script, "found_script"),
    )


def is_code(language: str | None, script: str | None) -> bool:
    """Whether a side is declared as source code: a language that is written in no script."""
    return language is not None and script == UNKNOWN_SCRIPT and language != UNKNOWN_LANGUAGE


def _compare(frame: pl.DataFrame, side: str) -> dict[str, int]:
    """Counts `<source>/<side>/<what>` of texts that declare a language, and of what is found."""
    declared = frame.filter(pl.col("declared_language").is_not_null() & ~pl.col("code"))
    checked = declared.filter(pl.col("text").str.len_chars() >= CHECKED_CHARACTERS)
    same = pl.col("declared_language") == pl.col("found_language")
    same_script = pl.col("declared_script").is_null() | (
        pl.col("declared_script") == pl.col("found_script")
    )
    what = pl.format(
        "{}>{}", pl.concat_str("declared_language", "script", separator="_"), "detected"
    )
    parts = {
        "declared": declared,
        "checked": checked,
        "language_agrees": checked.filter(same),
        "script_agrees": checked.filter(same_script),
    }
    labelled = [part.select("source", what=pl.lit(name)) for name, part in parts.items()]
    labelled.append(checked.filter(~same).select("source", what=what))
    counts = pl.concat(labelled).group_by("source", "what").len().sort("source", "what")
    return {f"{source}/{side}/{what}": n for source, what, n in counts.iter_rows()}


def _cross_lingual(
    sources: pl.Series, query: pl.DataFrame, document: pl.DataFrame
) -> dict[str, int]:
    """Counts `<source>/cross_lingual` of pairs whose two sides are in different languages."""
    pairs = pl.DataFrame(
        {"source": sources, "query": query["language"], "document": document["language"]}
    )
    natural = ~pl.lit(query["code"] | document["code"])
    known = ~pl.col("query").is_in(_NO_LANGUAGE) & ~pl.col("document").is_in(_NO_LANGUAGE)
    differ = pairs.filter(natural & known & (pl.col("query") != pl.col("document")))
    counts = differ["source"].value_counts().sort("source").rows()
    return {f"{source}/cross_lingual": n for source, n in counts}
