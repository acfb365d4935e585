"""Negatives that nobody searched for: drawn at random, so that mining has something to beat.

Each row gets documents of the source of its positive, in that document's language where there are
enough of them, and never of the cluster of a positive: what random draws of the pool that mining
searches would be. An encoder scores them, since every negative of a mix has a score.
"""

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from datagen.mining_rules import generator
from datagen.mix_shards import take_ordered
from datagen.schema import MIX_ROW, UserError, format_document


def with_negatives(
    rows: pa.Table, numbers: np.ndarray, scores: np.ndarray, counts: np.ndarray
) -> pa.Table:
    """The rows with these negatives and scores, one after the other; `counts` of each row."""
    ends = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    for name, values in (("negatives", numbers), ("negative_scores", scores)):
        field = MIX_ROW.field(name)
        lists = pa.ListArray.from_arrays(ends, pa.array(values, field.type.value_type))
        rows = rows.set_column(rows.schema.get_field_index(name), field, lists)
    return rows


class RandomNegatives:
    """Rows with negatives that nobody searched for."""

    def __init__(self, documents: pa.Table, rows: pa.Table, *, count: int):
        self.documents, self.rows, self.count = documents, rows, count
        columns = pl.DataFrame(documents.select(["source", "language", "cluster"]))
        self.clusters = columns["cluster"].to_numpy()
        self.place = columns.select("source", "language").rows()
        numbered = columns.with_row_index("row")
        self.pools: dict[Any, np.ndarray] = {}
        for keys in (["source"], ["source", "language"]):
            for key, part in numbered.partition_by(keys, as_dict=True).items():
                self.pools[key] = part["row"].to_numpy()

    def scored(self, encoder: str, *, seed: int) -> pa.Table:
        """The rows with drawn negatives, best score first."""
        from datagen.encode import Encoder
        from datagen.encoder_model import inspect_encoder

        keys, positives = (self.rows[c].to_pylist() for c in ("query_id", "positives"))
        drawn = [self._draw(k, p, seed) for k, p in zip(keys, positives, strict=True)]
        info, model = inspect_encoder(encoder), Encoder(encoder, dtype="bfloat16")
        numbers = np.unique(np.concatenate(drawn))
        some = take_ordered(self.documents.select(["title", "text"]), numbers).to_pylist()
        texts = [format_document(row["title"], row["text"]) for row in some]
        asked = self.rows["query"].to_pylist()
        documents = model.encode(texts, prompt=info.document_prompt(), stored="float32")
        queries = model.encode(asked, prompt=info.query_prompt(), stored="float32")
        lists, scores = [], []
        for query, own in zip(queries, drawn, strict=True):
            found = documents[np.searchsorted(numbers, own)] @ query
            order = np.argsort(-found, kind="stable")
            lists.append(own[order])
            scores.append(found[order])
        counts = np.array([len(own) for own in lists])
        return with_negatives(self.rows, np.concatenate(lists), np.concatenate(scores), counts)

    def _draw(self, query_id: str, positives: list[int], seed: int) -> np.ndarray:
        source, language = self.place[positives[0]]
        own = self.clusters[positives]
        for key in ((source, language), (source,)):
            pool = self.pools[key]
            free = pool[~np.isin(self.clusters[pool], own)]
            if len(free) >= self.count:
                return generator(query_id, seed).choice(free, self.count, replace=False)
        raise UserError(
            found=f"source {source!r} has {len(free)} documents beside the positives of a query",
            expected=f"at least {self.count} to draw from",
            do="leave out the comparison with random negatives",
        )
