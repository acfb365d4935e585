"""An LLM as the judge of mined negatives; most of them are real HTTP servers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from endpoint_server import EndpointServer
from hand_made import document, query, steps_by_hand
from hand_made import model as model
from test_synthesize_step import paid, served

from datagen.cli import main
from datagen.judge_negatives import NegativeJudge, draw_negatives, judge_negatives
from datagen.report_tables import FACTS, check_tables
from datagen.schema import MINED, UserError
from datagen.steps import run_steps
from datagen.store import Folder, read_table, verify
from datagen.synthesize.llm import LLM

LATER = "It is a document about the number {}."


def says(body: Mapping[str, Any]) -> str:
    """A document answers when its number is odd; 8 and 9 are answered with prose, as is a test."""
    said = body["messages"][-1]["content"]
    if "Document: " not in said:
        return json.dumps({"reason": "a test", "score": 0, "answers": "no"})
    number = int(said.split("number ")[1].split(".")[0])
    if number in (8, 9):
        return "Let me think about it."
    odd = number % 2 == 1
    score, answers = (3, "yes") if odd else (1, "no")
    return json.dumps({"reason": f"number {number}", "score": score, "answers": answers})


def about_the_nile(body: Mapping[str, Any]) -> str:
    """A document about the Nile answers a question about it."""
    said = body["messages"][-1]["content"].split("Query: ")[-1]
    yes = said.count("Nile") > 1
    return json.dumps({"reason": "!", "score": 3 * yes, "answers": "yes" if yes else "no"})


def judged(output: Path, model: str, judge: NegativeJudge) -> tuple[list[dict[str, Any]], Any]:
    """Verdicts and manifest of two queries with 8 negatives each; the positives are 21 and 22."""
    documents = [document(f"d{i}", 30 + i, text=LATER.format(i)) for i in range(8, 16)]
    documents += [document(f"p{i}", 0, text=LATER.format(i)) for i in (21, 22)]
    queries = [query("a", 0, ["p21"], query="odd?", language="eng"), query("b", 0, ["p22"])]
    manifest = mine_and_judge(output, model, queries, documents, judge)
    place = Folder(f"{output}/steps/judge_negatives")
    return read_table(place, "judged_negatives").to_pylist(), manifest


def mine_and_judge(output, model, queries, documents, judge: NegativeJudge) -> Any:
    """The manifest of what the judge said."""
    deduped, vectors, mine = steps_by_hand(model, queries, documents)
    steps = [deduped, vectors, mine, judge_negatives(mine, deduped, judge)]
    return run_steps(steps, str(output), executor="local")["judge_negatives"]


def test_verdicts_reasons_estimate_and_ledger(tmp_path, model):
    with EndpointServer(reply=says) as server:
        judge = NegativeJudge(llm=served(server, "Judge"), cache="", sample=100)
        rows, manifest = judged(tmp_path, model, judge)
    negatives = [row for row in rows if row["side"] == "negative"]
    assert {row["doc_id"] for row in negatives} == {f"d{i}" for i in range(10, 16)}
    for row in negatives:
        number = int(row["doc_id"][1:])
        assert (row["answers"], row["reason"]) == (number % 2 == 1, f"number {number}")
        assert row["score"] == (3 if row["answers"] else 1)
        assert row["prompt"].startswith("negative@") and json.loads(row["sampling"])["seed"] == 0
    facts = manifest.stats["judged_negatives"]
    assert (facts["asked"], facts["judged"], facts["negatives"]) == (18, 14, 12)
    assert (facts["false_negatives"], facts["rate"]) == (6, 0.5)
    assert facts["low"] < 0.5 < facts["high"]
    assert (facts["positives"], facts["positives_found"]) == (2, 1)  # 22 is even
    (line,) = [row for row in manifest.ledger if row["source"] == "Judge/negative"]
    assert (line["rows_in"], line["kept"], line["dropped"]) == (18, 14, {"invalid_json": 4})
    assert verify(Folder(f"{tmp_path}/steps/judge_negatives")) == []
    (table,) = check_tables({**dict.fromkeys(FACTS, {}), "judged_negatives": {"judge": facts}})
    assert table["title"] == "judge, judged_negatives" and table["rows"][0]["rate"] == 0.5


def test_nothing_mined_is_nothing_judged(tmp_path, model):
    llm = LLM(name="J", model="m", licence="MIT", endpoint="http://127.0.0.1:9/v1")
    judge = NegativeJudge(llm=llm, cache="")
    manifest = mine_and_judge(tmp_path, model, [query("a", 0, ["p"])], [document("p", 0)], judge)
    facts = manifest.stats["judged_negatives"]
    assert (facts["asked"], facts["judged"], facts["rate"]) == (0, 0, None)


def test_a_larger_sample_asks_only_for_what_is_new(tmp_path, model):
    with EndpointServer(reply=says) as server:
        more = {"llm": served(server, "Judge"), "cache": "", "responses": str(tmp_path / "kept")}
        few, _ = judged(tmp_path / "few", model, NegativeJudge(sample=6, **more))
        before = paid(server)
        again, _ = judged(tmp_path / "again", model, NegativeJudge(sample=6, **more))
        assert again == few and paid(server) - before <= 2  # what had no answer is asked again
        before = paid(server)
        many, manifest = judged(tmp_path / "many", model, NegativeJudge(sample=16, **more))
    assert {row["request"] for row in few} <= {row["request"] for row in many}
    assert paid(server) - before <= manifest.stats["judged_negatives"]["asked"] - len(few)


def test_what_was_mined_before_is_judged_without_mining_again(tmp_path, model, caplog):
    steps = steps_by_hand(model, [query("a", 0, ["p"])], [document("p", 0)])
    run_steps(steps, str(tmp_path), executor="local")
    llm = LLM(name="J", model="m", licence="MIT", endpoint="http://127.0.0.1:9/v1")
    judge = judge_negatives(steps[-1], steps[0], NegativeJudge(llm=llm, cache=""))
    with caplog.at_level("INFO", logger="embedmix"):
        done = run_steps([*steps, judge], str(tmp_path), executor="local")
    assert "mine: up to date" in caplog.text and "judge_negatives: done" in caplog.text
    assert done["judge_negatives"].stats["judged_negatives"]["asked"] == 0


def mined_table(first: int, count: int, negatives: int) -> pa.Table:
    rows = [
        {
            "query_id": f"q{i}", "positives": [f"p{i}"], "positive_scores": [1.0],
            "negatives": [f"n{i}-{j}" for j in range(i % (negatives + 1))],
            "negative_scores": [0.5] * (i % (negatives + 1)),
        }
        for i in range(first, first + count)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=MINED)


def test_the_sample_is_of_single_negatives_each_as_likely_whatever_the_shards():
    llm = LLM(name="J", model="m", licence="MIT", endpoint="http://127.0.0.1:9/v1")
    judge = NegativeJudge(llm=llm, cache="", sample=2000)
    whole = draw_negatives([mined_table(0, 3000, 4)], judge)
    parts = [mined_table(0, 7, 4), mined_table(7, 2000, 4), mined_table(2007, 993, 4)]
    assert draw_negatives(parts, judge) == whole
    drawn = [row for row in whole if row["side"] == "negative"]
    assert len(drawn) == 2000 == len({row["doc_id"] for row in drawn})
    assert all(row["doc_id"].startswith(f"n{row['query_id'][1:]}-") for row in drawn)
    # 600 queries each with 1 to 4 negatives, 6,000 in all: a third of each is drawn.
    counts = np.bincount([int(row["query_id"][1:]) % 5 for row in drawn], minlength=5)
    assert counts[0] == 0 and np.all(np.abs(counts[1:] / [600, 1200, 1800, 2400] - 1 / 3) < 0.06)
    smaller = draw_negatives(parts, NegativeJudge(llm=llm, cache="", sample=100))
    assert smaller[:100] == whole[:100]
    controls = [row for row in smaller if row["side"] == "positive"]
    assert 0 < len(controls) <= 25
    assert all(row["doc_id"] == f"p{row['query_id'][1:]}" for row in controls)
    other = draw_negatives(parts, NegativeJudge(llm=llm, cache="", sample=100, seed=1))
    assert other[:100] != smaller[:100]
    assert draw_negatives([mined_table(0, 1, 4)], judge) == []


def test_a_judge_that_cannot_be_asked_is_named_before_mining(tmp_path, model):
    good = LLM(name="J", model="m", licence="MIT", endpoint="http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="sample of 0 negatives"):
        judged(tmp_path, model, NegativeJudge(llm=good, cache="", sample=0))
    with pytest.raises(UserError, match="no model"):
        absent = LLM(name="J", model="absent", licence="MIT")
        judged(tmp_path, model, NegativeJudge(llm=absent, cache=""))
    assert not (tmp_path / "steps").exists()


def files(folder: Path) -> list[str]:
    """Three questions, five documents, as the command reads them."""
    texts = [
        "The Nile flows north for 6,650 kilometres and reaches the Mediterranean Sea in Egypt.",
        "Along its 6,650 kilometres the Nile passes through Sudan; it is Africa's longest river.",
        "Bread rises because yeast turns sugar into carbon dioxide, which the dough catches.",
        "Honey bees dance on the comb; the angle of the dance tells the direction of a meadow.",
        "The piano stood in the hall, and my grandmother played it every evening.",
    ]
    documents = [{"doc_id": i, "text": text} for i, text in enumerate(texts)]
    asked = ["How long is the Nile?", "Why does bread rise?", "How do bees talk of a meadow?"]
    queries = [
        {"query_id": f"q{i}", "query": text, "positives": [i if i == 0 else i + 1]}
        for i, text in enumerate(asked)
    ]
    for name, rows in (("q", queries), ("d", documents)):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    return ["--queries", str(folder / "q.parquet"), "--documents", str(folder / "d.parquet")]


def test_the_command_keeps_verdicts_under_the_users_ids(tmp_path, minilm, capsys):
    output, cache = tmp_path / "out", str(tmp_path / "cache")
    mine = ["mine", *files(tmp_path), "--encoder", minilm, "--negatives", "2"]
    with EndpointServer(reply=about_the_nile) as server:
        judge = ["--judge", f"{server.url}#small", "--judge-sample", "4", "--cache", cache]
        assert main([*mine, *judge, "--output", str(output)]) == 0
    result = json.loads(capsys.readouterr().out)
    facts = result["judged_negatives"]
    assert (facts["judged"], facts["negatives"], facts["positives"]) == (5, 4, 1)
    rows = pq.read_table(output / "judged.parquet").to_pylist()
    assert len(rows) == 5 and {type(row["doc_id"]) for row in rows} == {int}
    for row in rows:
        assert row["answers"] == (row["query_id"] == "q0" and row["doc_id"] in (0, 1))
    mined = pq.read_table(output / "mined.parquet").to_pylist()
    known = {row["query_id"]: row["negatives"] for row in mined}
    judged_ones = [row for row in rows if row["side"] == "negative"]
    assert all(row["doc_id"] in known[row["query_id"]] for row in judged_ones)


@pytest.mark.slow
def test_a_real_llm_judges(tmp_path, model, model_cache):
    llm = LLM(name="SmolLM2", model="smollm2-135m-instruct", licence="Apache-2.0")
    rows, manifest = judged(tmp_path, model, NegativeJudge(llm=llm, cache=model_cache, sample=6))
    facts = manifest.stats["judged_negatives"]
    assert facts["asked"] >= 7 and facts["judged"] == len(rows) >= 1
    assert 0 <= facts["low"] <= facts["rate"] <= facts["high"] <= 1
    assert all(row["reason"] and row["score"] in (0, 1, 2, 3) for row in rows)
    # All that the schema held parses: what is missing was cut.
    (line,) = [row for row in manifest.ledger if row["source"] == "SmolLM2/negative"]
    assert not set(line["dropped"]) - {"truncated"}
