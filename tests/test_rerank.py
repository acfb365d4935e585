"""A cross-encoder as the judge of mined negatives."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datagen.mine_input import read_mining_input
from datagen.rerank import estimate, judge_sample, load_reranker
from datagen.schema import UserError


def test_the_interval_covers_the_truth_though_negatives_of_a_query_fall_together():
    draw = np.random.default_rng(0)
    covered, naive = 0, 0
    for _ in range(300):
        rates = draw.beta(0.5, 2.0, 100)  # some queries are full of false negatives
        false = draw.binomial(20, rates)
        result = estimate(false.tolist(), [20] * 100)
        covered += result["low"] <= 0.2 <= result["high"]
        half = 1.96 * np.sqrt(result["rate"] * (1 - result["rate"]) / 2000)
        naive += abs(result["rate"] - 0.2) <= half
    assert covered >= 0.92 * 300 > naive


def test_no_false_negative_found_is_not_none_there():
    result = estimate([0] * 50, [24] * 50)
    assert result["rate"] == 0.0 and 0.0 == result["low"] < result["high"] < 0.1
    assert estimate([0], [0])["rate"] is None


@pytest.fixture
def reranker(tmp_path) -> str:
    """A BERT of two layers with random weights, as sentence-transformers saves it."""
    from tiny_encoder import tiny_tokenizer
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path / "reranker"
    config = BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_real_cross_encoder_judges_a_sample(tmp_path, reranker):
    documents = [{"doc_id": i, "text": f"the cat {i}"} for i in range(12)]
    queries = [{"query_id": i, "query": f"which cat {i}", "positives": [i]} for i in range(6)]
    for name, rows in (("q", queries), ("d", documents)):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    data = read_mining_input([str(tmp_path / "q.parquet")], [str(tmp_path / "d.parquet")])
    rows = [{"positives": [i], "negatives": [6 + i, (i + 1) % 6]} for i in range(6)]
    mined = pa.Table.from_pylist(rows)
    model = load_reranker(reranker)
    result = judge_sample(model, mined, data)
    scores = {
        (i, d): model.predict([(f"which cat {i}", f"the cat {d}")])[0]
        for i, row in enumerate(rows)
        for d in row["positives"] + row["negatives"]
    }
    false = sum(
        scores[i, d] >= scores[i, i] for i, row in enumerate(rows) for d in row["negatives"]
    )
    assert (result["queries"], result["negatives"]) == (6, 12)
    assert result["rate"] == pytest.approx(false / 12, abs=1e-4)
    assert result["low"] <= result["rate"] <= result["high"]


def test_a_folder_that_is_no_cross_encoder_is_named(tmp_path):
    with pytest.raises(UserError, match="no model folder"):
        load_reranker(str(tmp_path / "absent"))
