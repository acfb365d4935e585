"""Rules on written rows that passed the rules of their kind: which stay, and why others do not.

A rule looks at a table of pairs and says which rows it could judge and which of them break it. A
row is counted under the first rule that it breaks, and later rules do not see it: put what costs
least first, but the rule against near-duplicates last, since what another rule rejects must not
stand in the way of a better row.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datagen.schema import QUARANTINE, rejected_row


class Verdict(NamedTuple):
    """What a rule says: its name, which rows [n] break it, and which it could judge at all."""

    reason: str
    broken: np.ndarray
    judged: np.ndarray


Rule = Callable[[pa.Table], Verdict]


class Selection(NamedTuple):
    """The rows that stay, QUARANTINE rows of the others, the reason of every row or null, and for
    each rule how many rows it saw and could not judge."""

    kept: pa.Table
    rejected: pa.Table
    reasons: pa.Array
    not_judged: dict[str, int]


def select(pairs: pa.Table, rules: Sequence[Rule]) -> Selection:
    """Apply the rules in their order; the rows keep theirs."""
    reasons: np.ndarray = np.full(pairs.num_rows, None, object)
    left = np.arange(pairs.num_rows)
    not_judged: Counter[str] = Counter()
    for rule in rules:
        verdict = rule(pairs.take(pa.array(left)))
        not_judged[verdict.reason] += int((~verdict.judged).sum())
        reasons[left[verdict.broken]] = verdict.reason
        left = left[~verdict.broken]
    column = pa.array(reasons.tolist(), pa.string())
    out = pairs.filter(pc.is_valid(column)).to_pylist()
    rejected = [
        rejected_row(record, reason=reason)
        for record, reason in zip(out, column.drop_null().to_pylist(), strict=True)
    ]
    return Selection(
        kept=pairs.filter(pc.is_null(column)),
        rejected=pa.Table.from_pylist(rejected, schema=QUARANTINE),
        reasons=column,
        not_judged=dict(sorted(not_judged.items())),
    )
