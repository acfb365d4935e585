"""Near-duplicate texts: MinHash LSH candidates, exact verification, connected components.

Texts under MINIMUM_CHARACTERS have no signature and are duplicates only when their folded forms are
equal. Longer ones are signed over their shingles (see `shingles`); 21 bands of 6 rows find a pair
of Jaccard 0.8 with probability 0.998. Candidates are verified on their shingles and their numbers,
so precision does not rest on hashing. What is alike, directly or through others, is one component;
its first text, in order of preference, stands for it.

Signatures are compiled loops (1 microsecond a text of 300 characters). rensa and datasketch can be
chosen instead: the same estimate by other functions, two and fifty times slower, as a reference.

Broder 1997. Cost: 5 s a million texts of 300 characters and core, a third of it folding them.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from datagen.schema import UserError
from datagen.threads import Run

if TYPE_CHECKING:
    from datagen.fold_kernel import Folded

PERMUTATIONS, BANDS = 128, 21  # 126 of them are used; 128 fill the registers of a CPU
SEED = 1
NEIGHBOURS = 8  # members of a bucket that each member is compared with, besides the first
DEFAULT_BACKEND = "numba"


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 for uint64: every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _numba(tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    from datagen.shingles import sign

    return sign(tokens, offsets, seed=SEED)


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
    "numba": _numba,
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


class TextKeys(NamedTuple):
    """What finds duplicates of n texts: 128-bit hashes [n, 2] of the plain and of the folded forms,
    characters [n], and positions [m] and band hashes [m, BANDS] of those long enough to sign."""

    plain: np.ndarray
    form: np.ndarray
    sizes: np.ndarray
    where: np.ndarray
    bands: np.ndarray


def text_keys(texts: pl.Series, *, backend: str = DEFAULT_BACKEND) -> TextKeys:
    """The keys of texts as they are, not folded."""
    keys, slow = fast_keys(texts, backend=backend)
    if not len(slow):
        return keys
    rest = slow_keys(texts.gather(slow), backend=backend)
    keys.plain[slow], keys.form[slow], keys.sizes[slow] = rest.plain, rest.form, rest.sizes
    where = np.concatenate([keys.where, slow[rest.where]])
    order = np.argsort(where)
    bands = np.concatenate([keys.bands, rest.bands])[order]
    return keys._replace(where=where[order], bands=bands)


def fast_keys(texts: pl.Series, *, backend: str) -> tuple[TextKeys, np.ndarray]:
    """The keys of texts, and the positions [k] of those that need `slow_keys`: best asked for many
    texts at once, as it costs 10 ms whatever their number."""
    from datagen.fold_kernel import fold_fast

    found, slow = fold_fast(texts)
    return _keys(found, backend), slow


def slow_keys(texts: pl.Series, *, backend: str) -> TextKeys:
    """The keys of any texts."""
    from datagen.fold_kernel import fold_slow

    return _keys(fold_slow(texts), backend)


def _keys(found: "Folded", backend: str) -> TextKeys:
    form, where, bands = _form_keys(found.data, found.ends, backend)
    return TextKeys(found.hashes, form, found.sizes, where, bands)


def _form_keys(
    data: np.ndarray, ends: np.ndarray, backend: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    from datagen.shingles import band_hashes, form_bytes, shingle_bytes

    form, long = form_bytes(data, ends)
    flat, offsets = shingle_bytes(data, ends)
    where = np.flatnonzero(long)
    rows = BACKENDS[backend](flat, offsets)[where]
    return form, where, band_hashes(rows, BANDS)


def candidate_pairs(bands: np.ndarray, rows: np.ndarray, *, run: Run = map) -> np.ndarray:
    """Pairs [n, 2] of those of `rows` that share a band, smaller first, sorted, unique.

    `run` maps over the bands, by default one after the other.
    """

    def codes(band: int) -> np.ndarray:
        beside = (band + 1) % bands.shape[1]
        pairs = rows[band_pairs(bands[rows, band], bands[rows, beside])]
        return _distinct_codes(pairs, len(bands))

    found = np.concatenate([np.empty(0, np.int64), *run(codes, range(bands.shape[1]))])
    found.sort()
    return _pairs_of(found[np.diff(found, prepend=-1) != 0], len(bands))


def unique_pairs(pairs: np.ndarray, count: int) -> np.ndarray:
    """The distinct ones of pairs [n, 2] of numbers below `count`, sorted."""
    return _pairs_of(_distinct_codes(pairs, count), count)


def _distinct_codes(pairs: np.ndarray, count: int) -> np.ndarray:
    return np.unique(pairs[:, 0] * np.int64(count) + pairs[:, 1])


def _pairs_of(codes: np.ndarray, count: int) -> np.ndarray:
    return np.stack(np.divmod(codes, np.int64(max(count, 1))), axis=1)


def band_pairs(column: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """Pairs [n, 2] of rows with equal hashes in one band, smaller first, some of them twice.

    In a bucket every row is paired with the first and with its NEIGHBOURS next ones, so a bucket
    of thousands of variants of one template costs a multiple of its size, not its square. Rows lie
    in the order of the next band there: those that are most alike lie together.
    """
    rows = _shared(column)
    key = (column[rows].astype(np.uint64) << np.uint64(32)) | beside[rows]
    order = np.argsort(key, kind="stable")
    values, rows = column[rows][order], rows[order]
    one, other = [rows[:0]], [rows[:0]]
    for step in range(1, min(NEIGHBOURS, len(rows) - 1) + 1):
        same = np.flatnonzero(values[step:] == values[:-step])
        one.append(rows[same])
        other.append(rows[same + step])
    if len(rows):
        heads = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
        sizes = np.diff(np.append(heads, len(rows)))
        first = np.repeat(np.minimum.reduceat(rows, heads), sizes)
        one.append(first[first != rows])
        other.append(rows[first != rows])
    ends = np.stack([np.concatenate(one), np.concatenate(other)], axis=1)
    return np.sort(ends, axis=1)


def _shared(column: np.ndarray) -> np.ndarray:
    """Positions, ascending, of the values that occur more than once."""
    # Half the time of an argsort: numpy sorts whole numbers by vector instructions.
    keys = column.astype(np.uint64) << np.uint64(32) | np.arange(len(column), dtype=np.uint64)
    keys.sort()
    same = np.flatnonzero((keys[1:] ^ keys[:-1]) >> np.uint64(32) == 0)
    low = keys[np.concatenate([same, same + 1])] & np.uint64(0xFFFFFFFF)
    return np.unique(low).astype(np.int64)


def verified(
    folded: pl.Series, pairs: np.ndarray, *, similarity: float
) -> tuple[np.ndarray, np.ndarray]:
    """The pairs that are near-duplicates, and their Jaccard: alike, and about the same thing."""
    from datagen.shingles import similarities
    from datagen.subjects import same_subject

    jaccard = similarities(folded, pairs, least=similarity)
    alike = np.flatnonzero(jaccard >= similarity)
    kept = alike[same_subject(folded, pairs[alike])]
    return pairs[kept], jaccard[kept]


def components(count: int, edges: np.ndarray) -> np.ndarray:
    """For each of `count` positions the first one that it is connected with, through any others.

    `edges` [n, 2] name positions that resemble each other; positions are the order of preference.
    """
    from datagen.shingles import connect

    return connect(count, np.ascontiguousarray(edges, dtype=np.int64))
