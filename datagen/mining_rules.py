"""What makes a document of a query's pool a negative: rules with names, combined and recorded.

A *ceiling* is the highest score a negative may have; of several the lowest holds. With p the lowest
score among the query's positives:

- `margin`, TopK-PercPos of NV-Retriever (arXiv 2407.15831, section 4): p - (1 - margin) x |p|, that
  is 0.95 x p for a positive p and still below p for a negative one;
- `absolute_margin`, TopK-MarginPos: p - m;
- `max_score`, TopK-Abs: the score itself.

*Ranks* are places among the documents of the pool that no exclusion rules out, by score, whatever
the ceiling: `rank_window` looks at the first ones only, `skip_top` leaves out the very first.
F2LLM (arXiv 2510.02294) takes 24 of the first 100, skips 5, with max_score 0.8 and margin 0.95.
`sample_from` draws from the best that are left, by softmax of their scores without replacement
(Gumbel top-k), from a generator of the query's id; `keep_first` keeps the very best whatever is
drawn. `languages` restricts retrieval to documents in the language of the query's positive (same)
or not in the language of the query (other); bitext always competes in the language of its positive.

Where the source says which documents are wrong (labels), they are wrong at any score: the tasks of
LABELLED know no ceiling, ranks or languages.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from datagen.schema import UserError

LABELLED = frozenset({"classification", "pair_classification"})
LANGUAGES = ("any", "same", "other")
TOO_FEW = ("keep", "drop", "pad")
TEACHERS = ("mean", "each")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The rules of one mining; `too_few` says what becomes of queries with fewer than `negatives`.

    keep: they stay as they are. drop: their negatives are taken out. pad: documents drawn from all
    pools that the exclusions and the ceiling allow fill them up. Each is counted.
    """

    negatives: int = 24
    margin: float | None = 0.95
    absolute_margin: float | None = None
    max_score: float | None = None
    rank_window: int | None = None
    skip_top: int = 0
    sample_from: int | None = None
    keep_first: bool = False
    languages: Literal["any", "same", "other"] = "any"
    too_few: Literal["keep", "drop", "pad"] = "keep"
    teachers: Literal["mean", "each"] = "mean"
    seed: int = 0

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise UserError(
                found=problem[0], expected=problem[1], do="mend the rules of mining", exit_status=2
            )

    def _problem(self) -> tuple[str, str] | None:
        checks = (
            (self.negatives > 0, f"{self.negatives} negatives", "at least 1 negative"),
            (
                self.margin is None or 0 < self.margin <= 1,
                f"margin {self.margin}",
                "a margin in (0, 1]",
            ),
            (
                (self.absolute_margin or 0) >= 0,
                f"absolute margin {self.absolute_margin}",
                "0 or more",
            ),
            (
                self.languages in LANGUAGES
                and self.too_few in TOO_FEW
                and self.teachers in TEACHERS,
                f"languages {self.languages!r}, too_few {self.too_few!r}, "
                f"teachers {self.teachers!r}",
                f"languages one of {LANGUAGES}, too_few one of {TOO_FEW}, "
                f"teachers one of {TEACHERS}",
            ),
            (
                self.skip_top >= 0 and (not self.skip_top or self.rank_window is not None),
                f"skip_top {self.skip_top} without rank_window",
                "ranks are known inside a rank window: F2LLM skips 5 of 100",
            ),
            (
                self.rank_window is None or self.rank_window >= self.skip_top + self.negatives,
                f"rank_window {self.rank_window} for {self.negatives} negatives after "
                f"{self.skip_top} skipped",
                "a window that holds them",
            ),
            (
                self.sample_from is None or self.sample_from >= self.negatives,
                f"{self.negatives} negatives drawn from {self.sample_from}",
                "sample_from of at least the number of negatives",
            ),
        )
        return next(((found, expected) for good, found, expected in checks if not good), None)

    def for_task(self, task: str) -> "Rules":
        """The rules as they hold in one task."""
        if task not in LABELLED:
            return self if task == "retrieval" else replace(self, languages="any")
        return replace(
            self,
            margin=None,
            absolute_margin=None,
            max_score=None,
            rank_window=None,
            skip_top=0,
            languages="any",
        )

    def ceilings(self, lowest: np.ndarray) -> np.ndarray:
        """The highest score that a negative of each query may have, float64."""
        lowest = lowest.astype(np.float64)
        limits = np.full(len(lowest), np.inf if self.max_score is None else self.max_score)
        if self.margin is not None:
            limits = np.minimum(limits, percent_of_positive(lowest, self.margin))
        if self.absolute_margin is not None:
            limits = np.minimum(limits, lowest - self.absolute_margin)
        return limits

    @property
    def depth(self) -> int:
        """How many eligible documents of a query the search must find."""
        return self.rank_window or self.sample_from or self.negatives

    def record(self) -> dict[str, Any]:
        """The rules as JSON."""
        return asdict(self)


def percent_of_positive(lowest: np.ndarray, margin: float) -> np.ndarray:
    """Ceilings p - (1 - margin) x |p| of negatives, below p whatever its sign; float64."""
    lowest = lowest.astype(np.float64)
    return np.where(lowest >= 0, lowest * margin, lowest * (2 - margin))


def choose(
    scores: np.ndarray, ceilings: np.ndarray, query_ids: Sequence[str], rules: Rules
) -> np.ndarray:
    """Which candidates [Q, depth] become negatives, from their scores in order (-inf: none there).

    The columns are ranks if the rules have a window. What is chosen does not depend on the other
    queries.
    """
    if rules.rank_window is not None:
        scores = scores[:, : rules.rank_window]
    eligible = (scores <= ceilings[:, None]) & (scores > -np.inf)
    eligible[:, : rules.skip_top] = False
    if rules.sample_from is None:
        return eligible & (eligible.cumsum(1) <= rules.negatives)
    eligible &= eligible.cumsum(1) <= rules.sample_from
    chosen = np.zeros_like(eligible)
    for row in np.flatnonzero(eligible.any(1)):
        places = np.flatnonzero(eligible[row])
        draw = generator(query_ids[row], rules.seed)
        keys = scores[row, places] + draw.gumbel(size=len(places))
        if rules.keep_first:
            keys[0] = np.inf
        chosen[row, places[np.argsort(-keys, kind="stable")[: rules.negatives]]] = True
    return chosen


def generator(query_id: str, seed: int) -> np.random.Generator:
    """Random numbers that depend on the query and the seed alone."""
    digest = hashlib.blake2b(f"{seed}\x1f{query_id}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
