"""The round trip and the judge in the whole step; LLMs are real HTTP servers."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import EndpointServer
from test_synthesize_step import documents_step, paid, served, start_again
from writing_server import reply

from datagen.packaged import resolve_model
from datagen.steps import Manifest, Step, run_steps
from datagen.store import Folder, read_table
from datagen.synthesize import Judge, RoundTrip, synthesize
from datagen.synthesize.llm import LLM
from datagen.synthesize.step import plan_of

ASTRAY = "why do volcanoes on the moon of Jupiter throw sulphur into space number"


def half_astray(body: Mapping[str, Any]) -> str:
    """Queries about the document, and for every other document one about something else."""
    said = body["messages"][-1]["content"]
    mark = hashlib.sha256(said.encode()).digest()
    if mark[0] % 2:
        return reply(body)
    return json.dumps({"query": f"{ASTRAY} {mark[1]} {mark[2] * mark[3]} {mark.hex()[:6]}"})


def grades(body: Mapping[str, Any]) -> str:
    """Drops what has an `e` as its second letter, and one in eight answers is no JSON."""
    said = body["messages"][-1]["content"]
    if "Query: " not in said:
        return reply(body)  # the request by which a server is tested
    query = said.split("Query: ")[1]
    mark = hashlib.sha256(query.encode()).digest()[0]
    if mark % 8 == 0:
        return "I think it is fine."
    verdict = "drop" if query[1] == "e" else "keep"
    return json.dumps({"relevance": 4, "naturalness": 4, "verdict": verdict})


def run(
    output: Path, llms: list[LLM], *, executor: str = "local", rows: int = 12, **options: Any
) -> tuple[Manifest, Step]:
    documents = documents_step()
    step = synthesize(
        documents,
        tasks=None,
        llms=llms,
        cache="",
        rows={"retrieval": rows},
        grounded=False,
        block_requests=8,
        **options,
    )
    manifests = run_steps([documents, step], str(output), executor=executor)  # type: ignore[arg-type]
    return manifests["synthesize"], step


def table(output: Path, name: str) -> list[dict[str, Any]]:
    return read_table(Folder(f"{output}/steps/synthesize"), name).to_pylist()


def test_a_query_that_misses_its_document_is_asked_for_again(
    tmp_path: Path, model_cache: str
) -> None:
    encoder, _ = resolve_model("all-minilm-l6-v2", model_cache)
    test = RoundTrip(encoder=encoder, k=5, documents=50)
    with EndpointServer(reply=half_astray) as server:
        manifest, step = run(tmp_path, [served(server, "One")], round_trip=test)
    rows = table(tmp_path, "pairs")
    ranks = {row["request"]: row["rank"] for row in table(tmp_path, "ranks")}
    gone = [row for row in table(tmp_path, "unselected") if row["reason"] == "round_trip"]
    assert len(rows) == 12
    assert all(ranks[row["provenance"]["row"]] <= 5 for row in rows)
    assert all(ranks[row["row"]] > 5 for row in gone)
    astray = sum(ASTRAY in row["record"] for row in gone)
    assert astray > 3 > sum(ASTRAY in row["query"] for row in rows)
    (record,) = manifest.stats["llms"]
    assert record["reasons"]["round_trip"] == len(gone)
    assert manifest.stats["round_trip"]["round_trip"] == len(gone)
    assert step.config["round_trip"] | {"encoder": ""} == {
        "encoder": "", "languages": ["eng"], "k": 5, "documents": 50, "dtype": "float32",
        "stored": "float16", "query_prompt": "", "document_prompt": "",
    }  # fmt: skip


@pytest.mark.slow
def test_ranks_are_the_same_in_actors(tmp_path: Path, model_cache: str, ray_session: None) -> None:
    encoder, _ = resolve_model("all-minilm-l6-v2", model_cache)
    found = []
    for executor in ("local", "ray"):
        with EndpointServer(reply=reply) as server:
            test = RoundTrip(encoder=encoder, documents=50)
            llms = [served(server, "One")]
            run(tmp_path / executor, llms, executor=executor, rows=4, round_trip=test)
        found.append([table(tmp_path / executor, name) for name in ("pairs", "ranks")])
    assert found[0] == found[1]


def test_a_judge_of_the_pool_drops_rows_and_is_paid_once(tmp_path: Path, ray_session: None) -> None:
    with EndpointServer(reply=reply) as one, EndpointServer(reply=grades) as two:
        llms = [served(one, "One"), served(two, "Two", share=0.0)]
        manifest, _ = run(tmp_path, llms, executor="ray", judge=Judge(llm="Two"))
        rows, judged = table(tmp_path, "pairs"), table(tmp_path, "judged")
        verdicts = {row["written"]: row["verdict"] for row in judged}
        kept = {row["provenance"]["row"] for row in rows}
        assert len(rows) == 12
        assert not [
            row for row in rows if row["query"][1] == "e" and row["provenance"]["row"] in verdicts
        ]
        assert {verdicts.get(request, "keep") for request in kept} == {"keep"}
        facts = manifest.stats["judge"]
        assert facts["judged_low"] == list(verdicts.values()).count("drop") > 0
        assert (
            facts["judged"] == len(judged) < facts["rows"]
        )  # an answer that is no JSON drops none
        assert manifest.stats["llms"][0]["reasons"]["judged_low"] == facts["judged_low"]
        assert len(table(tmp_path, "judge_asked")) == facts["rows"]

        # Again, with a milder judge: nothing is answered twice that had an answer.
        before = paid(two)
        start_again(tmp_path)
        again, _ = run(tmp_path, llms, judge=Judge(llm="Two", lowest=2), rows=4)
        assert again.stats["judge"]["judged"] > 0
        assert paid(two) == before


def test_a_plan_counts_what_the_judge_drops_and_what_it_takes(tmp_path: Path) -> None:
    with EndpointServer(reply=reply) as one, EndpointServer(reply=grades) as two:
        llms = [served(one, "One"), served(two, "Two", share=0.0, output_price=1000.0)]
        documents = documents_step()
        step = synthesize(
            documents,
            tasks=None,
            llms=llms,
            cache="",
            rows={"retrieval": 40},
            grounded=False,
            judge=Judge(llm="Two"),
        )
        planned = plan_of(step, sample=16)
        stats = run_steps([documents, planned], str(tmp_path), executor="local")[planned.name].stats
    records = {(record["llm"], record["kind"]): record for record in stats["plan"]}
    written, judged = records["One", "retrieval"], records["Two", "judge"]
    assert stats["judge"]["judged_low"] > 0
    assert written["yield"] <= 1 - stats["judge"]["judged_low"] / 16
    assert 40 <= judged["rows"] <= written["requests"]
    assert judged["money"] > 0
