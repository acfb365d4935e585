"""What a stage of the mix takes: tasks, sources, caps, quotas, weights, and the choice of rows.

Rows are chosen by number alone: a scan of the queries keeps 24 bytes of each (its id, and small
codes for task, source and language). Within every limit the rows whose seeded key is smallest are
kept, so a larger cap keeps every row of a smaller one, and public rows come before synthetic ones:
what an LLM wrote for a source never takes their place.

Limits apply in this order: rows of each source, of each task, of each language, then the total. A
total is shared between sources, tasks or languages in proportion to weight x rows ** temperature;
what a small group cannot fill goes to the others. Temperature 1 is proportional (plain
concatenation), 0 gives each group the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from datagen.mix_ids import seeded_keys
from datagen.schema import STAGES, TASKS, UserError

GROUPS = ("source", "task", "language")
NO_LANGUAGE = "und"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage takes: which tasks and sources, how many rows, how many negatives."""

    name: str
    negatives: int  # a query with fewer is dropped from this stage, counted
    task_negatives: Mapping[str, int] = field(default_factory=dict)  # another number for a task
    tasks: tuple[str, ...] = TASKS
    sources: tuple[str, ...] | None = None  # None: every source
    rows_per_source: int | None = None  # F2LLM-v2 caps stage 2 at 80,000
    source_rows: Mapping[str, int] = field(default_factory=dict)  # at most, of the sources named
    task_rows: Mapping[str, int] = field(default_factory=dict)
    language_rows: Mapping[str, int] = field(default_factory=dict)  # of queries, ISO 639-3
    rows: int | None = None  # at most, of all; shared by the three that follow
    shared_by: str = "source"  # or task, or language
    temperature: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)  # 1 where nothing is said
    instruction_share: float = 1.0  # share of rows that carry their instruction
    symmetric_share: float = 1.0  # share of symmetric rows whose documents carry it too

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            found, expected = problem
            raise UserError(
                found=f"stage {self.name!r}: {found}",
                expected=expected,
                do="mend the recipe",
                exit_status=2,
            )

    def _problem(self) -> tuple[str, str] | None:
        named = (*self.tasks, *self.task_rows, *self.task_negatives)
        unknown = [t for t in named if t not in TASKS]
        negatives = (self.negatives, *self.task_negatives.values())
        shares = (self.instruction_share, self.symmetric_share)
        rows = [self.rows_per_source, self.rows, *self.source_rows.values()]
        rows += [*self.task_rows.values(), *self.language_rows.values()]
        checks = (
            (self.name in STAGES, f"name {self.name!r}", f"one of {', '.join(STAGES)}"),
            (not unknown, f"tasks {unknown}", f"tasks of {', '.join(TASKS)}"),
            (min(negatives) >= 1, f"{min(negatives)} negatives", "at least 1 negative"),
            (all(0 <= s <= 1 for s in shares), f"shares {shares}", "shares from 0 to 1"),
            (all(r is None or r > 0 for r in rows), f"rows {rows}", "numbers of rows above 0"),
            (self.shared_by in GROUPS, f"shared_by {self.shared_by!r}", f"one of {GROUPS}"),
            (
                self.rows is not None or (self.temperature == 1.0 and not self.weights),
                "a temperature or weights, and no total",
                "`rows`, the total that they share",
            ),
            (
                self.temperature >= 0 and all(w >= 0 for w in self.weights.values()),
                f"temperature {self.temperature}, weights {dict(self.weights)}",
                "none below 0",
            ),
        )
        return next(((found, expected) for good, found, expected in checks if not good), None)

    @property
    def named_sources(self) -> set[str]:
        """Every source that the stage speaks of."""
        weighted = set(self.weights) if self.shared_by == "source" else set()
        return {*(self.sources or ()), *self.source_rows} | weighted


@dataclass(frozen=True, kw_only=True)
class QueryKeys:
    """What choosing needs to know of every query. `names` gives the values of the codes."""

    ids: np.ndarray  # uint64 [rows, 2]
    public: np.ndarray  # bool
    negatives: np.ndarray  # how many were mined
    source: np.ndarray  # codes, in the order of the names
    task: np.ndarray
    language: np.ndarray
    names: Mapping[str, list[str]]

    def __len__(self) -> int:
        return len(self.ids)

    def codes(self, group: str) -> np.ndarray:
        return {"source": self.source, "task": self.task, "language": self.language}[group]


def eligible(keys: QueryKeys, stage: Stage) -> np.ndarray:
    """Mask of the queries whose task and source the stage takes."""
    mask = np.isin(keys.names["task"], stage.tasks)[keys.task]
    if stage.sources is not None:
        mask &= np.isin(keys.names["source"], stage.sources)[keys.source]
    return mask


def usable(keys: QueryKeys, stage: Stage) -> np.ndarray:
    """Mask of the eligible queries that have as many negatives as the stage asks of their task."""
    needed = [stage.task_negatives.get(task, stage.negatives) for task in keys.names["task"]]
    return eligible(keys, stage) & (keys.negatives >= np.array(needed)[keys.task])


def choose(keys: QueryKeys, stage: Stage, *, seed: int) -> np.ndarray:
    """Row positions of the queries that a stage takes, in the order in which it stores them."""
    rows = np.flatnonzero(usable(keys, stage))
    if limited(stage):
        rows = _within_limits(keys, rows, stage, seed=seed)
    # Inside a source a query id is a hash, so the order there is random.
    ids = keys.ids[rows]
    group = (~keys.public[rows]).astype(np.int64) * len(keys.names["task"]) + keys.task[rows]
    group = group * len(keys.names["source"]) + keys.source[rows]
    return rows[np.lexsort((ids[:, 1], ids[:, 0], group))]


def limited(stage: Stage) -> bool:
    """Whether the stage has any limit on rows."""
    per_name = (stage.source_rows, stage.task_rows, stage.language_rows)
    return stage.rows is not None or stage.rows_per_source is not None or any(per_name)


def _within_limits(keys: QueryKeys, rows: np.ndarray, stage: Stage, *, seed: int) -> np.ndarray:
    ids = keys.ids[rows]
    drawn = seeded_keys(ids, seed=seed, purpose="rows")
    rows = rows[np.lexsort((ids[:, 0], drawn, ~keys.public[rows]))]
    del ids, drawn
    for group, named, others in (
        ("source", stage.source_rows, stage.rows_per_source),
        ("task", stage.task_rows, None),
        ("language", stage.language_rows, None),
    ):
        if named or others is not None:
            unlimited = len(rows) if others is None else others
            limits = np.array([named.get(name, unlimited) for name in keys.names[group]], int)
            rows = _first_of_each(rows, keys.codes(group)[rows], limits)
    if stage.rows is None:
        return rows
    codes, names = keys.codes(stage.shared_by)[rows], keys.names[stage.shared_by]
    sizes = np.bincount(codes, minlength=len(names))
    weights = np.array([stage.weights.get(name, 1.0) for name in names])
    wanted = np.where(sizes > 0, weights * sizes.astype(float) ** stage.temperature, 0.0)
    return _first_of_each(rows, codes, share(sizes, wanted, stage.rows))


def _first_of_each(rows: np.ndarray, codes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """The first rows of each code, as many as its limit, in the order given."""
    by_code = np.argsort(codes, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(limits)))])
    rank = np.arange(len(rows)) - starts[codes[by_code]]
    return rows[np.sort(by_code[rank < limits[codes[by_code]]])]


def share(sizes: np.ndarray, wanted: np.ndarray, total: int) -> np.ndarray:
    """How many rows each group gives, in proportion to `wanted`, never more than its size.

    What a full group leaves over is shared by the others; fractions go to the largest remainders.
    """
    given = np.zeros(len(sizes))
    open_groups = wanted > 0
    left = float(min(total, sizes[open_groups].sum()))
    while left > 0 and open_groups.any():
        active = np.where(open_groups, wanted, 0.0) / wanted[open_groups].max()
        portion = active / active.sum() * left
        full = open_groups & (portion >= sizes)
        if not full.any():
            given += portion
            break
        given[full] = sizes[full]
        left -= float(sizes[full].sum())
        open_groups &= ~full
    whole = np.floor(given + 1e-9).astype(np.int64)
    missing = round(given.sum()) - int(whole.sum())
    remainder = np.argsort(whole - given, kind="stable")
    remainder = remainder[whole[remainder] < sizes[remainder]]
    whole[remainder[:missing]] += 1
    return whole
