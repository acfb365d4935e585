"""Mining: each rule on hand-made vectors, everything against brute force, then the real encoder."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_made import document, mine_by_hand, query, write_tables
from hand_made import model as model
from ray_processes import ray_processes

from datagen.cli import main
from datagen.embedding_cache import EmbeddingCache
from datagen.mine import mine_negatives
from datagen.mine_files import mine_files
from datagen.mining_rules import percent_of_positive
from datagen.schema import UserError
from datagen.steps import Step, run_steps
from datagen.store import Folder, read_manifest

# --- hand-made vectors -------------------------------------------------------------------------


def test_the_ceiling_follows_the_lowest_positive_whatever_its_sign():
    lowest = np.array([0.8, 0.0, -0.4])
    np.testing.assert_allclose(percent_of_positive(lowest, 0.95), [0.76, 0.0, -0.42])


def test_negatives_are_the_best_documents_below_the_ceiling(tmp_path, model):
    documents = [document("right", 30), document("too-close", 10), document("just-over", 34.5)]
    documents += [document("near", 40), document("far", 80), document("opposite", 180)]
    mined, manifest = mine_by_hand(tmp_path, model, [query("q", 0, ["right"])], documents)
    assert mined["q"]["negatives"] == ["near", "far", "opposite"]
    assert mined["q"]["negative_scores"] == sorted(mined["q"]["negative_scores"], reverse=True)
    assert mined["q"]["positive_scores"] == [pytest.approx(np.cos(np.pi / 6), abs=1e-3)]
    facts = manifest.stats["mining"]["sources"]["s"]
    # too-close and just-over (cos 34.5° = 0.824 > 0.95 cos 30° = 0.823), of five candidates
    assert (facts["queries"], facts["ceiling_share_of_top"]) == (1, 0.4)
    assert sum(facts["positive_histogram"]) == 1 and sum(facts["negative_histogram"]) == 3


def test_a_negative_positive_score_still_puts_negatives_below_it(tmp_path, model):
    documents = [document("right", 100), document("higher", 99), document("lower", 120)]
    mined, _ = mine_by_hand(tmp_path, model, [query("q", 0, ["right"])], documents)
    assert mined["q"]["negatives"] == ["lower"]


def test_near_duplicates_of_a_positive_are_never_negatives(tmp_path, model):
    documents = [document("right", 10), document("copy", 60, cluster="right"), document("n", 70)]
    mined, manifest = mine_by_hand(tmp_path, model, [query("q", 0, ["right"])], documents)
    assert mined["q"]["negatives"] == ["n"]
    facts = manifest.stats["mining"]["sources"]["s"]
    assert {rule: n for rule, n in facts["caught"].items() if n} == {"positive_cluster": 1}


def test_positives_of_near_duplicate_queries_in_any_source_are_never_negatives(tmp_path, model):
    documents = [document("a", 0), document("b", 40), document("b-copy", 50, cluster="b")]
    documents.append(document("n", 60))
    queries = [
        query("q", 0, ["a"]),
        query("same-as-q", 40, ["b"], cluster="q", source="elsewhere"),
        query("other", 0, ["n"]),
    ]
    mined, manifest = mine_by_hand(tmp_path, model, queries, documents)
    assert mined["q"]["negatives"] == ["n"]
    assert mined["other"]["negatives"] == []  # all score above the ceiling of its distant positive
    assert manifest.stats["mining"]["sources"]["s"]["caught"]["query_cluster"] == 2
    assert set(manifest.stats["mining"]["sources"]) == {"s", "elsewhere"}


def test_given_negatives_come_first_under_no_ceiling_but_never_a_copy_of_the_positive(
    tmp_path, model
):
    documents = [document("right", 30), document("copy", 31, cluster="right")]
    documents += [document("wrong", 5), document("mined", 60)]
    queries = [query("q", 0, ["right"], given_negatives=["copy", "wrong"])]
    mined, manifest = mine_by_hand(tmp_path, model, queries, documents)
    assert mined["q"]["negatives"] == ["wrong", "mined"]
    facts = manifest.stats["mining"]["sources"]["s"]
    assert (facts["given"], facts["given_excluded"]) == (1, 1)


def test_no_more_negatives_than_asked_for(tmp_path, model):
    documents = [document("right", 0)] + [document(f"n{i}", 30 + i) for i in range(9)]
    queries = [query("q", 0, ["right"], given_negatives=["n8"])]
    mined, _ = mine_by_hand(tmp_path, model, queries, documents, negatives=3)
    assert mined["q"]["negatives"] == ["n8", "n0", "n1"]


def test_each_task_has_its_pool(tmp_path, model):
    label, german = {"task": "classification"}, {"task": "bitext", "language": "deu"}
    documents = [
        document("r", 10),
        document("r-other", 60, source="t"),
        document("good", 10, **label, source="s"),
        document("bad", 60, **label, source="s"),
        document("foreign", 50, **label, source="t"),
        document("hallo", 10, **german, script="Latn"),
        document("welt", 60, **german, script="Latn"),
        document("monde", 60, task="bitext", language="fra", script="Latn"),
    ]
    queries = [
        query("retrieval", 0, ["r"]),
        query("class", 0, ["good"], task="classification"),
        query("class-t", 0, ["good"], task="classification", source="t"),
        query("bitext", 0, ["hallo"], task="bitext", language="eng"),
    ]
    mined, _ = mine_by_hand(tmp_path, model, queries, documents)
    assert mined["retrieval"]["negatives"] == ["r-other"]
    assert mined["class"]["negatives"] == ["bad"]
    assert mined["class-t"]["negatives"] == [
        "foreign"
    ]  # the label that two sources share is in both
    assert mined["bitext"]["negatives"] == ["welt"]


def test_what_llms_wrote_never_changes_a_public_row(tmp_path, model):
    documents = [document(f"d{i}", 7 * i) for i in range(20)]
    queries = [query(f"q{i}", 7 * i + 1, [f"d{i}"]) for i in range(16)]
    made = {"origin": "synthetic", "source": "llm"}
    more_documents = [document(f"s{i}", 7 * i + 2, **made) for i in range(20)]
    more_queries = [query(f"z{i}", 7 * i, [f"d{i + 1}"], cluster=f"q{i}", **made) for i in range(9)]
    public, _ = mine_by_hand(tmp_path / "a", model, queries, documents)
    both, _ = mine_by_hand(
        tmp_path / "b", model, queries + more_queries, documents + more_documents
    )
    assert {name: both[name] for name in public} == public
    assert any(name.startswith("s") for name in both["z3"]["negatives"])


def test_everything_at_once_equals_brute_force(tmp_path, model):
    """Clusters, pools, origins and given negatives at random, against a loop over all pairs."""
    draw = np.random.default_rng(4)
    documents = [
        document(
            f"d{i:03d}",
            float(draw.uniform(0, 360)),
            cluster=f"d{i - i % 3:03d}" if i % 5 else f"d{i:03d}",
            origin="public" if i < 60 else "synthetic",
            task=str(draw.choice(["retrieval", "sts"])),
            source=str(draw.choice(["s", "t"])),
        )
        for i in range(90)
    ]
    queries = []
    for i in range(40):
        public = i < 25
        names = [d["doc_id"] for d in documents[: 60 if public else 90]]
        chosen = draw.choice(names, 4, replace=False).tolist()
        queries.append(
            query(
                f"q{i:03d}",
                float(draw.uniform(0, 360)),
                sorted(chosen[:2]),
                given_negatives=chosen[2:] if i % 4 == 0 else [],
                cluster=f"q{i - i % 2:03d}",
                origin="public" if public else "synthetic",
                task=str(draw.choice(["retrieval", "sts"])),
                source=str(draw.choice(["s", "t"])),
            )
        )
    mined, _ = mine_by_hand(tmp_path, model, queries, documents, negatives=6)
    for asked in queries:
        found, expected = mined[asked["query_id"]], brute_force(asked, queries, documents, 6)
        assert found["negatives"] == expected, asked


def brute_force(asked, queries, documents, count):
    vectors = {
        row[key]: np.float16([np.cos(a), np.sin(a)]).astype(np.float64)
        for rows, key in ((queries, "query_id"), (documents, "doc_id"))
        for row in rows
        for a in [np.deg2rad(row["angle"])]
    }
    by_id = {d["doc_id"]: d for d in documents}
    score = {d: np.float32(vectors[asked["query_id"]] @ vectors[d]) for d in by_id}
    public = asked["origin"] == "public"

    def clusters(rows):
        return {by_id[p]["cluster"] for row in rows for p in row["positives"]}

    seen = [q for q in queries if q["origin"] == "public"] if public else queries
    own = clusters([asked])
    barred = own | clusters(q for q in seen if q["cluster"] == asked["cluster"])
    alike = [q for q in seen if (q["task"], q["source"]) == (asked["task"], asked["source"])]
    if asked["task"] == "retrieval":
        alike = [q for q in seen if q["task"] == "retrieval"]
    named = {d for q in alike for d in q["positives"] + q["given_negatives"]}
    lowest = min(score[p] for p in asked["positives"])
    ceiling = percent_of_positive(np.array([lowest]), 0.95)[0]

    def eligible(d):
        place = (d["task"], d["source"] if d["task"] != "retrieval" else "")
        wanted = (asked["task"], asked["source"] if asked["task"] != "retrieval" else "")
        in_pool = place == wanted or d["doc_id"] in named
        visible = d["origin"] == "public" or not public
        return in_pool and visible and d["cluster"] not in barred and score[d["doc_id"]] <= ceiling

    given = [d for d in asked["given_negatives"] if by_id[d]["cluster"] not in own]
    rest = [d["doc_id"] for d in documents if eligible(d) and d["doc_id"] not in given]
    order = {d["doc_id"]: i for i, d in enumerate(documents)}
    return (given + sorted(rest, key=lambda d: (-score[d], order[d])))[:count]


def test_a_query_without_positives_is_an_error(tmp_path, model):
    with pytest.raises(RuntimeError, match="1 queries have no positive, the first in row 0"):
        mine_by_hand(tmp_path, model, [query("q", 0, [])], [document("d", 0)])


def test_vectors_of_another_encoding_are_refused(tmp_path, model):
    with pytest.raises(UserError, match="another encoding"):
        mine_by_hand(
            tmp_path, model, [query("q", 0, ["d"])], [document("d", 0)], document_prompt="passage: "
        )


# --- the real encoder --------------------------------------------------------------------------


THINGS = ["whale", "oak tree", "violin", "volcano", "bicycle", "glacier", "bakery", "telescope"]
PLACES = ["Norway", "Peru", "Japan", "Kenya", "Canada"]


def text_rows():
    """Forty documents and a query for each."""
    pairs = [(thing, place) for thing in THINGS for place in PLACES]
    documents = [
        {"doc_id": i, "title": place, "text": f"The oldest {thing} of {place}, and its story."}
        for i, (thing, place) in enumerate(pairs)
    ]
    queries = [
        {"query_id": f"q{i}", "query": f"Where in {place} is the {thing}?", "positives": [i]}
        for i, (thing, place) in enumerate(pairs)
    ]
    return queries, documents


def write_rows(folder: Path, queries, documents):
    folder.mkdir(parents=True, exist_ok=True)
    names = str(folder / "queries.parquet"), str(folder / "documents.parquet")
    for name, rows in zip(names, (queries, documents), strict=True):
        pq.write_table(pa.Table.from_pylist(rows), name)
    return names


def test_files_give_what_brute_force_with_sentence_transformers_gives(tmp_path, minilm):
    from sentence_transformers import SentenceTransformer

    queries, documents = text_rows()
    copied = "  The oldest whale of   Norway, and its story. "  # document 0 under another id
    documents.append({"doc_id": 900, "title": "Norway", "text": copied})
    queries.append({"query_id": "again", "query": queries[0]["query"] + " ", "positives": [39]})
    names = write_rows(tmp_path, queries, documents)
    result = mine_files(*names, str(tmp_path / "out"), encoder=minilm, negatives=10)
    mined = pq.read_table(tmp_path / "out" / "mined.parquet").to_pylist()
    assert [row["query_id"] for row in mined] == [row["query_id"] for row in queries]

    encoder = SentenceTransformer(minilm, device="cpu", local_files_only=True)
    left = encoder.encode([q["query"] for q in queries], normalize_embeddings=True)
    texts = [f"{d['title']}\n{d['text']}" for d in documents]
    right = encoder.encode(texts, normalize_embeddings=True)
    ids = [d["doc_id"] for d in documents]
    twins = {0: {39, 900}, 39: {0}, 40: {0, 900}}
    for number, (row, scores) in enumerate(zip(mined, left @ right.T, strict=True)):
        positive = row["positives"][0]
        assert row["positive_scores"][0] == pytest.approx(scores[ids.index(positive)], abs=1e-5)
        barred = {positive} | twins.get(number, set())
        ceiling = 0.95 * scores[ids.index(positive)]
        order = np.argsort(-scores.round(5), kind="stable")
        expected = [ids[i] for i in order if ids[i] not in barred and scores[i] <= ceiling][:10]
        assert row["negatives"] == expected
        assert all(s <= 0.95 * row["positive_scores"][0] for s in row["negative_scores"])
    assert result["queries"] == 41 and result["documents"] == 41
    assert result["negatives"] == sum(len(row["negatives"]) for row in mined)
    assert sorted(os.listdir(tmp_path / "out")) == ["mined.parquet"]


def test_near_copies_of_a_positive_are_never_its_negatives(tmp_path, minilm):
    story = (
        "The oldest whale of Norway was seen first by three fishermen near the harbour of Bergen."
    )
    documents = [
        {"doc_id": "original", "text": story},
        {"doc_id": "copy", "text": story.replace("seen first", "first seen").upper()},
        {"doc_id": "bakery", "text": "A bakery in Bergen sells whale cookies from Norway."},
        {"doc_id": "glacier", "text": "Glaciers of Peru melt."},
    ]
    queries = [{"query_id": 7, "query": "whale near Bergen harbour", "positives": ["original"]}]
    result = mine_files(
        *write_rows(tmp_path, queries, documents), str(tmp_path / "out"), encoder=minilm, margin=1
    )
    row = pq.read_table(tmp_path / "out" / "mined.parquet").to_pylist()[0]
    assert row["query_id"] == 7 and set(row["negatives"]) == {"bakery", "glacier"}
    assert result["near_duplicates_kept_out"] == 1  # it scores below its original


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, d: q[0].update(positives=[77]), r"not among the documents, such as 77 \(of que"),
        (lambda q, d: d[1].update(doc_id=0), "1 values of doc_id that are empty or stand more"),
        (lambda q, d: q[1].update(query_id="q0"), "1 values of query_id .* such as q0"),
        (lambda q, d: [row.pop("text") for row in d], r"missing: text"),
        (lambda q, d: [row.update(positives="0") for row in q], "positives of type string"),
        (lambda q, d: [row.update(doc_id=0.5) for row in d], "doc_id of type double"),
        (lambda q, d: [row.update(text=" ") for row in d], "40 usable queries, 0 usable documents"),
    ],
)
def test_mistakes_in_the_files_are_named_before_encoding(tmp_path, model, change, message):
    queries, documents = text_rows()
    change(queries, documents)
    names = write_rows(tmp_path, queries, documents)
    with pytest.raises(UserError, match=message):
        mine_files(*names, str(tmp_path / "out"), encoder=model)
    assert not (tmp_path / "out").exists()


def test_a_missing_model_and_a_margin_out_of_range_are_named(tmp_path, model):
    names = write_rows(tmp_path, *text_rows())
    with pytest.raises(UserError, match="no model folder"):
        mine_files(*names, str(tmp_path / "out"), encoder=str(tmp_path / "absent"))
    with pytest.raises(UserError, match="margin 95"):
        mine_files(*names, str(tmp_path / "out"), encoder=model, margin=95)


def test_a_second_run_encodes_only_what_is_new_and_the_sweep_nothing(tmp_path, minilm, capsys):
    queries, documents = text_rows()
    names = write_rows(tmp_path, queries, documents)
    cache = str(tmp_path / "cache" / "embeddings")
    mine_files(*names, str(tmp_path / "a"), encoder=minilm, negatives=4, cache=cache)
    before = vectors_in(cache)
    assert before == 80
    options = ["--encoder", minilm, "--negatives", "4", "--cache", str(tmp_path / "cache")]
    options += ["--output", str(tmp_path / "b"), "--margin", "0.8", "--candidates", "20"]
    main(["mine", "--queries", names[0], "--documents", names[1], *options])
    assert vectors_in(cache) == before
    main(["mine", "--sweep", "--output", str(tmp_path / "b"), "--negatives", "4"])
    swept = json.loads((tmp_path / "b" / "sweep.json").read_text())
    mined = pq.read_table(tmp_path / "b" / "mined.parquet")["negatives"].to_pylist()
    assert swept[0]["margin"] == 0.8
    assert swept[0]["queries_with_enough"] == sum(len(row) == 4 for row in mined)
    documents[3]["text"] += " A new sentence."
    names = write_rows(tmp_path, queries, documents)
    mine_files(*names, str(tmp_path / "c"), encoder=minilm, negatives=4, cache=cache)
    assert vectors_in(cache) == before + 1


def vectors_in(cache: str) -> int:
    """Distinct texts in all spaces of a cache."""
    spaces = [
        EmbeddingCache(cache, json.loads(p.read_text())) for p in Path(cache).rglob("key.json")
    ]
    return sum(space.rows() for space in spaces)


def test_rows_without_text_or_positives_are_set_aside(tmp_path, minilm):
    queries, documents = text_rows()
    queries += [{"query_id": "blank", "query": " ", "positives": [1]}]
    queries += [{"query_id": "lonely", "query": "What?", "positives": []}]
    documents.append({"doc_id": 41, "title": None, "text": None})
    names = write_rows(tmp_path, queries, documents)
    result = mine_files(*names, str(tmp_path / "out"), encoder=minilm, negatives=2)
    bad = pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    assert [(row["source"], row["reason"]) for row in bad] == [
        ("documents", "text_empty"),
        ("queries", "query_empty"),
        ("queries", "no_positive"),
    ]
    assert (result["queries"], result["documents"], result["quarantined"]) == (40, 40, 3)


def text_steps(encoder, *, actors=1, **options):
    """Queries and documents in shards of 8 rows, so that mining has many units."""
    asked, docs = text_rows()
    documents = [document(f"{d['doc_id']:02d}", 0, text=d["text"]) for d in docs]
    queries = [
        query(q["query_id"], 0, [f"{q['positives'][0]:02d}"], query=q["query"]) for q in asked
    ]
    write = partial(write_tables, queries=queries, documents=documents, rows_per_shard=8)
    deduped = Step(name="deduped", version=1, config={}, inputs={}, work=write)
    return [deduped, mine_negatives(deduped, encoder=encoder, actors=actors, threads=1, **options)]


def shard_digests(output):
    manifest = read_manifest(Folder(str(output)).folder("steps/mine"))
    return [(shard.name, shard.sha256) for shard in manifest.shards]


@pytest.mark.slow
def test_same_bytes_on_any_number_of_workers_though_one_dies(tmp_path, minilm, ray_session):
    run_steps(text_steps(minilm), str(tmp_path / "local"), executor="local")
    output = tmp_path / "two"
    with killing_an_actor(after=output / "steps" / "mine" / "commits") as killed:
        steps = text_steps(minilm, actors=2, documents_per_unit=16)
        run_steps(steps, str(output), executor="ray")
    assert killed
    digests = shard_digests(tmp_path / "local")
    assert len(digests) == 20  # vectors, mined rows and their counts, five shards each
    assert shard_digests(output) == digests


@contextlib.contextmanager
def killing_an_actor(after: Path):
    """Kill -9 for the first actor of Ray Data that is seen once there is a commit in `after`."""
    killed, done = [], threading.Event()

    def watch():
        while not done.is_set() and not killed:
            if any(after.glob("*.json")):
                for process in ray_processes("MapWorker")[:1]:
                    process.kill()
                    killed.append(process.pid)
            done.wait(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


DRIVER = """
import sys
sys.path.insert(0, {tests!r})
from test_mine import text_steps
from datagen.steps import run_steps
run_steps(text_steps({encoder!r}), {output!r}, executor="local")
"""


@pytest.mark.slow
def test_a_killed_run_resumes_without_encoding_again(tmp_path, minilm):
    run_steps(text_steps(minilm), str(tmp_path / "whole"), executor="local")
    output = tmp_path / "killed"
    place = {"tests": str(Path(__file__).parent), "encoder": minilm, "output": str(output)}
    run = subprocess.Popen([sys.executable, "-c", DRIVER.format(**place)])
    commits = output / "steps" / "mine" / "commits"
    while run.poll() is None and len(list(commits.glob("embed-*.json"))) < 3:
        os.sched_yield()
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = {path.name: path.stat().st_mtime_ns for path in commits.glob("embed-*.json")}
    assert 3 <= len(done) < 11
    names = [f"document_embeddings-{i:05d}.arrow" for i in range(3)]
    before = [(output / "steps" / "mine" / name).stat().st_mtime_ns for name in names]
    run_steps(text_steps(minilm), str(output), executor="local")
    assert shard_digests(output) == shard_digests(tmp_path / "whole")
    after = [(output / "steps" / "mine" / name).stat().st_mtime_ns for name in names]
    assert after == before
