"""Other rules on stored candidates: what each would give, without encoding or searching again.

`candidates` holds the best documents of each query that no exclusion rules out, with their scores
and the query's lowest positive score. Every setting is applied to these lists by the function that
mining itself uses (`mining_rules.choose`); queries whose list ends before they have enough are
counted, for them the figures are bounds. Cost: a pass over the scores a setting.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datagen.mining_rules import Rules, choose
from datagen.schema import UserError
from datagen.store import Folder

MARGINS = (0.8, 0.9, 0.95, 0.98, 1.0)


def sweep_file(
    folder: str,
    rules: Rules,
    *,
    margins: Sequence[float] | None = None,
    max_scores: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Try each margin with each cap on `folder`/candidates.parquet; writes `sweep.json` there."""
    place = Folder(folder)
    if not place.exists("candidates.parquet"):
        raise UserError(
            found=f"no candidates.parquet in {folder}",
            expected="the folder of a run with --candidates",
            do="mine once with --candidates 100, then sweep",
            exit_status=2,
        )
    table = pq.read_table(pa.BufferReader(place.read_bytes("candidates.parquet")))
    settings = [
        replace(rules, margin=margin, max_score=cap)
        for margin in margins or MARGINS
        for cap in max_scores or (rules.max_score,)
    ]
    rows = [sweep_row(table, setting) for setting in settings]
    place.write_json("sweep.json", rows)
    return {"output": f"{folder}/sweep.json", "queries": len(table), "settings": rows}


def sweep_row(candidates: pa.Table, rules: Rules) -> dict[str, Any]:
    """What the rules take of stored candidates, in counts and means."""
    scores = _matrix(candidates["scores"])
    lowest = candidates["lowest_positive_score"].to_numpy()
    ceilings = rules.ceilings(lowest)
    ids = candidates["query_id"].cast(pa.string()).to_pylist()
    if rules.rank_window is not None and rules.rank_window > scores.shape[1]:
        raise UserError(
            found=f"a rank window of {rules.rank_window}, {scores.shape[1]} stored candidates",
            expected="as many stored candidates as the window is wide",
            do=f"mine once with --candidates {rules.rank_window}",
            exit_status=2,
        )
    taken = choose(scores, ceilings, ids, rules)
    scores = scores[:, : taken.shape[1]]
    found = taken.sum(1)
    there = scores > -np.inf
    above = there & (scores > ceilings[:, None])
    # A full list may go on: what it lacks can lie behind its end.
    cut = there.all(1) & (found < rules.negatives) & (rules.rank_window is None)
    some = scores[taken].astype(np.float64)
    ratio = some / np.repeat(np.abs(lowest.astype(np.float64)), found)
    return {
        "margin": rules.margin,
        "absolute_margin": rules.absolute_margin,
        "max_score": rules.max_score,
        "rank_window": rules.rank_window,
        "skip_top": rules.skip_top,
        "queries_with_enough": int((found >= rules.negatives).sum()),
        "queries_with_fewer": int((found < rules.negatives).sum()),
        "queries_whose_list_ended": int(cut.sum()),
        "mean_negatives": _rounded(found),
        "mean_negative_score": _rounded(some),
        "mean_ratio_to_positive": _rounded(ratio),
        "share_above_ceiling": _rounded(above.sum() / max(1, there.sum())),
    }


def _rounded(values: Any) -> float | None:
    return round(float(np.mean(values)), 4) if np.size(values) else None


def _matrix(lists: pa.ChunkedArray) -> np.ndarray:
    """Lists as rows, -inf behind the end of each."""
    counts = pc.list_value_length(lists).to_numpy()
    out = np.full((len(counts), max(1, int(counts.max(initial=0)))), -np.inf, np.float32)
    out[np.arange(out.shape[1]) < counts[:, None]] = lists.combine_chunks().flatten().to_numpy()
    return out
