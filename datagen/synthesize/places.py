"""Where the public texts are that an LLM writes about: the places of those with the lowest hash.

Every LLM orders documents by a hash of its own over their ids, so large collections are shared out
among LLMs and small ones are read by all. An id is 128 bits of a content hash already, so the order
is one more mixing of these bits (the finaliser of SplitMix64) and costs no hash in Python: for six
LLMs some 500,000 documents a second and core. Shards are read one at a time, and of them only
columns that are needed; of all documents no more than the wanted ones stay in memory.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datagen.codes import UNKNOWN_SCRIPT, standard_language
from datagen.minhash import mix
from datagen.store import Folder, open_shard
from datagen.synthesize.llm import LLM
from datagen.synthesize.seeds import number

MINIMUM_DOCUMENT_CHARACTERS = 80
CODE_SCRIPT = UNKNOWN_SCRIPT  # what code is tagged with

Place = dict[str, Any]
# A place while it is sought: rank, the two halves of the id, number of the shard, row.
_FOUND = np.dtype([("rank", "u8"), ("high", "u8"), ("low", "u8"), ("shard", "u4"), ("row", "u4")])


def document_places(
    folder: Folder,
    shards: Sequence[str],
    llms: Sequence[LLM],
    *,
    counts: Sequence[int],
    seed: int,
    minimum_characters: int = MINIMUM_DOCUMENT_CHARACTERS,
    only_code: bool = False,
) -> list[list[Place]]:
    """For every LLM up to so many public retrieval documents that it can read, lowest hash first.

    A place is `shard`, `row`, `language` (of the document) and `code`. Code is read by every LLM.
    """
    chosen = [np.empty(0, _FOUND) for _ in llms]
    for at, shard in enumerate(shards):
        documents = _eligible(open_shard(folder, shard), minimum_characters, only_code)
        _keep_lowest(chosen, documents, "doc_id", llms, counts=counts, shard=at, seed=seed)
    found = _take(folder, shards, chosen, ["language", "script"])
    for places in found:
        for place in places:
            place["code"] = place.pop("script") == CODE_SCRIPT
    return found


def query_places(
    folder: Folder,
    query_shards: Sequence[str],
    document_shards: Sequence[str],
    llms: Sequence[LLM],
    *,
    counts: Sequence[int],
    seed: int,
) -> list[list[Place]]:
    """For every LLM up to so many public retrieval queries that it can read, lowest hash first.

    A place is `query_shard`, `query_row`, `language` (of the query) and `shard`, `row`,
    `document_language` of its first positive.
    """
    chosen = [np.empty(0, _FOUND) for _ in llms]
    for at, shard in enumerate(query_shards):
        queries = _public(open_shard(folder, shard), "query_id")
        _keep_lowest(chosen, queries, "query_id", llms, counts=counts, shard=at, seed=seed)
    found = _take(folder, query_shards, chosen, ["language", "positives"])
    first = {place["positives"][0] for places in found for place in places}
    documents = _places_of(folder, document_shards, first)
    return [
        [
            {
                "query_shard": place["shard"],
                "query_row": place["row"],
                "language": place["language"],
                **documents[place["positives"][0]],
            }
            for place in places
        ]
        for places in found
    ]


def _public(rows: pa.Table, key: str, also: pa.ChunkedArray | None = None) -> pa.Table:
    """Id, language, script and position (`row`) of public retrieval rows."""
    kept = pc.and_(pc.equal(rows["origin"], "public"), pc.equal(rows["task"], "retrieval"))
    found = rows.select([key, "language", "script"])
    found = found.append_column("row", pa.array(np.arange(rows.num_rows, dtype=np.uint32)))
    return found.filter(kept if also is None else pc.and_(kept, also))


def _eligible(documents: pa.Table, minimum_characters: int, only_code: bool) -> pa.Table:
    also = pc.greater_equal(pc.utf8_length(documents["text"]), minimum_characters)
    if only_code:
        also = pc.and_(also, pc.equal(documents["script"], CODE_SCRIPT))
    return _public(documents, "doc_id", also)


def _keep_lowest(
    chosen: list[np.ndarray],
    rows: pa.Table,
    key: str,
    llms: Sequence[LLM],
    *,
    counts: Sequence[int],
    shard: int,
    seed: int,
) -> None:
    """Add the rows of one shard to what each LLM has, and keep those of the lowest rank."""
    ids = np.frombuffer(bytes.fromhex("".join(rows[key].to_pylist())), ">u8").reshape(-1, 2)
    places = np.empty(len(ids), _FOUND)
    places["high"], places["low"] = ids[:, 0], ids[:, 1]
    places["shard"], places["row"] = shard, rows["row"].to_numpy()
    code = pc.fill_null(pc.equal(rows["script"], CODE_SCRIPT), False)
    for i, (llm, count) in enumerate(zip(llms, counts, strict=True)):
        reads = pa.array(sorted({standard_language(one) for one in llm.languages}))
        own = places[pc.or_(code, pc.is_in(rows["language"], reads)).to_numpy()]
        own["rank"] = _mixed(own["high"] ^ _mixed(own["low"] ^ number(f"{seed}/{llm.slug}")))
        chosen[i] = _lowest(np.concatenate([chosen[i], own]), count)


def _lowest(places: np.ndarray, count: int) -> np.ndarray:
    if 0 < count < len(places):  # sorting a few is cheaper than sorting all
        ranks = places["rank"]
        places = places[ranks <= np.partition(ranks, count - 1)[count - 1]]
    return places[np.lexsort((places["low"], places["high"], places["rank"]))[:count]]


def _mixed(bits: np.ndarray) -> np.ndarray:
    return mix(bits + np.uint64(0x9E3779B97F4A7C15))


def _take(
    folder: Folder, shards: Sequence[str], chosen: Sequence[np.ndarray], columns: list[str]
) -> list[list[Place]]:
    """Places in order of rank, with columns of their rows."""
    found: list[list[Place]] = [[{} for _ in own] for own in chosen]
    for at, shard in enumerate(shards):
        wanted = [np.flatnonzero(own["shard"] == at) for own in chosen]
        if not any(map(len, wanted)):
            continue
        rows = open_shard(folder, shard).select(columns)
        for places, own, positions in zip(found, chosen, wanted, strict=True):
            taken = rows.take(pa.array(own["row"][positions])).to_pylist()
            for position, values in zip(positions, taken, strict=True):
                row = int(own["row"][position])
                places[position] = {"shard": shard, "row": row, **values}
    return found


def _places_of(folder: Folder, shards: Sequence[str], ids: set[str]) -> dict[str, Place]:
    wanted = pa.array(sorted(ids), pa.string())
    return dict(place for shard in shards for place in _places_in(folder, shard, wanted))


def _places_in(folder: Folder, shard: str, wanted: pa.Array) -> Iterator[tuple[str, Place]]:
    rows = open_shard(folder, shard).select(["doc_id", "language"])
    found = pc.indices_nonzero(pc.is_in(rows["doc_id"], wanted))
    taken = rows.take(found).to_pydict()
    for row, doc_id, language in zip(found.to_pylist(), *taken.values(), strict=True):
        yield doc_id, {"shard": shard, "row": row, "document_language": language}
