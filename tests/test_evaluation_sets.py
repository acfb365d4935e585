import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_sources_hub import COMMIT, Hub, local_hub

from datagen.beir import BeirFolder
from datagen.evaluation_sets import distinct_sets, find_sets, listed_tasks, mteb_tasks
from datagen.hub_sets import HubSet
from datagen.schema import UserError
from datagen.sources import hub
from datagen.task_folders import TaskTexts

__all__ = ["local_hub"]  # a fixture

CORPUS = [
    {"_id": "d1", "title": "Bridge", "text": "Monks built the bridge."},
    {"_id": "d2", "title": "", "text": "A mill by the river."},
]
QUERIES = [
    {"_id": "q1", "text": "who built the bridge"},
    {"_id": "q2", "text": "a question of the training split"},
]
HEADER = "query-id\tcorpus-id\tscore\n"


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def texts(task: TaskTexts) -> set[tuple[str, str]]:
    return set(task.texts.select("kind", "text").iter_rows())


BRIDGE = {
    ("query", "who built the bridge"),
    ("document", "Monks built the bridge."),
    ("document", "Bridge\nMonks built the bridge."),
    ("document", "A mill by the river."),
}
PAIR = [("who built the bridge", "Monks built the bridge.")]


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir" / "bridges"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(lines(CORPUS), mtime=0))
    (folder / "queries.jsonl").write_bytes(lines(QUERIES))
    (folder / "qrels" / "test.tsv").write_text(HEADER + "q1\td1\t1\nq1\td2\t0\n")
    (folder / "qrels" / "train.tsv").write_text(HEADER + "q2\td2\t1\n")
    return folder


def test_a_beir_folder(beir):
    for place in (beir, beir.parent):
        (found,) = find_sets(str(place))
        assert isinstance(found, BeirFolder)
        task = found.read()
        assert task.name == "bridges"
        assert texts(task) == BRIDGE  # not the query that only the training split judges
        assert task.pairs.rows() == PAIR


def test_a_beir_folder_without_judgements_tests_with_all_queries(beir):
    for file in (beir / "qrels").iterdir():
        file.unlink()
    task = find_sets(str(beir))[0].read()
    assert {text for kind, text in texts(task) if kind == "query"} == {q["text"] for q in QUERIES}


def test_a_changed_beir_folder_has_another_digest(beir):
    before = find_sets(str(beir))[0].identity()
    assert before == find_sets(str(beir))[0].identity()
    (beir / "qrels" / "test.tsv").write_text(HEADER + "q1\td2\t1\n")
    assert find_sets(str(beir))[0].identity()[1] != before[1]


def test_a_broken_beir_folder_is_named(beir):
    (beir / "queries.jsonl").write_bytes(b'{"_id": "q1", "text": "a"}\n{broken\n')
    with pytest.raises(UserError, match=r"queries\.jsonl: 1 lines"):
        find_sets(str(beir))[0].read()
    (beir / "queries.jsonl").write_bytes(b'{"id": "q1", "text": "a"}\n')
    with pytest.raises(UserError, match="without _id"):
        find_sets(str(beir))[0].read()


def read_hub(state: Hub, name: str, **contents: bytes | list[dict]) -> TaskTexts:
    """The texts of `hub:org/qa...` when the dataset has these files (`__` for `/`)."""
    state.files.clear()
    for file, content in contents.items():
        path = file.replace("__", "/")
        data = content if isinstance(content, bytes) else parquet(content)
        state.files[path if "." in path else f"{path}-00000-of-00001.parquet"] = data
    (found,) = find_sets(name)
    return found.read()


def test_retrieval_on_the_hub(local_hub: Hub):
    qrels = [{"query-id": "q1", "corpus-id": "d1", "score": 1.0}]
    task = read_hub(
        local_hub, "hub:org/qa", corpus__corpus=CORPUS, queries__queries=QUERIES, data__test=qrels
    )
    assert texts(task) == BRIDGE and task.pairs.rows() == PAIR
    assert task.name == "org/qa"


def test_retrieval_in_two_languages_keeps_their_ids_apart(local_hub: Hub):
    german = [{"_id": "d1", "title": "", "text": "Mönche bauten die Brücke."}]
    asked = [{"_id": "q1", "text": "Wer baute die Brücke?"}]
    qrels = [{"query-id": "q1", "corpus-id": "d1", "score": 1}]
    files = {
        "en-corpus__test": CORPUS, "en-queries__test": QUERIES, "en-qrels__test": qrels,
        "de-corpus__test": german, "de-queries__test": asked, "de-qrels__test": qrels,
    }  # fmt: skip
    task = read_hub(local_hub, "hub:org/qa", **files)
    assert set(task.pairs.rows()) == {*PAIR, ("Wer baute die Brücke?", "Mönche bauten die Brücke.")}
    only = read_hub(local_hub, "hub:org/qa/de", **files)
    assert only.pairs.rows() == [("Wer baute die Brücke?", "Mönche bauten die Brücke.")]
    assert only.name == "org/qa/de"


def test_pairs_and_classes_on_the_hub(local_hub: Hub):
    sts = [{"sentence1": "A cat sleeps.", "sentence2": "A dog runs.", "score": 1.0, "id": "x"}]
    task = read_hub(local_hub, f"hub:org/qa@{COMMIT}", data__test=sts, data__train=sts * 2)
    assert texts(task) == {("query", "A cat sleeps."), ("document", "A dog runs.")}
    assert task.pairs.rows() == [("A cat sleeps.", "A dog runs.")]
    test = [{"text": "where is my parcel", "label": 3, "label_text": "track", "lang": "eng"}]
    train = [{"text": "please cancel it", "label": 1, "label_text": "cancel", "lang": "eng"}]
    task = read_hub(local_hub, "hub:org/qa", **{"test.jsonl": lines(test), "train": train})
    assert texts(task) == {("query", "where is my parcel")}
    lists = [{"sentences": ["one text", "another text"], "labels": ["a", "b"]}]
    task = read_hub(local_hub, "hub:org/qa", data__validation=lists)
    assert texts(task) == {("query", "one text"), ("query", "another text")}


def test_only_a_training_split_is_tested_with_when_there_is_no_other(local_hub: Hub):
    task = read_hub(local_hub, "hub:org/qa", data__train=[{"text": "please cancel it"}])
    assert texts(task) == {("query", "please cancel it")}


@pytest.mark.parametrize(
    ("name", "found", "status"),
    [
        ("hub:org/gated", "gated", 1),
        ("hub:org/absent", "does not exist", 1),
        ("hub:org/qa@v9", "v9", 1),
        ("hub:org/qa/klingon", "klingon", 1),
        ("hub:qa", "hub:qa", 2),
        ("mteb:Karaoke", "Karaoke", 2),
    ],
)
def test_what_cannot_be_read_is_said(local_hub: Hub, name: str, found: str, status: int):
    with pytest.raises(UserError) as raised:
        find_sets(name)[0].read()
    assert found in raised.value.found and raised.value.do
    assert raised.value.exit_status == status


def test_a_file_is_no_evaluation_set(tmp_path):
    (tmp_path / "task.json").write_text("{}")
    with pytest.raises(UserError, match="is a file"):
        find_sets(str(tmp_path / "task.json"))


def test_a_dataset_without_text_is_said(local_hub: Hub):
    with pytest.raises(UserError, match="column of text"):
        read_hub(local_hub, "hub:org/qa", data__test=[{"id": "a", "label": 1}])


def test_the_digest_of_a_hub_set_is_of_its_commit(local_hub: Hub):
    (branch,), (commit,) = find_sets("hub:org/qa"), find_sets(f"hub:org/qa@{COMMIT}")
    assert branch.identity() == commit.identity()
    assert find_sets("hub:org/qa/x")[0].identity()[1] != commit.identity()[1]


def test_benchmarks_by_name_need_no_network(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    hub.resolve_commit.cache_clear()
    english = find_sets("mteb:MTEB(eng, v2)")
    assert len(english) == 41 and len(find_sets("mteb:MTEB(Multilingual, v2)")) == 131
    assert len(distinct_sets(english)) == 41
    (one,) = find_sets("mteb:ArguAna")
    assert isinstance(one, HubSet)
    assert (one.repo, one.splits, one.name) == ("mteb/arguana", ("test",), "ArguAna")


def test_the_list_is_what_mteb_says():
    mteb = pytest.importorskip("mteb")
    for benchmark in ("MTEB(Multilingual, v2)", "MTEB(eng, v2)"):
        tasks = mteb.get_benchmark(benchmark).tasks
        expected = {
            (t.metadata.name, t.metadata.dataset["path"], t.metadata.dataset["revision"])
            for t in tasks
        }
        listed = mteb_tasks(benchmark)
        assert {(t["name"], t["repo"], t["revision"]) for t in listed} == expected
    assert [task["name"] for task in listed_tasks()] == sorted(t["name"] for t in listed_tasks())
