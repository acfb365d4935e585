"""How different from each other the queries of one LLM, kind and language are.

distinct-n (Li et al. 2016, arXiv 1510.03055): different runs of n words, or of n letters in scripts
without blanks, per run. It falls with the size of the sample, so every group is measured on the
same number of runs, taken from its rows in the order of a hash of their ids; a group that has fewer
has no figure. Self-similarity is the mean over all pairs of a sample of the cosine of an encoder's
vectors, or where none is given of the Jaccard of their words; the two have different names.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from datagen.near_tokens import tokenise
from datagen.synthesize.seeds import number
from datagen.synthesize.written import GROUP, written_by

SAMPLE_RUNS = 400  # of words: some 50 queries
SAMPLE_TEXTS = 64  # of which all pairs are compared
LENGTHS = (1, 2, 3)
Encode = Callable[[Sequence[str]], np.ndarray]  # unit vectors [texts, width]
Group = tuple[str, str, str]  # LLM, kind, language


def diversity(
    pairs: pa.Table,
    *,
    encode: Encode | None = None,
    runs: int = SAMPLE_RUNS,
    texts: int = SAMPLE_TEXTS,
) -> dict[Group, dict[str, float | None]]:
    """`distinct_1` to `distinct_3`, and `self_cosine` (with an encoder) or `self_jaccard`, of the
    queries of every LLM, kind and language.

    The figure is None for a group of fewer than `runs` runs, or `texts` texts.
    """
    frame = written_by(pairs).with_columns(query=pl.Series(pairs["query"], dtype=pl.String))
    return {
        group: {**distinct(queries, runs=runs), **similarity(queries, encode, texts=texts)}
        for group, queries in _groups(frame)
    }


def _groups(frame: pl.DataFrame) -> Iterator[tuple[Group, pl.Series]]:
    """The queries of every group in the order of a hash of their ids."""
    order = pl.Series("order", [number(row) for row in frame["request"]], dtype=pl.UInt64)
    ordered = frame.with_columns(order).sort("order", "request")
    for (llm, kind, language), rows in sorted(ordered.group_by(GROUP, maintain_order=True)):
        yield (str(llm), str(kind), str(language)), rows["query"]


def distinct(queries: pl.Series, *, runs: int = SAMPLE_RUNS) -> dict[str, float | None]:
    """`distinct_n` for n of LENGTHS over the first `runs` runs; runs do not go across texts."""
    tokens = tokenise(queries)
    ends = np.repeat(tokens.offsets[1:], np.diff(tokens.offsets))
    found: dict[str, float | None] = {}
    for length in LENGTHS:
        whole = np.flatnonzero(np.arange(len(ends)) + length <= ends)[:runs]
        run = tokens.words[whole[:, None] + np.arange(length)]
        share = len(np.unique(run, axis=0)) / runs if len(whole) == runs else None
        found[f"distinct_{length}"] = share
    return found


def similarity(
    queries: pl.Series, encode: Encode | None, *, texts: int = SAMPLE_TEXTS
) -> dict[str, float | None]:
    """`self_cosine`, or without an encoder `self_jaccard`: the mean over pairs of `texts` texts."""
    name = "self_cosine" if encode else "self_jaccard"
    if len(queries) < texts:
        return {name: None}
    sample = queries.head(texts)
    table = encode(sample.to_list()).astype(np.float64) if encode else None
    mean = _mean_cosine(table) if table is not None else _mean_jaccard(sample)
    return {name: mean}


def _mean_cosine(vectors: np.ndarray) -> float:
    """Over all pairs: the square of the sum holds each pair twice, and each text with itself."""
    total = vectors.sum(axis=0)
    own = float((vectors * vectors).sum())
    count = len(vectors)
    return (float(total @ total) - own) / (count * (count - 1))


def _mean_jaccard(texts: pl.Series) -> float:
    tokens = tokenise(texts)
    rows = np.repeat(np.arange(len(texts)), np.diff(tokens.offsets))
    _, words = np.unique(tokens.words, return_inverse=True)
    has = np.zeros((len(texts), words.max(initial=-1) + 1), np.float32)
    has[rows, words] = 1
    common, sizes = has @ has.T, has.sum(axis=1)
    union = sizes[:, None] + sizes[None, :] - common
    pairs = np.triu_indices(len(texts), 1)
    return float((common[pairs] / np.maximum(union[pairs], 1)).mean(dtype=np.float64))


def rounded(figures: Mapping[Group, Mapping[str, Any]], digits: int = 4) -> dict[Group, Any]:
    """The figures as a table shows them."""
    return {
        group: {
            name: None if value is None else round(value, digits) for name, value in row.items()
        }
        for group, row in figures.items()
    }
