"""The whole step on real documents' places, quotas and selection; LLMs are real HTTP servers."""

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
from endpoint_server import TEST, EndpointServer
from writing_server import reply

from datagen.schema import DOCUMENT, QUERY, UserError, document_id, query_id
from datagen.steps import Context, Manifest, Step, run_steps
from datagen.store import Folder, read_table
from datagen.synthesize import LLM, Knobs, synthesize
from datagen.synthesize.prompts import load_prompt
from datagen.synthesize.step import plan_of, shared_out

SUBJECTS = [
    "lighthouse", "tram", "bakery", "owl", "glacier", "loom", "violin", "orchard", "ferry", "mine",
]  # fmt: skip


def documents_step(count: int = 60) -> Step:
    """Public documents that all differ, and one query."""

    def work(context: Context) -> None:
        rows = []
        for i in range(count):
            text = f"The {SUBJECTS[i % 10]} number {i} stands where {i * 7} people of the town of "
            text += f"Northern {SUBJECTS[i // 10]} come by every morning before the market opens."
            key = document_id(None, text)
            rows.append(
                {"doc_id": key, "cluster": key, "text": text, "source": "towns", "title": None}
                | {"origin": "public", "task": "retrieval", "language": "eng", "script": "Latn"}
            )
        table = pa.Table.from_pylist(rows, schema=DOCUMENT)
        context.write("documents", table, DOCUMENT, rows_per_shard=25)
        query = query_id("retrieval", "Where is the market of the town?", "")
        public = {"query_id": query, "source": "towns", "task": "retrieval", "origin": "public"}
        public |= {"language": "eng", "script": "Latn", "query": "Where is the market of the town?"}
        public |= {"positives": [rows[0]["doc_id"]], "given_negatives": [], "cluster": query}
        context.write("queries", pa.Table.from_pylist([public], QUERY), QUERY, rows_per_shard=10)

    return Step(name="documents", version=1, config={"count": count}, inputs={}, work=work)


def served(server: EndpointServer, name: str, **fields: Any) -> LLM:
    defaults: dict[str, Any] = {"model": "small", "licence": "MIT", "endpoint": server.url}
    defaults |= {"num_cpus": 0.5, "max_concurrency": 16, "max_model_len": 4096}
    return LLM(name=name, **(defaults | fields))


def written(
    output: Path,
    llms: list[LLM],
    *,
    executor: Literal["ray", "local"] = "local",
    rows: int = 24,
    **options: Any,
) -> tuple[Manifest, list[dict[str, Any]]]:
    documents = documents_step()
    step = synthesize(
        documents,
        tasks=None,
        llms=llms,
        cache="",
        rows={"retrieval": rows},
        block_requests=8,
        **options,
    )
    manifest = run_steps([documents, step], str(output), executor=executor)["synthesize"]
    folder = Folder(f"{output}/steps/synthesize")
    return manifest, read_table(folder, "pairs").to_pylist() if manifest.table("pairs") else []


def paid(server: EndpointServer) -> int:
    return sum(count for words, count in server.answered.items() if words != TEST)


def test_quotas_are_met_exactly_and_every_row_says_who_wrote_it(tmp_path: Path) -> None:
    with EndpointServer(reply=reply) as one, EndpointServer(reply=reply) as two:
        llms = [served(one, "One"), served(two, "Two", share=2.0)]
        manifest, rows = written(tmp_path, llms)
    assert Counter(row["provenance"]["llm"] for row in rows) == {"One": 8, "Two": 16}
    assert manifest.stats["missing"] == {"One": {}, "Two": {}}
    for row in rows:
        assert row["origin"] == "synthetic" and row["licence"] == "MIT"
        facts = row["provenance"]
        assert facts["prompt"] == load_prompt("doc2query").id
        assert facts["seed_document"] == document_id(None, row["text"])
        assert facts["row"].startswith(f"{facts['llm'].lower()}/retrieval/")
    assert sum(record["kept"] for record in manifest.stats["llms"]) == len(rows) == 24
    for record in manifest.stats["llms"]:
        assert record["requested"] == record["kept"] + sum(record["reasons"].values())


def test_the_same_rows_on_ray_and_in_one_process(tmp_path: Path, ray_session: None) -> None:
    found = []
    for executor in ("local", "ray"):
        with EndpointServer(reply=reply) as one, EndpointServer(reply=reply) as two:
            llms = [served(one, "One"), served(two, "Two", replicas=2)]
            found.append(written(tmp_path / executor, llms, executor=executor)[1])
    assert found[0] == found[1]


def test_adding_an_llm_pays_for_its_quota_only(tmp_path: Path) -> None:
    with EndpointServer(reply=reply) as one, EndpointServer(reply=reply) as two:
        written(tmp_path, [served(one, "One")], rows=12)
        before = paid(one)
        start_again(tmp_path)
        _, rows = written(tmp_path, [served(one, "One"), served(two, "Two")], rows=24)
        assert paid(one) == before and paid(two) > 0
    assert Counter(row["provenance"]["llm"] for row in rows) == {"One": 12, "Two": 12}


def test_another_prompt_is_paid_for_and_the_old_one_is_still_there(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    text = (Path("datagen/synthesize/prompts/doc2query.yaml")).read_text()
    own.write_text(text.replace("You write search queries.", "You write queries for a search."))
    with EndpointServer(reply=reply) as one:
        written(tmp_path / "o", [served(one, "One")], rows=8)
        first = paid(one)
        start_again(tmp_path / "o")
        written(tmp_path / "o", [served(one, "One")], rows=8, own_prompts={"doc2query": str(own)})
        assert paid(one) >= first + 8
        second = paid(one)
        start_again(tmp_path / "o")
        written(tmp_path / "o", [served(one, "One")], rows=8)
        assert paid(one) == second


def start_again(output: Path) -> None:
    """Delete the step, as its error says where its configuration has changed."""
    import shutil

    shutil.rmtree(output / "steps" / "synthesize")


def test_rows_like_others_are_asked_for_again(tmp_path: Path) -> None:
    """A parrot: of what is said over and over one row stays, and the quota is not met."""
    query = '{"query": "which lighthouse stands where people come by every morning in the town"}'
    with EndpointServer(reply=lambda body: query) as one:
        manifest, rows = written(tmp_path, [served(one, "One")], rows=4, grounded=False)
    assert len(rows) == 1
    (record,) = manifest.stats["llms"]
    assert record["requested"] > 4
    assert record["reasons"]["near_duplicate"] + record["reasons"].get("duplicate", 0) > 2
    assert manifest.stats["missing"] == {"One": {"retrieval": 3}}


def test_a_row_in_another_language_is_rejected(tmp_path: Path) -> None:
    german = "wer wohnt eigentlich neben dem alten Leuchtturm am Hafen der kleinen Stadt lighthouse"
    with EndpointServer(reply=lambda body: '{"query": "' + german + '"}') as one:
        manifest, rows = written(tmp_path, [served(one, "One")], rows=2, grounded=False)
    assert rows == []
    assert set(manifest.stats["llms"][0]["reasons"]) <= {
        "other_language",
        "longer_than_asked",
        "duplicate",
    }


def test_a_plan_measures_a_sample_that_is_not_paid_for_again(tmp_path: Path) -> None:
    with EndpointServer(reply=reply, seconds=lambda words: 0.02) as one:
        llm = served(one, "One", prompt_price=1.0, output_price=4.0)
        documents = documents_step()
        step = synthesize(
            documents, tasks=None, llms=[llm], cache="", rows={"retrieval": 30}, block_requests=8
        )
        planned = plan_of(step, sample=10)
        stats = run_steps([documents, planned], str(tmp_path), executor="local")[planned.name].stats
        kind, whole = stats["plan"]
        assert (kind["kind"], whole["kind"]) == ("retrieval", "all")
        assert kind["rows"] == 30 and kind["requests"] >= 30
        # The server counts 11 tokens a prompt and 7 an answer.
        assert kind["prompt_tokens"] == 11 * kind["requests"]
        assert kind["money"] == pytest.approx(kind["requests"] * (11 + 4 * 7) / 1e6, abs=0.01)
        assert paid(one) == 10
        run_steps([documents, step], str(tmp_path), executor="local")
        assert max(count for words, count in one.attempts.items() if words != TEST) == 1


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"rows": {"poetry": 3}}, "poetry"),
        ({"rows": {}}, "no kind"),
        ({"rows": {"classification": 3}}, "without tasks: classification"),
        ({"rows": {"retrieval": 0}}, "retrieval 0"),
        ({"own_prompts": {"doc2query": "gone.yaml"}}, "gone.yaml"),
    ],
)
def test_mistakes_are_found_before_anything_is_asked(options: dict[str, Any], found: str) -> None:
    llm = LLM(name="One", model="smollm2-135m-instruct", licence="Apache-2.0")
    given = {"rows": {"retrieval": 3}, **options}
    with pytest.raises(UserError, match=found) as raised:
        synthesize(documents_step(), tasks=None, llms=[llm], cache="", **given)
    assert raised.value.exit_status == 2


def test_a_language_that_does_not_exist() -> None:
    with pytest.raises(UserError, match="xqz"):
        Knobs(languages=("eng", "xqz"))


@pytest.mark.parametrize(
    ("shares", "rows"), [((1, 1, 1), [4, 3, 3]), ((2, 1), [7, 3]), ((0, 1), [0, 10])]
)
def test_rows_are_shared_out_to_the_last(shares: tuple[float, ...], rows: list[int]) -> None:
    llms = [LLM(name=f"L{i}", model="m", licence="MIT", share=s) for i, s in enumerate(shares)]
    assert sorted(shared_out(10, llms)) == sorted(rows) and sum(shared_out(10, llms)) == 10
