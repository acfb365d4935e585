"""Texts that repeat themselves endlessly: few distinct runs of five characters among all of them.

Prose has about 0.8 distinct runs of five in a window of 2,000 characters, a page of one sentence
over and over less than 0.1. Windows are looked at on both ends, as the share falls with length. The
runs that start at every third place already number more distinct ones in nearly every text than the
rule asks for; sorting their hashes, many texts at once, clears these (some 100 million characters/s
and core), and only the rest is counted in full.
"""

import numpy as np
import polars as pl

RUN = 5
STRIDE = 3
BATCH_TEXTS = 512  # their characters and keys stay in a core's cache

_FACTORS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1], np.uint32)
_HASH_BITS = np.uint64(32)  # of a key; above them is the row


def distinct_share(text: str) -> float:
    """Distinct runs of five characters per run; 1.0 for a text that has none."""
    runs = {text[i : i + RUN] for i in range(len(text) - RUN + 1)}
    return len(runs) / max(1, len(text) - RUN + 1)


def repeats(texts: pl.Series, *, shortest: int, window: int, share: float) -> np.ndarray:
    """Which texts of at least `shortest` characters have a smaller share, in a window at an end."""
    lengths = texts.str.len_chars().to_numpy()
    ascii_only = lengths == texts.str.len_bytes().to_numpy()
    found = np.zeros(len(texts), bool)
    for minimum, end in ((shortest, "head"), (max(shortest, window + 1), "tail")):
        for kind in (ascii_only, ~ascii_only):
            rows = np.flatnonzero((lengths >= minimum) & ~found & kind)
            if len(rows):
                windows = getattr(texts.gather(rows).str, end)(window)
                counts = np.minimum(lengths[rows], window).astype(np.int64)
                found[rows] = _few_distinct(windows, counts, share=share)
    return found


def _few_distinct(texts: pl.Series, lengths: np.ndarray, *, share: float) -> np.ndarray:
    """Which texts have a smaller share of distinct runs; all of them are ASCII, or none."""
    codes = _codes(texts, lengths)
    ends = np.cumsum(lengths)
    distinct = np.empty(len(texts), np.int64)
    for first in range(0, len(texts), BATCH_TEXTS):
        batch = slice(first, first + BATCH_TEXTS)
        some = lengths[batch]
        stop = ends[first + len(some) - 1]
        distinct[batch] = _sampled_distinct(codes[stop - some.sum() : stop], some)
    few = distinct < share * (lengths - RUN + 1)
    places = np.flatnonzero(few)
    few[places] = [distinct_share(text) < share for text in texts.gather(places)]
    return few


def _codes(texts: pl.Series, lengths: np.ndarray) -> np.ndarray:
    """The code points of all texts in a row."""
    if lengths.sum() == texts.str.len_bytes().sum():
        data = texts.to_arrow(compat_level=pl.CompatLevel.oldest()).buffers()[2]
        return np.frombuffer(data, np.uint8, int(lengths.sum())).astype(np.uint32)
    return np.frombuffer("".join(texts.to_list()).encode("utf-32-le"), np.uint32)


def _sampled_distinct(codes: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Distinct runs among every STRIDE-th one of each text, or fewer where hashes collide."""
    hashes = np.zeros(len(codes) - RUN + 1, np.uint32)
    for place, factor in enumerate(_FACTORS):
        hashes += codes[place : len(codes) - RUN + 1 + place] * factor
    hashes ^= hashes >> np.uint32(15)
    samples = (lengths - RUN) // STRIDE + 1
    rows = np.repeat(np.arange(len(lengths)), samples)
    starts = np.cumsum(lengths) - lengths
    shift = starts - STRIDE * (np.cumsum(samples) - samples)
    places = STRIDE * np.arange(len(rows)) + np.repeat(shift, samples)
    keys = (rows.astype(np.uint64) << _HASH_BITS) | hashes[places]
    keys.sort()
    first = np.ones(len(keys), bool)
    first[1:] = keys[1:] != keys[:-1]
    return np.bincount((keys[first] >> _HASH_BITS).astype(np.int64), minlength=len(lengths))
