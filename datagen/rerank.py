"""A cross-encoder judges a sample of mined negatives: the estimated share of false ones.

A cross-encoder reads query and document together and is the stricter judge of the two. A negative
counts as false when it scores at least as high as the query's lowest positive does. NV-Retriever
(arXiv 2407.15831, section 4) finds 38-47% false negatives in plain top-k, half of that under its
ceiling. Negatives of one query stand or fall together, so the interval is that of a ratio of sums
over queries, not of independent negatives. Cost: one forward pass a pair.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datagen.encoder_model import refuse_unsafe
from datagen.mine_input import MiningInput
from datagen.schema import UserError, format_document
from datagen.steps import log

SAMPLE = 500  # queries
_Z = 1.96  # of a 95% interval


def load_reranker(path: str) -> Any:
    """A sentence-transformers CrossEncoder from a folder; no code of the folder runs."""
    from sentence_transformers import CrossEncoder

    refuse_unsafe(Path(path))
    try:
        return CrossEncoder(
            path,
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError) as error:
        raise UserError(
            found=f"{path} does not load: {error}",
            expected="a cross-encoder folder",
            do="copy the model folder again, or choose another",
        ) from error


def judge_sample(
    model: Any, mined: pa.Table, data: MiningInput, *, queries: int = SAMPLE, seed: int = 0
) -> dict[str, Any]:
    """Score a sample of queries with their positives and negatives, and estimate."""
    places = np.random.default_rng(seed).permutation(len(mined))[:queries]
    rows = mined.select(["positives", "negatives"]).take(pa.array(np.sort(places))).to_pylist()
    asked = data.queries["query"].take(pa.array(np.sort(places))).to_pylist()
    texts = _texts(data, rows)
    pairs = [
        (query, texts[str(doc)])
        for query, row in zip(asked, rows, strict=True)
        for doc in row["positives"] + row["negatives"]
    ]
    log.info("reranker: %s pairs of %s queries", f"{len(pairs):,}", f"{len(rows):,}")
    scores = np.asarray(model.predict(pairs, show_progress_bar=False), np.float64).reshape(-1)
    ends = np.cumsum([len(row["positives"]) + len(row["negatives"]) for row in rows])
    false, total = [], []
    for row, part in zip(rows, np.split(scores, ends[:-1]), strict=True):
        count = len(row["positives"])
        false.append(int((part[count:] >= part[:count].min()).sum()))
        total.append(len(row["negatives"]))
    return estimate(false, total)


def _texts(data: MiningInput, rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    wanted = {str(doc) for row in rows for doc in row["positives"] + row["negatives"]}
    found = {}
    for batch in data.documents.select(["doc_id", "title", "text"]).to_batches():
        ids = batch["doc_id"].to_pylist()
        for i in (i for i, name in enumerate(ids) if name in wanted):
            found[ids[i]] = format_document(batch["title"][i].as_py(), batch["text"][i].as_py())
    return found


def estimate(false: Sequence[int], total: Sequence[int]) -> dict[str, Any]:
    """Share of false negatives with its 95% interval, from counts by query.

    The interval is Wilson's with the effective number of independent negatives: their number over
    the variance that clustering in queries adds.
    """
    x, n = np.asarray(false, np.float64), np.asarray(total, np.float64)
    if not n.sum():
        return {"queries": len(n), "negatives": 0, "rate": None, "low": None, "high": None}
    rate = x.sum() / n.sum()
    simple = rate * (1 - rate) / n.sum()
    spread = ((x - rate * n) ** 2).sum() / max(1, len(n) - 1) * len(n) / n.sum() ** 2
    effective = n.sum() / max(1.0, spread / simple) if simple else float(len(n))
    centre = (rate + _Z**2 / (2 * effective)) / (1 + _Z**2 / effective)
    half = math.sqrt(rate * (1 - rate) / effective + _Z**2 / (4 * effective**2))
    half *= _Z / (1 + _Z**2 / effective)
    return {
        "queries": len(n),
        "negatives": int(n.sum()),
        "rate": round(float(rate), 4),
        "low": round(max(0.0, centre - half), 4),
        "high": round(min(1.0, centre + half), 4),
    }
