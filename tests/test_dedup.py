import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datagen import minhash
from datagen.cli import main
from datagen.dedup import dedup, dedup_files
from datagen.schema import PAIR, UserError, document_id, query_id
from datagen.steps import Step, run_steps
from datagen.store import Folder, read_manifest, read_table

LONG = (
    "The river rises in the northern hills, passes three small towns with old stone bridges, "
    "turns east at the mill, and after some forty miles reaches the sea in a wide bay where "
    "herons nest in spring and fishermen mend their nets on the shore all summer long."
)
EDITED = LONG.replace("herons", "storks")


def pairs_step(rows: list[dict], name: str = "pairs", rows_per_shard: int = 3) -> Step:
    """A step that holds these pairs; what they leave out is null, or the usual."""
    usual = {"source": "faq", "task": "retrieval", "origin": "public"}
    full = [{**dict.fromkeys(PAIR.names), **usual, **row} for row in rows]
    table = pa.Table.from_pylist(full, schema=PAIR)

    def write(context) -> None:
        context.write("pairs", table, PAIR, rows_per_shard=rows_per_shard)

    return Step(name=name, version=1, config={}, inputs={}, work=write)


def run(folder: Path, *steps: Step, executor="local") -> dict[str, list[dict]]:
    """Tables of the last step by name, as rows, and its ledger by source."""
    manifests = run_steps(steps, str(folder), executor=executor)
    last = steps[-1]
    place = Folder(str(folder)).folder(last.place)
    tables = {shard.table for shard in manifests[last.name].shards}
    found = {table: read_table(place, table).to_pylist() for table in tables}
    for table in ("queries", "documents", "duplicates"):
        found.setdefault(table, [])
    return {**found, "ledger": {row["source"]: row for row in manifests[last.name].ledger}}


def deduped(folder: Path, rows: list[dict], **options) -> dict[str, list[dict]]:
    pairs = pairs_step(rows)
    return run(folder, pairs, dedup(pairs, **options))


def asked(found: dict) -> dict[str, set[str]]:
    """Texts of the positives of each query text."""
    texts = {row["doc_id"]: row["text"] for row in found["documents"]}
    return {row["query"]: {texts[d] for d in row["positives"]} for row in found["queries"]}


def test_equal_queries_become_one_row_with_all_positives(tmp_path):
    rows = [
        {"query": "capital of France?", "text": "Paris is the capital.", "source": "a"},
        {"query": "capital  of France?", "text": "Paris is\nthe capital.", "source": "b"},
        {"query": "capital of France?", "text": "It is the city of Paris.", "source": "b"},
    ]
    found = deduped(tmp_path, rows)
    (query,) = found["queries"]
    assert query["query_id"] == query_id("retrieval", "capital of France?")
    assert query["positives"] == sorted(
        [document_id(None, "Paris is the capital."), document_id(None, "It is the city of Paris.")]
    )
    kept = {name: (row["kept"], row["dropped"]) for name, row in found["ledger"].items()}
    assert kept == {"a": (1, {}), "b": (1, {"exact_duplicate": 1})}


def test_near_duplicates_on_both_sides_are_one_pair_and_on_one_side_two(tmp_path):
    found = deduped(tmp_path / "both", [
        {"query": "How long is the river?", "text": LONG},
        {"query": "how long is the river", "text": EDITED},
    ])  # fmt: skip
    assert asked(found) == {"How long is the river?": {LONG}}
    assert found["ledger"]["faq"]["dropped"] == {"near_duplicate": 1}
    assert {(row["side"], row["kind"]) for row in found["duplicates"]} == {
        ("document", "near"), ("query", "exact"),
    }  # fmt: skip

    one_side = deduped(tmp_path / "one", [
        {"query": "How long is the river?", "text": LONG},
        {"query": "Where do herons nest?", "text": EDITED},
        {"query": "how long is the river", "text": "Some forty miles."},
    ])  # fmt: skip
    assert one_side["ledger"]["faq"]["kept"] == 3
    clusters = {row["text"]: row["cluster"] for row in one_side["documents"]}
    assert clusters[LONG] == clusters[EDITED] != clusters["Some forty miles."]
    groups = {row["query"]: row["cluster"] for row in one_side["queries"]}
    assert groups["How long is the river?"] == groups["how long is the river"]


def test_short_texts_that_differ_in_one_word_or_number_are_different(tmp_path):
    rows = [
        {"query": query, "text": "See the manual."}
        for query in ("Add user", "Add group", "Error 404", "Error 405", "Learn C", "Learn C++")
    ]
    found = deduped(tmp_path, rows)
    assert found["ledger"]["faq"]["kept"] == 6
    assert len({row["cluster"] for row in found["queries"]}) == 6


def test_the_best_source_describes_what_is_kept(tmp_path):
    rows = [
        {"query": "Which bridge?", "text": "The old one.", "source": "scraped", "licence": "?"},
        {"query": "Which bridge?", "text": "The old one.", "source": "curated", "licence": "MIT"},
        {"query": "Which bridge?", "text": "The old one.", "source": "aaa", "origin": "synthetic"},
    ]
    found = deduped(tmp_path, rows, source_priority=("curated",))
    assert [(q["source"], q["licence"]) for q in found["queries"]] == [("curated", "MIT")]
    assert [d["source"] for d in found["documents"]] == ["curated"]


def test_labels_depend_on_the_data_set_and_translations_on_the_language(tmp_path):
    rows = [
        {"query": "great phone", "text": "positive", "task": "classification", "source": "a"},
        {"query": "great phone", "text": "electronics", "task": "classification", "source": "b"},
        {"query": "tree", "text": "Baum", "task": "bitext", "document_language": "deu"},
        {"query": "tree", "text": "arbre", "task": "bitext", "document_language": "fra"},
    ]
    found = deduped(tmp_path, rows)
    assert len(found["queries"]) == 4
    assert {d["text"]: d["language"] for d in found["documents"]}["Baum"] == "deu"


def test_given_negatives_stay_in_order_and_are_never_positives(tmp_path):
    def side(text):
        return {"title": None, "text": text}

    rows = [
        {"query": "q one", "text": LONG, "negatives": [side("second"), side("first")]},
        {"query": "q one", "text": LONG, "negatives": [side("third"), side("second")]},
        {"query": "q one", "text": "another answer", "negatives": [side(EDITED)]},
        {"query": "q two", "text": "first", "negatives": [side("another answer")]},
    ]
    found = deduped(tmp_path, rows)
    texts = {row["doc_id"]: row["text"] for row in found["documents"]}
    negatives = {q["query"]: [texts[d] for d in q["given_negatives"]] for q in found["queries"]}
    # Equal pairs are ordered by their content, so either list of the triplets may come first.
    assert negatives["q one"] in (["second", "first", "third"], ["third", "second", "first"])
    assert negatives["q two"] == ["another answer"]
    assert EDITED not in texts.values()  # it resembles a positive, and no query names it


OLD = [
    {"query": "How long is the river?", "text": LONG, "source": "old"},
    {"query": "Where do herons nest?", "text": "In the bay.", "source": "old"},
]


def test_new_rows_against_old_leave_the_old_as_they_are(tmp_path):
    pairs = pairs_step(OLD)
    first = dedup(pairs)
    new = [
        {"query": "How long is the river?", "text": LONG},
        {"query": "HOW LONG is the river", "text": EDITED},
        {"query": "How long is the river?", "text": "About forty miles."},
        {"query": "Who mends the nets?", "text": LONG},
    ]
    more = pairs_step([{**row, "source": "llm", "origin": "synthetic"} for row in new], "more")
    second = dedup(more, against=first, name="together")
    found = run(tmp_path, pairs, first, more, second)

    ledger = found["ledger"]
    assert list(ledger) == ["llm"]
    assert (ledger["llm"]["kept"], ledger["llm"]["dropped"]) == (
        2, {"exact_duplicate_of_old": 1, "near_duplicate_of_old": 1},
    )  # fmt: skip
    root = Folder(str(tmp_path))
    for table in ("queries", "documents"):
        old, new_shards = (
            read_manifest(root.folder(s.place)).table(table) for s in (first, second)
        )
        assert [s.sha256 for s in new_shards][: len(old)] == [s.sha256 for s in old]
    ids = [row["query_id"] for row in found["queries"]]
    assert len(set(ids)) == len(ids) == 4
    again = [row for row in found["queries"] if row["query"] == "How long is the river?"]
    assert again[0]["cluster"] == again[1]["cluster"] == again[0]["query_id"]
    assert again[1]["positives"] == [document_id(None, "About forty miles.")]
    (nets,) = [row for row in found["queries"] if row["query"] == "Who mends the nets?"]
    assert nets["positives"] == [document_id(None, LONG)]
    assert len(found["documents"]) == 3


def test_a_query_can_be_asked_again_many_times(tmp_path):
    steps = [pairs_step([{"query": "why?", "text": "answer 0"}], "pairs0")]
    steps.append(dedup(steps[0], name="dedup0"))
    for i in (1, 2):
        steps.append(pairs_step([{"query": "why?", "text": f"answer {i}"}], f"pairs{i}"))
        steps.append(dedup(steps[-1], against=steps[-2], name=f"dedup{i}"))
    found = run(tmp_path, *steps)
    assert len({row["query_id"] for row in found["queries"]}) == 3
    assert len({row["cluster"] for row in found["queries"]}) == 1


def test_public_shards_do_not_depend_on_synthetic_rows(tmp_path):
    rows = [{"query": f"question {i}", "text": f"answer {i}"} for i in range(5)]
    made = [{"query": f"made {i}", "text": "answer 1", "origin": "synthetic"} for i in range(5)]
    shards = []
    for name, extra in (("without", []), ("with", made)):
        pairs = pairs_step(rows + extra)
        step = dedup(pairs, rows_per_shard=4)
        manifest = run_steps([pairs, step], str(tmp_path / name), executor="local")["dedup"]
        shards.append([s.sha256 for t in ("queries", "documents") for s in manifest.table(t)[:2]])
    assert shards[0] == shards[1]


def test_no_pairs_at_all(tmp_path):
    found = deduped(tmp_path, [])
    assert found["queries"] == found["documents"] == [] and found["ledger"] == {}


TEXTS = ["Add user", "add user!", "Add group", LONG, EDITED, LONG.upper(), "Error 404", "Error 405"]
ROWS = st.lists(
    st.fixed_dictionaries({
        "query": st.sampled_from(TEXTS),
        "text": st.sampled_from(TEXTS),
        "source": st.sampled_from(["a", "b"]),
        "origin": st.sampled_from(["public", "synthetic"]),
        "task": st.sampled_from(["retrieval", "classification"]),
        "negatives": st.lists(
            st.fixed_dictionaries({"title": st.none(), "text": st.sampled_from(TEXTS)}), max_size=2
        ),
    }),
    max_size=10,
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=ROWS, seed=st.integers(0, 99))
def test_order_never_changes_the_output_and_nothing_is_lost(rows, seed, tmp_path_factory):
    shuffled = random.Random(seed).sample(rows, len(rows))
    tables = ("queries", "documents", "duplicates")
    found = [deduped(tmp_path_factory.mktemp("order"), part) for part in (rows, shuffled)]
    assert [found[0][t] for t in tables] == [found[1][t] for t in tables]
    assert found[0]["ledger"] == found[1]["ledger"]
    assert sum(row["rows_in"] for row in found[0]["ledger"].values()) == len(rows)
    kept = sum(row["kept"] for row in found[0]["ledger"].values())
    assert kept == sum(len(row["positives"]) for row in found[0]["queries"])
    known = {row["doc_id"] for row in found[0]["documents"]}
    for row in found[0]["queries"]:
        assert {*row["positives"], *row["given_negatives"]} <= known
        assert not {*row["positives"]} & {*row["given_negatives"]}
    for key, table in (("query_id", "queries"), ("doc_id", "documents")):
        ids = {row[key] for row in found[0][table]}
        assert {row["cluster"] for row in found[0][table]} <= ids


def test_a_cluster_whose_leader_went_is_named_after_its_best_query(tmp_path):
    """The query in small letters leads, but its only pair is a near-duplicate of a longer one; of
    those that stay the public one names the cluster, every time."""
    rows = [
        {"query": LONG, "text": "Add user"},
        {"query": LONG.upper(), "text": "add user!"},
        {"query": EDITED, "text": "Add group", "origin": "synthetic"},
    ]
    rows += [{"query": f"question {i}", "text": f"answer {i}"} for i in range(40)]
    for seed in range(6):
        shuffled = random.Random(seed).sample(rows, len(rows))
        found = deduped(tmp_path / str(seed), shuffled)["queries"]
        clusters = {row["query"]: row["cluster"] for row in found}
        (leader,) = (row["query_id"] for row in found if row["query"] == LONG.upper())
        assert LONG not in clusters
        assert clusters[LONG.upper()] == clusters[EDITED] == leader


def test_ray_writes_the_same_bytes(tmp_path, ray_session):
    rows = [{"query": TEXTS[i % 8], "text": TEXTS[i // 8]} for i in range(64)]
    digests = set()
    for executor in ("local", "ray"):
        pairs = pairs_step(rows, rows_per_shard=7)
        step = dedup(pairs)
        manifests = run_steps([pairs, step], str(tmp_path / executor), executor=executor)
        digests.add(manifests["dedup"].digest)
    assert len(digests) == 1


def files(folder: Path) -> dict[str, list[dict]]:
    return {path.stem: pq.read_table(path).to_pylist() for path in folder.glob("*.parquet")}


def test_files_keep_the_first_row_of_every_text(tmp_path):
    rows = [
        {"id": "a", "text": LONG, "n": 1},
        {"id": "b", "text": "Add user", "n": 2},
        {"id": "c", "text": "Add  user", "n": 3},
        {"id": "d", "text": EDITED, "n": 4},
        {"id": "e", "text": None, "n": 5},
        {"id": "f", "text": "Add group", "n": 6},
        {"id": "g", "text": "ADD USER!", "n": 7},
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    counts = dedup_files([str(source)], str(tmp_path / "out"))
    assert counts == {"rows": 8, "kept": 3, "removed": 3, "exact": 1, "near": 2, "quarantined": 2}
    found = files(tmp_path / "out")
    assert found["kept"] == [rows[0], rows[1], rows[5]]
    removed = [(r["id"], r["row"], r["duplicate_of"], r["kind"]) for r in found["removed"]]
    assert removed == [("c", 2, "b", "exact"), ("d", 3, "a", "near"), ("g", 6, "b", "near")]
    assert [0.8 < r["similarity"] < 1 for r in found["removed"]] == [False, True, False]
    assert {row["reason"] for row in found["quarantine"]} >= {"text_not_text"}


def test_files_without_ids_name_rows(tmp_path):
    pq.write_table(pa.table({"body": ["same", "other", "same"]}), tmp_path / "in.parquet")
    dedup_files([str(tmp_path / "in.parquet")], str(tmp_path / "out"), text_column="body")
    (removed,) = files(tmp_path / "out")["removed"]
    assert (removed["row"], removed["duplicate_of"], removed["kind"]) == (2, 0, "exact")
    assert "id" not in removed and not (tmp_path / "out" / "quarantine.parquet").exists()


@pytest.mark.parametrize("column", ["absent", "n"])
def test_a_column_without_text_is_named(tmp_path, column):
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "in.parquet")
    with pytest.raises(UserError, match="text") as error:
        dedup_files([str(tmp_path / "in.parquet")], str(tmp_path / "out"), text_column=column)
    assert error.value.exit_status == 2
    assert not (tmp_path / "out").exists()


def test_real_edits_are_found_and_real_rows_stay(shared_data, tmp_path):
    """One changed word in texts of 40 words and more: nearly all found, nothing else removed."""
    texts = pq.read_table(shared_data / "bitext" / "tico19.parquet")["text_b"].unique().to_pylist()
    long = [text for text in texts if len(text.split()) >= 40][:1000]
    dice = random.Random(5)
    edited = []
    for text in long:
        words = text.split(" ")
        words[dice.randrange(len(words))] = dice.choice(["water", "ville", "новый", "casa"])
        edited.append(" ".join(words))
    pq.write_table(pa.table({"text": long + edited}), tmp_path / "in.parquet")
    dedup_files([str(tmp_path / "in.parquet")], str(tmp_path / "out"))
    removed = files(tmp_path / "out")["removed"]
    right = [r for r in removed if r["row"] - r["duplicate_of"] == len(long)]
    assert len(right) >= 0.93 * len(long)
    assert len([r for r in removed if r["row"] < len(long)]) <= 0.02 * len(long)


def test_the_command_takes_the_fast_backend(tmp_path: Path, monkeypatch: Any) -> None:
    """It once kept a slower one than the function does, which only a stopwatch showed."""
    asked = []
    monkeypatch.setitem(
        minhash.BACKENDS, "numba", lambda *key: asked.append("numba") or minhash._numba(*key)
    )
    rows = pa.table({"text": ["one text that is long enough to be signed"]})
    pq.write_table(rows, tmp_path / "x.parquet")
    assert main(["dedup", str(tmp_path / "x.parquet"), "--output", str(tmp_path / "out")]) == 0
    assert asked


def test_the_command_loads_no_library_that_it_does_not_use(tmp_path):
    """pyarrow would import pandas to see whether a value is its own, numba scipy for its BLAS: half
    of the time that the command takes for a small file."""
    pq.write_table(pa.table({"text": ["one", "One", "two"]}), tmp_path / "few.parquet")
    program = (
        "import sys\nfrom datagen.cli import run\ntry:\n    run()\nexcept SystemExit:\n"
        "    print([name for name in ('pandas', 'scipy.linalg._misc') if name in sys.modules])"
    )
    command = ["dedup", str(tmp_path / "few.parquet"), "--output", str(tmp_path / "out")]
    done = [sys.executable, "-c", program, *command]
    out = subprocess.run(done, capture_output=True, text=True, check=True).stdout
    assert out.endswith("[]\n")
    assert pq.read_table(tmp_path / "out" / "kept.parquet")["text"].to_pylist() == ["one", "two"]
