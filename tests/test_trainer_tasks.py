"""Task folders are found, read and checked before any model is loaded."""

import json
from pathlib import Path

import polars as pl
import pytest
from tiny_encoder import write_task

from datagen.schema import UserError
from trainer.tasks import find_tasks, load_task

PAIRS = {"text_a": ["a", "b"], "text_b": ["c", "d"]}
QUERIES = {"query_id": ["q1", "q2"], "text": ["a", "b"]}
DOCUMENTS = {"doc_id": ["d1", "d2"], "title": ["", "t"], "text": ["c", "d"]}
QRELS = {"query_id": ["q1"], "doc_id": ["d1"], "score": [1]}
RETRIEVAL = {"queries": QUERIES, "documents": DOCUMENTS, "qrels": QRELS}
LABELLED = {"text": ["a", "b"], "label": ["x", "y"]}


def test_a_task_a_folder_of_tasks_and_a_benchmark(tmp_path: Path) -> None:
    one = write_task(tmp_path / "bench" / "tasks" / "one", "bitext", {"pairs": PAIRS})
    two = write_task(tmp_path / "bench" / "tasks" / "two", "retrieval", RETRIEVAL)
    assert find_tasks(one) == [one]
    assert find_tasks(str(tmp_path / "bench" / "tasks")) == [one, two]
    assert find_tasks([str(tmp_path / "bench"), one]) == [one, two]
    assert find_tasks(str(tmp_path / "bench"), only=["retrieval"]) == [two]


def test_what_a_task_holds(tmp_path: Path) -> None:
    task = load_task(write_task(tmp_path / "faq", "retrieval", RETRIEVAL))
    assert (task.name, task.type, task.languages) == ("faq", "retrieval", ("eng_Latn",))
    assert task.instruction == "Find it"
    assert task.rows == {"queries": 2, "documents": 2, "qrels": 1}


def test_numbers_as_ids_and_labels_and_titles_that_are_absent(tmp_path: Path) -> None:
    tables = {
        "queries": {"query_id": [1, 2], "text": ["a", "b"]},
        "documents": {"doc_id": [7, 8], "text": ["c", "d"]},
        "qrels": {"query_id": [1], "doc_id": [7], "score": [1.0]},
    }
    task = load_task(write_task(tmp_path / "faq", "retrieval", tables))
    assert task.tables["qrels"].to_pylist() == [{"query_id": "1", "doc_id": "7", "score": 1}]
    untitled = {**RETRIEVAL, "documents": {**DOCUMENTS, "title": [None, "t"]}}
    task = load_task(write_task(tmp_path / "untitled", "retrieval", untitled))
    assert task.tables["documents"]["title"].to_pylist() == ["", "t"]


BROKEN = {
    "a column is missing": (
        "retrieval",
        {**RETRIEVAL, "queries": {"query_id": ["q1"]}},
        r"queries\.parquet: no column 'text'",
    ),
    "a table is missing": (
        "classification",
        {"train": LABELLED},
        r"test\.parquet: no such file",
    ),
    "a null": (
        "sts",
        {"pairs": {**PAIRS, "text_b": ["c", None], "score": [1.0, 2.0]}},
        r"pairs\.parquet: column 'text_b' is null in row 1",
    ),
    "text where a number belongs": (
        "sts",
        {"pairs": {**PAIRS, "score": ["high", "low"]}},
        r"pairs\.parquet: column 'score' is (large_)?string",
    ),
    "numbers where text belongs": (
        "bitext",
        {"pairs": {**PAIRS, "text_a": [1, 2]}},
        r"pairs\.parquet: column 'text_a' is int64",
    ),
    "no rows": (
        "clustering",
        {"items": {"text": [], "label": []}},
        r"items\.parquet: no rows",
    ),
    "one label": (
        "clustering",
        {"items": {**LABELLED, "label": ["x", "x"]}},
        r"items\.parquet: column 'label' has one value",
    ),
    "labels that are not 0 and 1": (
        "pair_classification",
        {"pairs": {**PAIRS, "label": [1, 2]}},
        r"pairs\.parquet: column 'label' has the values \[1, 2\]",
    ),
    "a repeated id": (
        "retrieval",
        {**RETRIEVAL, "documents": {**DOCUMENTS, "doc_id": ["d1", "d1"]}},
        r"documents\.parquet: doc_id 'd1' occurs 2 times",
    ),
    "qrels of another set": (
        "retrieval",
        {**RETRIEVAL, "qrels": {**QRELS, "doc_id": ["z9"]}},
        r"qrels\.parquet: no doc_id is one of documents\.parquet \(first: 'z9'\)",
    ),
    "half a relevance": (
        "retrieval",
        {**RETRIEVAL, "qrels": {**QRELS, "score": [0.5]}},
        r"qrels\.parquet: column 'score'",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_table_is_named_with_its_column(tmp_path: Path, fault: str) -> None:
    kind, tables, message = BROKEN[fault]
    folder = write_task(tmp_path / "broken", kind, tables)
    with pytest.raises(UserError, match=message):
        load_task(folder)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"type": "reranking"}, r"task\.json: unknown type 'reranking'"),
        ({"type": None}, r"task\.json: type is None"),
        ({"name": ""}, r"task\.json: name is ''"),
        ({"languages": "eng_Latn"}, r"task\.json: languages is 'eng_Latn'"),
        ({"instruction": 7}, r"task\.json: instruction is 7"),
    ],
)
def test_a_broken_task_file_is_named_with_its_key(tmp_path: Path, head: dict, message: str) -> None:
    folder = tmp_path / "broken"
    write_task(folder, "bitext", {"pairs": PAIRS})
    fields = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps({**fields, **head}))
    with pytest.raises(UserError, match=message):
        find_tasks(str(folder))


def test_files_that_are_not_what_they_are_called(tmp_path: Path) -> None:
    folder = Path(write_task(tmp_path / "broken", "bitext", {"pairs": PAIRS}))
    (folder / "pairs.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"pairs\.parquet: not readable as parquet"):
        load_task(str(folder))
    (folder / "task.json").write_text("{")
    with pytest.raises(UserError, match=r"task\.json: not JSON"):
        load_task(str(folder))


def test_places_without_tasks_and_names_given_twice(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no task\.json"):
        find_tasks(str(tmp_path / "absent"))
    write_task(tmp_path / "a", "bitext", {"pairs": PAIRS})
    write_task(tmp_path / "b", "bitext", {"pairs": PAIRS}, name="a")
    with pytest.raises(UserError, match="two tasks named 'a'"):
        find_tasks(str(tmp_path))
    with pytest.raises(UserError, match="no task of type sts"):
        find_tasks(str(tmp_path / "a"), only=["sts"])
    with pytest.raises(UserError, match="task type summarisation") as error:
        find_tasks(str(tmp_path / "a"), only=["summarisation"])
    assert error.value.exit_status == 2


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    one = load_task(write_task(tmp_path / "x" / "t", "bitext", {"pairs": PAIRS}))
    same = load_task(write_task(tmp_path / "y" / "t", "bitext", {"pairs": PAIRS}))
    pl.DataFrame({**PAIRS, "text_b": ["c", "e"]}).write_parquet(tmp_path / "y/t/pairs.parquet")
    assert one.digest == same.digest != load_task(str(tmp_path / "y" / "t")).digest
