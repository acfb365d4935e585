"""Near-duplicates of evaluation texts among training texts, in any script.

A training text that shares some rare shingles with an evaluation text (`near_index`) is compared
with the whole of it. They match when they resemble each other (each has RESEMBLANCE of the other's
words, and the fewer of them, the more shingles), or when one is a part of the other.

What all texts of a template share ("This condition is inherited in ...") makes no match: a shingle
weighs one over the number of evaluation texts that have it (squared, where two texts resemble each
other); and where more than MANY training texts match one evaluation text, over the number of these,
and nothing for a part. Two texts
that differ mostly in numbers are a template filled in twice. A short evaluation query with another
word in the place of one of its own asks something else; added, missing or moved words do not.

Cost: linear in the training texts; rates in benchmarks/results/decontaminate.md.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl

from datagen.minhash import mix
from datagen.near_index import (
    PART_WORDS,
    PIECE,
    RESEMBLANCE,
    Counts,
    NearIndex,
    candidates,
    count_shingles,
    runs,
    text_shingles,
)
from datagen.near_tokens import NO_SHINGLE, Tokens, blocks, tokenise

TOGETHER, LEAST = 1.05, 0.05  # shares of words and of shingles together; of shingles
CONTAINMENT = 0.6  # share of a part's shingles that the other text has
QUESTION_WORDS = 20  # shorter queries must not have another word in place of one of theirs
MANY = 20  # training texts that match one evaluation text: more may be a template
MATCHES = {"row": pl.Int64, "text": pl.UInt32, "similarity": pl.Float32}
_PAIR_TOKENS = 1 << 22  # tokens of pairs compared at once
_ODD = np.uint64(0xD6E8FEB86659FD93)


def near_matches(texts: pl.Series, index: NearIndex) -> pl.DataFrame:
    """All (row, row of index.texts) that are near-duplicates or equal, in columns MATCHES.

    `similarity` is the share of the shingles of one text that the other has: of the longer one
    where they resemble each other, of the part where one is a part; rare shingles count more.
    """
    rows = texts.alias("value").to_frame().with_row_index("row").drop_nulls()
    rows = rows.with_columns(pl.col("row").cast(pl.Int64))
    distinct = rows.unique("value", keep="first", maintain_order=True)["value"]
    found = _distinct_matches(distinct, index)
    named = found.with_columns(value=distinct.gather(found["row"])).drop("row")
    return named.join(rows, on="value").select(MATCHES.keys()).sort("row", "text")


def _distinct_matches(texts: pl.Series, index: NearIndex) -> pl.DataFrame:
    found = [pl.DataFrame(schema=MATCHES)]
    if len(index.index):
        for start, stop in blocks(texts.str.len_bytes().to_numpy(), PIECE):
            tokens = tokenise(texts[start:stop])
            part = _compared(candidates(tokens, index), tokens, index, Counts.of_none())
            found.append(part.with_columns(pl.col("row") + start))
    matches = pl.concat(found)
    many = pl.len().over("text") > MANY
    return pl.concat([matches.filter(~many), _beyond_template(matches.filter(many), texts, index)])


def _beyond_template(matches: pl.DataFrame, texts: pl.Series, index: NearIndex) -> pl.DataFrame:
    """Those matches of often-matched evaluation texts that share more than what the many share."""
    rows = matches["row"].unique().sort()
    tokens = tokenise(texts.gather(rows))
    shingles, owner = text_shingles(tokens)
    once = pl.DataFrame({"owner": owner, "shingle": shingles}).unique()["shingle"]
    places = np.searchsorted(rows.to_numpy(), matches["row"].to_numpy())
    pairs = np.stack([places, matches["text"].to_numpy().astype(np.int64)], axis=1)
    kept = _compared(pairs, tokens, index, count_shingles(once.to_numpy()))
    return kept.with_columns(row=rows.gather(kept["row"]))


def _compared(pairs: np.ndarray, tokens: Tokens, index: NearIndex, seen: Counts) -> pl.DataFrame:
    found = [pl.DataFrame(schema=MATCHES)]
    costs = np.diff(tokens.offsets)[pairs[:, 0]] + index.lengths[0][pairs[:, 1]]
    for start, stop in blocks(costs, _PAIR_TOKENS):
        found.append(_verified(pairs[start:stop], tokens, index, seen))
    return pl.concat(found)


@dataclass(frozen=True, kw_only=True)
class _Side:
    """Tokens and shingles of one side of P pairs, flat, with the pair of each."""

    pair: np.ndarray
    words: np.ndarray  # hash of the token, its pair, and the how-manieth it is there
    numeric: np.ndarray
    shingle_pair: np.ndarray
    shingles: np.ndarray
    counts: np.ndarray  # of each shingle in the evaluation texts, and in the training texts seen
    seen: np.ndarray
    lengths: np.ndarray  # [P], in words


def _side(tokens: Tokens, rows: np.ndarray, index: NearIndex, seen: Counts) -> _Side:
    counts = np.diff(tokens.offsets)[rows]
    at = runs(tokens.offsets[rows], counts)
    pair = np.repeat(np.arange(len(rows)), counts)
    has = np.flatnonzero(tokens.shingles[at] != NO_SHINGLE)
    shingles = tokens.shingles[at][has]
    return _Side(
        pair=pair,
        words=_numbered(tokens.words[at], pair),
        numeric=tokens.numeric[at],
        shingle_pair=pair[has],
        shingles=_numbered(shingles, pair[has]),
        counts=index.common.of(shingles),
        seen=seen.of(shingles),
        lengths=tokens.lengths[rows],
    )


def _numbered(hashes: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """Hashes made different by pair and by occurrence within it: a multiset becomes a set."""
    codes = mix(hashes + pair.astype(np.uint64) * _ODD)
    order = np.argsort(codes, kind="stable")
    new = np.append(True, np.diff(codes[order]) != 0)[: len(codes)]
    heads = np.flatnonzero(new)
    occurrence = np.empty(len(codes), dtype=np.uint64)
    occurrence[order] = np.arange(len(codes)) - heads[np.cumsum(new) - 1]
    return mix(codes + occurrence * _ODD)


def _verified(pairs: np.ndarray, tokens: Tokens, index: NearIndex, seen: Counts) -> pl.DataFrame:
    """The pairs that match, in columns MATCHES."""
    unique, back = np.unique(pairs[:, 1], return_inverse=True)
    a = _side(tokenise(index.texts["text"].gather(unique)), back, index, seen)
    b = _side(tokens, pairs[:, 0], index, seen)
    words = np.isin(a.words, b.words), np.isin(b.words, a.words)
    query = index.texts["query"].gather(pairs[:, 1]).to_numpy()
    alike, resembles = _resemblance(a, b, words[0], whole=seen.empty)
    resembles &= ~(_filled_in_twice(a, b, words) | (query & _other_question(a, b, words)))
    part = np.maximum(_contained(a, b), _contained(b, a))
    columns = {
        "row": pairs[:, 0],
        "text": pairs[:, 1],
        "similarity": np.where(resembles, alike, part),
    }
    frame = pl.DataFrame(columns, schema_overrides=MATCHES)
    return frame.filter(pl.Series(resembles | (part >= CONTAINMENT)))


def _sums(side: _Side, weights: np.ndarray) -> np.ndarray:
    return np.bincount(side.shingle_pair, weights, minlength=len(side.lengths))


def _resemblance(
    a: _Side, b: _Side, shared: np.ndarray, *, whole: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Share of the shingles [P] of the longer text (or of `a` alone), and whether it suffices."""
    weights = 1 / np.square(np.maximum(a.counts, a.seen, dtype=np.float64))
    total = _sums(a, weights)
    if whole:
        total = np.maximum(total, _sums(b, 1 / np.square(b.counts, dtype=np.float64)))
    alike = _sums(a, weights * np.isin(a.shingles, b.shingles)) / np.maximum(total, 1e-9)
    tokens = [np.bincount(side.pair, minlength=len(total)) for side in (a, b)]
    words = np.bincount(a.pair[shared], minlength=len(total)) / np.maximum(*tokens)
    return alike, (words >= RESEMBLANCE) & (alike >= np.maximum(LEAST, TOGETHER - words))


def _contained(part: _Side, other: _Side) -> np.ndarray:
    """Share of the shingles [P] of `part` that `other` has; 0 where it is too short to tell."""
    weights = (part.seen <= MANY) / np.maximum(part.counts, part.seen)
    total = np.maximum(_sums(part, weights), 1e-9)
    share = _sums(part, weights * np.isin(part.shingles, other.shingles)) / total
    return np.where(part.lengths >= PART_WORDS, share, 0.0)


def _filled_in_twice(a: _Side, b: _Side, words: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Whether what differs in each pair is numbers for the most part, on both sides."""
    mostly = np.ones(len(a.lengths), dtype=bool)
    for side, same in zip((a, b), words, strict=True):
        left = np.bincount(side.pair[~same], minlength=len(mostly))
        numbers = np.bincount(side.pair[~same & side.numeric], minlength=len(mostly))
        mostly &= (numbers > 0) & (2 * numbers >= left)
    return mostly


def _other_question(a: _Side, b: _Side, words: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Whether a short evaluation text and the other each have a word that the other lacks."""
    short = a.lengths < QUESTION_WORDS
    for side, same in zip((a, b), words, strict=True):
        short &= np.bincount(side.pair[~same], minlength=len(short)) > 0
    return short
