"""Match texts with evaluation tasks: exact after a strong normalisation, or as near-duplicates.

Both sides are squeezed (NFKC, no case, no punctuation, no white space; digits stay) and compared by
a 64-bit hash, so a six-word test query is caught, which n-gram overlap cannot do. Longer texts with
some words changed are found by `near_match`. A text is a match on either side of a pair: a training
query equal to a test document counts as much. Texts that say nothing by themselves ("Yes", a class
name: under 3 words and 12 characters) match only as a pair with their partner.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from datagen.fold import count_words, squeeze
from datagen.near_index import TEXTS as NEAR_TEXTS
from datagen.near_index import NearIndex, build_index
from datagen.near_match import near_matches
from datagen.schema import UserError
from datagen.task_folders import TaskTexts

MODES = ("drop", "tag", "report")
GENERIC_WORDS, GENERIC_CHARACTERS = 3, 12
SHOWN_CHARACTERS = 2000
NO_KEY = 0  # of a text without any letter or digit, which matches nothing
NEAR = "near_"  # in front of the kind of a near-duplicate
TEXTS = {
    "key": pl.UInt64,
    "task": pl.String,
    "kind": pl.String,
    "generic": pl.Boolean,
    "matched_text": pl.String,
}
PAIRS = {"query_key": pl.UInt64, "document_key": pl.UInt64, "task": pl.String}
# `row` is the position of the text; similarity is 1 where the texts are equal.
HITS = {"row": pl.Int64, **TEXTS, "similarity": pl.Float32}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What texts are matched with: the tasks' texts (columns TEXTS), pairs (PAIRS) and shingles."""

    texts: pl.DataFrame
    pairs: pl.DataFrame
    near: NearIndex


def build_evaluation(tasks: Sequence[TaskTexts], *, near: bool = True) -> Evaluation:
    """Index the texts of the tasks; without `near` for equal texts alone."""
    long = near_texts(tasks) if near else pl.DataFrame(schema=NEAR_TEXTS)
    return Evaluation(
        texts=evaluation_texts(tasks), pairs=evaluation_pairs(tasks), near=build_index(long)
    )


def text_keys(texts: pl.Series) -> pl.Series:
    """64-bit keys under which texts match; NO_KEY where nothing is left of a text."""
    keys = [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") if text else 0
        for text in squeeze(texts.fill_null(""))
    ]
    return pl.Series("key", keys, dtype=pl.UInt64)


def _all_texts(tasks: Sequence[TaskTexts]) -> pl.DataFrame:
    schema = {"kind": pl.String, "text": pl.String, "titled": pl.Boolean, "task": pl.String}
    parts = [task.texts.with_columns(task=pl.lit(task.name)) for task in tasks]
    return pl.concat([pl.DataFrame(schema=schema), *parts])


def evaluation_texts(tasks: Sequence[TaskTexts]) -> pl.DataFrame:
    """The texts of the tasks, each once per task and kind, in columns TEXTS."""
    frame = _all_texts(tasks)
    short = squeeze(frame["text"]).str.len_chars() < GENERIC_CHARACTERS
    generic = short & (count_words(frame["text"]) < GENERIC_WORDS)
    frame = frame.with_columns(
        text_keys(frame["text"]),
        generic.alias("generic"),
        pl.col("text").str.head(SHOWN_CHARACTERS).alias("matched_text"),
    )
    frame = frame.filter(pl.col("key") != NO_KEY).select(TEXTS.keys())
    return frame.sort(TEXTS.keys()).unique(["key", "task", "kind"], keep="first").sort(TEXTS.keys())


def near_texts(tasks: Sequence[TaskTexts]) -> pl.DataFrame:
    """The texts of all tasks, each once, as near_index.build_index takes them."""
    frame = _all_texts(tasks).filter(~pl.col("titled"))
    frame = frame.with_columns(text_keys(frame["text"])).filter(pl.col("key") != NO_KEY)
    grouped = frame.sort("key", "text").group_by("key", maintain_order=True)
    query = (pl.col("kind") == "query").all()
    return grouped.agg(query.alias("query"), pl.col("text").first()).select(NEAR_TEXTS.keys())


def evaluation_pairs(tasks: Sequence[TaskTexts]) -> pl.DataFrame:
    """Keys of the texts that a task pairs, in both directions, in columns PAIRS."""
    parts = [task.pairs.with_columns(task=pl.lit(task.name)) for task in tasks]
    schema = {"a": pl.String, "b": pl.String, "task": pl.String}
    frame = pl.concat([pl.DataFrame(schema=schema), *parts])
    a, b = text_keys(frame["a"]), text_keys(frame["b"])
    ways = [
        pl.DataFrame({"query_key": one, "document_key": other, "task": frame["task"]})
        for one, other in ((a, b), (b, a))
    ]
    return pl.concat(ways).unique().sort(PAIRS.keys())


def find_hits(texts: pl.Series, evaluation: pl.DataFrame, near: NearIndex) -> pl.DataFrame:
    """Texts that match, in columns HITS: equal ones, and the best near-duplicate in a task.

    A text that equals a text of a task (other than a generic one) is not looked up further there.
    """
    keyed = pl.DataFrame({"row": range(len(texts)), "key": text_keys(texts)}, schema_overrides=HITS)
    exact = keyed.filter(pl.col("key") != NO_KEY).join(evaluation, on="key")
    exact = exact.with_columns(similarity=pl.lit(1.0, pl.Float32)).select(HITS.keys())
    found = near_matches(texts, near).rename({"text": "index"})
    keys = near.texts["key"].gather(found["index"])
    close = found.with_columns(key=keys).drop("index").join(evaluation, on="key")
    close = close.join(exact.filter(~pl.col("generic")), on=["row", "task"], how="anti")
    close = close.with_columns(kind=NEAR + pl.col("kind"), generic=pl.lit(False))
    close = close.sort("row", "task", -pl.col("similarity"), "kind", "key")
    close = close.unique(["row", "task"], keep="first", maintain_order=True)
    return pl.concat([exact, close.select(HITS.keys())]).sort("row", "task", "kind", "key")


def count_matches(removed: pl.DataFrame) -> dict[str, dict[str, int]]:
    """Matches of each task by source."""
    matches: dict[str, dict[str, int]] = {}
    counts = removed.group_by("task", "source").len().sort("task", "source")
    for task, source, count in counts.iter_rows():
        matches.setdefault(task, {})[source] = count
    return matches


def check_mode(mode: str) -> None:
    """Raise UserError unless the mode is known."""
    if mode not in MODES:
        raise UserError(
            found=f"mode {mode!r}",
            expected="one of " + ", ".join(MODES),
            do="choose one",
            exit_status=2,
        )
