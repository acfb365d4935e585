"""Match texts with evaluation tasks: exact after a strong normalisation, whatever their length.

Both sides are squeezed (NFKC, no case, no punctuation, no white space; digits stay) and compared by
a 64-bit hash, so a six-word test query is caught, which n-gram overlap cannot do. A text is a match
on either side of a pair: a training query equal to a test document counts as much. Texts that say
nothing by themselves ("Yes", a class name: under 3 words and 12 characters) match only as a pair
with their partner.
"""

import hashlib
from collections.abc import Iterable, Sequence

import polars as pl

from datagen.fold import count_words, squeeze
from datagen.task_folders import TaskTexts

GENERIC_WORDS, GENERIC_CHARACTERS = 3, 12
SHOWN_CHARACTERS = 500
NO_KEY = 0  # of a text without any letter or digit, which matches nothing
TEXTS = {
    "key": pl.UInt64,
    "task": pl.String,
    "kind": pl.String,
    "generic": pl.Boolean,
    "matched_text": pl.String,
}
PAIRS = {"query_key": pl.UInt64, "document_key": pl.UInt64, "task": pl.String}


def text_keys(texts: pl.Series) -> pl.Series:
    """64-bit keys under which texts match; NO_KEY where nothing is left of a text."""
    keys = [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") if text else 0
        for text in squeeze(texts.fill_null(""))
    ]
    return pl.Series("key", keys, dtype=pl.UInt64)


def evaluation_texts(tasks: Iterable[TaskTexts]) -> pl.DataFrame:
    """The texts of the tasks, each once per task and kind, in columns TEXTS."""
    rows = [(task.name, kind, text) for task in tasks for kind, text in task.texts]
    frame = pl.DataFrame(
        rows, schema={"task": pl.String, "kind": pl.String, "text": pl.String}, orient="row"
    )
    short = squeeze(frame["text"]).str.len_chars() < GENERIC_CHARACTERS
    generic = short & (count_words(frame["text"]) < GENERIC_WORDS)
    frame = frame.with_columns(
        text_keys(frame["text"]),
        generic.alias("generic"),
        pl.col("text").str.head(SHOWN_CHARACTERS).alias("matched_text"),
    )
    frame = frame.filter(pl.col("key") != NO_KEY).select(TEXTS.keys())
    return frame.sort(TEXTS.keys()).unique(["key", "task", "kind"], keep="first").sort(TEXTS.keys())


def evaluation_pairs(tasks: Sequence[TaskTexts]) -> pl.DataFrame:
    """Keys of the texts that a task pairs, in both directions, in columns PAIRS."""
    rows = [(task.name, *pair) for task in tasks for pair in task.pairs]
    frame = pl.DataFrame(
        rows, schema={"task": pl.String, "a": pl.String, "b": pl.String}, orient="row"
    )
    a, b = text_keys(frame["a"]), text_keys(frame["b"])
    ways = [
        pl.DataFrame({"query_key": one, "document_key": other, "task": frame["task"]})
        for one, other in ((a, b), (b, a))
    ]
    return pl.concat(ways).unique().sort(PAIRS.keys())
