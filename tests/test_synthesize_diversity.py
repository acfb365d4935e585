"""How different the queries of an LLM are from each other."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from written_rows import queries

from datagen.synthesize.diversity import distinct, diversity, similarity


def test_distinct_shares_of_a_sample():
    texts = pl.Series(["one two three", "one two four"])
    found = distinct(texts, runs=2)
    assert found == {"distinct_1": 1.0, "distinct_2": 1.0, "distinct_3": 1.0}
    assert distinct(texts, runs=4)["distinct_1"] == 0.75  # one two three one
    assert distinct(texts, runs=4)["distinct_2"] == 0.75  # one two occurs twice
    assert distinct(texts, runs=5)["distinct_2"] is None  # there are four runs of two


def test_runs_do_not_go_across_texts():
    found = distinct(pl.Series(["a b", "b c", "b a"]), runs=3)
    assert (found["distinct_2"], found["distinct_3"]) == (1.0, None)


def test_case_and_punctuation_are_set_aside():
    assert distinct(pl.Series(["Where is it?", "where, is it"]), runs=6)["distinct_1"] == 0.5


def test_chinese_is_counted_by_letters():
    found = distinct(pl.Series(["蜜蜂跳舞", "蜜蜂睡觉"]), runs=8)
    assert found["distinct_1"] == 6 / 8


def test_similarity_is_the_mean_over_pairs():
    texts = pl.Series(["a b", "a c", "d e"])
    assert similarity(texts, None, texts=3) == {"self_jaccard": pytest.approx((1 / 3 + 0 + 0) / 3)}
    table = {"a b": [1, 0], "a c": [0.6, 0.8], "d e": [0, 1]}

    def encode(sample):
        return np.array([table[text] for text in sample], np.float32)

    assert similarity(texts, encode, texts=3) == {"self_cosine": pytest.approx((0.6 + 0 + 0.8) / 3)}
    assert similarity(texts, encode, texts=4) == {"self_cosine": None}


def test_an_llm_that_repeats_itself_is_less_diverse():
    words = [f"{one}{other}" for one in "bcdfghjklm" for other in ("ade", "ile", "ona", "ume")]
    draw = np.random.default_rng(0)
    varied = [" ".join(draw.choice(words, 6)) for _ in range(60)]
    same = [f"what is the {word} of the house" for word in words for _ in range(2)]
    groups = [queries("a", "retrieval", varied), queries("b", "retrieval", same)]
    pairs = pa.concat_tables(groups)
    found = diversity(pairs, runs=200, texts=50)
    assert list(found) == [("a", "retrieval", "eng"), ("b", "retrieval", "eng")]
    one, other = found.values()
    for name in ("distinct_2", "distinct_3"):
        assert one[name] > 2 * other[name]
    assert one["self_jaccard"] < 0.2 < 0.6 < other["self_jaccard"]


def test_the_sample_does_not_depend_on_the_order_of_rows():
    texts = [f"{a} {b} {c}" for a in "abcde" for b in "fghij" for c in "klmno"]
    pairs = queries("a", "sts", texts)
    turned = pairs.take(pa.array(np.random.default_rng(1).permutation(len(texts))))
    assert diversity(pairs, runs=100, texts=40) == diversity(turned, runs=100, texts=40)


def test_no_rows_give_no_figures():
    assert diversity(queries("a", "sts", [])) == {}
