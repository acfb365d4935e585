"""Reading a mix: row numbers over shards, texts as the encoder sees them, and the batch plan."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_mix import document, row, write_rows, write_tiny_mix

from datagen.schema import MIX_DOCUMENT, MIX_ROW, UserError
from datagen.store import Folder, read_manifest, read_table
from trainer.batches import batch_plan
from trainer.data import Example, StageData
from trainer.distinct import Positives
from trainer.rows import Rows

DOCUMENTS = [document(f"text {i}", title=f"title {i}" if i % 2 else None) for i in range(10)]


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny_mix(tmp_path_factory.mktemp("mix"))


def one(tmp_path: Path, *rows: dict, negatives: int = 4) -> StageData:
    return StageData(
        write_rows(tmp_path, DOCUMENTS, rows_per_shard=3, finetune=list(rows)),
        "finetune",
        negatives=negatives,
    )


def test_a_retrieval_row_as_the_encoder_sees_it(tmp_path):
    data = one(tmp_path, row("how many moons?", [7], [0, 9, 3, 4, 5]), negatives=3)
    assert data.examples([0], seed=0, epoch=0) == [
        Example(
            query_id=row("how many moons?", [7], [])["query_id"],
            task="retrieval",
            in_batch=True,
            documents=(7, 0, 9, 3),
            clusters=tuple(DOCUMENTS[n]["cluster"] for n in (7, 0, 9, 3)),
            scores=pytest.approx((0.9, 0.5, 0.5, 0.5)),
            known=(7,),
            query="Instruct: Given a question, retrieve passages that answer the question.\n"
            "Query: how many moons?",
            positive="title 7\ntext 7",
            negatives=("text 0", "title 9\ntext 9", "title 3\ntext 3"),
        )
    ]


def test_drawn_negatives_repeat_with_their_seed_and_differ_by_epoch(tmp_path):
    folder = write_rows(
        tmp_path, DOCUMENTS, finetune=[row("how many moons?", [7], [0, 9, 3, 4, 5])]
    )
    data = StageData(folder, "finetune", negatives=3, draw=True)
    draws = [
        data.examples([0], seed=0, epoch=epoch)[0].documents[1:] for epoch in (0, 0, *range(9))
    ]
    assert draws[0] == draws[1]
    assert len(set(draws)) > 3
    assert all(len(set(draw)) == 3 and set(draw) <= {0, 9, 3, 4, 5} for draw in draws)


@pytest.mark.parametrize("task", ["sts", "bitext"])
def test_documents_of_a_symmetric_row_carry_the_instruction(tmp_path, task):
    data = one(tmp_path, row("two moons", [2], [4], task=task, symmetric=True))
    (example,) = data.examples([0], seed=0, epoch=0)
    head = example.query.removesuffix("two moons")
    assert head.startswith("Instruct: Retrieve ")
    assert (example.positive, example.negatives) == (f"{head}text 2", (f"{head}text 4",))


def test_a_row_that_is_not_symmetric_has_raw_documents_in_any_task(tmp_path):
    data = one(tmp_path, row("two moons", [2], [4], task="bitext", symmetric=False))
    assert data.examples([0], seed=0, epoch=0)[0].positive == "text 2"


def test_a_row_with_fewer_negatives_uses_what_it_has(tmp_path):
    data = one(tmp_path, row("a", [0], [1, 2]), row("b", [0], [1, 2, 3, 4, 5]))
    assert [len(e.negatives) for e in data.examples([0, 1], seed=0, epoch=0)] == [2, 4]


def test_rows_that_teach_nothing_are_skipped_and_counted(tmp_path, caplog):
    rows = [row("a", [0], []), row("b", [], [1]), row("c", [], []), row("d", [0], [1])]
    data = one(tmp_path, *rows)
    assert data.skipped == {"no_positive": 2, "no_negative": 1}
    assert "no_negative" in caplog.text
    (batch,) = data.plan(seed=0, epoch=0, batch_size=8)
    assert batch.tolist() == [3]
    with pytest.raises(UserError, match="no row of"):
        one(tmp_path / "empty", row("a", [0], []))


def test_row_numbers_run_over_all_shards(mix):
    data = StageData(mix, "pretrain", negatives=1)
    assert len(read_manifest(Folder(mix)).table("pretrain")) > 3
    for number in (0, 6, 7, 39):
        (example,) = data.examples([number], seed=0, epoch=0)
        name = f"moon {chr(97 + number % 26)}{number}"
        assert example.query.endswith(f"which planet has {name}?")
        assert example.positive.startswith(f"{name}\n")


def test_a_row_number_beyond_the_documents_is_refused(tmp_path):
    data = one(tmp_path, row("a", [0], [10]))
    with pytest.raises(UserError, match="from 0 to 9"):
        data.examples([0], seed=0, epoch=0)


def test_missing_texts_empty_ones_and_many_shards_are_read_like_arrow_reads_them(tmp_path):
    texts = ["", "ein Größe", "東京", "x" * 500, "\x00", ""]
    documents = [
        {**document(f"{t}{i}", title=[None, "", "T"][i % 3]), "text": t if i % 4 else ""}
        for i, t in enumerate(texts * 5)
    ]
    folder = write_rows(tmp_path, documents, rows_per_shard=4, finetune=[row("a", [0], [1])])
    rows = Rows(Folder(folder), "documents", MIX_DOCUMENT, ("title", "text"))
    at = np.random.default_rng(0).integers(0, 30, 200)
    for name in ("title", "text"):
        assert rows.strings(at, name) == [documents[i][name] for i in at]
    assert rows.strings(at[:0], "text") == []


def test_lists_are_read_like_arrow_reads_them(mix):
    names = ("positives", "positive_scores", "negatives", "negative_scores")
    rows = Rows(Folder(mix), "finetune", MIX_ROW, names)
    table = read_table(Folder(mix), "finetune")
    at = np.random.default_rng(0).integers(0, len(table), 50)
    for name in names:
        own = [table[name][i].as_py() for i in at.tolist()]
        for most in (None, 1):
            values, counts = rows.lists(at, name, most=most)
            assert counts.tolist() == [len(some[:most]) for some in own]
            assert values.tolist() == [value for some in own for value in some[:most]]


def test_a_damaged_shard_is_an_error_and_no_wild_read(tmp_path):
    folder = write_rows(tmp_path, DOCUMENTS, finetune=[row("a", [0], [1, 2])])
    (path,) = tmp_path.glob("finetune-*.arrow")
    rows = Rows(Folder(folder), "finetune", MIX_ROW, ("query",))
    assert rows.strings(np.array([0]), "query") == ["a"]
    first = rows._files[0].address - rows._bytes.ctypes.data
    at = int(rows._columns["query"].offsets[0]) - first  # of the texts' ends in the file
    whole = path.read_bytes()
    assert whole[at : at + 8] == np.array([0, 1], np.int32).tobytes()
    path.write_bytes(whole[: at + 4] + np.int32(2**30).tobytes() + whole[at + 8 :])
    with pytest.raises(UserError, match="outside of their shard"):
        Rows(Folder(folder), "finetune", MIX_ROW, ("query",)).strings(np.array([0]), "query")


def test_a_mix_without_the_stage_is_refused(tmp_path):
    folder = write_rows(tmp_path, DOCUMENTS, finetune=[row("a", [0], [1])])
    with pytest.raises(UserError, match="no rows in 'pretrain'"):
        StageData(folder, "pretrain", negatives=1)


def test_each_epoch_draws_a_positive_and_the_same_seed_the_same_one(tmp_path):
    data = one(tmp_path, *[row(f"q{i}", [0, 2, 4], [1]) for i in range(40)])
    drawn = [
        [e.positive for e in data.examples(range(40), seed=seed, epoch=epoch)]
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2] != drawn[3] != drawn[0]
    assert set(drawn[0]) == {"text 0", "text 2", "text 4"}


def test_a_plan_of_two_tasks_by_hand():
    tasks = np.array([0] * 7 + [1] * 3)
    sources = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    plan = batch_plan(tasks, sources, seed=0, epoch=0, batch_size=3)
    found = sorted([sorted({(tasks[r], sources[r]) for r in b}), len(b)] for b in plan)
    # Full batches of sources 0, 1 and 2, and what is left of source 0.
    assert found == [[[(0, 0)], 1], [[(0, 0)], 3], [[(0, 1)], 3], [[(1, 2)], 3]]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=80),
    st.integers(1, 9),
    st.integers(0, 5),
)
def test_every_row_once_homogeneous_and_reproducible(keys, batch_size, seed):
    tasks, sources = np.array(keys).T
    plan = batch_plan(tasks, sources, seed=seed, epoch=1, batch_size=batch_size)
    again = batch_plan(tasks, sources, seed=seed, epoch=1, batch_size=batch_size)
    assert [b.tolist() for b in plan] == [b.tolist() for b in again]
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(keys)))
    assert all(len(set(tasks[b])) == 1 for b in plan)
    smaller = [len(b) < batch_size for b in plan]
    assert sum(smaller) <= len(set(tasks)), "at most one smaller batch for each task"
    mixed = sum(len(set(sources[b])) > 1 for b in plan)
    assert mixed <= len(set(keys)), "only remainders of sources share a batch"


def test_seed_and_epoch_change_the_plan_and_max_rows_takes_a_part():
    keys = np.zeros(200, dtype=int)
    plans = [
        np.concatenate(batch_plan(keys, keys, seed=s, epoch=e, batch_size=8, max_rows=50)).tolist()
        for s, e in ((0, 0), (0, 1), (1, 0))
    ]
    assert all(len(set(p)) == 50 for p in plans)
    assert set(plans[0]) != set(plans[1]) != set(plans[2])


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=24, max_size=120),
    st.integers(2, 6),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_no_batch_has_a_positive_twice_where_batches_enough_could_take_it(pairs, batch_size, seed):
    """Rows of one or two positives; a document that more rows have than half the batches is cut."""
    most, seen, rows = len(pairs) // batch_size // 4, Counter(), []
    for pair in pairs:
        documents = sorted({document for document in pair if seen[document] < most})
        seen.update(documents)
        rows.append(documents)
    starts = np.cumsum([0, *map(len, rows)])
    positives = Positives(np.array([d for row in rows for d in row], np.int32), starts)
    keys = np.zeros(len(rows), np.int16)
    how = {"seed": seed, "epoch": 1, "batch_size": batch_size, "positives": positives}
    plan = batch_plan(keys, keys, **how)
    assert sorted(np.concatenate(plan).tolist()) == list(range(len(rows)))
    assert all((a == b).all() for a, b in zip(plan, batch_plan(keys, keys, **how), strict=True))
    assert {len(batch) for batch in plan[:-1]} <= {batch_size, len(rows) % batch_size}
    for batch in plan:
        found = Counter(document for row in batch for document in rows[row])
        assert not found or max(found.values()) == 1


def test_a_row_that_would_repeat_a_positive_moves_to_another_batch(tmp_path):
    """Two queries of one document never meet; labels of classification may be shared."""
    documents = [document(f"text {i}") for i in range(20)]
    rows = [row(f"q{i}", [i % 10], [10 + i % 10]) for i in range(20)]
    labels = [row(f"s{i}", [0], [1], task="sts") for i in range(4)]  # in_batch is false
    data = StageData(
        write_rows(tmp_path, documents, finetune=rows + labels), "finetune", negatives=1
    )
    for seed in range(20):
        plan = data.plan(seed=seed, epoch=0, batch_size=4)
        positives = [[i % 10 for i in batch if i < 20] for batch in plan]
        assert all(len(set(some)) == len(some) for some in positives)
        assert sorted(map(len, plan)) == [4] * 6


def test_a_document_of_every_row_stays_and_is_masked():
    positives = Positives(np.zeros(12, np.int32), np.arange(13))
    keys = np.zeros(12, np.int16)
    plan = batch_plan(keys, keys, seed=0, epoch=0, batch_size=4, positives=positives)
    assert sorted(np.concatenate(plan).tolist()) == list(range(12))
