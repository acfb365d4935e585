"""The bundled language model: naive Bayes over hashed letter n-grams, one table for each script.

A table holds, for every n-gram that tells languages apart and every language of the script,
log(1 + k p(n-gram | language) / p(n-gram)) in a byte; a text takes the language of the largest sum
over its n-grams. Mixing each language with the background of all (Jelinek-Mercer, k = (1 - m) / m)
makes an n-gram that a language has not shown cost nothing, so a language known from ten pages of
text stands beside one known from a hundred. `datagen.language_train` makes the file, and says from
what. Cost: a sparse product of n-gram counts with the table.

Jelinek and Mercer 1980; background smoothing for language identification: Lui and Baldwin 2012.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import scipy.sparse

from datagen.codes import UNKNOWN_LANGUAGE
from datagen.language_features import HASH_BITS, Letters, ngrams, select

MODEL_FILE = Path(__file__).with_name("language_model.npz")
MODEL_VERSION = "1"
WEIGHT_STEP = 1 / 12  # of a byte of the tables, in nats

# Characters of written Cantonese that written Mandarin does not have.
_CANTONESE = np.array(sorted(map(ord, "嘅喺咗啲冇嗰哋嚟佢唔咁乜攞揾嘢噉睇")), dtype=np.uint32)
_CANTONESE_SHARE = 0.025  # of the letters
_SHARPNESS = 1.0


@dataclasses.dataclass(frozen=True)
class Table:
    """The n-grams of one script: `row_of[bucket]` is a row of `weights`, the last one for none."""

    languages: np.ndarray  # str
    row_of: np.ndarray  # int32 [buckets]
    weights: np.ndarray  # float32 [rows, languages]
    priors: np.ndarray  # float32 [languages], in nats


@functools.cache
def load_tables(path: str = str(MODEL_FILE)) -> dict[str, Table]:
    """The tables by script."""
    tables = {}
    with np.load(path, allow_pickle=False) as file:
        for script in file["scripts"]:
            buckets, packed = file[f"{script}_buckets"], file[f"{script}_weights"]
            row_of = np.full(1 << HASH_BITS, len(buckets), dtype=np.int32)
            row_of[buckets] = np.arange(len(buckets))
            weights = packed.astype(np.float32) * np.float32(WEIGHT_STEP)
            priors = file[f"{script}_priors"].astype(np.float32)
            tables[str(script)] = Table(file[f"{script}_languages"], row_of, weights, priors)
    return tables


def identify(found: Letters) -> tuple[np.ndarray, np.ndarray]:
    """The ISO 639-3 code and the confidence in 0..1 of every text; `und` where nothing is known."""
    count = len(found.scripts)
    languages = np.full(count, UNKNOWN_LANGUAGE, dtype="<U3")
    scores = np.zeros(count)
    for script, table in load_tables().items():
        rows = np.flatnonzero(found.scripts == script)
        if len(rows):
            languages[rows], scores[rows] = _score(select(found, rows), table)
    chinese = np.flatnonzero(np.isin(found.scripts, ["Hans", "Hant"]))
    if len(chinese):
        languages[chinese], scores[chinese] = "zho", found.shares[chinese]
        languages[chinese[_is_cantonese(select(found, chinese))]] = "yue"
    return languages, scores


def _score(found: Letters, table: Table) -> tuple[np.ndarray, np.ndarray]:
    count = len(found.scripts)
    owner, bucket = ngrams(found)
    row = table.row_of[bucket]
    known = row < len(table.weights)
    owner, row = owner[known], row[known]
    order = np.argsort(owner, kind="stable")
    size = np.bincount(owner, minlength=count)
    matrix = scipy.sparse.csr_matrix(
        (
            np.ones(len(row), dtype=np.float32),
            row[order],
            np.concatenate([[0], np.cumsum(size)]),
        ),
        shape=(count, len(table.weights)),
    )
    sums = matrix @ table.weights + table.priors
    best = sums.argmax(axis=1)
    # The n-grams of a text lean on each other: as evidence their number counts by its root.
    logits = (sums - sums.max(axis=1, keepdims=True)) * (
        _SHARPNESS / np.sqrt(np.maximum(size, 1))[:, None]
    )
    scores = 1 / np.exp(logits).sum(axis=1)
    return np.where(size > 0, table.languages[best], UNKNOWN_LANGUAGE), scores * (size > 0)


def _is_cantonese(found: Letters) -> np.ndarray:
    count = len(found.scripts)
    marks = np.isin(found.codes, _CANTONESE)
    marked = np.bincount(found.text_of, weights=marks, minlength=count)
    letters = np.bincount(found.text_of, minlength=count)
    return (found.scripts == "Hant") & (marked >= np.maximum(_CANTONESE_SHARE * letters, 1))
