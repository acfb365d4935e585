"""Near-duplicate texts: shingles, MinHash LSH candidates, exact verification, leader clusters.

A folded text is cut into overlapping runs of three words, or of six characters where the script
writes no blanks between words; its ends are padded, so a word at an end weighs as much as one
inside. With these, a changed word keeps Jaccard >= 0.8 from 25 words (about 60 Chinese characters)
on: a word in a long text, never the subject of a question. Texts under MINIMUM_CHARACTERS have no
shingles at all and are duplicates only when their folded forms are equal.

Shingles are substring hashes from one prefix sum over the bytes of a batch: no loop over tokens.
Signatures come from rensa's R-MinHash (datasketch is the reference, some fifty times slower, same
estimate); 21 bands of 6 rows find a pair of Jaccard 0.8 with probability 0.998. Candidates are
verified on their shingles and their numbers, so precision does not rest on hashing.

Clusters are led: in the order given, a text joins the first leader that it resembles itself, or
leads its own. Chains of small edits cannot drift, and texts added at the end change nothing before.

Broder 1997; R-MinHash as in rensa 0.5. Cost: 30 s a million texts of 200 bytes and core.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import numpy as np
import polars as pl
from scipy.sparse import csr_array

from datagen.fold import MINIMUM_CHARACTERS, UNSEGMENTED, is_unsegmented
from datagen.schema import UserError

PERMUTATIONS, BANDS = 126, 21
SEED = 1
WORD_SHINGLE, CHARACTER_SHINGLE = 3, 6
NEIGHBOURS = 8  # members of a bucket that each member is compared with, besides the first
_CHUNK = 1 << 20  # bytes or hashes handled at once: what stays in the cache
_BASE, _INVERSE = 0x9E3779B97F4A7C15, pow(0x9E3779B97F4A7C15, -1, 1 << 64)
_WORD_PADS, _CHARACTER_PADS = ("\x02 \x02 ", " \x03 \x03 "), ("\x02\x02", "\x03\x03")
# What differs is told by words; in scripts without blanks, by characters.
_TOKEN = rf"{UNSEGMENTED}|[^\s{UNSEGMENTED}]+"
# Letters and roman numerals name one thing among its kind, as numbers do: hepatitis B, type II.
_DIGIT, _LETTER = re.compile(r"\d"), re.compile(r"[a-zα-ωа-я]|[ivx]+|[-+*/%<>=!&|^~]+")


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=4)
def _powers(base: int, count: int) -> np.ndarray:
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors)


@lru_cache(maxsize=1)
def _byte_codes() -> np.ndarray:
    return mix(np.arange(1, 257, dtype=np.uint64) * np.uint64(_BASE))


def shingles(folded: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Shingle hashes of folded texts: flat uint64 [S] and offsets [texts + 1] into them."""
    dense = is_unsegmented(folded).to_numpy()
    flat, counts = [], np.zeros(len(folded), dtype=np.int64)
    order = np.concatenate([np.flatnonzero(~dense), np.flatnonzero(dense)])
    for rows, pads, width, by_word in (
        (np.flatnonzero(~dense), _WORD_PADS, WORD_SHINGLE, True),
        (np.flatnonzero(dense), _CHARACTER_PADS, CHARACTER_SHINGLE, False),
    ):
        padded = pads[0] + folded.gather(rows) + pads[1]
        for start, stop in _chunks(padded.str.len_bytes().to_numpy()):
            hashes, found = _substring_hashes(padded[start:stop], width, by_word=by_word)
            counts[rows[start:stop]] = found
            flat.append(hashes)
    hashes = np.concatenate([np.empty(0, dtype=np.uint64), *flat])
    return _reorder(hashes, counts, order)


def _reorder(
    flat: np.ndarray, counts: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Runs that lie in the order `order`, put into the order of the texts."""
    offsets = np.concatenate([[0], np.cumsum(counts)])
    if np.array_equal(order, np.arange(len(order))):
        return flat, offsets
    starts = np.empty(len(counts), dtype=np.int64)
    starts[order] = np.concatenate([[0], np.cumsum(counts[order])[:-1]])
    return flat[_runs(starts, counts)], offsets


def _runs(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The positions starts[i] .. starts[i] + counts[i] - 1 of all runs, one after the other."""
    shift = starts - (np.cumsum(counts) - counts)
    return np.repeat(shift, counts) + np.arange(counts.sum())


def _substring_hashes(
    texts: pl.Series, width: int, *, by_word: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all runs of `width` tokens of each text, and how many each text has."""
    array = texts.to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offset_buffer, data = array.buffers()
    row_ends = np.frombuffer(offset_buffer, dtype=np.int64)[array.offset :][: len(array) + 1]
    codes = np.frombuffer(data, dtype=np.uint8)[row_ends[0] : row_ends[-1]]
    row_ends = row_ends - row_ends[0]
    size = 1 << int(len(codes) + 1).bit_length()
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(_byte_codes()[codes] * _powers(_BASE, size)[: len(codes)], out=sums[1:])
    if by_word:
        first = np.flatnonzero(codes == 0x20) + 1
        starts = np.unique(np.concatenate([first, row_ends]))
    else:
        starts = np.append(np.flatnonzero((codes & 0xC0) != 0x80), len(codes))
    tokens = np.searchsorted(starts, row_ends)
    counts = np.maximum(np.diff(tokens) - width + 1, 0)
    begin = _runs(tokens[:-1], counts)
    low, high = starts[begin], starts[begin + width]
    return mix((sums[high] - sums[low]) * _powers(_INVERSE, size)[low]), counts


def _rensa(tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    from rensa import RMinHash

    digest = RMinHash.digest_matrix_from_flat_token_hashes(
        tokens, offsets.astype(np.uint64), PERMUTATIONS, SEED
    )
    return np.array(digest.to_rows(), dtype=np.uint32).reshape(-1, PERMUTATIONS)


def _datasketch(tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    from datasketch import MinHash

    rows = np.empty((len(offsets) - 1, PERMUTATIONS), dtype=np.uint32)
    for i in range(len(rows)):
        sketch = MinHash(num_perm=PERMUTATIONS, seed=SEED)
        part = tokens[int(offsets[i]) : int(offsets[i + 1])]
        sketch.update_batch([token.tobytes() for token in part])
        rows[i] = sketch.hashvalues
    return rows


BACKENDS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "rensa": _rensa,
    "datasketch": _datasketch,
}


def check_options(backend: str, similarity: float) -> None:
    """Raise UserError unless the backend is known and the threshold is one that bands can find."""
    if backend not in BACKENDS:
        raise UserError(
            found=f"signature backend {backend!r}",
            expected="one of " + ", ".join(sorted(BACKENDS)),
            do="name one of these",
            exit_status=2,
        )
    if not 0.5 <= similarity <= 1.0:
        raise UserError(
            found=f"similarity {similarity}",
            expected="a Jaccard threshold from 0.5 to 1.0",
            do="choose one; 0.8 keeps texts apart that differ in more than a word of 25",
            exit_status=2,
        )


def signatures(folded: pl.Series, *, backend: str = "rensa") -> np.ndarray:
    """MinHash signatures [texts, PERMUTATIONS], uint32; equal shares estimate the Jaccard."""
    flat, offsets = shingles(folded)
    parts = [np.empty((0, PERMUTATIONS), dtype=np.uint32)]
    for start in range(0, len(folded), 4096):
        ends = offsets[start : start + 4097]
        parts.append(BACKENDS[backend](flat[ends[0] : ends[-1]], ends - ends[0]))
    return np.concatenate(parts)


def text_bands(folded: pl.Series, *, backend: str = "rensa") -> tuple[np.ndarray, np.ndarray]:
    """Positions [n] of the texts that are long enough, and their band hashes [n, BANDS], uint32."""
    rows = np.flatnonzero(folded.str.len_chars().to_numpy() >= MINIMUM_CHARACTERS)
    matrix = signatures(folded.gather(rows), backend=backend)
    grouped = matrix.reshape(len(rows), BANDS, PERMUTATIONS // BANDS).astype(np.uint64)
    total = np.broadcast_to(np.arange(BANDS, dtype=np.uint64), (len(rows), BANDS))
    for i in range(grouped.shape[2]):
        total = mix(total * np.uint64(_BASE) + grouped[:, :, i])
    return rows, (total >> np.uint64(32)).astype(np.uint32)


def candidate_pairs(bands: np.ndarray) -> np.ndarray:
    """Pairs [n, 2] of rows that share a band, smaller first, sorted, unique.

    In a bucket every row is paired with the first and with its NEIGHBOURS next ones, so a bucket
    of thousands of variants of one template costs a multiple of its size, not its square. Rows lie
    in the order of the next band there: those that are most alike lie together.
    """
    found = np.empty(0, dtype=np.int64)
    if not len(bands):
        return found.reshape(0, 2)
    for band in range(bands.shape[1]):
        column, beside = bands[:, band], bands[:, (band + 1) % bands.shape[1]]
        key = (column.astype(np.uint64) << np.uint64(32)) | beside
        order = np.argsort(key, kind="stable")
        values = column[order]
        parts = [found]
        for step in range(1, min(NEIGHBOURS, len(order) - 1) + 1):
            same = np.flatnonzero(values[step:] == values[:-step])
            parts.append(_pair_codes(order[same], order[same + step], len(bands)))
        heads = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
        first = np.repeat(np.minimum.reduceat(order, heads), np.diff(np.append(heads, len(order))))
        other = first != order
        parts.append(_pair_codes(first[other], order[other], len(bands)))
        found = np.unique(np.concatenate(parts))
    return np.stack(np.divmod(found, len(bands)), axis=1)


def _pair_codes(one: np.ndarray, other: np.ndarray, count: int) -> np.ndarray:
    return np.minimum(one, other) * np.int64(count) + np.maximum(one, other)


def similarities(folded: pl.Series, pairs: np.ndarray) -> np.ndarray:
    """True Jaccard [n] of the shingles of pairs [n, 2] of positions in `folded`."""
    rows, pairs = np.unique(pairs, return_inverse=True)
    flat, offsets = shingles(folded.gather(rows))
    # Hashes as column numbers: products of sorted rows are merges, whatever the number of columns.
    ones, columns = np.ones(len(flat), dtype=np.uint8), (flat >> np.uint64(2)).astype(np.int64)
    sets = csr_array((ones, columns, offsets), shape=(len(rows), 1 << 62))
    sets.sum_duplicates()
    sets.data[:] = 1
    sizes = np.diff(sets.indptr)
    pairs = pairs.reshape(-1, 2)
    result = np.empty(len(pairs))
    for start, stop in _chunks(sizes[pairs].sum(axis=1)):
        left, right = pairs[start:stop].T
        common = np.diff((sets[left].multiply(sets[right])).indptr)
        result[start:stop] = common / (sizes[left] + sizes[right] - common)
    return result


def _chunks(costs: np.ndarray) -> Iterator[tuple[int, int]]:
    """Consecutive parts whose costs sum to about _CHUNK (one item at least)."""
    ends, start = np.cumsum(costs), 0
    while start < len(costs):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + _CHUNK, side="right")))
        yield start, stop
        start = stop


def verified(
    folded: pl.Series, pairs: np.ndarray, *, similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that are near-duplicates, and their Jaccard: alike, and about the same thing."""
    jaccard = similarities(folded, pairs)
    alike = np.flatnonzero(jaccard >= similarity)
    rows = np.unique(pairs[alike])
    words = folded.gather(rows).str.extract_all(_TOKEN).to_list()
    counts = {row: Counter(tokens) for row, tokens in zip(rows.tolist(), words, strict=True)}
    digits = dict(zip(rows.tolist(), folded.gather(rows).str.replace_all(r"\D", ""), strict=True))
    same = [
        same_subject(counts[i], counts[j], same_digits=digits[i] == digits[j])
        for i, j in pairs[alike].tolist()
    ]
    kept = alike[np.array(same, dtype=bool)]
    return pairs[kept], jaccard[kept]


def same_subject(one: Counter[str], other: Counter[str], *, same_digits: bool) -> bool:
    """Whether two alike texts (as counts of words) differ in wording only.

    They do not where one number or letter stands for another, where numbers are all that differs,
    or where a word that one uses repeatedly is another word in the other: then it is the same
    template, filled in for another subject.
    """
    left, right = one - other, other - one
    numbers = [_numbers(left), _numbers(right)]
    if not same_digits and (all(numbers) or numbers[0] | numbers[1] == left.keys() | right.keys()):
        return False
    if left.total() + right.total() <= 4 and _letters(left) and _letters(right):
        return False
    new = [left.keys() - other.keys() - numbers[0], right.keys() - one.keys() - numbers[1]]
    return not all(any(left[w] + right[w] > 1 for w in words) for words in new)


def _numbers(words: Iterable[str]) -> set[str]:
    return {word for word in words if _DIGIT.search(word)}


def _letters(words: Iterable[str]) -> bool:
    return any(_LETTER.fullmatch(word) for word in words)


def leaders(count: int, edges: np.ndarray) -> np.ndarray:
    """For each of `count` rows its leader's position (its own where it leads).

    `edges` [n, 2] name rows that resemble each other, smaller position first; positions are the
    order of preference.
    """
    leader = list(range(count))
    for first, second in edges[np.lexsort((edges[:, 1], edges[:, 0]))].tolist():
        if leader[first] == first and leader[second] == second:
            leader[second] = first
    return np.array(leader, dtype=np.int64)
