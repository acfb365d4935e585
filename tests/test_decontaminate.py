import json
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dedup import asked, files, pairs_step, run

from datagen.cli import main
from datagen.contamination import NO_KEY, evaluation_texts, text_keys
from datagen.decontaminate import decontaminate, decontaminate_files
from datagen.dedup import dedup
from datagen.holdout import HeldOut, hold_out
from datagen.schema import UserError
from datagen.steps import run_steps
from datagen.store import Folder, read_manifest
from datagen.task_folders import PAIRS, TaskTexts, as_texts, find_tasks, read_task

QUESTION = "who built the old stone bridge"
PASSAGE = "The old stone bridge was built by monks, who also kept the mill."


def write_task(folder: Path, type: str, **tables: list[dict]) -> Path:
    folder.mkdir(parents=True)
    (folder / "task.json").write_text(json.dumps({"name": folder.name, "type": type}))
    for name, rows in tables.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return folder


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    """Retrieval, STS and classification, one small task of each, in one folder."""
    write_task(
        tmp_path / "tasks" / "bridges",
        "retrieval",
        queries=[{"query_id": "q1", "text": QUESTION}, {"query_id": "q2", "text": "Yes?"}],
        documents=[
            {"doc_id": "d1", "title": "Bridge", "text": PASSAGE},
            {"doc_id": "d2", "title": None, "text": "No."},
        ],
        qrels=[
            {"query_id": "q1", "doc_id": "d1", "score": 1},
            {"query_id": "q2", "doc_id": "d2", "score": 1},
        ],
    )
    sts = [
        {"text_a": "A cat sleeps on a sofa.", "text_b": "A dog runs along a beach.", "score": 1.0}
    ]
    write_task(tmp_path / "tasks" / "similar", "sts", pairs=sts)
    write_task(
        tmp_path / "tasks" / "intents",
        "classification",
        train=[{"text": "please cancel my order today", "label": "cancel"}],
        test=[{"text": "where is my parcel right now", "label": "track"}],
    )
    return str(tmp_path / "tasks")


def cleaned(folder: Path, rows: list[dict], tasks: str, **options) -> dict:
    pairs = pairs_step(rows)
    first = dedup(pairs)
    found = run(folder, pairs, first, decontaminate(first, against=[tasks], **options))
    found.setdefault("removed", [])
    return found


@pytest.mark.parametrize(
    ("query", "text", "task", "kind"),
    [
        ("Who built the old stone bridge?", "Some monks.", "bridges", "query"),
        ("WHO BUILT — the old “stone” bridge", "Some monks.", "bridges", "query"),
        ("What about the bridge?", PASSAGE.upper(), "bridges", "document"),
        ("What about the bridge?", f"Bridge\n{PASSAGE}", "bridges", "document"),
        (PASSAGE, "a summary of it", "bridges", "document"),
        ("something else entirely", QUESTION, "bridges", "query"),
        ("a dog runs along a beach", "Ein Hund läuft am Strand.", "similar", "document"),
        ("where is my parcel right now", "shipping", "intents", "query"),
        ("Yes", "no", "bridges", "pair"),
        ("no", "yes", "bridges", "pair"),
    ],
)
def test_what_a_task_tests_with_is_removed(query, text, task, kind, tasks, tmp_path):
    found = cleaned(tmp_path / "out", [{"query": query, "text": text}], tasks)
    assert found["queries"] == []
    assert [(row["task"], row["kind"]) for row in found["removed"]] == [(task, kind)]
    (counts,) = found["ledger"].values()
    assert (counts["rows_in"], counts["kept"]) == (1, 0)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("please cancel my order today", "cancel"),  # train table: training data
        ("Yes", "of course"),  # says nothing alone
        ("who built the new stone bridge", "Engineers."),
        ("who built the old stone bridge and the mill", "Some monks."),
    ],
)
def test_what_no_task_tests_with_stays(query, text, tasks, tmp_path):
    found = cleaned(tmp_path / "out", [{"query": query, "text": text}], tasks)
    assert asked(found) == {query: {text}} and found["removed"] == []


def test_lists_shrink_and_negatives_go(tasks, tmp_path):
    negatives = [{"title": "Bridge", "text": PASSAGE}, {"title": None, "text": "A new bridge."}]
    rows = [
        {"query": "bridges", "text": PASSAGE, "source": "wiki"},
        {"query": "bridges", "text": "Bridges span rivers.", "negatives": negatives},
        {"query": QUESTION, "text": "Bridges span rivers.", "source": "wiki"},
        {"query": "mills", "text": PASSAGE},
    ]
    found = cleaned(tmp_path / "out", rows, tasks)
    assert asked(found) == {"bridges": {"Bridges span rivers."}}
    texts = {row["doc_id"]: row["text"] for row in found["documents"]}
    assert set(texts.values()) == {"Bridges span rivers.", "A new bridge."}
    assert [texts[d] for d in found["queries"][0]["given_negatives"]] == ["A new bridge."]
    dropped = [row["dropped"] for row in found["ledger"].values()]
    # The better pair of "bridges" is of faq, so its pairs are counted there.
    assert sum(d.get("query_match", 0) for d in dropped) == 1
    assert sum(d.get("document_match", 0) for d in dropped) == 2


def test_the_report_mode_removes_nothing(tasks, tmp_path):
    found = cleaned(tmp_path / "out", [{"query": QUESTION, "text": "x y z"}], tasks, mode="report")
    assert len(found["queries"]) == 1 and found["removed"] == []
    assert [row["matched_text"] for row in found["matches"]] == [QUESTION]


def test_the_counts_by_task_and_source_are_kept(tasks, tmp_path):
    pairs = pairs_step([{"query": QUESTION, "text": "x y z", "source": "wiki"}])
    first = dedup(pairs)
    step = decontaminate(first, against=[tasks])
    manifest = run_steps([pairs, first, step], str(tmp_path / "out"), executor="local")[step.name]
    assert manifest.stats["decontamination"] == {
        "tasks": ["bridges", "intents", "similar"],
        "matches": {"bridges": {"wiki": 1}},
        "kinds": {"query": 1},
    }
    assert set(manifest.config["tasks"]) == {"bridges", "intents", "similar"}


def test_tasks_of_an_earlier_step_are_kept_out(tmp_path):
    rows = [{"query": f"what is number {i} of them", "text": f"it is {i}"} for i in range(60)]
    pairs = pairs_step(rows, rows_per_shard=16)
    task = HeldOut(
        name="own", type="retrieval", source="faq", rows=20, instruction="i", licence="MIT"
    )
    held, first = hold_out(pairs, [task]), dedup(pairs)
    found = run(tmp_path, pairs, held, first, decontaminate(first, against=[held]))
    assert len(found["queries"]) == 40
    test_queries = pq.read_table(tmp_path / held.place / "tasks" / "own" / "queries.parquet")
    assert not {row["query"] for row in found["queries"]} & {*test_queries["text"].to_pylist()}


def test_public_shards_are_the_same_whatever_follows(tasks, tmp_path):
    pairs = pairs_step([{"query": f"query {i}", "text": f"text {i}"} for i in range(9)])
    clean = decontaminate(dedup_step := dedup(pairs), against=[tasks])
    more = pairs_step(
        [{"query": QUESTION, "text": "text 1", "origin": "synthetic"},
         {"query": "made up", "text": "text 1", "origin": "synthetic"}], "more",
    )  # fmt: skip
    both = dedup(more, against=clean, name="both")
    last = decontaminate(both, against=[tasks], name="last")
    run_steps([pairs, dedup_step, clean, more, both, last], str(tmp_path / "out"), executor="local")
    root = Folder(str(tmp_path / "out"))
    for table in ("queries", "documents"):
        old, new = (read_manifest(root.folder(s.place)).table(table) for s in (clean, last))
        assert [s.sha256 for s in new][: len(old)] == [s.sha256 for s in old]
    assert read_manifest(root.folder(last.place)).rows("queries") == 10


def test_ray_writes_the_same_bytes(tasks, tmp_path, ray_session):
    rows = [{"query": f"query {i % 7}", "text": f"text {i}"} for i in range(30)]
    rows += [{"query": QUESTION, "text": "text 1"}]
    digests = set()
    for executor in ("local", "ray"):
        pairs = pairs_step(rows, rows_per_shard=9)
        first = dedup(pairs, rows_per_shard=4)
        step = decontaminate(first, against=[tasks])
        done = run_steps([pairs, first, step], str(tmp_path / executor), executor=executor)
        digests.add(done[step.name].digest)
    assert len(digests) == 1


def test_files(tasks, tmp_path):
    rows = [
        {"query": "Who built the old stone bridge?", "positive": "Some monks.", "n": 1},
        {"query": "bridges", "positive": PASSAGE, "n": 2},
        {"query": "yes", "positive": "No", "n": 3},
        {"query": "yes", "positive": "Perhaps", "n": 4},
        {"query": None, "positive": "Perhaps", "n": 5},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    counts = decontaminate_files([str(tmp_path / "in.parquet")], [tasks], str(tmp_path / "out"))
    assert (counts["kept"], counts["removed"], counts["by_task"]) == (2, 3, {"bridges": 3})
    found = files(tmp_path / "out")
    assert [row["n"] for row in found["kept"]] == [4, 5]
    assert [(r["n"], r["task"], r["kind"], r["matched_text"]) for r in found["removed"]] == [
        (1, "bridges", "query", QUESTION),
        (2, "bridges", "document", PASSAGE),
        (3, "bridges", "pair", "Yes?"),
    ]


def test_files_with_columns_by_name(tasks, tmp_path):
    pq.write_table(
        pa.table({"body": [QUESTION, "free"], "task": ["a", "b"]}), tmp_path / "i.parquet"
    )
    inputs = [str(tmp_path / "i.parquet")]
    with pytest.raises(UserError, match="body") as error:
        decontaminate_files(inputs, [tasks], str(tmp_path / "out"))
    assert error.value.exit_status == 2
    decontaminate_files(inputs, [tasks], str(tmp_path / "out"), text_columns=["body"])
    (removed,) = files(tmp_path / "out")["removed"]
    assert (removed["input_task"], removed["task"]) == ("a", "bridges")


def test_unusable_task_folders_are_named(tasks, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no task\.json"):
        find_tasks(str(tmp_path / "empty"))
    write_task(tmp_path / "twice" / "similar", "sts", pairs=[{"text_a": "a", "text_b": "b"}])
    with pytest.raises(UserError, match="two tasks"):
        decontaminate(pairs_step([]), against=[tasks, str(tmp_path / "twice")])
    write_task(tmp_path / "bad" / "odd", "karaoke")
    with pytest.raises(UserError, match="karaoke"):
        read_task(find_tasks(str(tmp_path / "bad"))[0])
    write_task(tmp_path / "less" / "pairs", "sts", pairs=[{"text_a": "a"}])
    with pytest.raises(UserError, match="text_b"):
        read_task(find_tasks(str(tmp_path / "less"))[0])
    write_task(tmp_path / "none" / "pairs", "sts")
    with pytest.raises(UserError, match=r"pairs\.parquet"):
        decontaminate(pairs_step([]), against=[str(tmp_path / "none")])
    with pytest.raises(UserError, match="mode"):
        decontaminate(pairs_step([]), against=[tasks], mode="flag")
    assert len(find_tasks(tasks)) == 3 and len(find_tasks(f"{tasks}/similar")) == 1


RIVER = (
    "The river rises in the northern hills, passes three small towns with old stone bridges, "
    "turns east at the mill, and after some forty miles reaches the sea in a wide bay where "
    "herons nest in spring and fishermen mend their nets on the shore all summer long."
)
CHANGED = RIVER.replace("herons", "storks").replace("three", "five")


@pytest.fixture
def river(tmp_path: Path) -> str:
    """A retrieval task whose document is RIVER."""
    write_task(
        tmp_path / "river",
        "retrieval",
        queries=[{"query_id": "q1", "text": "where does the river end"}],
        documents=[{"doc_id": "d1", "title": "River", "text": RIVER}],
        qrels=[{"query_id": "q1", "doc_id": "d1", "score": 1}],
    )
    return str(tmp_path / "river")


def test_near_duplicates_go_and_are_counted_apart(river, tmp_path):
    rows = [
        {"query": "rivers", "text": CHANGED},
        {"query": CHANGED, "text": "a summary of it"},
        {"query": "the whole river", "text": RIVER},
        {"query": "towns", "text": "Towns have bridges."},
    ]
    found = cleaned(tmp_path / "out", rows, river)
    assert asked(found) == {"towns": {"Towns have bridges."}}
    assert found["ledger"]["faq"]["dropped"] == {
        "document_match": 1, "document_near_match": 1, "query_near_match": 1,
    }  # fmt: skip
    kinds = sorted((row["kind"], row["similarity"] < 1) for row in found["removed"])
    assert kinds == [("document", False), ("near_document", True), ("near_document", True)]
    exact = cleaned(tmp_path / "exact", rows, river, near=False)
    assert len(exact["queries"]) == 3


def test_the_tag_mode_keeps_all_and_says_which(river, tasks, tmp_path):
    rows = [
        {"query": "rivers", "text": CHANGED},
        {"query": QUESTION, "text": RIVER},
        {"query": "towns", "text": "Towns have bridges."},
    ]
    pairs = pairs_step(rows)
    first = dedup(pairs)
    step = decontaminate(first, against=[river, tasks], mode="tag")
    found = run(tmp_path / "out", pairs, first, step)
    assert len(found["queries"]) == len(found["documents"]) == 3 and "removed" not in found
    tags = [(r["query_id"] is None, r["tasks"], r["kinds"]) for r in found["tags"]]
    assert sorted(tags) == [
        (False, ["bridges"], ["query"]),
        (True, ["river"], ["document"]),
        (True, ["river"], ["near_document"]),
    ]
    assert len(found["matches"]) == 3
    assert all(row["dropped"] == {} for row in found["ledger"].values())


def written(folder: Path) -> dict[str, pa.Table]:
    return {file.name: pq.read_table(file) for file in sorted(folder.glob("*.parquet"))}


def test_modes_of_the_command(river, tmp_path):
    rows = [
        {"text": CHANGED, "source": "wiki"},
        {"text": RIVER, "source": "wiki"},
        {"text": "free", "source": "faq"},
    ]
    inputs = [str(tmp_path / "in.parquet")]
    pq.write_table(pa.Table.from_pylist(rows), inputs[0])
    found = {}
    for mode in ("drop", "tag", "report"):
        counts = decontaminate_files(inputs, [river], str(tmp_path / mode), mode=mode)
        found[mode] = written(tmp_path / mode)
        assert counts["matches"] == {"river": {"wiki": 2}}
        assert counts["by_kind"] == {"document": 1, "near_document": 1}
        assert counts["kept"] == (1 if mode == "drop" else 3)
    assert [sorted(found[mode]) for mode in found] == [
        ["kept.parquet", "removed.parquet"], ["rows.parquet"], ["matches.parquet"],
    ]  # fmt: skip
    removed, tagged = found["drop"]["removed.parquet"], found["tag"]["rows.parquet"]
    assert removed.equals(found["report"]["matches.parquet"])
    assert tagged["task"].to_pylist() == ["river", "river", None]
    assert tagged["kind"].to_pylist() == ["near_document", "document", None]
    assert tagged["similarity"][1].as_py() == 1.0 > tagged["similarity"][0].as_py()
    assert removed["matched_column"].to_pylist() == ["text", "text"]
    with pytest.raises(UserError, match="mode 'flag'"):
        decontaminate_files(inputs, [river], str(tmp_path / "x"), mode="flag")


def test_the_command_shows_what_it_found(river, tmp_path, capsys):
    pq.write_table(pa.table({"text": [CHANGED, "free"]}), tmp_path / "in.parquet")
    out = str(tmp_path / "out")
    arguments = ["decontaminate", str(tmp_path / "in.parquet"), "--against", river]
    assert main([*arguments, "--output", out]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["removed"] == 1
    assert shown.err.splitlines()[-2:] == [
        "evaluation set  input  all",
        "river               1    1",
    ]
    assert main(["decontaminate", "--explain", "3", "--output", out]) == 0
    shown = capsys.readouterr().out
    assert "[storks]" in shown and "[herons]" in shown and "near_document of river" in shown
    assert main(["decontaminate", "--output", out, str(tmp_path / "in.parquet")]) == 2
    assert "--against" in capsys.readouterr().err


def test_ray_finds_the_same_near_duplicates(river, tmp_path, ray_session):
    rows = [{"query": f"query {i}", "text": CHANGED.replace("bay", f"bay{i}")} for i in range(12)]
    rows += [{"query": f"other {i}", "text": f"text {i}"} for i in range(12)]
    digests = set()
    for executor in ("local", "ray"):
        pairs = pairs_step(rows, rows_per_shard=5)
        first = dedup(pairs, rows_per_shard=4)
        step = decontaminate(first, against=[river])
        done = run_steps([pairs, first, step], str(tmp_path / executor), executor=executor)
        digests.add(done[step.name].digest)
        assert done[step.name].rows("queries") == 12
    assert len(digests) == 1


def test_short_questions_without_blanks_are_not_generic():
    texts = as_texts("query", pl.Series(["什么是光合作用", "是的", "Yes", "???"]))
    task = TaskTexts(name="t", texts=texts, pairs=pl.DataFrame(schema=PAIRS))
    index = evaluation_texts([task])
    generic = dict(index.select("matched_text", "generic").iter_rows())
    assert generic == {"什么是光合作用": False, "是的": True, "Yes": True}


@settings(deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_case_punctuation_and_white_space_never_matter(text):
    if text.lower() != text.upper().lower():  # letters without a partner in the other case
        return
    keys = text_keys(pl.Series([text, f" {text.upper()} !", f"«{text.lower()}»\n"]))
    assert keys.n_unique() == 1
    assert keys[0] != NO_KEY or not any(c.isalnum() for c in text)


def test_real_tasks_are_caught_when_planted(shared_data, tmp_path):
    folder = shared_data / "tasks_dev"
    queries = pq.read_table(folder / "squad-dev-half" / "queries.parquet")["text"].to_pylist()
    clean = pq.read_table(shared_data / "retrieval" / "squad_dev_half.parquet")["query"].to_pylist()
    rows = [{"query": text.lower().rstrip("?"), "positive": "p"} for text in queries]
    rows += [{"query": text, "positive": "p"} for text in clean[:1000]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    tasks = [str(folder / "squad-dev-half")]
    counts = decontaminate_files([str(tmp_path / "in.parquet")], tasks, str(tmp_path / "out"))
    assert counts["removed"] == len(queries) and counts["kept"] == 1000
    assert counts["by_kind"] == {"query": len(queries)}
