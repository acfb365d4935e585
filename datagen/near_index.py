"""An inverted index of the shingles of evaluation texts, to find texts that may be near-duplicates.

It holds the rarest shingles (see `near_tokens`) of every evaluation text: INDEXED of them, or a
share of a long text's. A table of leading bits tells most shingles of a training text apart from
all indexed ones without a search. 12 bytes an indexed shingle, so some 400 bytes a text beside
the text itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from datagen.near_tokens import NO_SHINGLE, Tokens, blocks, tokenise

MINIMUM_WORDS = 8  # of an evaluation text; shorter ones match only when they are equal
PART_WORDS = 20  # of the shorter text, where it is a part of the other
RESEMBLANCE = 0.75  # share of the longer text's words that the other has
INDEXED, INDEXED_SHARE = 32, 4
MOST_TEXTS = 32  # a shingle of more evaluation texts points to none of them
# Indexed shingles in common before a closer look: of the evaluation text's, of the part's.
NEEDED, NEEDED_SHARE, NEEDED_PART = 2, 0.1, 0.3
PIECE = 1 << 22  # bytes of text handled at once

TEXTS = {"key": pl.UInt64, "query": pl.Boolean, "text": pl.String}
LENGTHS = {"words": pl.Float32, "shingles": pl.UInt32}
INDEX = {"shingle": pl.UInt64, "text": pl.UInt32}
COUNTS = {"shingle": pl.UInt64, "count": pl.UInt32}


@dataclass(frozen=True)
class Counts:
    """How often shingles occur in some texts; `table` (columns COUNTS) lists what does twice."""

    table: pl.DataFrame

    @classmethod
    def of_none(cls) -> "Counts":
        return cls(pl.DataFrame(schema=COUNTS))

    @property
    def empty(self) -> bool:
        return self.table.is_empty()

    def of(self, shingles: np.ndarray) -> np.ndarray:
        """Occurrences of each shingle; 1 for one that is not listed."""
        known, counts = self.table["shingle"].to_numpy(), self.table["count"].to_numpy()
        if not len(known):
            return np.ones(len(shingles), dtype=np.uint32)
        at = np.minimum(np.searchsorted(known, shingles), len(known) - 1)
        return np.where(known[at] == shingles, counts[at], 1)


def count_shingles(shingles: np.ndarray) -> Counts:
    """Count the occurrences of each shingle."""
    values, counts = np.unique(shingles, return_counts=True)
    columns = {"shingle": values[counts > 1], "count": counts[counts > 1]}
    return Counts(pl.DataFrame(columns, schema=COUNTS))


@dataclass(frozen=True, kw_only=True)
class NearIndex:
    """Evaluation texts (columns TEXTS and LENGTHS), their indexed shingles, and common ones."""

    texts: pl.DataFrame
    index: pl.DataFrame  # INDEX: sorted by shingle; `text` is the row in `texts`
    common: Counts

    @classmethod
    def of_none(cls) -> "NearIndex":
        texts = pl.DataFrame(schema={**TEXTS, **LENGTHS})
        return cls(texts=texts, index=pl.DataFrame(schema=INDEX), common=Counts.of_none())

    @cached_property
    def columns(self) -> tuple[np.ndarray, np.ndarray]:
        return self.index["shingle"].to_numpy(), self.index["text"].to_numpy()

    @cached_property
    def sampled(self) -> np.ndarray:
        """How many shingles of each evaluation text are in the index."""
        return np.bincount(self.columns[1], minlength=len(self.texts))

    @cached_property
    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Words and shingles of each evaluation text."""
        return self.texts["words"].to_numpy(), self.texts["shingles"].to_numpy()

    @cached_property
    def leading(self) -> tuple[np.uint64, np.ndarray]:
        """For each value of the leading bits of a shingle whether an indexed one has them."""
        bits = min(max(len(self.index).bit_length() + 4, 10), 28)
        table = np.zeros(1 << bits, dtype=bool)
        table[self.columns[0] >> np.uint64(64 - bits)] = True
        return np.uint64(64 - bits), table

    def may_hold(self, shingles: np.ndarray) -> np.ndarray:
        shift, table = self.leading
        return table[shingles >> shift]


def build_index(texts: pl.DataFrame) -> NearIndex:
    """Index evaluation texts (columns TEXTS, each text once); those under MINIMUM_WORDS leave."""
    parts, every = [pl.DataFrame(schema={**TEXTS, **LENGTHS})], [np.empty(0, np.uint64)]
    for part in _pieces(texts):
        tokens = tokenise(part["text"])
        shingles, rows = text_shingles(tokens)
        long = tokens.lengths >= MINIMUM_WORDS
        columns = {"words": tokens.lengths, "shingles": np.bincount(rows, minlength=len(part))}
        lengths = pl.DataFrame(columns, schema=LENGTHS)
        parts.append(pl.concat([part, lengths], how="horizontal").filter(pl.Series(long)))
        every.append(shingles[long[rows]])
    kept, common = pl.concat(parts), count_shingles(np.concatenate(every))
    index, first = [pl.DataFrame(schema=INDEX)], 0
    for part in _pieces(kept):
        index.append(_indexed(tokenise(part["text"]), common, first))
        first += len(part)
    return NearIndex(texts=kept, index=pl.concat(index).sort("shingle", "text"), common=common)


def _pieces(texts: pl.DataFrame) -> Iterator[pl.DataFrame]:
    for start, stop in blocks(texts["text"].str.len_bytes().to_numpy(), PIECE):
        yield texts[start:stop]


def text_shingles(tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Shingles of all texts and the text of each."""
    found = np.flatnonzero(tokens.shingles != NO_SHINGLE)
    return tokens.shingles[found], np.searchsorted(tokens.offsets, found, side="right") - 1


def _indexed(tokens: Tokens, common: Counts, first: int) -> pl.DataFrame:
    """The rarest shingles of each text that do not belong to too many others."""
    shingles, texts = text_shingles(tokens)
    frame = pl.DataFrame({"shingle": shingles, "text": texts + first}, schema=INDEX).unique()
    frame = frame.with_columns(count=common.of(frame["shingle"].to_numpy()))
    frame = frame.sort("text", "count", "shingle")
    rank, own = pl.int_range(pl.len()).over("text"), pl.len().over("text")
    share = pl.max_horizontal(own // INDEXED_SHARE, INDEXED)
    frame = frame.filter((rank < share) & (pl.col("count") <= MOST_TEXTS))
    return frame.select(INDEX.keys())


def candidates(tokens: Tokens, index: NearIndex) -> np.ndarray:
    """Pairs [n, 2] of a text and an evaluation text that share enough indexed shingles."""
    shingles, rows = text_shingles(tokens)
    counts = np.bincount(rows, minlength=len(tokens.lengths))
    long = tokens.lengths >= RESEMBLANCE * MINIMUM_WORDS
    some = np.flatnonzero(index.may_hold(shingles) & long[rows])
    shingles, rows = shingles[some], rows[some]
    hashes, texts = index.columns
    low = np.searchsorted(hashes, shingles)
    hits = np.searchsorted(hashes, shingles, side="right") - low
    codes = np.repeat(rows, hits) * np.int64(len(index.texts)) + texts[runs(low, hits)]
    codes, shared = np.unique(codes, return_counts=True)
    row, text = np.divmod(codes, max(len(index.texts), 1))
    likely = shared >= _needed(index, text, tokens.lengths[row], counts[row])
    return np.stack([row[likely], text[likely]], axis=1)


def _needed(
    index: NearIndex, texts: np.ndarray, words: np.ndarray, shingles: np.ndarray
) -> np.ndarray:
    """How many indexed shingles an evaluation text and a text of `words` words must share."""
    own, own_shingles = index.lengths[0][texts], index.lengths[1][texts]
    sampled = index.sampled[texts]
    shorter, longer = np.minimum(own, words), np.maximum(own, words)
    inside = np.where(own < words, sampled, shingles * (sampled / own_shingles))
    part = np.where(shorter >= PART_WORDS, NEEDED_PART * inside, np.inf)
    similar = np.where(shorter >= RESEMBLANCE * longer - 1, NEEDED_SHARE * sampled, np.inf)
    return np.maximum(NEEDED, np.minimum(similar, part))


def runs(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The positions starts[i] .. starts[i] + counts[i] - 1 of all runs, one after the other."""
    shift = starts - (np.cumsum(counts) - counts)
    return np.repeat(shift, counts) + np.arange(counts.sum())
