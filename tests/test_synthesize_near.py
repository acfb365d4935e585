"""Texts that come in one after the other: the first stays, what resembles it goes."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datagen.duplicates import find_duplicates
from datagen.fold_kernel import fold_texts
from datagen.minhash import verified
from datagen.schema import UserError
from datagen.synthesize.near import Pool
from datagen.synthesize.near_runs import BandRun, FormRun, Store, push

RIVER = (
    "The river rises in the highlands, flows north for six thousand kilometres through four "
    "countries, is dammed twice on its way, and reaches the sea in a delta as wide as a province."
)
BREAD = (
    "Bread rises because yeast turns sugar into gas, which the gluten of the dough catches, so "
    "that the loaf is blown up like many small balloons before the heat sets it for good."
)


def texts(*values: str | None) -> pa.Array:
    return pa.array(values, pa.string())


def test_the_first_stays_and_what_resembles_it_goes():
    pool = Pool()
    nearly = RIVER.replace("six thousand", "about six thousand")
    block = texts(RIVER, BREAD, "the RIVER", nearly, RIVER.upper() + "!", "The river?")
    assert pool.add(block).tolist() == [False, False, False, True, True, True]
    assert len(pool) == 3
    assert pool.add(texts(nearly, BREAD + " Always.", "a river")).tolist() == [True, True, False]


def test_other_numbers_are_another_text():
    pool = Pool()
    assert not pool.add(texts(RIVER)).any()
    assert not pool.add(texts(RIVER.replace("six thousand", "6 000"))).any()
    assert not pool.add(texts(RIVER.replace("six thousand", "7 000"))).any()


def test_a_row_stays_or_goes_with_all_its_texts():
    pool = Pool()
    queries = texts("where does it rise", "why does bread rise", "where is the delta", None)
    documents = texts(RIVER, BREAD, RIVER + " Yes.", "where does it rise")
    assert pool.add(queries, documents).tolist() == [False, False, True, True]
    # The query of the row that went is free.
    assert pool.add(texts("where is the delta"), texts(None)).tolist() == [False]


def test_texts_of_one_row_may_resemble_each_other():
    pool = Pool()
    assert pool.add(texts(RIVER), texts(RIVER.replace("north", "south"))).tolist() == [False]
    assert pool.add(texts(None, None), texts(RIVER, None)).tolist() == [True, False]


def test_a_text_that_went_does_not_stand_in_the_way():
    """Each is like its neighbour only; the second goes, so the third stays."""
    words = [one + other for one in "bcdfghjk" for other in ("ade", "ile", "ona", "ume", "ary")]
    tail = ["far", "away", "green", "hill"]
    chain = [" ".join([*words[: 40 - k], *tail[4 - k :]]) for k in (0, 2, 4)]
    pairs = np.array([[0, 1], [1, 2], [0, 2]])
    near, _ = verified(fold_texts(pl.Series(chain)), pairs, similarity=0.8)
    assert near.tolist() == [[0, 1], [1, 2]]
    assert Pool().add(texts(*chain)).tolist() == [False, True, False]


FAMILIES = [f"{words} and so it went on for the whole long day" for words in (RIVER, BREAD)]
VARIANTS = [
    variant
    for text in FAMILIES
    for variant in (text, text.upper(), text + " indeed", text.replace("and", "And,"), text[:20])
]


@given(st.lists(st.sampled_from(VARIANTS), max_size=12), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_blocks_of_any_size_give_the_same_answer(values, size):
    pool, parts = Pool(), []
    for start in range(0, len(values), size):
        parts += pool.add(texts(*values[start : start + size])).tolist()
    assert parts == Pool().add(texts(*values)).tolist()


def test_a_copy_grows_on_its_own():
    pool = Pool()
    pool.add(pa.array(["one text that is here from the beginning on"]))
    copy = pool.copy()
    more = pa.array(["another text that comes to the copy alone, and later"])
    assert copy.add(more).tolist() == [False] and copy.add(more).tolist() == [True]
    assert pool.add(more).tolist() == [False]
    assert copy.add(pa.array(["one text that is here from the beginning on"])).tolist() == [True]


def test_real_texts_go_only_beside_one_that_stays(shared_data):
    column = pl.read_parquet(shared_data / "bitext" / "tldr.parquet")["text_b"].head(4000)
    array = pa.array(column.to_list(), pa.string())
    pool = Pool()
    drops = np.concatenate([pool.add(array.slice(i, 512)) for i in range(0, len(array), 512)])
    again = np.concatenate([pool.add(array.slice(i, 999)) for i in range(0, len(array), 999)])
    first, _, _ = find_duplicates(column, similarity=0.8)
    by_dedup = first != np.arange(len(first))
    assert again.all()
    assert len(pool) == (~drops).sum()
    assert drops.sum() > 1000
    assert (drops != by_dedup).mean() < 0.005  # dedup also joins what only texts between connect
    assert pool.nbytes / len(pool) < 200


def test_fewer_bands_take_less_memory():
    block = texts(*(f"{RIVER} {i} {i * 7} {BREAD[: i % 90]}" for i in range(200)))
    small, large = Pool(bands=10), Pool()
    assert not small.add(block).any()
    assert not large.add(block).any()
    assert (small.nbytes, large.nbytes) == (200 * (16 + 10 * 8), 200 * (16 + 21 * 8))


def test_impossible_thresholds_are_refused():
    with pytest.raises(UserError, match="a Jaccard threshold"):
        Pool(similarity=0.2)


def test_a_store_keeps_the_arrays_that_came_in():
    store, array = Store(), texts("a", "b", "c")
    store.add([array, pa.chunked_array([texts("d"), texts("e", "f")])], np.array([0, 2, 5]))
    store.add([texts("g")], np.array([0]))
    assert store.gather(np.array([0, 1, 2, 3])).to_list() == ["a", "c", "f", "g"]
    assert store.gather(np.array([], np.int64)).to_list() == []
    before = pa.total_allocated_bytes()
    store.add([array], np.array([0, 1, 2]))
    assert pa.total_allocated_bytes() == before


def test_runs_of_like_size_are_merged():
    runs: list[FormRun] = []
    for start in range(64):
        push(runs, FormRun(np.array([start], np.uint64)), FormRun.merged)
    assert [len(run) for run in runs] == [64]
    assert runs[0].holds(np.array([0, 63, 64], np.uint64)).tolist() == [True, True, False]
    one = BandRun.of(np.array([[5], [3]], np.uint32))
    both = BandRun.merged(one, BandRun.of(np.array([[5]], np.uint32)).renumbered(np.array([2])))
    assert (both.hashes.tolist(), both.numbers.tolist()) == ([[3, 5, 5]], [[1, 0, 2]])
    found = both.sharing(BandRun.of(np.array([[5], [4], [3]], np.uint32)))
    assert sorted(found.tolist()) == [[0, 0], [0, 2], [2, 1]]
    assert both.renumbered(np.array([-1, 0, 1])).hashes.tolist() == [[3, 5]]
