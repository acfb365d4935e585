"""Statistics of a finished mining step for the report: scores and rules, per source."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datagen.candidates import EXCLUSIONS
from datagen.mining_unit import lowest
from datagen.store import Folder, open_shard

BINS = 40
EDGES = np.linspace(-1.0, 1.0, BINS + 1)


class _Source:
    """What is summed for one source."""

    def __init__(self) -> None:
        self.lowest: list[np.ndarray] = []
        self.negatives: list[np.ndarray] = []
        self.histograms = {
            "positive": np.zeros(BINS, np.int64),
            "negative": np.zeros(BINS, np.int64),
        }
        self.sums: dict[str, int] = {}

    def add(self, mined: pa.Table, rules: pa.Table, top: int) -> None:
        counts = pc.list_value_length(mined["positives"]).to_numpy()
        positive = _flat(mined["positive_scores"])
        self.lowest.append(lowest(positive, np.repeat(np.arange(len(counts)), counts)))
        self.negatives.append(pc.list_value_length(mined["negatives"]).to_numpy())
        for name, values in (("positive", positive), ("negative", _flat(mined["negative_scores"]))):
            self.histograms[name] += np.histogram(np.clip(values, -1, 1), EDGES)[0]
        sums = {name: int(pc.sum(rules[name]).as_py()) for name in rules.column_names}
        candidates, above = rules["candidates"].to_numpy(), rules["above_ceiling"].to_numpy()
        sums["top"] = int(np.minimum(candidates, top).sum())
        sums["top_above_ceiling"] = int(np.minimum(above, top).sum())
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def facts(self, top: int) -> dict[str, Any]:
        found = np.concatenate(self.negatives)
        return {
            "queries": len(found),
            "median_lowest_positive_score": round(float(np.median(np.concatenate(self.lowest))), 4),
            "mean_negatives": round(float(found.mean()), 3),
            "queries_with_fewer": int((found < top).sum()),
            "ceiling_share_of_top": round(
                self.sums["top_above_ceiling"] / max(1, self.sums["top"]), 4
            ),
            **{name: self.sums[name] for name in ("skipped_top", "padded", "dropped")},
            "given": self.sums["given"],
            "given_excluded": self.sums["given_excluded"],
            "excluded": {rule: self.sums[rule] for rule in EXCLUSIONS},
            "caught": {rule: self.sums[f"{rule}_caught"] for rule in EXCLUSIONS},
            "positive_histogram": self.histograms["positive"].tolist(),
            "negative_histogram": self.histograms["negative"].tolist(),
        }


def _flat(lists: pa.ChunkedArray) -> np.ndarray:
    return lists.combine_chunks().flatten().to_numpy(zero_copy_only=False)


def mining_facts(
    folder: Folder,
    shards: Mapping[str, Sequence[str]],
    sources: pa.ChunkedArray,
    *,
    negatives: int,
) -> dict[str, Any]:
    """Per source: scores, how many negatives were found, and what each rule removed.

    `ceiling_share_of_top` is the share of each query's best `negatives` candidates that the ceiling
    removed; `excluded` counts (query, document) pairs of the pool by rule, `caught` those that
    would have become negatives: they score below the ceiling.
    """
    found: dict[str, _Source] = {}
    start = 0
    for mined_name, rules_name in zip(shards["mined"], shards["rules"], strict=True):
        mined, rules = open_shard(folder, mined_name), open_shard(folder, rules_name)
        names = sources.slice(start, len(mined))
        start += len(mined)
        for name in sorted(names.unique().to_pylist()):
            mask = pc.equal(names, name)
            found.setdefault(name, _Source()).add(mined.filter(mask), rules.filter(mask), negatives)
    return {
        "top": negatives,
        "edges": [round(float(edge), 4) for edge in EDGES],
        "sources": {name: found[name].facts(negatives) for name in sorted(found)},
    }
